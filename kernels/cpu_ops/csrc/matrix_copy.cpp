// Matrices of a file into one buffer, as they lie or transposed, in one call for all of them.
//
// The calling thread does it alone: it runs beside steps, which need the others.

#include "vector.hpp"

namespace multiflora {
namespace {

// As `Core.copy_matrices` lists them.
struct Copy {
  int64_t source;  // bytes
  int64_t target;  // elements
  int64_t num_rows, num_columns;  // of the target
  int64_t type;
  int64_t is_transposed;
};
enum Type { kFloat32, kBfloat16, kFloat16 };

// Values in a file, of any alignment.
template <typename Stored>
struct Values {
  const uint8_t* bytes;
  static constexpr int64_t kSize = sizeof(Stored);

  INLINE Stored bits(int64_t i) const {
    Stored found;
    __builtin_memcpy(&found, bytes + i * kSize, kSize);
    return found;
  }
};
struct Float32 : Values<float> {
  INLINE float one(int64_t i) const { return bits(i); }
  INLINE Vector eight(int64_t i) const {
    return _mm256_castsi256_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + i * kSize)));
  }
};
struct Bfloat16 : Values<uint16_t> {
  INLINE float one(int64_t i) const { return widen(bits(i)); }
  INLINE Vector eight(int64_t i) const {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i * kSize));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
};
// By the exponent that a float32 has more: of numbers by a multiplication, which is exact for
// subnormal ones too, of infinity and NaN by setting all of its bits.
struct Float16 : Values<uint16_t> {
  INLINE float one(int64_t i) const {
    alignas(32) uint32_t lanes[kLanes] = {bits(i)};
    return _mm256_cvtss_f32(widened(_mm256_load_si256(reinterpret_cast<const __m256i*>(lanes))));
  }
  INLINE Vector eight(int64_t i) const {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i * kSize));
    return widened(_mm256_cvtepu16_epi32(halves));
  }

 private:
  static INLINE Vector widened(__m256i half) {
    const __m256i size = _mm256_and_si256(half, _mm256_set1_epi32(0x7fff));
    const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(half, size), 16);
    const Vector number = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(size, 13)),
                                        spread(0x1p112f));
    const __m256i is_no_number = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7bff));
    const __m256i all = _mm256_and_si256(is_no_number, _mm256_set1_epi32(0x7f800000));
    return _mm256_or_ps(number, _mm256_castsi256_ps(_mm256_or_si256(sign, all)));
  }
};

template <typename Source, typename Target>
void copy_straight(const Source& source, Target* target, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(target + i, source.eight(i));
  for (; i < count; ++i) narrow_to(target + i, source.one(i));
}

// target[r][c] = source[c][r]: blocks of eight by eight, of eight rows of the target at a time.
template <typename Source, typename Target>
void copy_transposed(const Source& source, Target* target, int64_t num_rows,
                     int64_t num_columns) {
  const int64_t whole_rows = num_rows - num_rows % kLanes;
  const int64_t whole_columns = num_columns - num_columns % kLanes;
  for (int64_t row = 0; row < whole_rows; row += kLanes)
    for (int64_t column = 0; column < whole_columns; column += kLanes) {
      Vector block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) block[i] = source.eight((column + i) * num_rows + row);
      transpose(block);
      for (int64_t i = 0; i < kLanes; ++i)
        store(target + (row + i) * num_columns + column, block[i]);
    }
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t column = row < whole_rows ? whole_columns : 0; column < num_columns; ++column)
      narrow_to(target + row * num_columns + column, source.one(column * num_rows + row));
}

template <typename Source, typename Target>
void copy_values(const uint8_t* bytes, const Copy& copy, Target* target) {
  Source source;
  source.bytes = bytes;
  if (copy.is_transposed)
    copy_transposed(source, target, copy.num_rows, copy.num_columns);
  else
    copy_straight(source, target, copy.num_rows * copy.num_columns);
}

template <typename Target>
void copy_all(const uint8_t* file, const Copy* copies, int64_t count, Target* target) {
  for (const Copy* copy = copies; copy < copies + count; ++copy) {
    const uint8_t* bytes = file + copy->source;
    Target* to = target + copy->target;
    if (copy->type == kFloat32)
      copy_values<Float32>(bytes, *copy, to);
    else if (copy->type == kBfloat16)
      copy_values<Bfloat16>(bytes, *copy, to);
    else
      copy_values<Float16>(bytes, *copy, to);
  }
}

}  // namespace
}  // namespace multiflora

using namespace multiflora;

extern "C" {

// target[i] as `copies` [count][6] say, each value rounded to the nearest of the target's type.
void multiflora_copy_matrices_float32(const uint8_t* file, const int64_t* copies, int64_t count,
                                      float* target) {
  copy_all(file, reinterpret_cast<const Copy*>(copies), count, target);
}

void multiflora_copy_matrices_bfloat16(const uint8_t* file, const int64_t* copies, int64_t count,
                                       uint16_t* target) {
  copy_all(file, reinterpret_cast<const Copy*>(copies), count, target);
}

}  // extern "C"
