// Blocks of 64 x 16 decoded weights in the first-level cache, for many rows.

#pragma once

#include "nf4_codes.hpp"

namespace multiflora {

constexpr int64_t kGroup = 6;  // rows whose sums fit the registers

// total[row][16] += scale[16] * (x[row][64] . tile[64][16]) for ROWS rows.
template <int ROWS>
INLINE void accumulate(const float* x, const float* tile, const float* scale, float* total) {
  Wide sum[ROWS];
  for (int r = 0; r < ROWS; ++r) sum[r] = wide_zero();
  for (int64_t k = 0; k < kBlock; ++k) {
    const Wide w = load_wide(tile + k * kTile);
    for (int r = 0; r < ROWS; ++r) sum[r] = multiply_add(spread_wide(x + r * kBlock + k), w, sum[r]);
  }
  for (int r = 0; r < ROWS; ++r) {
    float* place = total + r * kTile;
    store(place, multiply_add(sum[r], load_wide(scale), load_wide(place)));
  }
}

INLINE void accumulate_rows(const float* x, int64_t rows, const float* tile, const float* scale,
                            float* total) {
  int64_t groups = (rows + kGroup - 1) / kGroup;
  for (int64_t r = 0; r < rows; --groups) {
    const int64_t count = (rows - r + groups - 1) / groups;
    const float* group = x + r * kBlock;
    float* out = total + r * kTile;
    switch (count) {
      case 1: accumulate<1>(group, tile, scale, out); break;
      case 2: accumulate<2>(group, tile, scale, out); break;
      case 3: accumulate<3>(group, tile, scale, out); break;
      case 4: accumulate<4>(group, tile, scale, out); break;
      case 5: accumulate<5>(group, tile, scale, out); break;
      default: accumulate<6>(group, tile, scale, out);
    }
    r += count;
  }
}

// Eight columns of a tile, scaled, as rows of the dense matrix.
INLINE void unpack_octet(const uint8_t* codes, const Codebook& codebook, const float* absmax,
                         float* w, int64_t stride) {
  Wide all[8];
  decode_octet(codes, codebook, all);
  for (int half = 0; half < 2; ++half) {
    const Vector scale = load(absmax + 8 * half);
    Vector v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm256_mul_ps(half_of(all[i], half), scale);
    transpose(v);
    for (int i = 0; i < 8; ++i) store(w + (8 * half + i) * stride, v[i]);
  }
}

}  // namespace multiflora
