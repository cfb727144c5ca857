// NF4 matmul and decoding (QLoRA, arXiv 2305.14314: 16 levels, one absmax per 64 weights).
//
// A tile is 16 output features. 32 bytes hold 4 columns of it: byte b has, for lane
// 4 * (b / 16) + b % 4 of quarter b / 4 % 4, two codes: the low nibble belongs to columns 0 and 1,
// the high one to columns 2 and 3. A quarter is one column's first or last eight features.

#include <memory>

#include "parallel.hpp"
#include "vector.hpp"

namespace multiflora {
namespace {

constexpr int64_t kTile = 16;      // output features of one tile
constexpr int64_t kBlock = 64;     // weights that share one absmax
constexpr int64_t kRowBlock = 64;  // rows that share one decoded tile
constexpr int64_t kGroup = 6;      // rows whose sums fit the registers
constexpr int64_t kStep = 32;      // bytes that hold 4 columns of a tile

constexpr float kCodebook[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// The four bytes of every level, each as a table for one byte shuffle.
struct Planes {
  __m256i byte[4];

  Planes() {
    for (int b = 0; b < 4; ++b) {
      alignas(16) uint8_t bytes[16];
      for (int level = 0; level < 16; ++level) {
        uint32_t bits;
        __builtin_memcpy(&bits, &kCodebook[level], sizeof bits);
        bytes[level] = static_cast<uint8_t>(bits >> (8 * b));
      }
      byte[b] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<__m128i*>(bytes)));
    }
  }
};

// 32 codes in the low nibbles -> two columns of 16 features, unscaled.
INLINE void look_up(__m256i codes, const Planes& planes, Vector* w) {
  const __m256i b0 = _mm256_shuffle_epi8(planes.byte[0], codes);
  const __m256i b1 = _mm256_shuffle_epi8(planes.byte[1], codes);
  const __m256i b2 = _mm256_shuffle_epi8(planes.byte[2], codes);
  const __m256i b3 = _mm256_shuffle_epi8(planes.byte[3], codes);
  const __m256i lower0 = _mm256_unpacklo_epi8(b0, b1), lower1 = _mm256_unpackhi_epi8(b0, b1);
  const __m256i upper0 = _mm256_unpacklo_epi8(b2, b3), upper1 = _mm256_unpackhi_epi8(b2, b3);
  w[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower0, upper0));
  w[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower0, upper0));
  w[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower1, upper1));
  w[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower1, upper1));
}

INLINE __m256i load_codes(const uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}

// The low or the high nibbles of all bytes.
INLINE __m256i nibbles(__m256i both, int high) {
  return _mm256_and_si256(high ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
}

// Four columns of 16 features: w[2 * column + half].
INLINE void decode_step(const uint8_t* codes, const Planes& planes, Vector* w) {
  const __m256i both = load_codes(codes);
  look_up(nibbles(both, 0), planes, w);
  look_up(nibbles(both, 1), planes, w + 4);
}

// codes of 64 columns -> tile [64][16], unscaled.
INLINE void decode(const uint8_t* codes, const Planes& planes, float* tile) {
  for (int64_t k = 0; k < kBlock; k += 4) {
    Vector w[8];
    decode_step(codes + k / 4 * kStep, planes, w);
    for (int i = 0; i < 8; ++i) _mm256_store_ps(tile + k * kTile + 8 * i, w[i]);
  }
}

// total[row][16] += absmax[16] * (x[row][64] . tile[64][16]) for ROWS rows.
template <int ROWS>
INLINE void accumulate(const float* x, const float* tile, const float* absmax, float* total) {
  Vector sum[ROWS][2];
  for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = zero();
  for (int64_t k = 0; k < kBlock; ++k) {
    const Vector w0 = _mm256_load_ps(tile + k * kTile);
    const Vector w1 = _mm256_load_ps(tile + k * kTile + 8);
    for (int r = 0; r < ROWS; ++r) {
      const Vector value = _mm256_broadcast_ss(x + r * kBlock + k);
      sum[r][0] = multiply_add(value, w0, sum[r][0]);
      sum[r][1] = multiply_add(value, w1, sum[r][1]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int half = 0; half < 2; ++half) {
      float* place = total + r * kTile + 8 * half;
      store(place, multiply_add(sum[r][half], load(absmax + 8 * half), load(place)));
    }
}

// One tile for more rows than registers: it is decoded into the first-level cache.
void many_rows(const float* packed, int64_t num_rows, const uint8_t* codes, const float* absmax,
               float* y, int64_t y_stride, int64_t rows, int64_t num_blocks) {
  alignas(32) float tile[kBlock * kTile];
  alignas(32) float total[kRowBlock * kTile] = {};
  const Planes planes;
  const int64_t num_groups = (rows + kGroup - 1) / kGroup;
  for (int64_t block = 0; block < num_blocks; ++block) {
    decode(codes + block * kBlock / 4 * kStep, planes, tile);
    const float* scale = absmax + block * kTile;
    const float* xs = packed + block * num_rows * kBlock;
    for (int64_t r = 0, groups = num_groups; r < rows; --groups) {
      const int64_t count = (rows - r + groups - 1) / groups;
      const float* group = xs + r * kBlock;
      float* out = total + r * kTile;
      switch (count) {
        case 1: accumulate<1>(group, tile, scale, out); break;
        case 2: accumulate<2>(group, tile, scale, out); break;
        case 3: accumulate<3>(group, tile, scale, out); break;
        case 4: accumulate<4>(group, tile, scale, out); break;
        case 5: accumulate<5>(group, tile, scale, out); break;
        default: accumulate<6>(group, tile, scale, out);
      }
      r += count;
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < kTile; i += kLanes)
      store(y + r * y_stride + i, load(total + r * kTile + i));
}

// TILES tiles for ROWS rows, decoded in registers; several tiles hide the adders' latency.
template <int ROWS, int TILES>
INLINE void few_rows(const float* x, int64_t stride, const uint8_t* codes, const float* absmax,
                     float* y, int64_t y_stride, int64_t num_blocks) {
  const Planes planes;
  const int64_t code_stride = num_blocks * kBlock / 4 * kStep, absmax_stride = num_blocks * kTile;
  Vector total[ROWS][TILES][2];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t) total[r][t][0] = total[r][t][1] = zero();
  for (int64_t block = 0; block < num_blocks; ++block) {
    Vector sum[ROWS][TILES][2];
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < TILES; ++t) sum[r][t][0] = sum[r][t][1] = zero();
    for (int64_t k = 0; k < kBlock; k += 4) {
      const int64_t place = (block * kBlock + k) / 4 * kStep;
      for (int t = 0; t < TILES; ++t) {
        const __m256i both = load_codes(codes + t * code_stride + place);
        for (int pair = 0; pair < 2; ++pair) {
          Vector w[4];
          look_up(nibbles(both, pair), planes, w);
          for (int c = 0; c < 2; ++c)
            for (int r = 0; r < ROWS; ++r) {
              const Vector value =
                  _mm256_broadcast_ss(x + r * stride + block * kBlock + k + 2 * pair + c);
              sum[r][t][0] = multiply_add(value, w[2 * c], sum[r][t][0]);
              sum[r][t][1] = multiply_add(value, w[2 * c + 1], sum[r][t][1]);
            }
        }
      }
    }
    for (int t = 0; t < TILES; ++t)
      for (int r = 0; r < ROWS; ++r)
        for (int half = 0; half < 2; ++half)
          total[r][t][half] = multiply_add(
              sum[r][t][half], load(absmax + t * absmax_stride + block * kTile + 8 * half),
              total[r][t][half]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      for (int half = 0; half < 2; ++half)
        store(y + r * y_stride + t * kTile + 8 * half, total[r][t][half]);
}

template <int ROWS, int TILES>
void few_rows_of_all(const float* x, const uint8_t* codes, const float* absmax, float* y,
                     int64_t num_features, int64_t num_columns) {
  const int64_t num_tiles = num_features / kTile, num_blocks = num_columns / kBlock;
  const bool is_large = ROWS * num_features * num_columns > kSerial;
  parallel_for((num_tiles + TILES - 1) / TILES, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t tile = start * TILES; tile < smaller(stop * TILES, num_tiles); tile += TILES) {
      const uint8_t* first = codes + tile * num_columns / 4 * kStep;
      const float* scale = absmax + tile * num_blocks * kTile;
      if (tile + TILES <= num_tiles)
        few_rows<ROWS, TILES>(x, num_columns, first, scale, y + tile * kTile, num_features,
                              num_blocks);
      else
        few_rows<ROWS, 1>(x, num_columns, first, scale, y + tile * kTile, num_features,
                          num_blocks);
    }
  });
}

void many_rows_of_all(const float* x, const uint8_t* codes, const float* absmax, float* y,
                      int64_t num_rows, int64_t num_features, int64_t num_columns) {
  const int64_t num_tiles = num_features / kTile, num_blocks = num_columns / kBlock;
  const std::unique_ptr<float[]> packed(new float[num_rows * num_columns]);
  const bool is_large = num_rows * num_features * num_columns > kSerial;
  parallel_for(num_rows, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row)
      for (int64_t block = 0; block < num_blocks; ++block)
        __builtin_memcpy(packed.get() + (block * num_rows + row) * kBlock,
                         x + row * num_columns + block * kBlock, kBlock * sizeof(float));
  });
  parallel_for(num_tiles, is_large, [&](int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; ++tile)
      for (int64_t row = 0; row < num_rows; row += kRowBlock)
        many_rows(packed.get() + row * kBlock, num_rows, codes + tile * num_columns / 4 * kStep,
                  absmax + tile * num_blocks * kTile, y + row * num_features + tile * kTile,
                  num_features, smaller(kRowBlock, num_rows - row), num_blocks);
  });
}

// Columns k .. k + 7 of a tile, scaled, as rows of the dense matrix.
INLINE void unpack_octet(const uint8_t* codes, const Planes& planes, const float* absmax, float* w,
                         int64_t stride) {
  Vector all[16];
  decode_step(codes, planes, all);
  decode_step(codes + kStep, planes, all + 8);
  for (int half = 0; half < 2; ++half) {
    const Vector scale = load(absmax + 8 * half);
    Vector v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm256_mul_ps(all[2 * i + half], scale);
    transpose(v);
    for (int i = 0; i < 8; ++i) store(w + (8 * half + i) * stride, v[i]);
  }
}

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

// y[M][N] = x[M][K] @ W.T; codes [N/16][K/4][32], absmax [N/16][K/64][16].
void multiflora_nf4_matmul(const float* x, const uint8_t* codes, const float* absmax, float* y,
                           int64_t num_rows, int64_t num_features, int64_t num_columns) {
  switch (num_rows) {
    case 0: return;
    case 1: return few_rows_of_all<1, 2>(x, codes, absmax, y, num_features, num_columns);
    case 2: return few_rows_of_all<2, 2>(x, codes, absmax, y, num_features, num_columns);
    case 3: return few_rows_of_all<3, 1>(x, codes, absmax, y, num_features, num_columns);
    case 4: return few_rows_of_all<4, 1>(x, codes, absmax, y, num_features, num_columns);
  }
  many_rows_of_all(x, codes, absmax, y, num_rows, num_features, num_columns);
}

// w[N][K] = W, decoded.
void multiflora_nf4_unpack(const uint8_t* codes, const float* absmax, float* w,
                           int64_t num_features, int64_t num_columns) {
  const int64_t num_tiles = num_features / kTile, num_blocks = num_columns / kBlock;
  parallel_for(num_tiles, num_features * num_columns > kSerial, [&](int64_t start, int64_t stop) {
    const Planes planes;
    for (int64_t tile = start; tile < stop; ++tile)
      for (int64_t k = 0; k < num_columns; k += 8)
        unpack_octet(codes + (tile * num_columns + k) / 4 * kStep, planes,
                     absmax + (tile * num_blocks + k / kBlock) * kTile,
                     w + tile * kTile * num_columns + k, num_columns);
  });
}

}  // extern "C"
