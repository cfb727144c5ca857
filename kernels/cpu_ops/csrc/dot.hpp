// Dot products over rows of one length. Their order depends on that length alone: eight partial
// sums in lanes, then what is left over, one by one. X and W are float or bfloat16 (uint16_t).

#pragma once

#include "vector.hpp"

namespace multiflora {

struct FloatDots {
  static constexpr int kFeatures = 3;  // features whose sums with four rows fit the registers

  // y[r][f] = x[r] . w[f] for ROWS rows and FEATURES features of `num_columns`.
  template <int ROWS, int FEATURES, typename X, typename W>
  static INLINE void take(const X* x, const W* w, int64_t num_columns, float* y,
                          int64_t y_stride) {
    Vector sum[ROWS][FEATURES];
    for (int r = 0; r < ROWS; ++r)
      for (int f = 0; f < FEATURES; ++f) sum[r][f] = zero();
    int64_t k = 0;
    for (; k + kLanes <= num_columns; k += kLanes) {
      Vector weights[FEATURES];
      for (int f = 0; f < FEATURES; ++f) {
        weights[f] = load(w + f * num_columns + k);
        prefetch(w + (f + FEATURES) * num_columns + k);
      }
      for (int r = 0; r < ROWS; ++r) {
        const Vector value = load(x + r * num_columns + k);
        for (int f = 0; f < FEATURES; ++f)
          sum[r][f] = multiply_add(value, weights[f], sum[r][f]);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int f = 0; f < FEATURES; ++f) {
        float total = sum_of(sum[r][f]);
        for (int64_t i = k; i < num_columns; ++i)
          total = __builtin_fmaf(widen(x[r * num_columns + i]), widen(w[f * num_columns + i]), total);
        y[r * y_stride + f] = total;
      }
  }
};

// All rows of x [rows][num_columns], four at a time, by FEATURES features.
template <typename DOTS, int FEATURES, typename X, typename W>
INLINE void dots_of_rows(const X* x, const W* w, float* y, int64_t rows, int64_t num_columns,
                         int64_t y_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    DOTS::template take<4, FEATURES>(x + r * num_columns, w, num_columns, y + r * y_stride,
                                     y_stride);
  for (; r < rows; ++r)
    DOTS::template take<1, FEATURES>(x + r * num_columns, w, num_columns, y + r * y_stride,
                                     y_stride);
}

}  // namespace multiflora
