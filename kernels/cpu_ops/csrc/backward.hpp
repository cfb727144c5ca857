// What flows back through a matmul: x = y @ W, without a decoded, widened or transposed copy of W.
//
// MATRIX gives squares of 64 features by 64 columns as parts [4][kSteps][16] of Weight; what lies
// beyond the last feature is zero. It adds to totals [4][128][16] what the rows of y, [64] Values
// each, have with a square.

#pragma once

#include <memory>

#include "nf4_codes.hpp"
#include "parallel.hpp"

namespace multiflora {

constexpr int64_t kSharing = 128;           // rows that share decoded weights
constexpr int64_t kParts = kBlock / kTile;  // parts of 16 columns in a square, tiles of features

using Totals = float[kParts][kSharing * kTile];

// x[rows][64] of one block of columns; `packed` is y as [N / 64][num_rows][64].
template <typename MATRIX>
void flow_back(const MATRIX& matrix, const typename MATRIX::Value* packed, int64_t num_rows,
               int64_t rows, int64_t column, float* x) {
  alignas(64) typename MATRIX::Weight parts[kParts * MATRIX::kSteps * kTile];
  alignas(64) Totals totals = {};
  for (int64_t row = 0; row < matrix.num_features; row += kBlock) {
    matrix.square(row, column, parts);
    MATRIX::add(packed + row * num_rows, rows, parts, totals);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t part = 0; part < kParts; ++part)
      store(x + r * matrix.num_columns + column + part * kTile,
            load_wide(totals[part] + r * kTile));
}

template <typename MATRIX>
void flow_all_back(const MATRIX& matrix, const typename MATRIX::Value* y, float* x,
                   int64_t num_rows) {
  using Value = typename MATRIX::Value;
  const int64_t num_features = matrix.num_features, num_columns = matrix.num_columns;
  const int64_t num_blocks = (num_features + kBlock - 1) / kBlock;
  const std::unique_ptr<Value[]> packed(new Value[num_blocks * num_rows * kBlock]);
  const bool is_large = num_rows * num_features * num_columns > kSerial;
  parallel_for(num_blocks, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t block = start; block < stop; ++block) {
      const int64_t count = smaller(kBlock, num_features - block * kBlock);
      for (int64_t row = 0; row < num_rows; ++row) {
        Value* place = packed.get() + (block * num_rows + row) * kBlock;
        __builtin_memcpy(place, y + row * num_features + block * kBlock, count * sizeof(Value));
        for (int64_t i = count; i < kBlock; ++i) place[i] = 0;
      }
    }
  });
  parallel_for(num_columns / kBlock, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t block = start; block < stop; ++block)
      for (int64_t row = 0; row < num_rows; row += kSharing)
        flow_back(matrix, packed.get() + row * kBlock, num_rows, smaller(kSharing, num_rows - row),
                  block * kBlock, x + row * num_columns);
  });
}

}  // namespace multiflora
