// Causal attention over paged keys and values, with a running softmax (arXiv 2112.05682).
//
// Keys are taken in tiles that begin at multiples of kTile positions, and a query at position p
// reads the keys it may see and no other. So its arithmetic depends on p, the window and the keys
// alone: not on the chunk it is prefilled in, nor on the rows that share its tiles.

#include <memory>

#include "parallel.hpp"
#include "vector.hpp"

namespace multiflora {
namespace {

constexpr int64_t kTile = 64;  // keys
constexpr int64_t kColumns = 64;
constexpr float kNothing = -__builtin_inff();

// Rows of one request that are computed together, so that a tile is read once for all.
struct Task {
  int64_t row, count;      // query rows
  int64_t first_position;  // of the first of them
  int64_t first_block;     // of the request, in `blocks`
};

struct Shape {
  int64_t num_heads, num_kv_heads, head_dim, block_size, window;
  float scale;
};

// Where the keys and values of one kv head at a tile's positions lie.
template <typename T>
struct Tile {
  const T *keys[kTile], *values[kTile];
};

template <typename T>
void locate(const T* k_cache, const T* v_cache, const int64_t* blocks, const Shape& shape,
            int64_t head, int64_t first, int64_t count, Tile<T>* tile) {
  const int64_t stride = shape.num_kv_heads * shape.head_dim;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = first + i;
    const int64_t row =
        blocks[position / shape.block_size] * shape.block_size + position % shape.block_size;
    const int64_t place = row * stride + head * shape.head_dim;
    tile->keys[i] = k_cache + place;
    tile->values[i] = v_cache + place;
  }
}

// scores[8] = scale * (q . keys), each key's sum in one fixed order.
template <typename T>
INLINE void score_octet(const T* q, const T* const* keys, int64_t head_dim, float scale,
                        float* scores) {
  Vector sum[8];
  for (int i = 0; i < 8; ++i) sum[i] = zero();
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const Vector value = load(q + d);
    for (int i = 0; i < 8; ++i) sum[i] = multiply_add(value, load(keys[i] + d), sum[i]);
  }
  store(scores, _mm256_mul_ps(sums_of(sum), spread(scale)));
}

// One query of one head: what it has seen so far.
struct State {
  float maximum, total;
};

// acc[columns] = acc * shrink + weights . values.
template <int VECTORS, typename T>
INLINE void add_values(const float* weights, const T* const* values, int64_t first, int64_t stop,
                       int64_t column, float shrink, float* acc) {
  Vector sum[VECTORS];
  for (int i = 0; i < VECTORS; ++i)
    sum[i] = _mm256_mul_ps(load(acc + i * kLanes), spread(shrink));
  for (int64_t s = first; s < stop; ++s) {
    const Vector weight = spread(weights[s]);
    for (int i = 0; i < VECTORS; ++i)
      sum[i] = multiply_add(weight, load(values[s] + column + i * kLanes), sum[i]);
  }
  for (int i = 0; i < VECTORS; ++i) store(acc + i * kLanes, sum[i]);
}

// Take in keys [first, stop) of a tile.
template <typename T>
void see(const T* q, const Tile<T>& tile, int64_t first, int64_t stop, const Shape& shape,
         State* state, float* acc) {
  alignas(32) float scores[kTile];
  const int64_t begin = first / 8 * 8, end = (stop + 7) / 8 * 8;
  Vector best = spread(kNothing);
  for (int64_t s = begin; s < end; s += 8) {
    const T* rows[8];
    for (int i = 0; i < 8; ++i) rows[i] = tile.keys[larger(first, smaller(s + i, stop - 1))];
    score_octet(q, rows, shape.head_dim, shape.scale, scores + s);
    for (int64_t i = s; i < s + 8; ++i)
      if (i < first || i >= stop) scores[i] = kNothing;
    best = _mm256_max_ps(best, load(scores + s));
  }
  const float highest = largest_of(best);
  const float maximum = highest > state->maximum ? highest : state->maximum;
  alignas(32) float shrink[kLanes];
  store(shrink, exponential(spread(state->maximum - maximum)));
  Vector total = zero();
  for (int64_t s = begin; s < end; s += 8) {
    const Vector weight = exponential(_mm256_sub_ps(load(scores + s), spread(maximum)));
    store(scores + s, weight);
    total = _mm256_add_ps(total, weight);
  }
  state->total = __builtin_fmaf(state->total, shrink[0], sum_of(total));
  state->maximum = maximum;
  int64_t d = 0;
  for (; d + kColumns <= shape.head_dim; d += kColumns)
    add_values<kColumns / kLanes>(scores, tile.values, first, stop, d, shrink[0], acc + d);
  for (; d < shape.head_dim; d += kLanes)
    add_values<1>(scores, tile.values, first, stop, d, shrink[0], acc + d);
}

template <typename T>
void attend(const T* q, const T* k_cache, const T* v_cache, T* out, const Task& task,
            const int64_t* blocks, int64_t kv_head, const Shape& shape, float* acc,
            State* states) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t stride = shape.num_heads * shape.head_dim;
  const int64_t last = task.first_position + task.count - 1;
  const int64_t lowest = shape.window ? larger(0, task.first_position - shape.window + 1) : 0;
  for (int64_t i = 0; i < task.count * group; ++i) states[i] = {kNothing, 0};
  for (int64_t i = 0; i < task.count * group * shape.head_dim; ++i) acc[i] = 0;
  const T* first_q = q + task.row * stride + kv_head * group * shape.head_dim;
  for (int64_t start = lowest / kTile * kTile; start <= last; start += kTile) {
    Tile<T> tile;
    locate(k_cache, v_cache, blocks + task.first_block, shape, kv_head, start,
           smaller(kTile, last + 1 - start), &tile);
    for (int64_t i = 0; i < task.count; ++i) {
      const int64_t position = task.first_position + i;
      const int64_t from = shape.window ? larger(0, position - shape.window + 1 - start) : 0;
      const int64_t to = smaller(kTile, position + 1 - start);
      if (from >= to) continue;
      for (int64_t h = 0; h < group; ++h)
        see(first_q + i * stride + h * shape.head_dim, tile, from, to, shape,
            states + i * group + h, acc + (i * group + h) * shape.head_dim);
    }
  }
  T* first_out = out + task.row * stride + kv_head * group * shape.head_dim;
  for (int64_t i = 0; i < task.count; ++i)
    for (int64_t h = 0; h < group; ++h) {
      const Vector share = spread(1.0f / states[i * group + h].total);
      for (int64_t d = 0; d < shape.head_dim; d += kLanes)
        store(first_out + i * stride + h * shape.head_dim + d,
              _mm256_mul_ps(load(acc + (i * group + h) * shape.head_dim + d), share));
    }
}

// q, out [T][Q][D]; caches [blocks][P][G][D]; D is a multiple of 8. `num_pairs` counts the keys
// that all queries see, `most_rows` are the rows of the largest task.
template <typename T>
void attention(const T* q, const T* k_cache, const T* v_cache, T* out, const Task* tasks,
               int64_t num_tasks, const int64_t* blocks, int64_t num_heads, int64_t num_kv_heads,
               int64_t head_dim, int64_t block_size, int64_t window, float scale,
               int64_t num_pairs, int64_t most_rows) {
  const Shape shape{num_heads, num_kv_heads, head_dim, block_size, window, scale};
  const int64_t group_rows = most_rows * num_heads / num_kv_heads;
  const bool is_large = num_pairs * num_heads * head_dim > kSerial;
  parallel_for(num_tasks * num_kv_heads, is_large, [&](int64_t start, int64_t stop) {
    const std::unique_ptr<float[]> acc(new float[group_rows * head_dim]);
    const std::unique_ptr<State[]> states(new State[group_rows]);
    for (int64_t i = start; i < stop; ++i)
      attend(q, k_cache, v_cache, out, tasks[i / num_kv_heads], blocks, i % num_kv_heads, shape,
             acc.get(), states.get());
  });
}

}  // namespace
}  // namespace multiflora

using namespace multiflora;

#define EXPORT(name, T)                                                                        \
  extern "C" void name(const T* q, const T* k_cache, const T* v_cache, T* out,                 \
                       const Task* tasks, int64_t num_tasks, const int64_t* blocks,            \
                       int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,              \
                       int64_t block_size, int64_t window, float scale, int64_t num_pairs,     \
                       int64_t most_rows) {                                                    \
    attention(q, k_cache, v_cache, out, tasks, num_tasks, blocks, num_heads, num_kv_heads,     \
              head_dim, block_size, window, scale, num_pairs, most_rows);                      \
  }

EXPORT(multiflora_attention_float32, float)
EXPORT(multiflora_attention_bfloat16, uint16_t)
