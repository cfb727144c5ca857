// What flows back through a matmul as bfloat16: two features to a lane, sums in float32. Decoded
// weights are scaled, then rounded to bfloat16.

#include "wide.hpp"

#if defined(__AVX512BF16__) || defined(MULTIFLORA_EMULATED)

#include "backward.hpp"

namespace multiflora {
namespace {

struct Pairs {
  using Value = uint16_t;
  using Weight = uint32_t;  // two features of one column
  static constexpr int64_t kSteps = kBlock / 2, kPart = kSteps * kTile;
  static constexpr int64_t kGroup = 6;  // rows whose sums fit the registers

  // All parts in step, so that they share each pair of values once it is spread.
  template <int ROWS>
  static INLINE void add_group(const uint16_t* y, const uint32_t* parts, Totals& totals,
                               int64_t row) {
    Wide sum[ROWS][kParts];
    for (int r = 0; r < ROWS; ++r)
      for (int part = 0; part < kParts; ++part)
        sum[r][part] = load_wide(totals[part] + (row + r) * kTile);
    for (int64_t step = 0; step < kSteps; ++step) {
      __m512i w[kParts];
      for (int part = 0; part < kParts; ++part)
        w[part] = _mm512_loadu_si512(parts + part * kPart + step * kTile);
      for (int r = 0; r < ROWS; ++r) {
        int pair;
        __builtin_memcpy(&pair, y + (row + r) * kBlock + 2 * step, sizeof pair);
        const __m512i value = _mm512_set1_epi32(pair);
        for (int part = 0; part < kParts; ++part)
          sum[r][part] = _mm512_dpbf16_ps(sum[r][part], (__m512bh)w[part], (__m512bh)value);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int part = 0; part < kParts; ++part)
        store(totals[part] + (row + r) * kTile, sum[r][part]);
  }

  static INLINE void add(const uint16_t* y, int64_t rows, const uint32_t* parts, Totals& totals) {
    int64_t row = 0;
    for (; row + kGroup <= rows; row += kGroup) add_group<kGroup>(y, parts, totals, row);
    switch (rows - row) {
      case 1: return add_group<1>(y, parts, totals, row);
      case 2: return add_group<2>(y, parts, totals, row);
      case 3: return add_group<3>(y, parts, totals, row);
      case 4: return add_group<4>(y, parts, totals, row);
      case 5: return add_group<5>(y, parts, totals, row);
    }
  }
};

struct Nf4Pairs : Pairs {
  const uint8_t* codes;  // [N/16][K/4][32]
  const float* absmax;   // [N/16][K/64][16]
  int64_t num_features, num_columns;
  const Codebook codebook;

  Nf4Pairs(const uint8_t* codes, const float* absmax, int64_t num_features, int64_t num_columns)
      : codes(codes), absmax(absmax), num_features(num_features), num_columns(num_columns) {}

  INLINE void square(int64_t row, int64_t column, uint32_t* parts) const {
    const int64_t tile = row / kTile, num_tiles = num_features / kTile;
    for (int64_t t = 0; t < kParts; ++t) {
      const bool is_there = tile + t < num_tiles;
      const int64_t first = (tile + t) * num_columns + column;
      const Wide scale = is_there ? load_wide(absmax + first / kBlock * kTile) : wide_zero();
      for (int64_t octet = 0; octet < kBlock / 8; ++octet) {
        Vector v[8];
        for (Vector& pairs : v) pairs = zero();
        if (is_there) pair_octet(codes + (first / 8 + octet) * kOctet, scale, v);
        float* place = reinterpret_cast<float*>(parts) + octet / 2 * kPart + octet % 2 * 8;
        for (int i = 0; i < 8; ++i) store(place + (t * 8 + i) * kTile, v[i]);
      }
    }
  }

  // Of 16 features the eight pairs, each of eight columns.
  INLINE void pair_octet(const uint8_t* place, Wide scale, Vector* v) const {
    Wide w[8];
    decode_octet(place, codebook, w);
    for (int i = 0; i < 8; ++i)
      v[i] = _mm256_castsi256_ps(
          (__m256i)_mm512_cvtneps_pbh(multiply_add(w[i], scale, wide_zero())));
    transpose(v);
  }
};

struct DensePairs : Pairs {
  const uint16_t* w;  // [N][K]
  int64_t num_features, num_columns;

  DensePairs(const uint16_t* w, int64_t num_features, int64_t num_columns)
      : w(w), num_features(num_features), num_columns(num_columns) {}

  INLINE void square(int64_t row, int64_t column, uint32_t* parts) const {
    for (int64_t step = 0; step < kSteps; ++step)
      for (int64_t part = 0; part < kParts; ++part) {
        const __m512i lower = widened(row + 2 * step, column + part * kTile);
        const __m512i upper = widened(row + 2 * step + 1, column + part * kTile);
        _mm512_storeu_si512(parts + part * kPart + step * kTile,
                            _mm512_or_si512(lower, _mm512_slli_epi32(upper, 16)));
      }
  }

  // 16 weights of a feature, each in the lower half of a lane.
  INLINE __m512i widened(int64_t feature, int64_t column) const {
    if (feature >= num_features) return _mm512_set1_epi32(0);
    const uint16_t* place = w + feature * num_columns + column;
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(place)));
  }
};

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

// x float32 [M][K] = y bfloat16 [M][N] @ W; codes and absmax as of multiflora_nf4_backward_float32.
void multiflora_nf4_backward_bfloat16(const uint16_t* y, const uint8_t* codes, const float* absmax,
                                      float* x, int64_t num_rows, int64_t num_features,
                                      int64_t num_columns) {
  flow_all_back(Nf4Pairs(codes, absmax, num_features, num_columns), y, x, num_rows);
}

// x float32 [M][K] = y bfloat16 [M][N] @ w bfloat16 [N][K], K a multiple of 64.
void multiflora_dense_backward_of_pairs(const uint16_t* y, const uint16_t* w, float* x,
                                        int64_t num_rows, int64_t num_features,
                                        int64_t num_columns) {
  flow_all_back(DensePairs(w, num_features, num_columns), y, x, num_rows);
}

}  // extern "C"

#endif
