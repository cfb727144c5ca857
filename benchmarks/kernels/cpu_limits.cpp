// What the machine can do at most, measured the way the kernels use it: all threads, plain loads,
// the widest vectors that the processor has.

#include <immintrin.h>

#include <cstdint>

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4)));

}  // namespace

extern "C" {

// float32 numbers that one instruction multiplies and adds.
int64_t lanes() { return kLanes; }

// Multiply-adds of float32 in registers; `rounds` rounds of 12 vectors per thread. Returns a sum,
// so that nothing is optimized away.
float multiply_adds(int64_t rounds) {
  float total = 0;
#pragma omp parallel reduction(+ : total)
  {
    Vector sums[12];
    for (int i = 0; i < 12; ++i) sums[i] = Vector{} + 0.1f * static_cast<float>(i);
    const Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
    for (int64_t round = 0; round < rounds; ++round)
      for (int i = 0; i < 12; ++i) sums[i] = sums[i] * factor + term;
    for (int i = 0; i < 12; ++i) total += sums[i][0];
  }
  return total;
}

#ifdef __AVX512BF16__
// The same with two bfloat16 products to a lane.
float multiply_add_pairs(int64_t rounds) {
  float total = 0;
#pragma omp parallel reduction(+ : total)
  {
    __m512 sums[12];
    for (int i = 0; i < 12; ++i) sums[i] = _mm512_set1_ps(0.1f * static_cast<float>(i));
    const __m512bh factor = (__m512bh)_mm512_set1_epi16(0x3a83);
    for (int64_t round = 0; round < rounds; ++round)
      for (int i = 0; i < 12; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], factor, factor);
    for (int i = 0; i < 12; ++i) total += _mm512_cvtss_f32(sums[i]);
  }
  return total;
}
#endif

// Reads `count` floats, a multiple of 64, once.
float read_all(const float* values, int64_t count) {
  float total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total)
  for (int64_t chunk = 0; chunk < count / (4 * kLanes); ++chunk) {
    const Vector* place = reinterpret_cast<const Vector*>(values + 4 * kLanes * chunk);
    total += ((place[0] + place[1]) + (place[2] + place[3]))[0];
  }
  return total;
}

}  // extern "C"
