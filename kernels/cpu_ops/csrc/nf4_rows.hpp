// NF4 matmul for few rows: codes are decoded in registers and multiplied at once.
//
// ARITHMETIC says what a row's values are, and adds to sum[r * TILES + t] the products of x[r] with
// an octet's columns of tile t.

#pragma once

#include <type_traits>

#include "nf4_codes.hpp"
#include "parallel.hpp"

namespace multiflora {

constexpr int64_t kRowBlock = 64;  // rows that stay in the second-level cache while tiles pass by

// y[r][n] of TILES tiles for ROWS rows; several tiles hide the adders' latency. absmax is applied
// to the sum of each block.
template <typename ARITHMETIC, int ROWS, int TILES>
INLINE void few_rows(const ARITHMETIC& arithmetic, const typename ARITHMETIC::Value* x,
                     int64_t stride, const uint8_t* codes, const float* absmax, float* y,
                     int64_t y_stride, int64_t num_blocks) {
  constexpr int64_t kOctets = kBlock / 8;
  const int64_t code_stride = num_blocks * kOctets * kOctet, absmax_stride = num_blocks * kTile;
  Wide total[ROWS * TILES];
  for (int i = 0; i < ROWS * TILES; ++i) total[i] = wide_zero();
  for (int64_t block = 0; block < num_blocks; ++block) {
    Wide sum[ROWS * TILES];
    for (int i = 0; i < ROWS * TILES; ++i) sum[i] = wide_zero();
    for (int64_t octet = block * kOctets; octet < (block + 1) * kOctets; ++octet) {
      const uint8_t* place = codes + octet * kOctet;
      for (int t = 0; t < TILES; ++t) prefetch(place + (TILES + t) * code_stride);
      arithmetic.template add_octet<ROWS, TILES>(place, code_stride,
                                                 x + octet * ARITHMETIC::kValues, stride, sum);
    }
    for (int t = 0; t < TILES; ++t) {
      const Wide scale = load_wide(absmax + t * absmax_stride + block * kTile);
      for (int r = 0; r < ROWS; ++r)
        total[r * TILES + t] = multiply_add(sum[r * TILES + t], scale, total[r * TILES + t]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t) store(y + r * y_stride + t * kTile, total[r * TILES + t]);
}

// The same for any number of rows, at most MOST at once.
template <typename ARITHMETIC, int MOST, int TILES>
INLINE void all_rows(const ARITHMETIC& arithmetic, const typename ARITHMETIC::Value* x,
                     int64_t stride, const uint8_t* codes, const float* absmax, float* y,
                     int64_t y_stride, int64_t num_blocks, int64_t num_rows) {
  const auto take = [&](auto rows, int64_t row) {
    few_rows<ARITHMETIC, rows(), TILES>(arithmetic, x + row * stride, stride, codes, absmax,
                                        y + row * y_stride, y_stride, num_blocks);
  };
  int64_t row = 0;
  for (; row + MOST <= num_rows; row += MOST) take(std::integral_constant<int, MOST>(), row);
  if constexpr (MOST > 3)
    if (num_rows - row == 3) return take(std::integral_constant<int, 3>(), row);
  if constexpr (MOST > 2)
    if (num_rows - row == 2) return take(std::integral_constant<int, 2>(), row);
  if constexpr (MOST > 1)
    if (num_rows - row == 1) take(std::integral_constant<int, 1>(), row);
}

// y[M][N] = x @ W.T for x whose rows are `num_columns` columns; 2 <= MOST <= 4.
template <typename ARITHMETIC, int MOST, int TILES>
void multiply_by_rows(const typename ARITHMETIC::Value* x, const uint8_t* codes,
                      const float* absmax, float* y, int64_t num_rows, int64_t num_features,
                      int64_t num_columns) {
  const int64_t num_tiles = num_features / kTile, num_blocks = num_columns / kBlock;
  const int64_t stride = num_columns / 8 * ARITHMETIC::kValues;
  const bool is_large = num_rows * num_features * num_columns > kSerial;
  parallel_for((num_tiles + TILES - 1) / TILES, is_large, [&](int64_t start, int64_t stop) {
    const ARITHMETIC arithmetic;
    const int64_t end = smaller(stop * TILES, num_tiles);
    for (int64_t row = 0; row < num_rows; row += kRowBlock) {
      int64_t tile = start * TILES;
      const auto take = [&](auto tiles) {
        all_rows<ARITHMETIC, MOST, tiles()>(
            arithmetic, x + row * stride, stride, codes + tile * num_columns / 8 * kOctet,
            absmax + tile * num_blocks * kTile, y + row * num_features + tile * kTile,
            num_features, num_blocks, smaller(kRowBlock, num_rows - row));
        tile += tiles();
      };
      while (tile + TILES <= end) take(std::integral_constant<int, TILES>());
      while (tile < end) take(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace multiflora
