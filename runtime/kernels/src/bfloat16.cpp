// Products of bfloat16 on the vector unit: two products to a lane and instruction where the processor has them, else two
// in float32 of the same rounded numbers.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")
#include "bfloat16.h"

#include "cpu.h"
#include "simd.h"

namespace piston {
namespace {

// With two tiles of sums for each row, 24 registers of 32: a weight that was read serves twelve rows.
constexpr int kMaxRows = 12;

inline __m512 left_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

inline __m512 right_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

template <bool HasBfloat16>
inline __m512 add_products(__m512 sum, __m512i inputs, __m512i weights) {
  if (HasBfloat16) return add_bfloat16_dots(sum, inputs, weights);
  return _mm512_fmadd_ps(left_of(inputs), left_of(weights), _mm512_fmadd_ps(right_of(inputs), right_of(weights), sum));
}

inline __m512i two_inputs(const uint16_t* inputs) {
  int32_t word;
  __builtin_memcpy(&word, inputs, sizeof word);
  return _mm512_set1_epi32(word);
}

inline void finish(const Bfloat16Product& product, __m512 sum, int64_t row, int64_t column) {
  if (product.bias != nullptr) sum = _mm512_add_ps(sum, _mm512_loadu_ps(product.bias + column));
  _mm512_storeu_ps(product.values + row * product.columns + column, activated(product.activation, sum));
}

template <int Rows, bool HasBfloat16>
void strip_rows(const Bfloat16Product& product, int64_t row, int64_t column) {
  const int64_t depth = product.depth;
  const bool has_second = column + kLanes < product.columns;
  const uint16_t* inputs = product.inputs + row * depth;
  const uint16_t* left = product.weights + column * depth;
  const uint16_t* right = has_second ? left + kLanes * depth : left;
  // Where the sums will go is asked for while they are made.
  for (int r = 0; r < Rows; ++r)
    for (int tile = 0; tile <= has_second; ++tile) __builtin_prefetch(product.values + (row + r) * product.columns + column + tile * kLanes, 1);
  __m512 sums[Rows][2];
  for (auto& of_row : sums) of_row[0] = of_row[1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 2) {
    const __m512i first = _mm512_loadu_si512(left + k * kLanes), second = _mm512_loadu_si512(right + k * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const __m512i pair = two_inputs(inputs + r * depth + k);
      sums[r][0] = add_products<HasBfloat16>(sums[r][0], pair, first);
      sums[r][1] = add_products<HasBfloat16>(sums[r][1], pair, second);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    finish(product, sums[r][0], row + r, column);
    if (has_second) finish(product, sums[r][1], row + r, column + kLanes);
  }
}

template <bool HasBfloat16>
void rows_of(const Bfloat16Product& product, int64_t row, int64_t count, int64_t column) {
  switch (count) {
    case 1: return strip_rows<1, HasBfloat16>(product, row, column);
    case 2: return strip_rows<2, HasBfloat16>(product, row, column);
    case 3: return strip_rows<3, HasBfloat16>(product, row, column);
    case 4: return strip_rows<4, HasBfloat16>(product, row, column);
    case 5: return strip_rows<5, HasBfloat16>(product, row, column);
    case 6: return strip_rows<6, HasBfloat16>(product, row, column);
    case 7: return strip_rows<7, HasBfloat16>(product, row, column);
    case 8: return strip_rows<8, HasBfloat16>(product, row, column);
    case 9: return strip_rows<9, HasBfloat16>(product, row, column);
    case 10: return strip_rows<10, HasBfloat16>(product, row, column);
    case 11: return strip_rows<11, HasBfloat16>(product, row, column);
    default: return strip_rows<kMaxRows, HasBfloat16>(product, row, column);
  }
}

template <bool HasBfloat16>
void multiply(const Bfloat16Product& product, int64_t begin, int64_t end) {
  // The last rows are shared evenly: one alone would wait for its own additions.
  const int64_t passes = (product.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t strip = begin; strip < end; ++strip) {
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t row = product.rows * pass / passes, next = product.rows * (pass + 1) / passes;
      rows_of<HasBfloat16>(product, row, next - row, strip * 2 * kLanes);
    }
  }
}

// By hand: not every processor has an instruction for it. Quiet NaNs stay NaNs.
inline __m256i rounded_to_even(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values), one = _mm512_set1_epi32(1);
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), even));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, up, quiet), 16));
}

}  // namespace

void round_to_bfloat16(const float* values, int64_t count, uint16_t* rounded) {
  for (int64_t i = 0; i < count; i += kLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded + i), rounded_to_even(_mm512_loadu_ps(values + i)));
}

void multiply_bfloat16(const Bfloat16Product& product, int64_t begin, int64_t end) {
  if (level() >= kBfloat16) return multiply<true>(product, begin, end);
  multiply<false>(product, begin, end);
}

}  // namespace piston
