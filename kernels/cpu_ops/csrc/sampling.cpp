// What a draw needs of whole rows of logits: the extremes, the best few, a token by its weight.
//
// A row is one thread's, and its result depends on nothing but its own logits.

#include <algorithm>
#include <functional>
#include <vector>

#include "parallel.hpp"
#include "vector.hpp"

namespace multiflora {
namespace {

constexpr int64_t kBlock = 512;  // logits
constexpr float kNothing = -__builtin_inff();

// Element-wise work on eight logits is worth sharing out a good deal earlier than products are.
template <typename F>
INLINE void for_each_row(int64_t num_rows, int64_t size, const F& each) {
  parallel_for(num_rows, num_rows * size > kSerial / 4, [&](int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) each(row);
  });
}

// Eight logits from x[i]; beyond the end of a row, as if they were banned.
INLINE Vector load_up_to(const float* x, int64_t i, int64_t stop) {
  if (i + kLanes <= stop) return load(x + i);
  alignas(32) float rest[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) rest[j] = i + j < stop ? x[i + j] : kNothing;
  return load(rest);
}

struct Peak {
  int64_t index;  // of the first of the largest
  float value;
  bool is_finite;  // all of the row
};

Peak peak_of(const float* x, int64_t size) {
  Peak peak{0, kNothing, true};
  int64_t block = 0;
  Vector poison = zero();
  for (int64_t start = 0; start < size; start += kBlock) {
    const int64_t stop = smaller(start + kBlock, size), whole = stop - (stop - start) % kLanes;
    Vector largest = spread(kNothing);
    for (int64_t i = start; i < whole; i += kLanes) {
      const Vector value = load(x + i);
      largest = _mm256_max_ps(largest, value);
      // Infinity less itself is NaN, which stays.
      poison = _mm256_add_ps(poison, _mm256_sub_ps(value, value));
    }
    float best = largest_of(largest);
    for (int64_t i = whole; i < stop; ++i) {
      best = x[i] > best ? x[i] : best;
      peak.is_finite &= x[i] - x[i] == 0;
    }
    if (best > peak.value) peak.value = best, block = start;
  }
  peak.is_finite &= sum_of(poison) == 0;
  const int64_t stop = smaller(block + kBlock, size);
  peak.index = std::find(x + block, x + stop, peak.value) - x;
  if (peak.index == stop) peak.index = 0;  // nothing but NaN and less
  return peak;
}

// How a row's logits weigh: exp((x - largest) * sharpness).
struct Scale {
  float largest, sharpness;
};

// In float32, so that neither the largest logit nor those ruled out become NaN.
Scale scale_of(const float* x, int64_t size, double temperature) {
  constexpr double kLeast = __FLT_MIN__, kMost = __FLT_MAX__;
  const double sharpness = std::min(std::max(1 / temperature, kLeast), kMost);
  return {peak_of(x, size).value, static_cast<float>(sharpness)};
}

// The sum of a block's weights, which are stored.
double weigh(const float* x, int64_t start, int64_t stop, const Scale& scale, float* weights) {
  const Vector largest = spread(scale.largest), sharpness = spread(scale.sharpness);
  __m256d even = _mm256_setzero_pd(), odd = _mm256_setzero_pd();
  for (int64_t i = start; i < stop; i += kLanes) {
    const Vector distance = _mm256_sub_ps(load_up_to(x, i, stop), largest);
    const Vector weight = exponential(_mm256_mul_ps(distance, sharpness));
    store(weights + i - start, weight);
    even = _mm256_add_pd(even, _mm256_cvtps_pd(_mm256_castps256_ps128(weight)));
    odd = _mm256_add_pd(odd, _mm256_cvtps_pd(_mm256_extractf128_ps(weight, 1)));
  }
  alignas(32) double sums[4];
  _mm256_store_pd(sums, _mm256_add_pd(even, odd));
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double sum_of_weights(const float* x, int64_t size, double temperature) {
  const Scale scale = scale_of(x, size, temperature);
  alignas(32) float weights[kBlock];
  double total = 0;
  for (int64_t start = 0; start < size; start += kBlock)
    total += weigh(x, start, smaller(start + kBlock, size), scale, weights);
  return total;
}

// The first place where the running sum of the weights exceeds `point` of it all. A weight of zero
// is never drawn: it exceeds nothing.
int64_t draw_from(const float* x, int64_t size, double temperature, double point) {
  const Scale scale = scale_of(x, size, temperature);
  alignas(32) float weights[kBlock];
  std::vector<double> sums;
  double total = 0;
  for (int64_t start = 0; start < size; start += kBlock) {
    sums.push_back(weigh(x, start, smaller(start + kBlock, size), scale, weights));
    total += sums.back();
  }
  const double target = point * total;
  double before = 0;
  int64_t block = 0, last = 0;
  for (; block < static_cast<int64_t>(sums.size()); ++block) {
    if (sums[block] > 0) last = block;
    if (before + sums[block] > target) break;
    before += sums[block];
  }
  // Past the end by rounding, or because nothing has a weight.
  if (block == static_cast<int64_t>(sums.size())) block = last;
  const int64_t start = block * kBlock, stop = smaller(start + kBlock, size);
  weigh(x, start, stop, scale, weights);
  int64_t drawn = start;
  for (int64_t i = start; i < stop; ++i) {
    if (weights[i - start] > 0) drawn = i;
    before += weights[i - start];
    if (before > target) break;
  }
  return drawn;
}

// Falls as the logit falls; of equal ones, as the id rises.
INLINE uint64_t key_of(float logit, int64_t id) {
  const float value = logit + 0.0f;  // -0 is 0
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
INLINE int64_t id_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// Keeps the best `count` keys, in no order but that the last of them is the least.
void keep_best(std::vector<uint64_t>* keys, int64_t count) {
  std::nth_element(keys->begin(), keys->begin() + count - 1, keys->end(),
                   std::greater<uint64_t>());
  keys->resize(count);
}

// The best `count` of a row, falling; of equal logits the lower ids, in their order. Logits that
// are no better than `count` earlier ones are passed over eight at a time.
void best_of(const float* x, int64_t size, int64_t count, float* values, int64_t* ids) {
  const size_t room = smaller(2 * count + kBlock, size);
  std::vector<uint64_t> keys;
  keys.reserve(room + kLanes);
  int64_t i = 0;
  for (; i < static_cast<int64_t>(room); ++i) keys.push_back(key_of(x[i], i));
  keep_best(&keys, count);
  Vector least = spread(x[id_of(keys.back())]);
  for (; i < size; i += kLanes) {
    const Vector value = load_up_to(x, i, size);
    int better = _mm256_movemask_ps(_mm256_cmp_ps(value, least, _CMP_GT_OQ));
    for (; better; better &= better - 1) {
      const int64_t id = i + __builtin_ctz(better);
      keys.push_back(key_of(x[id], id));
    }
    if (keys.size() < room) continue;
    keep_best(&keys, count);
    least = spread(x[id_of(keys.back())]);
  }
  keep_best(&keys, count);
  std::sort(keys.begin(), keys.end(), std::greater<uint64_t>());
  for (int64_t place = 0; place < count; ++place) {
    ids[place] = id_of(keys[place]);
    values[place] = x[ids[place]];
  }
}

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" void multiflora_peaks(const float* logits, int64_t* best, bool* is_finite,
                                 int64_t num_rows, int64_t size) {
  for_each_row(num_rows, size, [&](int64_t row) {
    const Peak peak = peak_of(logits + row * size, size);
    best[row] = peak.index;
    is_finite[row] = peak.is_finite;
  });
}

extern "C" void multiflora_top_k(const float* logits, int64_t count, float* values, int64_t* ids,
                                 int64_t num_rows, int64_t size) {
  for_each_row(num_rows, size, [&](int64_t row) {
    best_of(logits + row * size, size, count, values + row * count, ids + row * count);
  });
}

extern "C" void multiflora_weight_sums(const float* logits, const double* temperatures,
                                       double* sums, int64_t num_rows, int64_t size) {
  for_each_row(num_rows, size, [&](int64_t row) {
    sums[row] = sum_of_weights(logits + row * size, size, temperatures[row]);
  });
}

extern "C" void multiflora_draw(const float* logits, const double* temperatures,
                                const double* points, int64_t* drawn, int64_t num_rows,
                                int64_t size) {
  for_each_row(num_rows, size, [&](int64_t row) {
    drawn[row] = draw_from(logits + row * size, size, temperatures[row], points[row]);
  });
}
