// What the machine can do at most, measured the way the kernels use it: all threads, plain loads.

#include <immintrin.h>

#include <cstdint>

extern "C" {

// Multiply-adds of float32 in registers; `rounds` rounds of 96 per thread. Returns a sum, so that
// nothing is optimized away.
float multiply_adds(int64_t rounds) {
  float total = 0;
#pragma omp parallel reduction(+ : total)
  {
    __m256 sums[12];
    for (int i = 0; i < 12; ++i) sums[i] = _mm256_set1_ps(0.1f * static_cast<float>(i));
    const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(0.001f);
    for (int64_t round = 0; round < rounds; ++round)
      for (int i = 0; i < 12; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, term);
    for (int i = 0; i < 12; ++i) total += _mm256_cvtss_f32(sums[i]);
  }
  return total;
}

// Reads `count` floats, a multiple of 32, once.
float read_all(const float* values, int64_t count) {
  float total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total)
  for (int64_t chunk = 0; chunk < count / 32; ++chunk) {
    const float* place = values + 32 * chunk;
    const __m256 sum = _mm256_add_ps(
        _mm256_add_ps(_mm256_loadu_ps(place), _mm256_loadu_ps(place + 8)),
        _mm256_add_ps(_mm256_loadu_ps(place + 16), _mm256_loadu_ps(place + 24)));
    total += _mm256_cvtss_f32(sum);
  }
  return total;
}

}  // extern "C"
