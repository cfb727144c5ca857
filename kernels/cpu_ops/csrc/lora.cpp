// Every delta of one projection in one call: shrink to the ranks, then expand segment by segment.
//
// Threads split ranks, then output columns; a segment's rows are added in the order of segments,
// and rows of other segments are never read or written.

#include <memory>

#include "dot.hpp"
#include "parallel.hpp"
#include "wide.hpp"

namespace multiflora {
namespace {

// The layout is kernels/cpu_ops/lora_tables.py's. W, the type of factors, is float or bfloat16
// (uint16_t).
template <typename W>
struct Part {
  const W* b;            // [rank][width]
  int64_t rank;
  int64_t first_rank;    // among the shrunk ranks of the version
  int64_t first_column;  // in y
  int64_t width;
  double scale;
};

template <typename W>
struct Version {
  const W* a;  // [num_ranks][K]; null where the version has nothing here
  int64_t num_ranks;
  const Part<W>* parts;
  int64_t num_parts;
};

struct Segment {
  int64_t start, stop;  // rows
  int64_t slot;
  double weight;
};

// Columns that one thread expands at a time: long pieces of B where there are many, and several
// pieces for each thread where there are few.
constexpr int64_t kLeastColumns = 256, kMostColumns = 1024, kPieces = 8;
constexpr int64_t kRanks = 4;  // read side by side

// y[columns] of four rows += scale * (v[row][rank] @ b[rank][columns]).
template <int WIDES, typename W>
INLINE void expand_columns(const float* v, int64_t v_stride, const W* b, int64_t b_stride,
                           int64_t rank, Wide scale, float* y, int64_t y_stride) {
  Wide sum[4][WIDES];
  for (int row = 0; row < 4; ++row)
    for (int i = 0; i < WIDES; ++i) sum[row][i] = wide_zero();
  for (int64_t r = 0; r < rank; ++r)
    for (int i = 0; i < WIDES; ++i) {
      const Wide factor = load_wide(b + r * b_stride + i * kWideLanes);
      for (int row = 0; row < 4; ++row)
        sum[row][i] = multiply_add(spread_wide(v + row * v_stride + r), factor, sum[row][i]);
    }
  for (int row = 0; row < 4; ++row)
    for (int i = 0; i < WIDES; ++i) {
      float* place = y + row * y_stride + i * kWideLanes;
      store(place, multiply_add(sum[row][i], scale, load_wide(place)));
    }
}

// The last columns of a row, fewer than a vector.
template <typename W>
INLINE void expand_rest(const float* v, const W* b, int64_t b_stride, int64_t rank, float scale,
                        float* y, int64_t num_columns) {
  for (int64_t n = 0; n < num_columns; ++n) {
    float sum = 0;
    for (int64_t r = 0; r < rank; ++r) sum = __builtin_fmaf(v[r], widen(b[r * b_stride + n]), sum);
    y[n] = __builtin_fmaf(sum, scale, y[n]);
  }
}

template <typename W>
void expand_four(const float* v, int64_t v_stride, const W* b, int64_t b_stride, int64_t rank,
                 float scale, float* y, int64_t y_stride, int64_t num_columns) {
  constexpr int kWides = kRegisters / 8;  // whose sums of four rows fill half the registers
  const Wide wide = spread_wide(&scale);
  int64_t n = 0;
  for (; n + kWides * kWideLanes <= num_columns; n += kWides * kWideLanes)
    expand_columns<kWides>(v, v_stride, b + n, b_stride, rank, wide, y + n, y_stride);
  for (; n + kWideLanes <= num_columns; n += kWideLanes)
    expand_columns<1>(v, v_stride, b + n, b_stride, rank, wide, y + n, y_stride);
  for (int64_t row = 0; row < 4; ++row)
    expand_rest(v + row * v_stride, b + n, b_stride, rank, scale, y + row * y_stride + n,
                num_columns - n);
}

// sum[columns] += RANKS ranks, one after the other. Those that follow are sent for meanwhile.
template <int RANKS, typename W>
INLINE void add_ranks(const float* v, const W* b, int64_t b_stride, int64_t num_columns,
                      float* sum) {
  for (int64_t n = 0; n < num_columns; n += kWideLanes) {
    Wide total = load_wide(sum + n);
    for (int r = 0; r < RANKS; ++r) {
      prefetch(b + (r + RANKS) * b_stride + n);
      total = multiply_add(spread_wide(v + r), load_wide(b + r * b_stride + n), total);
    }
    store(sum + n, total);
  }
}

// A single row reads B in long pieces: it has nothing else to wait for than memory.
template <typename W>
void expand_one(const float* v, const W* b, int64_t b_stride, int64_t rank, float scale,
                float* y, int64_t num_columns) {
  alignas(64) float sum[kMostColumns];
  const int64_t whole = num_columns / kWideLanes * kWideLanes;
  for (int64_t n = 0; n < whole; n += kWideLanes) store(sum + n, wide_zero());
  int64_t r = 0;
  for (; r + kRanks <= rank; r += kRanks)
    add_ranks<kRanks>(v + r, b + r * b_stride, b_stride, whole, sum);
  for (; r < rank; ++r) add_ranks<1>(v + r, b + r * b_stride, b_stride, whole, sum);
  for (int64_t n = 0; n < whole; n += kWideLanes)
    store(y + n, multiply_add(load_wide(sum + n), spread_wide(&scale), load_wide(y + n)));
  expand_rest(v, b + whole, b_stride, rank, scale, y + whole, num_columns - whole);
}

// v[rows][ranks] = x[rows] . a[ranks] for up to kRanks of a version's ranks.
template <typename X, typename W>
INLINE void shrink(const X* x, const W* a, float* v, int64_t rows, int64_t num_columns,
                   int64_t ranks, int64_t v_stride) {
  if (ranks == kRanks) return dots_of_rows<FloatDots, kRanks>(x, a, v, rows, num_columns, v_stride);
  for (int64_t rank = 0; rank < ranks; ++rank)
    dots_of_rows<FloatDots, 1>(x, a + rank * num_columns, v + rank, rows, num_columns, v_stride);
}

// What one version's part adds to columns [first, stop) of one segment.
template <typename W>
void add_part(const Part<W>& part, const Segment& segment, const float* shrunk, int64_t num_ranks,
              int64_t first, int64_t stop, float* y, int64_t y_stride) {
  const int64_t from = larger(first, part.first_column);
  const int64_t to = smaller(stop, part.first_column + part.width);
  if (from >= to) return;
  const float scale = static_cast<float>(segment.weight * part.scale);
  const W* b = part.b + (from - part.first_column);
  const float* v = shrunk + part.first_rank;
  float* rows = y + segment.start * y_stride + from;
  const int64_t num_rows = segment.stop - segment.start;
  int64_t row = 0;
  for (; row + 4 <= num_rows; row += 4)
    expand_four(v + row * num_ranks, num_ranks, b, part.width, part.rank, scale,
                rows + row * y_stride, y_stride, to - from);
  for (; row < num_rows; ++row)
    expand_one(v + row * num_ranks, b, part.width, part.rank, scale, rows + row * y_stride,
               to - from);
}

// y[T][N] += weight * scale * (x[T][K] @ A.T) @ B on the rows of every segment.
template <typename X, typename W>
void add_deltas(const X* x, float* y, const Version<W>* versions, const Segment* segments,
                int64_t num_segments, int64_t num_columns, int64_t num_features) {
  const std::unique_ptr<int64_t[]> places(new int64_t[num_segments + 1]);
  int64_t size = 0, num_jobs = 0;
  for (int64_t s = 0; s < num_segments; ++s) {
    places[s] = size;
    const int64_t num_ranks = versions[segments[s].slot].num_ranks;
    size += (segments[s].stop - segments[s].start) * num_ranks;
    num_jobs += (num_ranks + kRanks - 1) / kRanks;
  }
  if (size == 0) return;
  const std::unique_ptr<float[]> shrunk(new float[size]);
  const bool is_large = size * (num_columns + num_features) > kSerial;
  parallel_for(num_jobs, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t job = start; job < stop; ++job) {
      int64_t s = 0, rank = job * kRanks;
      for (;; ++s) {
        const int64_t ranks = versions[segments[s].slot].num_ranks;
        if (rank < ranks) break;
        rank -= (ranks + kRanks - 1) / kRanks * kRanks;
      }
      const Segment& segment = segments[s];
      const Version<W>& version = versions[segment.slot];
      shrink(x + segment.start * num_columns, version.a + rank * num_columns,
             shrunk.get() + places[s] + rank, segment.stop - segment.start, num_columns,
             smaller(kRanks, version.num_ranks - rank), version.num_ranks);
    }
  });
  const int64_t share = (num_features / kPieces + kLeastColumns - 1) / kLeastColumns * kLeastColumns;
  const int64_t chunk = larger(kLeastColumns, smaller(kMostColumns, share));
  parallel_for((num_features + chunk - 1) / chunk, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t first = start * chunk; first < stop * chunk; first += chunk)
      for (int64_t s = 0; s < num_segments; ++s) {
        const Version<W>& version = versions[segments[s].slot];
        for (int64_t p = 0; p < version.num_parts; ++p)
          add_part(version.parts[p], segments[s], shrunk.get() + places[s], version.num_ranks,
                   first, smaller(first + chunk, num_features), y, num_features);
      }
  });
}

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

void multiflora_lora_float32(const float* x, float* y, const Version<float>* versions,
                             const Segment* segments, int64_t num_segments, int64_t num_columns,
                             int64_t num_features) {
  add_deltas(x, y, versions, segments, num_segments, num_columns, num_features);
}

// The same for bfloat16 factors, and for bfloat16 rows too: both are widened exactly.
void multiflora_lora_bfloat16(const float* x, float* y, const Version<uint16_t>* versions,
                              const Segment* segments, int64_t num_segments, int64_t num_columns,
                              int64_t num_features) {
  add_deltas(x, y, versions, segments, num_segments, num_columns, num_features);
}

void multiflora_lora_bfloat16_rows(const uint16_t* x, float* y, const Version<uint16_t>* versions,
                                   const Segment* segments, int64_t num_segments,
                                   int64_t num_columns, int64_t num_features) {
  add_deltas(x, y, versions, segments, num_segments, num_columns, num_features);
}

}  // extern "C"
