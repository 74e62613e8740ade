// Sparse weights become bytes in registers. Include after the pragma that names the instructions.
#pragma once
#include <immintrin.h>

#include "sparse.h"

namespace piston {

// `zeros`, but values in order where the mask at `mask` has its bits. This is an assembler statement because intrinsics
// of AVX512_VBMI2 take functions compiled for it, and the linker might then choose such a copy of a function that is
// inlined elsewhere. Call it from kVbmi2 on.
inline __m512i expand(__m512i zeros, const uint8_t* mask, __m256i values) {
  __mmask64 bits;
  __builtin_memcpy(&bits, mask, sizeof bits);
  __asm__("vpexpandb %2, %0%{%1%}" : "+v"(zeros) : "Yk"(bits), "v"(_mm512_zextsi256_si512(values)));
  return zeros;
}

// The row at `row` of 64 weights of 8 bits.
inline __m512i expand_row(__m512i zeros, const uint8_t* row) {
  return expand(zeros, row, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 8)));
}

// The row at `row` of 128 weights of 4 bits, as bytes: of the first four inputs and of the next four.
inline void expand_nibbles(__m512i zeros, const uint8_t* row, __m512i (&eight)[2]) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 16)), low = _mm256_set1_epi8(0x0F);
  eight[0] = expand(zeros, row, _mm256_and_si256(both, low));
  eight[1] = expand(zeros, row + 8, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
}

}  // namespace piston
