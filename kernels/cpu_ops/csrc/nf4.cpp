// NF4 matmul in float32, and decoding.

#include <memory>

#include "nf4_block.hpp"
#include "nf4_rows.hpp"

namespace multiflora {
namespace {

struct Float32 {
  using Value = float;
  static constexpr int kValues = 8;  // of one row for an octet
  const Codebook codebook;

  template <int ROWS, int TILES>
  INLINE void add_octet(const uint8_t* codes, int64_t code_stride, const float* x, int64_t stride,
                        Wide* sum) const {
    constexpr int STEP = kRegisters < 32 ? 1 : TILES;  // tiles in step
    for (int first = 0; first < TILES; first += STEP) {
      Octet octets[STEP];
      for (int t = 0; t < STEP; ++t) octets[t] = codebook.fetch(codes + (first + t) * code_stride);
      add_pair<ROWS, TILES, STEP, 0>(octets, x, stride, sum + first);
      add_pair<ROWS, TILES, STEP, 1>(octets, x, stride, sum + first);
      add_pair<ROWS, TILES, STEP, 2>(octets, x, stride, sum + first);
      add_pair<ROWS, TILES, STEP, 3>(octets, x, stride, sum + first);
    }
  }

  // Columns 2 * PAIR and 2 * PAIR + 1 of STEP tiles, which share each value once it is spread.
  template <int ROWS, int TILES, int STEP, int PAIR>
  INLINE void add_pair(const Octet* octets, const float* x, int64_t stride, Wide* sum) const {
    Wide w[STEP][2];
    for (int t = 0; t < STEP; ++t) codebook.decode<PAIR>(octets[t], w[t]);
    for (int c = 0; c < 2; ++c)
      for (int r = 0; r < ROWS; ++r) {
        const Wide value = spread_wide(x + r * stride + 2 * PAIR + c);
        for (int t = 0; t < STEP; ++t)
          sum[r * TILES + t] = multiply_add(value, w[t][c], sum[r * TILES + t]);
      }
  }
};

#ifdef MULTIFLORA_AVX512

// Decoding is cheap enough to be repeated every four rows.
void multiply(const float* x, const uint8_t* codes, const float* absmax, float* y,
              int64_t num_rows, int64_t num_features, int64_t num_columns) {
  multiply_by_rows<Float32, 4, 4>(x, codes, absmax, y, num_rows, num_features, num_columns);
}

#else

// codes of 64 columns -> tile [64][16], unscaled.
INLINE void decode(const uint8_t* codes, const Codebook& codebook, float* tile) {
  for (int64_t k = 0; k < kBlock; k += 8) {
    Wide w[8];
    decode_octet(codes + k / 8 * kOctet, codebook, w);
    for (int i = 0; i < 8; ++i) store(tile + (k + i) * kTile, w[i]);
  }
}

// One tile for more rows than registers: it is decoded into the first-level cache.
void many_rows(const float* packed, int64_t num_rows, const uint8_t* codes, const float* absmax,
               float* y, int64_t y_stride, int64_t rows, int64_t num_blocks) {
  alignas(32) float tile[kBlock * kTile];
  alignas(32) float total[kRowBlock * kTile] = {};
  const Codebook codebook;
  for (int64_t block = 0; block < num_blocks; ++block) {
    decode(codes + block * kBlock / 8 * kOctet, codebook, tile);
    accumulate_rows(packed + block * num_rows * kBlock, rows, tile, absmax + block * kTile, total);
  }
  for (int64_t r = 0; r < rows; ++r) store(y + r * y_stride, load_wide(total + r * kTile));
}

void many_rows_of_all(const float* x, const uint8_t* codes, const float* absmax, float* y,
                      int64_t num_rows, int64_t num_features, int64_t num_columns) {
  const int64_t num_tiles = num_features / kTile, num_blocks = num_columns / kBlock;
  const std::unique_ptr<float[]> packed(new float[num_rows * num_columns]);
  const bool is_large = num_rows * num_features * num_columns > kSerial;
  parallel_for(num_rows, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row)
      for (int64_t block = 0; block < num_blocks; ++block)
        __builtin_memcpy(packed.get() + (block * num_rows + row) * kBlock,
                         x + row * num_columns + block * kBlock, kBlock * sizeof(float));
  });
  parallel_for(num_tiles, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; ++tile)
      for (int64_t row = 0; row < num_rows; row += kRowBlock)
        many_rows(packed.get() + row * kBlock, num_rows, codes + tile * num_columns / 8 * kOctet,
                  absmax + tile * num_blocks * kTile, y + row * num_features + tile * kTile,
                  num_features, smaller(kRowBlock, num_rows - row), num_blocks);
  });
}

void multiply(const float* x, const uint8_t* codes, const float* absmax, float* y,
              int64_t num_rows, int64_t num_features, int64_t num_columns) {
  if (num_rows <= 2)
    multiply_by_rows<Float32, 2, 2>(x, codes, absmax, y, num_rows, num_features, num_columns);
  else if (num_rows <= 4)
    multiply_by_rows<Float32, 4, 1>(x, codes, absmax, y, num_rows, num_features, num_columns);
  else
    many_rows_of_all(x, codes, absmax, y, num_rows, num_features, num_columns);
}

#endif

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

// y[M][N] = x[M][K] @ W.T; codes [N/16][K/4][32], absmax [N/16][K/64][16].
void multiflora_nf4_matmul_float32(const float* x, const uint8_t* codes, const float* absmax,
                                   float* y, int64_t num_rows, int64_t num_features,
                                   int64_t num_columns) {
  multiply(x, codes, absmax, y, num_rows, num_features, num_columns);
}

// w[N][K] = W, decoded.
void multiflora_nf4_unpack(const uint8_t* codes, const float* absmax, float* w,
                           int64_t num_features, int64_t num_columns) {
  const int64_t num_tiles = num_features / kTile, num_blocks = num_columns / kBlock;
  parallel_for(num_tiles, num_features * num_columns > kSerial, [&](int64_t start, int64_t stop) {
    const Codebook codebook;
    for (int64_t tile = start; tile < stop; ++tile)
      for (int64_t k = 0; k < num_columns; k += 8)
        unpack_octet(codes + (tile * num_columns + k) / 8 * kOctet, codebook,
                     absmax + (tile * num_blocks + k / kBlock) * kTile,
                     w + tile * kTile * num_columns + k, num_columns);
  });
}

}  // extern "C"
