// Eight float32 lanes of AVX2 and FMA: the only vector type of the core.

#pragma once

#include <immintrin.h>

#include <cstdint>

#define INLINE __attribute__((always_inline)) inline

namespace multiflora {

constexpr int64_t kLanes = 8;
// Multiply-adds below which sharing costs more than it saves.
constexpr int64_t kSerial = 1 << 18;

using Vector = __m256;

// Sends for what will be read a few microseconds later; any address may be asked for.
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

INLINE Vector zero() { return _mm256_setzero_ps(); }
INLINE Vector load(const float* p) { return _mm256_loadu_ps(p); }
INLINE Vector spread(float value) { return _mm256_set1_ps(value); }
INLINE void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }

// bfloat16 is the upper half of a float32, so widening it is exact.
INLINE float widen(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
INLINE float widen(float value) { return value; }
// Rounds to nearest, ties to even; NaN stays NaN.
INLINE uint16_t narrow(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE void narrow_to(float* p, float value) { *p = value; }
INLINE void narrow_to(uint16_t* p, float value) { *p = narrow(value); }
INLINE Vector load(const uint16_t* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

INLINE void store(uint16_t* p, Vector v) {
  const __m256i bits = _mm256_castps_si256(v), upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i found = _mm256_blendv_epi8(rounded, quiet, is_nan);
  const __m256i packed = _mm256_packus_epi32(found, found);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

INLINE float sum_of(Vector v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Lane i is the sum of v[i]'s lanes, each in one fixed order.
INLINE Vector sums_of(const Vector* v) {
  const Vector a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const Vector b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

INLINE float largest_of(Vector v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// e^x to about one unit in the last place: x = n ln 2 + r, and a Taylor sum of e^r, whose remainder
// |r|^8 / 8! is below 6e-9. Zero below the normal numbers; NaN stays NaN (max and min return their
// second operand then).
INLINE Vector exponential(Vector x) {
  const Vector lowest = spread(-87.0f);
  const Vector bounded = _mm256_min_ps(spread(88.0f), _mm256_max_ps(lowest, x));
  const Vector n = _mm256_round_ps(_mm256_mul_ps(bounded, spread(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts: the first has few enough bits that its product with n is exact.
  Vector r = multiply_add(n, spread(-0.693359375f), bounded);
  r = multiply_add(n, spread(2.12194440e-4f), r);
  Vector sum = spread(1.0f / 5040);
  sum = multiply_add(sum, r, spread(1.0f / 720));
  sum = multiply_add(sum, r, spread(1.0f / 120));
  sum = multiply_add(sum, r, spread(1.0f / 24));
  sum = multiply_add(sum, r, spread(1.0f / 6));
  sum = multiply_add(sum, r, spread(0.5f));
  sum = multiply_add(sum, r, spread(1.0f));
  sum = multiply_add(sum, r, spread(1.0f));
  const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  const Vector scaled = _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, lowest, _CMP_LT_OQ), scaled);
}

// Eight vectors as the rows of a matrix; afterwards they are its columns.
INLINE void transpose(Vector* v) {
  Vector pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

}  // namespace multiflora
