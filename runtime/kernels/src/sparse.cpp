#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "sparse.h"

#include "linear.h"
#include "scratch.h"
#include "sparse_rows.h"

namespace piston {
namespace {

template <int Bits>
void expand_rows(const uint8_t* from, int64_t rows, int zero, uint8_t* to) {
  const __m512i byte = _mm512_set1_epi32(0xFF), two = _mm512_set1_epi32(3);
  const __m512i zeros = _mm512_set1_epi8(static_cast<char>(zero));
  for (int64_t i = 0; i < rows; ++i, from += Bits == 8 ? kSparseRow : kSparseNibbles) {
    const SparseRow row = load_sparse<Bits>(from);
    for (int half = 0; half < 2; ++half, to += kDenseRow) {
      __m512i dense = _mm512_setzero_si512();
      for (int shift = 16 * half; shift < 16 * half + 16; shift += 8) {
        const __m512i weight = _mm512_and_si512(_mm512_srli_epi32(row.weights, shift), byte);
        const __m512i input = _mm512_and_si512(_mm512_srli_epi32(row.inputs, shift), two);
        dense = _mm512_or_si512(dense, _mm512_sllv_epi32(weight, _mm512_slli_epi32(input, 3)));
      }
      _mm512_storeu_si512(to, _mm512_add_epi8(dense, zeros));
    }
  }
}

}  // namespace

void expand_tile(const uint8_t* from, int64_t rows, int bits, int zero, uint8_t* to) {
  if (bits == 8) {
    expand_rows<8>(from, rows, zero, to);
  } else {
    expand_rows<4>(from, rows, zero, to);
  }
}

Strip strip_of(const Product& product, int64_t index, bool as_stored) {
  static thread_local Scratch room;
  const int64_t dense = product.depth / 4 * kDenseRow, sparse = product.depth / 8 * kSparseRow;
  const int64_t tile = product.is_sparse ? sparse : dense;
  const bool has_second = (index * 2 + 1) * 16 < product.columns;
  const int8_t* left = product.weights + index * 2 * tile;
  if (!product.is_sparse || as_stored) return {index, left, has_second ? left + tile : left, has_second, product.is_sparse};
  uint8_t* to = room.at_least<uint8_t>(static_cast<size_t>(2 * dense));
  expand_tile(reinterpret_cast<const uint8_t*>(left), (has_second ? 2 : 1) * product.depth / 8, 8, 0, to);
  left = reinterpret_cast<const int8_t*>(to);
  return {index, left, has_second ? left + dense : left, has_second, false};
}

}  // namespace piston
