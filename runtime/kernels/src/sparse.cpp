#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,bmi2")
#include "sparse.h"

#include "cpu.h"
#include "expand.h"
#include "linear.h"
#include "scratch.h"

namespace piston {
namespace {

constexpr uint64_t kEachByte = 0x0101010101010101;

// Without AVX512_VBMI2: eight weights, of which four are stored, at a time.
void expand_by_eight(const uint8_t* mask, const uint8_t* values, uint8_t zero, uint8_t* to) {
  for (int i = 0; i < 8; ++i) {
    uint32_t four;
    __builtin_memcpy(&four, values + 4 * i, sizeof four);
    const uint64_t stored = _pdep_u64(mask[i], kEachByte) * 0xFF;
    const uint64_t eight = _pdep_u64(four, stored) | (kEachByte * zero & ~stored);
    __builtin_memcpy(to + 8 * i, &eight, sizeof eight);
  }
}

void expand_by_eight(const uint8_t* row, int bits, uint8_t zero, uint8_t* to) {
  if (bits == 8) return expand_by_eight(row, row + 8, zero, to);
  alignas(32) uint8_t halves[2][32];
  for (int i = 0; i < 32; ++i) {
    halves[0][i] = row[16 + i] & 0x0F;
    halves[1][i] = row[16 + i] >> 4;
  }
  expand_by_eight(row, halves[0], zero, to);
  expand_by_eight(row + 8, halves[1], zero, to + 64);
}

}  // namespace

void expand_tile(const uint8_t* from, int64_t rows, int bits, uint8_t zero, uint8_t* to) {
  const int64_t row_bytes = bits == 8 ? kSparseRow : kSparseNibbles, written = bits == 8 ? 64 : 128;
  const __m512i zeros = _mm512_set1_epi8(static_cast<char>(zero));
  const bool in_one = level() >= kVbmi2;
  for (int64_t i = 0; i < rows; ++i, from += row_bytes, to += written) {
    if (!in_one) {
      expand_by_eight(from, bits, zero, to);
    } else if (bits == 8) {
      _mm512_storeu_si512(to, expand_row(zeros, from));
    } else {
      __m512i eight[2];
      expand_nibbles(zeros, from, eight);
      _mm512_storeu_si512(to, eight[0]);
      _mm512_storeu_si512(to + 64, eight[1]);
    }
  }
}

Strip strip_of(const Product& product, int64_t index, bool as_stored) {
  static thread_local Scratch room;
  const int64_t rows = product.depth / 4, tile = rows * (product.is_sparse ? kSparseRow : kDenseRow);
  const bool has_second = (index * 2 + 1) * 16 < product.columns;
  const int8_t* left = product.weights + index * 2 * tile;
  if (!product.is_sparse || as_stored) return {index, left, has_second ? left + tile : left, has_second, product.is_sparse};
  const int64_t expanded = rows * kDenseRow, count = has_second ? 2 : 1;
  uint8_t* to = room.at_least<uint8_t>(static_cast<size_t>(2 * expanded));
  expand_tile(reinterpret_cast<const uint8_t*>(left), count * rows, 8, 0, to);
  left = reinterpret_cast<const int8_t*>(to);
  return {index, left, has_second ? left + expanded : left, has_second, false};
}

}  // namespace piston
