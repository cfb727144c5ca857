// Matmul by an unquantized matrix: the head, adapters' own weights.

#include "dense.hpp"

using namespace multiflora;

extern "C" {

// y[M][N] = x[M][K] @ w[N][K].T
void multiflora_dense_matmul_float32(const float* x, const float* w, float* y, int64_t num_rows,
                                     int64_t num_features, int64_t num_columns) {
  dense_matmul<FloatDots>(x, w, y, num_rows, num_features, num_columns);
}

// The same for bfloat16 weights, which are widened exactly: the same bits as by a float32 copy.
void multiflora_dense_matmul_bfloat16(const float* x, const uint16_t* w, float* y, int64_t num_rows,
                                      int64_t num_features, int64_t num_columns) {
  dense_matmul<FloatDots>(x, w, y, num_rows, num_features, num_columns);
}

}  // extern "C"
