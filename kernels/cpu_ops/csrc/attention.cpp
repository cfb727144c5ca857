// Causal attention over paged keys and values, with a running softmax (arXiv 2112.05682).
//
// Keys are taken in tiles that begin at multiples of kTile positions, and a query at position p
// takes in the keys it may see and no other. So its arithmetic depends on p, the window and the
// keys alone: not on the chunk it is prefilled in, nor on the rows that share its tiles.

#include <memory>
#include <type_traits>

#include "parallel.hpp"
#include "wide.hpp"

namespace multiflora {
namespace {

constexpr int64_t kTile = 64;  // keys
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

  int64_t group() const { return num_heads / num_kv_heads; }
};

// Octets of columns, of as many keys as a register takes; queries and sums that fit beside them.
#ifdef MULTIFLORA_AVX512
using Octets = Wide;
constexpr int64_t kAtOnce = 16;  // keys
constexpr int kScoreRows = 3, kValueRows = 4;

INLINE Octets no_octets() { return wide_zero(); }
INLINE Octets load_octets(const float* const* rows, int64_t column) {
  return pair_of(load(rows[0] + column), load(rows[8] + column));
}
INLINE Octets spread_octet(const float* p) { return pair_of(load(p), load(p)); }
INLINE void store_sums(const Octets* sum, Vector scale, float* scores) {
  Vector halves[2][8];
  for (int i = 0; i < 8; ++i)
    for (int half = 0; half < 2; ++half) halves[half][i] = half_of(sum[i], half);
  store(scores, _mm256_mul_ps(sums_of(halves[0]), scale));
  store(scores + 8, _mm256_mul_ps(sums_of(halves[1]), scale));
}
#else
using Octets = Vector;
constexpr int64_t kAtOnce = 8;
constexpr int kScoreRows = 1, kValueRows = 1;

INLINE Octets no_octets() { return zero(); }
INLINE Octets load_octets(const float* const* rows, int64_t column) {
  return load(rows[0] + column);
}
INLINE Octets spread_octet(const float* p) { return load(p); }
INLINE void store_sums(const Octets* sum, Vector scale, float* scores) {
  store(scores, _mm256_mul_ps(sums_of(sum), scale));
}
#endif

// Whatever is needed of a tile or a row, in float32, one after the other.
struct Scratch {
  Scratch(int64_t num_rows, int64_t head_dim)
      : memory(new float[num_rows * (2 * head_dim + kTile + 1) + 2 * kTile * head_dim]),
        states(new State[num_rows]) {
    q = memory.get();
    acc = q + num_rows * head_dim;
    scores = acc + num_rows * head_dim;
    shrink = scores + num_rows * kTile;
    rows = shrink + num_rows;
  }

  // One query of one head: what it has seen so far.
  struct State {
    float maximum, total;
  };
  std::unique_ptr<float[]> memory;
  std::unique_ptr<State[]> states;
  float *q, *acc;  // [rows][D]
  float* scores;   // [rows][kTile]
  float* shrink;   // [rows]
  float* rows;     // [2][kTile][D], if keys and values are not float32 themselves
};
using State = Scratch::State;

template <typename T>
INLINE void widen_row(const T* from, float* to, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d += kLanes) store(to + d, load(from + d));
}

// The rows of a head lie apart, so that the processor does not foresee them.
template <typename T>
INLINE void prefetch_row(const T* row, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d += 64 / sizeof(T)) prefetch(row + d);
}

// Where the keys and values of one kv head at a tile's positions lie. Scores are computed for
// several keys at once: beyond those that are seen, they are of the nearest one that is.
struct Tile {
  const float *keys[kTile], *values[kTile];

  template <typename T>
  Tile(const T* k_cache, const T* v_cache, const int64_t* blocks, const Shape& shape, int64_t head,
       int64_t start, int64_t first, int64_t stop, int64_t last, float* rows) {
    const auto place_of = [&](int64_t position) {
      const int64_t block = blocks[position / shape.block_size];
      const int64_t row = block * shape.block_size + position % shape.block_size;
      return (row * shape.num_kv_heads + head) * shape.head_dim;
    };
    for (int64_t i = first; i < stop; ++i) {
      const int64_t place = place_of(start + i);
      keys[i] = as_float32(k_cache + place, rows + i * shape.head_dim, shape.head_dim);
      values[i] = as_float32(v_cache + place, rows + (kTile + i) * shape.head_dim, shape.head_dim);
      if (start + i + kTile <= last) {
        const int64_t next = place_of(start + i + kTile);
        prefetch_row(k_cache + next, shape.head_dim);
        prefetch_row(v_cache + next, shape.head_dim);
      }
    }
    for (int64_t i = 0; i < first; ++i) keys[i] = keys[first];
    for (int64_t i = stop; i < kTile; ++i) keys[i] = keys[stop - 1];
  }

  template <typename T>
  static const float* as_float32(const T* row, float* room, int64_t head_dim) {
    if constexpr (std::is_same_v<T, float>) return row;
    widen_row(row, room, head_dim);
    return room;
  }
};

// scores[r][keys] = scale * (q[r] . keys), each key's sum in one fixed order.
template <int ROWS>
INLINE void score_keys(const float* q, const float* const* keys, const Shape& shape,
                       float* scores) {
  Octets sum[ROWS][8];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < 8; ++i) sum[r][i] = no_octets();
  for (int64_t d = 0; d < shape.head_dim; d += kLanes) {
    Octets value[ROWS];
    for (int r = 0; r < ROWS; ++r) value[r] = spread_octet(q + r * shape.head_dim + d);
    for (int i = 0; i < 8; ++i) {
      const Octets key = load_octets(keys + i, d);
      for (int r = 0; r < ROWS; ++r) sum[r][i] = multiply_add(value[r], key, sum[r][i]);
    }
  }
  for (int r = 0; r < ROWS; ++r) store_sums(sum[r], spread(shape.scale), scores + r * kTile);
}

// Makes weights of the scores of keys [first, stop); returns what earlier sums shrink by.
INLINE float weigh(float* scores, int64_t first, int64_t stop, State* state) {
  const int64_t begin = first / 8 * 8, end = (stop + 7) / 8 * 8;
  for (int64_t i = begin; i < first; ++i) scores[i] = kNothing;
  for (int64_t i = stop; i < end; ++i) scores[i] = kNothing;
  Vector best = spread(kNothing);
  for (int64_t s = begin; s < end; s += 8) best = _mm256_max_ps(best, load(scores + s));
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
  return shrink[0];
}

// acc[r][columns] = acc[r] * shrink[r] + weights[r] . values.
template <int ROWS, int VECTORS>
INLINE void add_columns(const float* weights, const float* const* values, int64_t first,
                        int64_t stop, int64_t column, int64_t head_dim, const float* shrink,
                        float* acc) {
  Wide sum[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i)
      sum[r][i] = multiply_add(load_wide(acc + r * head_dim + column + i * kWideLanes),
                               spread_wide(shrink + r), wide_zero());
  for (int64_t s = first; s < stop; ++s) {
    Wide value[VECTORS];
    for (int i = 0; i < VECTORS; ++i) value[i] = load_wide(values[s] + column + i * kWideLanes);
    for (int r = 0; r < ROWS; ++r) {
      const Wide weight = spread_wide(weights + r * kTile + s);
      for (int i = 0; i < VECTORS; ++i) sum[r][i] = multiply_add(weight, value[i], sum[r][i]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i)
      store(acc + r * head_dim + column + i * kWideLanes, sum[r][i]);
}

// The last octet of a head whose size is no multiple of a wide register.
INLINE void add_octet(const float* weights, const float* const* values, int64_t first,
                      int64_t stop, int64_t column, float shrink, float* acc) {
  Vector sum = multiply_add(load(acc + column), spread(shrink), zero());
  for (int64_t s = first; s < stop; ++s)
    sum = multiply_add(spread(weights[s]), load(values[s] + column), sum);
  store(acc + column, sum);
}

template <int ROWS>
INLINE void add_values(const float* weights, const float* const* values, int64_t first,
                       int64_t stop, int64_t head_dim, const float* shrink, float* acc) {
  int64_t d = 0;
  for (; d + 4 * kWideLanes <= head_dim; d += 4 * kWideLanes)
    add_columns<ROWS, 4>(weights, values, first, stop, d, head_dim, shrink, acc);
  for (; d + kWideLanes <= head_dim; d += kWideLanes)
    add_columns<ROWS, 1>(weights, values, first, stop, d, head_dim, shrink, acc);
  if (d < head_dim)
    for (int r = 0; r < ROWS; ++r)
      add_octet(weights + r * kTile, values, first, stop, d, shrink[r], acc + r * head_dim);
}

// `take(rows, row)` for all rows, at most MOST at once: each on its own is the same.
template <int MOST, typename F>
INLINE void take_rows(int64_t row, int64_t stop, const F& take) {
  for (; row + MOST <= stop; row += MOST) take(std::integral_constant<int, MOST>(), row);
  if constexpr (MOST > 1) take_rows<MOST - 1>(row, stop, take);
}

// Rows [row, end) of a task take in keys [first, stop) of a tile.
void see(const Tile& tile, int64_t first, int64_t stop, const Shape& shape, int64_t row,
         int64_t end, const Scratch& scratch) {
  const int64_t size = shape.head_dim;
  take_rows<kScoreRows>(row, end, [&](auto rows, int64_t r) {
    for (int64_t s = first / kAtOnce * kAtOnce; s < stop; s += kAtOnce)
      score_keys<rows()>(scratch.q + r * size, tile.keys + s, shape,
                         scratch.scores + r * kTile + s);
  });
  for (int64_t r = row; r < end; ++r)
    scratch.shrink[r] = weigh(scratch.scores + r * kTile, first, stop, scratch.states.get() + r);
  take_rows<kValueRows>(row, end, [&](auto rows, int64_t r) {
    add_values<rows()>(scratch.scores + r * kTile, tile.values, first, stop, size,
                       scratch.shrink + r, scratch.acc + r * size);
  });
}

// The keys of the tile from `start` that the query at `position` sees.
struct Seen {
  int64_t first, stop;

  Seen(int64_t position, int64_t start, const Shape& shape)
      : first(shape.window ? larger(0, position - shape.window + 1 - start) : 0),
        stop(smaller(kTile, position + 1 - start)) {}
  bool operator==(const Seen& other) const { return first == other.first && stop == other.stop; }
};

template <typename T>
void attend(const T* q, const T* k_cache, const T* v_cache, T* out, const Task& task,
            const int64_t* blocks, int64_t kv_head, const Shape& shape, const Scratch& scratch) {
  const int64_t group = shape.group(), size = shape.head_dim;
  const int64_t stride = shape.num_heads * size, offset = task.row * stride + kv_head * group * size;
  for (int64_t i = 0; i < task.count * group; ++i) {
    scratch.states[i] = {kNothing, 0};
    widen_row(q + offset + i / group * stride + i % group * size, scratch.q + i * size, size);
    for (int64_t d = 0; d < size; ++d) scratch.acc[i * size + d] = 0;
  }
  const int64_t last = task.first_position + task.count - 1;
  const int64_t lowest = shape.window ? larger(0, task.first_position - shape.window + 1) : 0;
  for (int64_t start = lowest / kTile * kTile; start <= last; start += kTile) {
    const Tile tile(k_cache, v_cache, blocks + task.first_block, shape, kv_head, start,
                    larger(0, lowest - start), smaller(kTile, last + 1 - start), last,
                    scratch.rows);
    // Queries that see the same keys of it go together.
    for (int64_t i = 0, next; i < task.count; i = next) {
      const Seen seen(task.first_position + i, start, shape);
      for (next = i + 1; next < task.count; ++next)
        if (!(Seen(task.first_position + next, start, shape) == seen)) break;
      if (seen.first < seen.stop)
        see(tile, seen.first, seen.stop, shape, i * group, next * group, scratch);
    }
  }
  for (int64_t i = 0; i < task.count * group; ++i) {
    const Vector share = spread(1.0f / scratch.states[i].total);
    T* to = out + offset + i / group * stride + i % group * size;
    for (int64_t d = 0; d < size; d += kLanes)
      store(to + d, _mm256_mul_ps(load(scratch.acc + i * size + d), share));
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
  const bool is_large = num_pairs * num_heads * head_dim > kSerial;
  parallel_for(num_tasks * num_kv_heads, is_large, [&](int64_t start, int64_t stop) {
    const Scratch scratch(most_rows * shape.group(), head_dim);
    for (int64_t i = start; i < stop; ++i)
      attend(q, k_cache, v_cache, out, tasks[i / num_kv_heads], blocks, i % num_kv_heads, shape,
             scratch);
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
