// Norms, the gated activation, and rotation on the way into the cache; a row is one thread's.

#include "parallel.hpp"
#include "vector.hpp"

namespace multiflora {
namespace {

// out = x / sqrt(mean(x^2) + eps) * weight.
template <typename T, typename Out>
INLINE void norm_row(const T* x, const T* weight, float eps, int64_t size, Out* out) {
  Vector squares = zero();
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Vector value = load(x + i);
    squares = multiply_add(value, value, squares);
  }
  float total = sum_of(squares);
  for (; i < size; ++i) total = __builtin_fmaf(widen(x[i]), widen(x[i]), total);
  const float factor = 1.0f / __builtin_sqrtf(total / static_cast<float>(size) + eps);
  const Vector wide = spread(factor);
  for (i = 0; i + kLanes <= size; i += kLanes)
    store(out + i, _mm256_mul_ps(_mm256_mul_ps(load(x + i), wide), load(weight + i)));
  for (; i < size; ++i) narrow_to(out + i, widen(x[i]) * factor * widen(weight[i]));
}

// out[T][H] = rms_norm(sum), where sum = x + residual is stored too; without a residual sum = x.
template <typename T>
INLINE void norm(const T* x, const T* residual, const T* weight, float eps, T* sum, T* out,
                 int64_t num_rows, int64_t size) {
  parallel_for(num_rows, num_rows * size > kSerial / 8, [&](int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) {
      const T* source = x + row * size;
      if (residual) {
        const T* other = residual + row * size;
        T* place = sum + row * size;
        int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes)
          store(place + i, _mm256_add_ps(load(source + i), load(other + i)));
        for (; i < size; ++i) narrow_to(place + i, widen(source[i]) + widen(other[i]));
        source = place;
      }
      norm_row(source, weight, eps, size, out + row * size);
    }
  });
}

INLINE Vector gated(Vector gate, Vector up) {
  const Vector divisor = _mm256_add_ps(spread(1.0f), exponential(_mm256_sub_ps(zero(), gate)));
  return _mm256_mul_ps(_mm256_div_ps(gate, divisor), up);
}

// out[T][I] = silu(gate) * up of gate_up [T][2 I].
template <typename T>
INLINE void silu_mul(const T* gate_up, T* out, int64_t num_rows, int64_t width) {
  parallel_for(num_rows, num_rows * width > kSerial / 16, [&](int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) {
      const T *gate = gate_up + 2 * row * width, *up = gate + width;
      T* place = out + row * width;
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes)
        store(place + i, gated(load(gate + i), load(up + i)));
      if (i == width) continue;
      alignas(32) T rest[3][kLanes] = {};
      for (int64_t j = i; j < width; ++j) rest[0][j - i] = gate[j], rest[1][j - i] = up[j];
      store(rest[2], gated(load(rest[0]), load(rest[1])));
      for (int64_t j = i; j < width; ++j) place[j] = rest[2][j - i];
    }
  });
}

// Half-split rotation of one head by the angles of its position (arXiv 2104.09864).
template <typename T, typename Out>
INLINE void rotate_head(const T* x, const float* cos, const float* sin, int64_t half, Out* out) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vector first = load(x + i), second = load(x + half + i);
    const Vector c = load(cos + i), s = load(sin + i);
    store(out + i, _mm256_sub_ps(_mm256_mul_ps(first, c), _mm256_mul_ps(second, s)));
    store(out + half + i, _mm256_add_ps(_mm256_mul_ps(second, c), _mm256_mul_ps(first, s)));
  }
  for (; i < half; ++i) {
    const float first = widen(x[i]), second = widen(x[half + i]);
    narrow_to(out + i, first * cos[i] - second * sin[i]);
    narrow_to(out + half + i, second * cos[i] + first * sin[i]);
  }
}

constexpr int64_t kMostHeadSize = 512;

struct Rotation {
  const float *cos, *sin;
  int64_t size;
  float eps;
};

// Norm (if any) and rotate the heads of one row into `out`.
template <typename T>
INLINE void place_heads(const T* x, int64_t num_heads, const T* norm, const Rotation& by, T* out) {
  T normed[kMostHeadSize];
  for (int64_t h = 0; h < num_heads; ++h) {
    const T* head = x + h * by.size;
    if (norm) {
      norm_row(head, norm, by.eps, by.size, normed);
      head = normed;
    }
    rotate_head(head, by.cos, by.sin, by.size / 2, out + h * by.size);
  }
}

// qkv [T][(Q + 2 G) D] -> q [T][Q][D]; keys and values to the caches' flat rows, unless negative.
template <typename T>
INLINE void rotate_and_cache(const T* qkv, const T* q_norm, const T* k_norm, float eps,
                             const float* cos, const float* sin, const int64_t* positions,
                             T* k_cache, T* v_cache, const int64_t* cache_rows, T* q,
                             int64_t num_rows, int64_t num_heads, int64_t num_kv_heads,
                             int64_t size) {
  const int64_t kv_size = num_kv_heads * size, q_size = num_heads * size;
  const bool is_large = num_rows * (q_size + kv_size) > kSerial / 8;
  parallel_for(num_rows, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) {
      const T* source = qkv + row * (q_size + 2 * kv_size);
      const int64_t angle = positions[row] * (size / 2), place = cache_rows[row] * kv_size;
      const Rotation by{cos + angle, sin + angle, size, eps};
      place_heads(source, num_heads, q_norm, by, q + row * q_size);
      if (place < 0) continue;
      place_heads(source + q_size, num_kv_heads, k_norm, by, k_cache + place);
      __builtin_memcpy(v_cache + place, source + q_size + kv_size, kv_size * sizeof(T));
    }
  });
}

constexpr int64_t kRounded = 4096;  // values that one thread rounds at a time

}  // namespace
}  // namespace multiflora

using namespace multiflora;

// out bfloat16 [count] = x float32 [count], each rounded to nearest, ties to even.
extern "C" void multiflora_round(const float* x, uint16_t* out, int64_t count) {
  parallel_for((count + kRounded - 1) / kRounded, count > kSerial, [&](int64_t start, int64_t stop) {
    int64_t i = start * kRounded;
    const int64_t end = smaller(stop * kRounded, count);
    for (; i + kLanes <= end; i += kLanes) store(out + i, load(x + i));
    for (; i < end; ++i) out[i] = narrow(x[i]);
  });
}

#define EXPORT(suffix, T)                                                                       \
  extern "C" void multiflora_norm_##suffix(const T* x, const T* residual, const T* weight,      \
                                           float eps, T* sum, T* out, int64_t num_rows,         \
                                           int64_t size) {                                      \
    norm(x, residual, weight, eps, sum, out, num_rows, size);                                   \
  }                                                                                             \
  extern "C" void multiflora_silu_mul_##suffix(const T* gate_up, T* out, int64_t num_rows,      \
                                               int64_t width) {                                 \
    silu_mul(gate_up, out, num_rows, width);                                                    \
  }                                                                                             \
  extern "C" void multiflora_rotate_and_cache_##suffix(                                         \
      const T* qkv, const T* q_norm, const T* k_norm, float eps, const float* cos,              \
      const float* sin, const int64_t* positions, T* k_cache, T* v_cache,                       \
      const int64_t* cache_rows, T* q, int64_t num_rows, int64_t num_heads,                     \
      int64_t num_kv_heads, int64_t size) {                                                     \
    rotate_and_cache(qkv, q_norm, k_norm, eps, cos, sin, positions, k_cache, v_cache,           \
                     cache_rows, q, num_rows, num_heads, num_kv_heads, size);                   \
  }

EXPORT(float32, float)
EXPORT(bfloat16, uint16_t)
