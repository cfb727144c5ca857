// The CPU core: NF4 matmul and decoding, dense matmul and segmented LoRA in float32, with AVX2 and
// FMA.
//
// Batch invariance holds by construction: one output element is always the same chain of fused
// multiply-adds over k, whatever the number of rows, threads or segments around it. Threads split
// output elements, never a sum. Plain C ABI; the caller checks shapes.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE __attribute__((always_inline)) inline

namespace {

constexpr int64_t kColumns = 16;   // output features of one NF4 tile
constexpr int64_t kBlock = 64;     // weights that share one absmax
constexpr int64_t kRowBlock = 64;  // rows that share one decoded tile
// Multiply-adds below which waking the other threads costs more than it saves; on a busy host a
// barrier can cost milliseconds.
constexpr int64_t kSerial = 1 << 20;

constexpr float kCodebook[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Eight codes sit in one 32-bit word, the code of lane j in bits 4j .. 4j + 3. A permute reads the
// low three bits of each lane and ignores the rest; bit 3, moved to the sign, picks the half.
AVX2 INLINE __m256 look_up(uint32_t word, __m256 low, __m256 high) {
  const __m256i down = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i up = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
  const __m256i lanes = _mm256_set1_epi32(static_cast<int>(word));
  const __m256i index = _mm256_srlv_epi32(lanes, down);
  const __m256 sign = _mm256_castsi256_ps(_mm256_sllv_epi32(lanes, up));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                          _mm256_permutevar8x32_ps(high, index), sign);
}

// words [64][2] -> tile [64][16], unscaled.
AVX2 void decode(const uint32_t* words, float* tile) {
  const __m256 low = _mm256_loadu_ps(kCodebook), high = _mm256_loadu_ps(kCodebook + 8);
  for (int64_t k = 0; k < kBlock; ++k) {
    _mm256_store_ps(tile + k * kColumns, look_up(words[2 * k], low, high));
    _mm256_store_ps(tile + k * kColumns + 8, look_up(words[2 * k + 1], low, high));
  }
}

// total[row][16] += absmax[16] * (x[row][64] . tile[64][16]) for ROWS rows.
template <int ROWS>
AVX2 INLINE void accumulate(const float* x, int64_t stride, const float* tile, __m256 scale0,
                            __m256 scale1, float* total) {
  __m256 sum[ROWS][2];
  for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < kBlock; ++k) {
    const __m256 w0 = _mm256_load_ps(tile + k * kColumns);
    const __m256 w1 = _mm256_load_ps(tile + k * kColumns + 8);
    for (int r = 0; r < ROWS; ++r) {
      const __m256 value = _mm256_broadcast_ss(x + r * stride + k);
      sum[r][0] = _mm256_fmadd_ps(value, w0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(value, w1, sum[r][1]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float* row = total + r * kColumns;
    _mm256_store_ps(row, _mm256_fmadd_ps(sum[r][0], scale0, _mm256_load_ps(row)));
    _mm256_store_ps(row + 8, _mm256_fmadd_ps(sum[r][1], scale1, _mm256_load_ps(row + 8)));
  }
}

// One tile of 16 output features for up to kRowBlock rows.
AVX2 void nf4_tile(const float* x, int64_t stride, const uint32_t* words, const float* absmax,
                   float* y, int64_t y_stride, int64_t rows, int64_t num_blocks) {
  alignas(32) float tile[kBlock * kColumns];
  alignas(32) float total[kRowBlock * kColumns] = {};
  for (int64_t block = 0; block < num_blocks; ++block) {
    decode(words + block * kBlock * 2, tile);
    const __m256 scale0 = _mm256_loadu_ps(absmax + block * kColumns);
    const __m256 scale1 = _mm256_loadu_ps(absmax + block * kColumns + 8);
    const float* xs = x + block * kBlock;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
      accumulate<4>(xs + r * stride, stride, tile, scale0, scale1, total + r * kColumns);
    const float* rest = xs + r * stride;
    float* out = total + r * kColumns;
    if (rows - r == 3) accumulate<3>(rest, stride, tile, scale0, scale1, out);
    if (rows - r == 2) accumulate<2>(rest, stride, tile, scale0, scale1, out);
    if (rows - r == 1) accumulate<1>(rest, stride, tile, scale0, scale1, out);
  }
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(total + r * kColumns, kColumns, y + r * y_stride);
}

// Eight vectors as the rows of a matrix; afterwards they are its columns.
AVX2 INLINE void transpose(__m256* v) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// One block of 64 columns of 8 features, scaled, into rows of the dense matrix.
AVX2 INLINE void unpack_block(const uint32_t* words, __m256 scale, float* w, int64_t stride) {
  const __m256 low = _mm256_loadu_ps(kCodebook), high = _mm256_loadu_ps(kCodebook + 8);
  for (int64_t k = 0; k < kBlock; k += 8) {
    __m256 v[8];
    for (int i = 0; i < 8; ++i)
      v[i] = _mm256_mul_ps(look_up(words[2 * (k + i)], low, high), scale);
    transpose(v);
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(w + i * stride + k, v[i]);
  }
}

AVX2 INLINE float horizontal_sum(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// ROWS x FEATURES dot products over k. The order of one dot product depends on K alone.
template <int ROWS, int FEATURES>
AVX2 INLINE void dots(const float* x, int64_t x_stride, const float* w, int64_t num_columns,
                      float* y, int64_t y_stride) {
  __m256 sum[ROWS][FEATURES];
  for (int r = 0; r < ROWS; ++r)
    for (int f = 0; f < FEATURES; ++f) sum[r][f] = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + 8 <= num_columns; k += 8) {
    __m256 weights[FEATURES];
    for (int f = 0; f < FEATURES; ++f) weights[f] = _mm256_loadu_ps(w + f * num_columns + k);
    for (int r = 0; r < ROWS; ++r) {
      const __m256 value = _mm256_loadu_ps(x + r * x_stride + k);
      for (int f = 0; f < FEATURES; ++f)
        sum[r][f] = _mm256_fmadd_ps(value, weights[f], sum[r][f]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int f = 0; f < FEATURES; ++f) {
      float total = horizontal_sum(sum[r][f]);
      for (int64_t i = k; i < num_columns; ++i)
        total = __builtin_fmaf(x[r * x_stride + i], w[f * num_columns + i], total);
      y[r * y_stride + f] = total;
    }
}

template <int FEATURES>
AVX2 void dense_rows(const float* x, const float* w, float* y, int64_t rows, int64_t num_columns,
                     int64_t y_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    dots<4, FEATURES>(x + r * num_columns, num_columns, w, num_columns, y + r * y_stride, y_stride);
  for (; r < rows; ++r)
    dots<1, FEATURES>(x + r * num_columns, num_columns, w, num_columns, y + r * y_stride, y_stride);
}

// y[columns] += scale * (v[rank] @ b[rank][columns]).
AVX2 void expand(const float* v, int64_t rank, const float* b, int64_t b_stride, float scale,
                 float* y, int64_t num_columns) {
  const __m256 wide_scale = _mm256_set1_ps(scale);
  int64_t n = 0;
  for (; n + 8 <= num_columns; n += 8) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t r = 0; r < rank; ++r)
      sum = _mm256_fmadd_ps(_mm256_broadcast_ss(v + r), _mm256_loadu_ps(b + r * b_stride + n), sum);
    _mm256_storeu_ps(y + n, _mm256_fmadd_ps(sum, wide_scale, _mm256_loadu_ps(y + n)));
  }
  for (; n < num_columns; ++n) {
    float sum = 0;
    for (int64_t r = 0; r < rank; ++r) sum = __builtin_fmaf(v[r], b[r * b_stride + n], sum);
    y[n] = __builtin_fmaf(sum, scale, y[n]);
  }
}

}  // namespace

extern "C" {

int multiflora_core_supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// y[M][N] = x[M][K] @ W.T; words [N/16][K][2], absmax [N/16][K/64][16].
AVX2 void multiflora_nf4_matmul(const float* x, const uint32_t* words, const float* absmax,
                                float* y, int64_t num_rows, int64_t num_features,
                                int64_t num_columns) {
  const int64_t num_tiles = num_features / kColumns, num_blocks = num_columns / kBlock;
#pragma omp parallel for schedule(static) if (num_rows * num_features * num_columns > kSerial)
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const uint32_t* tile_words = words + tile * num_columns * 2;
    const float* tile_absmax = absmax + tile * num_blocks * kColumns;
    for (int64_t row = 0; row < num_rows; row += kRowBlock)
      nf4_tile(x + row * num_columns, num_columns, tile_words, tile_absmax,
               y + row * num_features + tile * kColumns, num_features,
               std::min(kRowBlock, num_rows - row), num_blocks);
  }
}

// w[N][K] = W, decoded.
AVX2 void multiflora_nf4_unpack(const uint32_t* words, const float* absmax, float* w,
                                int64_t num_features, int64_t num_columns) {
  const int64_t num_tiles = num_features / kColumns, num_blocks = num_columns / kBlock;
#pragma omp parallel for schedule(static) if (num_features * num_columns > kSerial)
  for (int64_t tile = 0; tile < num_tiles; ++tile)
    for (int64_t block = 0; block < num_blocks; ++block)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t place = tile * num_blocks + block;
        unpack_block(words + place * kBlock * 2 + half,
                     _mm256_loadu_ps(absmax + place * kColumns + 8 * half),
                     w + (tile * kColumns + 8 * half) * num_columns + block * kBlock, num_columns);
      }
}

// y[M][N] = x[M][K] @ w[N][K].T
AVX2 void multiflora_dense_matmul(const float* x, const float* w, float* y, int64_t num_rows,
                                  int64_t num_features, int64_t num_columns) {
  const int64_t num_pairs = (num_features + 1) / 2;
#pragma omp parallel for schedule(static) if (num_rows * num_features * num_columns > kSerial)
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int64_t n = 2 * pair;
    const float* weights = w + n * num_columns;
    if (n + 1 < num_features)
      dense_rows<2>(x, weights, y + n, num_rows, num_columns, num_features);
    else
      dense_rows<1>(x, weights, y + n, num_rows, num_columns, num_features);
  }
}

// v[row][rank] = x[row] . a[rank] for rows [start, stop); a [ranks][K], v [rows][ranks].
AVX2 void multiflora_lora_shrink(const float* x, const float* a, float* v, int64_t num_rows,
                                 int64_t num_ranks, int64_t num_columns) {
#pragma omp parallel for schedule(static) if (num_rows * num_ranks * num_columns > kSerial)
  for (int64_t rank = 0; rank < num_ranks; ++rank)
    dense_rows<1>(x, a + rank * num_columns, v + rank, num_rows, num_columns, num_ranks);
}

// y[row][first_column ...] += scale * (v[row][first_rank ...] @ b) for all rows of a segment.
AVX2 void multiflora_lora_expand(const float* v, int64_t v_stride, const float* b, int64_t rank,
                                 float scale, float* y, int64_t y_stride, int64_t num_rows,
                                 int64_t num_columns) {
  constexpr int64_t kChunk = 512;
  const int64_t num_chunks = (num_columns + kChunk - 1) / kChunk;
#pragma omp parallel for collapse(2) schedule(static) if (num_rows * rank * num_columns > kSerial)
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      const int64_t n = chunk * kChunk;
      expand(v + row * v_stride, rank, b + n, num_columns, scale, y + row * y_stride + n,
             std::min(kChunk, num_columns - n));
    }
}

}  // extern "C"
