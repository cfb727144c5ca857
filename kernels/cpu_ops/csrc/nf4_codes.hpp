// The layout of NF4 codes (QLoRA, arXiv 2305.14314: 16 levels, one absmax per 64 weights) and how
// they become float32.
//
// A tile is 16 output features. 32 bytes hold 4 columns of it: byte b has, for lane
// 4 * (b / 16) + b % 4 of quarter b / 4 % 4, two codes: the low nibble belongs to columns 0 and 1,
// the high one to columns 2 and 3. A quarter is one column's first or last eight features. Both
// vector widths read this one layout, eight columns at a time.

#pragma once

#include "wide.hpp"

namespace multiflora {

constexpr int64_t kTile = 16;   // output features of one tile
constexpr int64_t kBlock = 64;  // weights that share one absmax
constexpr int64_t kOctet = 64;  // bytes that hold 8 columns of a tile

constexpr float kLevels[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

#ifdef MULTIFLORA_AVX512

// Codes of 8 columns, feature by feature: lane n has columns 0 2 1 3 4 6 5 7 of feature n in its
// nibbles, lowest first.
using Octet = __m512i;
constexpr int kNibble[8] = {0, 2, 1, 3, 4, 6, 5, 7};

// From the layout to an octet: bytes within 128 bits, then 16-bit words within the register.
struct Orders {
  uint8_t bytes[64];
  uint16_t words[32];

  constexpr Orders() : bytes(), words() {
    for (int half = 0; half < 2; ++half)
      for (int lane = 0; lane < 4; ++lane) {
        for (int part = 0; part < 4; ++part)
          for (int column = 0; column < 2; ++column)
            bytes[16 * part + 2 * (4 * half + lane) + column] =
                static_cast<uint8_t>(4 * (2 * column + half) + lane);
        for (int upper = 0; upper < 2; ++upper)  // lanes 4 .. 7 of eight features
          for (int step = 0; step < 2; ++step)   // four columns of the octet
            words[2 * (8 * half + 4 * upper + lane) + step] =
                static_cast<uint16_t>(8 * (2 * step + upper) + 4 * half + lane);
      }
  }
};
constexpr Orders kOrders;

INLINE Octet fetch_octet(const uint8_t* codes, __m512i byte_order, __m512i word_order) {
  const __m512i bytes = _mm512_shuffle_epi8(_mm512_loadu_si512(codes), byte_order);
  return _mm512_permutexvar_epi16(word_order, bytes);
}

class Codebook {
 public:
  INLINE Octet fetch(const uint8_t* codes) const {
    return fetch_octet(codes, byte_order_, word_order_);
  }

  // Columns 2 * PAIR and 2 * PAIR + 1, unscaled. The look-up minds the low four bits alone.
  template <int PAIR>
  INLINE void decode(Octet octet, Wide* w) const {
    constexpr int first = 4 * kNibble[2 * PAIR], second = 4 * kNibble[2 * PAIR + 1];
    w[0] = _mm512_permutexvar_ps(_mm512_srli_epi32(octet, first), levels_);
    w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(octet, second), levels_);
  }

 private:
  const __m512 levels_ = _mm512_loadu_ps(kLevels);
  const __m512i byte_order_ = _mm512_loadu_si512(kOrders.bytes);
  const __m512i word_order_ = _mm512_loadu_si512(kOrders.words);
};

#else

struct Octet {
  __m256i bytes[2];
};

// The four bytes of every level, each as a table for one byte shuffle.
class Codebook {
 public:
  Codebook() {
    for (int b = 0; b < 4; ++b) {
      alignas(16) uint8_t bytes[16];
      for (int level = 0; level < 16; ++level) {
        uint32_t bits;
        __builtin_memcpy(&bits, &kLevels[level], sizeof bits);
        bytes[level] = static_cast<uint8_t>(bits >> (8 * b));
      }
      planes_[b] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<__m128i*>(bytes)));
    }
  }

  INLINE Octet fetch(const uint8_t* codes) const {
    const __m256i* halves = reinterpret_cast<const __m256i*>(codes);
    return {{_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)}};
  }

  // Columns 2 * PAIR and 2 * PAIR + 1, unscaled.
  template <int PAIR>
  INLINE void decode(const Octet& octet, Wide* w) const {
    const __m256i both = octet.bytes[PAIR / 2];
    const __m256i shifted = PAIR % 2 ? _mm256_srli_epi16(both, 4) : both;
    const __m256i codes = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
    const __m256i b0 = _mm256_shuffle_epi8(planes_[0], codes);
    const __m256i b1 = _mm256_shuffle_epi8(planes_[1], codes);
    const __m256i b2 = _mm256_shuffle_epi8(planes_[2], codes);
    const __m256i b3 = _mm256_shuffle_epi8(planes_[3], codes);
    const __m256i lower0 = _mm256_unpacklo_epi8(b0, b1), lower1 = _mm256_unpackhi_epi8(b0, b1);
    const __m256i upper0 = _mm256_unpacklo_epi8(b2, b3), upper1 = _mm256_unpackhi_epi8(b2, b3);
    w[0].half[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower0, upper0));
    w[0].half[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower0, upper0));
    w[1].half[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower1, upper1));
    w[1].half[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower1, upper1));
  }

 private:
  __m256i planes_[4];
};

#endif

// Eight columns of a tile, unscaled.
INLINE void decode_octet(const uint8_t* codes, const Codebook& codebook, Wide* w) {
  const Octet octet = codebook.fetch(codes);
  codebook.decode<0>(octet, w);
  codebook.decode<1>(octet, w + 2);
  codebook.decode<2>(octet, w + 4);
  codebook.decode<3>(octet, w + 6);
}

}  // namespace multiflora
