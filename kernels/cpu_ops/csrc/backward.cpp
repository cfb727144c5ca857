// What flows back through a matmul: x = y @ W, without a decoded, widened or transposed copy of W.

#include <memory>

#include "nf4_block.hpp"
#include "parallel.hpp"

namespace multiflora {
namespace {

constexpr int64_t kRowBlock = 128;           // rows that share decoded weights
constexpr int64_t kParts = kBlock / kTile;   // parts of 16 columns in a square, tiles of features
constexpr int64_t kSquare = kBlock * kTile;  // weights of a part: 64 features by 16 columns

// Matrices give squares of 64 features by 64 columns as parts [4][64][16]; what lies beyond the last
// feature is zero.

struct Nf4 {
  const uint8_t* codes;  // [N/16][K/4][32]
  const float* absmax;   // [N/16][K/64][16]
  int64_t num_features, num_columns;
  const Codebook codebook;

  INLINE void square(int64_t row, int64_t column, float* parts) const {
    const int64_t tile = row / kTile, num_tiles = num_features / kTile;
    for (int64_t t = 0; t < kParts; ++t)
      for (int64_t octet = 0; octet < kBlock / 8; ++octet) {
        float* place = parts + octet / 2 * kSquare + t * kTile * kTile + octet % 2 * 8;
        if (tile + t < num_tiles)
          unpack_octet(codes + ((tile + t) * num_columns + column + 8 * octet) / 8 * kOctet, codebook,
                       absmax + ((tile + t) * num_columns + column) / kBlock * kTile, place, kTile);
        else
          for (int64_t i = 0; i < kTile; ++i) store(place + i * kTile, zero());
      }
  }
};

template <typename W>
struct Dense {
  const W* w;  // [N][K]
  int64_t num_features, num_columns;

  INLINE void square(int64_t row, int64_t column, float* parts) const {
    for (int64_t f = 0; f < kBlock; ++f)
      for (int64_t part = 0; part < kParts; ++part)
        for (int64_t half = 0; half < kTile; half += kLanes) {
          const W* place = w + (row + f) * num_columns + column + part * kTile + half;
          store(parts + part * kSquare + f * kTile + half,
                row + f < num_features ? load(place) : zero());
        }
  }
};

// x[rows][64] of one block of columns; `packed` is y as [N / 64][num_rows][64].
template <typename MATRIX>
void flow_back(const MATRIX& matrix, const float* packed, int64_t num_rows, int64_t rows,
               int64_t column, float* x) {
  alignas(64) float parts[kParts * kSquare];
  alignas(64) float total[kParts][kRowBlock * kTile] = {};
  alignas(64) float ones[kTile];
  for (float& one : ones) one = 1;
  for (int64_t row = 0; row < matrix.num_features; row += kBlock) {
    matrix.square(row, column, parts);
    for (int64_t part = 0; part < kParts; ++part)
      accumulate_rows(packed + row * num_rows, rows, parts + part * kSquare, ones, total[part]);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t part = 0; part < kParts; ++part)
      store(x + r * matrix.num_columns + column + part * kTile, load_wide(total[part] + r * kTile));
}

template <typename MATRIX>
void flow_all_back(const MATRIX& matrix, const float* y, float* x, int64_t num_rows) {
  const int64_t num_features = matrix.num_features, num_columns = matrix.num_columns;
  const int64_t num_blocks = (num_features + kBlock - 1) / kBlock;
  const std::unique_ptr<float[]> packed(new float[num_blocks * num_rows * kBlock]);
  const bool is_large = num_rows * num_features * num_columns > kSerial;
  parallel_for(num_blocks, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t block = start; block < stop; ++block) {
      const int64_t count = smaller(kBlock, num_features - block * kBlock);
      for (int64_t row = 0; row < num_rows; ++row) {
        float* place = packed.get() + (block * num_rows + row) * kBlock;
        __builtin_memcpy(place, y + row * num_features + block * kBlock, count * sizeof(float));
        for (int64_t i = count; i < kBlock; ++i) place[i] = 0;
      }
    }
  });
  parallel_for(num_columns / kBlock, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t block = start; block < stop; ++block)
      for (int64_t row = 0; row < num_rows; row += kRowBlock)
        flow_back(matrix, packed.get() + row * kBlock, num_rows, smaller(kRowBlock, num_rows - row),
                  block * kBlock, x + row * num_columns);
  });
}

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

// x[M][K] = y[M][N] @ W; codes [N/16][K/4][32], absmax [N/16][K/64][16].
void multiflora_nf4_backward(const float* y, const uint8_t* codes, const float* absmax, float* x,
                             int64_t num_rows, int64_t num_features, int64_t num_columns) {
  flow_all_back(Nf4{codes, absmax, num_features, num_columns, {}}, y, x, num_rows);
}

// x[M][K] = y[M][N] @ w[N][K], K a multiple of 64.
void multiflora_dense_backward_float32(const float* y, const float* w, float* x, int64_t num_rows,
                                       int64_t num_features, int64_t num_columns) {
  flow_all_back(Dense<float>{w, num_features, num_columns}, y, x, num_rows);
}

void multiflora_dense_backward_bfloat16(const float* y, const uint16_t* w, float* x,
                                        int64_t num_rows, int64_t num_features,
                                        int64_t num_columns) {
  flow_all_back(Dense<uint16_t>{w, num_features, num_columns}, y, x, num_rows);
}

}  // extern "C"
