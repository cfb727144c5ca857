// Matmul by an unquantized matrix: the head, adapters' own weights.

#include "dot.hpp"
#include "parallel.hpp"

namespace multiflora {
namespace {

constexpr int64_t kFeatures = 3;  // features whose sums with four rows fit the registers
// Features whose weights stay in the second-level cache while rows pass by.
constexpr int64_t kChunk = 24;

template <typename W>
void matmul(const float* x, const W* w, float* y, int64_t num_rows, int64_t num_features,
            int64_t num_columns) {
  constexpr int64_t kRowBlock = 16;
  const int64_t num_chunks = (num_features + kChunk - 1) / kChunk;
  const bool is_large = num_rows * num_features * num_columns > kSerial;
  parallel_for(num_chunks, is_large, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t stop = smaller((chunk + 1) * kChunk, num_features);
      for (int64_t row = 0; row < num_rows; row += kRowBlock) {
        const int64_t rows = smaller(kRowBlock, num_rows - row);
        const float* xs = x + row * num_columns;
        float* ys = y + row * num_features;
        int64_t n = chunk * kChunk;
        for (; n + kFeatures <= stop; n += kFeatures)
          dots_of_rows<kFeatures>(xs, w + n * num_columns, ys + n, rows, num_columns,
                                  num_features);
        for (; n < stop; ++n)
          dots_of_rows<1>(xs, w + n * num_columns, ys + n, rows, num_columns, num_features);
      }
    }
  });
}

}  // namespace
}  // namespace multiflora

extern "C" {

// y[M][N] = x[M][K] @ w[N][K].T
void multiflora_dense_matmul_float32(const float* x, const float* w, float* y, int64_t num_rows,
                                     int64_t num_features, int64_t num_columns) {
  multiflora::matmul(x, w, y, num_rows, num_features, num_columns);
}

// The same for bfloat16 weights, which are widened exactly: the same bits as by a float32 copy.
void multiflora_dense_matmul_bfloat16(const float* x, const uint16_t* w, float* y, int64_t num_rows,
                                      int64_t num_features, int64_t num_columns) {
  multiflora::matmul(x, w, y, num_rows, num_features, num_columns);
}

}  // extern "C"
