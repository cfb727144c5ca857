// Matmul by an unquantized matrix; DOTS says how a few rows meet a few features.

#pragma once

#include "dot.hpp"
#include "parallel.hpp"

namespace multiflora {

// y[M][N] = x[M][K] @ w[N][K].T
template <typename DOTS, typename X, typename W>
void dense_matmul(const X* x, const W* w, float* y, int64_t num_rows, int64_t num_features,
                  int64_t num_columns) {
  // A chunk is features whose weights stay in the second-level cache while rows pass by.
  constexpr int64_t kChunk = 24, kRowBlock = 16, kFeatures = DOTS::kFeatures;
  const int64_t num_chunks = (num_features + kChunk - 1) / kChunk;
  const bool is_large = num_rows * num_features * num_columns > kSerial;
  parallel_for(num_chunks, is_large, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t stop = smaller((chunk + 1) * kChunk, num_features);
      for (int64_t row = 0; row < num_rows; row += kRowBlock) {
        const int64_t rows = smaller(kRowBlock, num_rows - row);
        const X* xs = x + row * num_columns;
        float* ys = y + row * num_features;
        int64_t n = chunk * kChunk;
        for (; n + kFeatures <= stop; n += kFeatures)
          dots_of_rows<DOTS, kFeatures>(xs, w + n * num_columns, ys + n, rows, num_columns,
                                        num_features);
        for (; n < stop; ++n)
          dots_of_rows<DOTS, 1>(xs, w + n * num_columns, ys + n, rows, num_columns, num_features);
      }
    }
  });
}

}  // namespace multiflora
