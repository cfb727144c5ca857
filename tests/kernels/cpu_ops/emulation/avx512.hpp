// The AVX-512 instructions that the core uses, one by one in plain C++ after Intel's description,
// so that what they compute together can be tested on processors without them.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

template <typename E>
struct Lanes {
  E lane[64 / sizeof(E)];
};

template <typename E, typename R>
Lanes<E> lanes_of(R value) {
  Lanes<E> lanes;
  std::memcpy(&lanes, &value, sizeof lanes);
  return lanes;
}

template <typename R, typename E>
R as(const Lanes<E>& lanes) {
  R value;
  std::memcpy(&value, &lanes, sizeof value);
  return value;
}

inline __m512 setzero_ps() { return as<__m512>(Lanes<float>{}); }

inline __m512 loadu_ps(const void* p) {
  __m512 value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline __m512i loadu_si512(const void* p) {
  __m512i value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline void storeu_ps(void* p, __m512 value) { std::memcpy(p, &value, sizeof value); }

inline void storeu_si512(void* p, __m512i value) { std::memcpy(p, &value, sizeof value); }

inline __m512i or_si512(__m512i a, __m512i b) {
  const auto other = lanes_of<uint32_t>(b);
  auto out = lanes_of<uint32_t>(a);
  for (int i = 0; i < 16; ++i) out.lane[i] |= other.lane[i];
  return as<__m512i>(out);
}

inline __m512 set1_ps(float value) {
  Lanes<float> out;
  for (float& lane : out.lane) lane = value;
  return as<__m512>(out);
}

inline __m512i set1_epi32(int value) {
  Lanes<int32_t> out;
  for (int32_t& lane : out.lane) lane = value;
  return as<__m512i>(out);
}

inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const auto x = lanes_of<float>(a), y = lanes_of<float>(b), z = lanes_of<float>(c);
  Lanes<float> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = std::fma(x.lane[i], y.lane[i], z.lane[i]);
  return as<__m512>(out);
}

inline __m512 castps256_ps512(__m256 low) {
  __m512 value = setzero_ps();
  std::memcpy(&value, &low, sizeof low);
  return value;
}

inline __m512 insertf32x8(__m512 a, __m256 half, int which) {
  std::memcpy(reinterpret_cast<char*>(&a) + which * sizeof half, &half, sizeof half);
  return a;
}

inline __m512i srli_epi32(__m512i a, unsigned count) {
  auto out = lanes_of<uint32_t>(a);
  for (uint32_t& lane : out.lane) lane = count > 31 ? 0 : lane >> count;
  return as<__m512i>(out);
}

inline __m512i srli_epi16(__m512i a, unsigned count) {
  auto out = lanes_of<uint16_t>(a);
  for (uint16_t& lane : out.lane) lane = static_cast<uint16_t>(count > 15 ? 0 : lane >> count);
  return as<__m512i>(out);
}

inline __m512i slli_epi32(__m512i a, unsigned count) {
  auto out = lanes_of<uint32_t>(a);
  for (uint32_t& lane : out.lane) lane = count > 31 ? 0 : lane << count;
  return as<__m512i>(out);
}

inline __m512i cvtepu16_epi32(__m256i a) {
  uint16_t from[16];
  std::memcpy(from, &a, sizeof from);
  Lanes<uint32_t> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = from[i];
  return as<__m512i>(out);
}

// Within each 128 bits; an index with its highest bit set gives zero.
inline __m512i shuffle_epi8(__m512i a, __m512i indices) {
  const auto from = lanes_of<uint8_t>(a), index = lanes_of<uint8_t>(indices);
  Lanes<uint8_t> out;
  for (int i = 0; i < 64; ++i)
    out.lane[i] = index.lane[i] & 0x80 ? 0 : from.lane[i / 16 * 16 + (index.lane[i] & 15)];
  return as<__m512i>(out);
}

inline __m512i permutexvar_epi16(__m512i indices, __m512i a) {
  const auto from = lanes_of<uint16_t>(a), index = lanes_of<uint16_t>(indices);
  Lanes<uint16_t> out;
  for (int i = 0; i < 32; ++i) out.lane[i] = from.lane[index.lane[i] & 31];
  return as<__m512i>(out);
}

inline __m512 permutexvar_ps(__m512i indices, __m512 a) {
  const auto from = lanes_of<float>(a);
  const auto index = lanes_of<uint32_t>(indices);
  Lanes<float> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = from.lane[index.lane[i] & 15];
  return as<__m512>(out);
}

// To nearest, ties to even, subnormals taken for zero; NaN becomes a quiet one.
inline __m256i cvtneps_pbh(__m512 a) {
  const auto from = lanes_of<float>(a);
  uint16_t out[16];
  for (int i = 0; i < 16; ++i) {
    float value = from.lane[i];
    if (std::fpclassify(value) == FP_SUBNORMAL) value = std::copysign(0.0f, value);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t half = 0x7fff + ((bits >> 16) & 1);
    out[i] = static_cast<uint16_t>(std::isnan(value) ? (bits >> 16) | 0x40 : (bits + half) >> 16);
  }
  __m256i value;
  std::memcpy(&value, out, sizeof value);
  return value;
}

// A product with its lower neighbour after it, both fused, subnormals taken for zero.
inline __m512 dpbf16_ps(__m512 c, __m512i a, __m512i b) {
  const auto x = lanes_of<uint16_t>(a), y = lanes_of<uint16_t>(b);
  auto out = lanes_of<float>(c);
  const auto flush = [](float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
  };
  const auto widen = [&](uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return flush(value);
  };
  for (int i = 0; i < 16; ++i)
    for (int j = 2 * i + 1; j >= 2 * i; --j)
      out.lane[i] = flush(std::fma(widen(x.lane[j]), widen(y.lane[j]), flush(out.lane[i])));
  return as<__m512>(out);
}

}  // namespace emulated

#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_or_si512 emulated::or_si512
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_castps256_ps512 emulated::castps256_ps512
#define _mm512_insertf32x8 emulated::insertf32x8
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_srli_epi16 emulated::srli_epi16
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_castsi512_ps(a) ((__m512)(a))
#define _mm512_shuffle_epi8 emulated::shuffle_epi8
#define _mm512_permutexvar_epi16 emulated::permutexvar_epi16
#define _mm512_permutexvar_ps emulated::permutexvar_ps
#define _mm512_dpbf16_ps(c, a, b) emulated::dpbf16_ps(c, (__m512i)(a), (__m512i)(b))
