// Sparse weights in registers, and the activations that they are multiplied by. Include after the pragma that names the
// instructions.
#pragma once
#include <immintrin.h>

#include "sparse.h"

namespace piston {

// A row of a sparse tile: each column's four weights, and which of eight inputs they are of.
struct SparseRow {
  __m512i weights, inputs;

  // What the weights are multiplied by, of eight activations.
  __m512i select(const uint8_t* activations) const {
    int64_t eight;
    __builtin_memcpy(&eight, activations, sizeof eight);
    return _mm512_shuffle_epi8(_mm512_set1_epi64(eight), inputs);
  }
};

template <int Bits>
SparseRow load_sparse(const uint8_t* row) {
  __m512i weights;
  if constexpr (Bits == 8) {
    weights = _mm512_loadu_si512(row);
  } else {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)), low = _mm256_set1_epi8(0x0F);
    const __m512i first = _mm512_castsi256_si512(_mm256_and_si256(both, low));
    const __m512i all = _mm512_inserti64x4(first, _mm256_and_si256(_mm256_srli_epi16(both, 4), low), 1);
    weights = _mm512_sub_epi8(all, _mm512_set1_epi8(8));
  }
  // Each byte has the inputs of one weight in each quarter of a register. Those of the next four inputs begin at 4.
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 64 * Bits / 8));
  const __m512i shifts = _mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0);
  const __m512i found = _mm512_srlv_epi32(_mm512_broadcast_i32x4(packed), shifts);
  constexpr int kAndOr = 0xEA;  // the first and the second, or the third
  return {weights, _mm512_ternarylogic_epi32(found, _mm512_set1_epi8(3), _mm512_set1_epi32(0x04040000), kAndOr)};
}

}  // namespace piston
