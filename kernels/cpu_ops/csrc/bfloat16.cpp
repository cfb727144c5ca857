// Matmuls of bfloat16 activations by the dot products of AVX-512-BF16: two products to a lane, sums
// in float32. Levels are rounded to bfloat16; scales and results are float32.

#include "wide.hpp"

#if defined(__AVX512BF16__) || defined(MULTIFLORA_EMULATED)

#include <memory>

#include "dense.hpp"
#include "nf4_rows.hpp"

namespace multiflora {
namespace {

// A codebook of 32 entries in which the levels come twice: the look-up minds the low five bits, of
// which the fifth belongs to the next code.
struct Pairs {
  using Value = uint32_t;            // two activations
  static constexpr int kValues = 4;  // of one row for an octet
  __m512i levels, byte_order, word_order;

  Pairs()
      : byte_order(_mm512_loadu_si512(kOrders.bytes)),
        word_order(_mm512_loadu_si512(kOrders.words)) {
    uint16_t rounded[32];
    for (int i = 0; i < 32; ++i) rounded[i] = narrow(kLevels[i % 16]);
    levels = _mm512_loadu_si512(rounded);
  }

  // All tiles in step, so that they share each pair of values once it is spread.
  template <int ROWS, int TILES>
  INLINE void add_octet(const uint8_t* codes, int64_t code_stride, const uint32_t* x,
                        int64_t stride, Wide* sum) const {
    Octet octets[TILES];
    for (int t = 0; t < TILES; ++t)
      octets[t] = fetch_octet(codes + t * code_stride, byte_order, word_order);
    for (int nibble = 0; nibble < 4; ++nibble) {
      __m512i w[TILES];
      for (int t = 0; t < TILES; ++t)
        w[t] = _mm512_permutexvar_epi16(_mm512_srli_epi16(octets[t], 4 * nibble), levels);
      for (int r = 0; r < ROWS; ++r) {
        const __m512i value = _mm512_set1_epi32(static_cast<int>(x[r * stride + nibble]));
        for (int t = 0; t < TILES; ++t)
          sum[r * TILES + t] =
              _mm512_dpbf16_ps(sum[r * TILES + t], (__m512bh)w[t], (__m512bh)value);
      }
    }
  }
};

// Of every eight columns 0 4 2 6 1 5 3 7: those that one nibble of an octet holds, side by side.
void pair_columns(const uint16_t* x, uint16_t* pairs, int64_t count) {
  constexpr int kOrder[8] = {0, 4, 2, 6, 1, 5, 3, 7};
  for (int64_t i = 0; i < count; i += 8)
    for (int j = 0; j < 8; ++j) pairs[i + j] = x[i + kOrder[j]];
}

struct PairDots {
  static constexpr int kFeatures = 4;  // features whose sums with four rows fit the registers

  // y[r][f] = x[r] . w[f] for ROWS rows and FEATURES features of a multiple of 32 columns.
  template <int ROWS, int FEATURES>
  static INLINE void take(const uint16_t* x, const uint16_t* w, int64_t num_columns, float* y,
                          int64_t y_stride) {
    Wide sum[ROWS][FEATURES];
    for (int r = 0; r < ROWS; ++r)
      for (int f = 0; f < FEATURES; ++f) sum[r][f] = wide_zero();
    for (int64_t k = 0; k < num_columns; k += 32) {
      __m512i weights[FEATURES];
      for (int f = 0; f < FEATURES; ++f) {
        weights[f] = _mm512_loadu_si512(w + f * num_columns + k);
        prefetch(w + (f + FEATURES) * num_columns + k);
      }
      for (int r = 0; r < ROWS; ++r) {
        const __m512i value = _mm512_loadu_si512(x + r * num_columns + k);
        for (int f = 0; f < FEATURES; ++f)
          sum[r][f] = _mm512_dpbf16_ps(sum[r][f], (__m512bh)weights[f], (__m512bh)value);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int f = 0; f < FEATURES; ++f)
        y[r * y_stride + f] =
            sum_of(_mm256_add_ps(half_of(sum[r][f], 0), half_of(sum[r][f], 1)));
  }
};

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

// y float32 [M][N] = x bfloat16 [M][K] @ W.T; codes and absmax as of multiflora_nf4_matmul_float32.
void multiflora_nf4_matmul_bfloat16(const uint16_t* x, const uint8_t* codes, const float* absmax,
                                    float* y, int64_t num_rows, int64_t num_features,
                                    int64_t num_columns) {
  const std::unique_ptr<uint16_t[]> pairs(new uint16_t[num_rows * num_columns]);
  pair_columns(x, pairs.get(), num_rows * num_columns);
  multiply_by_rows<Pairs, 4, 4>(reinterpret_cast<const uint32_t*>(pairs.get()), codes, absmax, y,
                                num_rows, num_features, num_columns);
}

// y float32 [M][N] = x bfloat16 [M][K] @ w bfloat16 [N][K].T, K a multiple of 32.
void multiflora_dense_matmul_of_pairs(const uint16_t* x, const uint16_t* w, float* y,
                                   int64_t num_rows, int64_t num_features, int64_t num_columns) {
  dense_matmul<PairDots>(x, w, y, num_rows, num_features, num_columns);
}

}  // extern "C"

#endif
