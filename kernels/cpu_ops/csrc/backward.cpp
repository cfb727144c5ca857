// What flows back through a matmul in float32.

#include "backward.hpp"
#include "nf4_block.hpp"

namespace multiflora {
namespace {

struct Float32 {
  using Value = float;
  using Weight = float;
  static constexpr int64_t kSteps = kBlock, kPart = kSteps * kTile;

  static INLINE void add(const float* y, int64_t rows, const float* parts, Totals& totals) {
    alignas(64) float ones[kTile];
    for (float& one : ones) one = 1;
    for (int64_t part = 0; part < kParts; ++part)
      accumulate_rows(y, rows, parts + part * kPart, ones, totals[part]);
  }
};

struct Nf4 : Float32 {
  const uint8_t* codes;  // [N/16][K/4][32]
  const float* absmax;   // [N/16][K/64][16]
  int64_t num_features, num_columns;
  const Codebook codebook;

  Nf4(const uint8_t* codes, const float* absmax, int64_t num_features, int64_t num_columns)
      : codes(codes), absmax(absmax), num_features(num_features), num_columns(num_columns) {}

  INLINE void square(int64_t row, int64_t column, float* parts) const {
    const int64_t tile = row / kTile, num_tiles = num_features / kTile;
    for (int64_t t = 0; t < kParts; ++t)
      for (int64_t octet = 0; octet < kBlock / 8; ++octet) {
        float* place = parts + octet / 2 * kPart + t * kTile * kTile + octet % 2 * 8;
        if (tile + t < num_tiles)
          unpack_octet(codes + ((tile + t) * num_columns + column + 8 * octet) / 8 * kOctet, codebook,
                       absmax + ((tile + t) * num_columns + column) / kBlock * kTile, place, kTile);
        else
          for (int64_t i = 0; i < kTile; ++i) store(place + i * kTile, zero());
      }
  }
};

template <typename W>
struct Dense : Float32 {
  const W* w;  // [N][K]
  int64_t num_features, num_columns;

  Dense(const W* w, int64_t num_features, int64_t num_columns)
      : w(w), num_features(num_features), num_columns(num_columns) {}

  INLINE void square(int64_t row, int64_t column, float* parts) const {
    for (int64_t f = 0; f < kBlock; ++f)
      for (int64_t part = 0; part < kParts; ++part)
        for (int64_t half = 0; half < kTile; half += kLanes) {
          const W* place = w + (row + f) * num_columns + column + part * kTile + half;
          store(parts + part * kPart + f * kTile + half,
                row + f < num_features ? load(place) : zero());
        }
  }
};

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

// x[M][K] = y[M][N] @ W; codes [N/16][K/4][32], absmax [N/16][K/64][16].
void multiflora_nf4_backward_float32(const float* y, const uint8_t* codes, const float* absmax,
                                     float* x, int64_t num_rows, int64_t num_features,
                                     int64_t num_columns) {
  flow_all_back(Nf4(codes, absmax, num_features, num_columns), y, x, num_rows);
}

// x[M][K] = y[M][N] @ w[N][K], K a multiple of 64.
void multiflora_dense_backward_float32(const float* y, const float* w, float* x, int64_t num_rows,
                                       int64_t num_features, int64_t num_columns) {
  flow_all_back(Dense<float>(w, num_features, num_columns), y, x, num_rows);
}

void multiflora_dense_backward_bfloat16(const float* y, const uint16_t* w, float* x,
                                        int64_t num_rows, int64_t num_features,
                                        int64_t num_columns) {
  flow_all_back(Dense<uint16_t>(w, num_features, num_columns), y, x, num_rows);
}

}  // extern "C"
