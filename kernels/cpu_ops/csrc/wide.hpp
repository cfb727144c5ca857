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
constexpr bool kInStep = true;  // registers enough for several tiles at once

INLINE Wide wide_zero() { return _mm512_setzero_ps(); }
INLINE Wide load_wide(const float* p) { return _mm512_loadu_ps(p); }
INLINE Wide spread_wide(const float* p) { return _mm512_set1_ps(*p); }
INLINE void store(float* p, Wide v) { _mm512_storeu_ps(p, v); }
INLINE Wide multiply_add(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vector half_of(const Wide& v, int half) {
  return load(reinterpret_cast<const float*>(&v) + half * kLanes);
}

#else

constexpr bool kInStep = false;

struct Wide {
  Vector half[2];
};

INLINE Wide wide_zero() { return {{zero(), zero()}}; }
INLINE Wide load_wide(const float* p) { return {{load(p), load(p + kLanes)}}; }
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
