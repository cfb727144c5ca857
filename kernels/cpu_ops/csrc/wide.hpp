// Sixteen float32 lanes: one register of AVX-512, two of AVX2. Either way every lane is the same
// chain of operations, so results are equal to the bit.

#pragma once

#include "vector.hpp"

// MULTIFLORA_EMULATED: the instructions of AVX-512 are defined by whoever compiles; tests do.
#if defined(__AVX512BW__) || defined(MULTIFLORA_EMULATED)
#define MULTIFLORA_AVX512 1
#endif

namespace multiflora {

constexpr int64_t kWideLanes = 16;

#ifdef MULTIFLORA_AVX512

using Wide = __m512;
constexpr int kRegisters = 32;

INLINE Wide wide_zero() { return _mm512_setzero_ps(); }
INLINE Wide load_wide(const float* p) { return _mm512_loadu_ps(p); }
INLINE Wide load_wide(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
INLINE Wide spread_wide(const float* p) { return _mm512_set1_ps(*p); }
INLINE void store(float* p, Wide v) { _mm512_storeu_ps(p, v); }
INLINE Wide multiply_add(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vector half_of(const Wide& v, int half) {
  return load(reinterpret_cast<const float*>(&v) + half * kLanes);
}
INLINE Wide pair_of(Vector low, Vector high) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

#else

constexpr int kRegisters = 8;  // sixteen of half the width

struct Wide {
  Vector half[2];
};

INLINE Wide wide_zero() { return {{zero(), zero()}}; }
template <typename W>
INLINE Wide load_wide(const W* p) {
  return {{load(p), load(p + kLanes)}};
}
INLINE Wide spread_wide(const float* p) {
  const Vector value = _mm256_broadcast_ss(p);
  return {{value, value}};
}
INLINE void store(float* p, const Wide& v) {
  store(p, v.half[0]);
  store(p + kLanes, v.half[1]);
}
INLINE Wide multiply_add(const Wide& a, const Wide& b, const Wide& c) {
  return {{multiply_add(a.half[0], b.half[0], c.half[0]),
           multiply_add(a.half[1], b.half[1], c.half[1])}};
}
INLINE Vector half_of(const Wide& v, int half) { return v.half[half]; }

#endif

}  // namespace multiflora
