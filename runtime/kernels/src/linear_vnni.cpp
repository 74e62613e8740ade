// Products of few rows: each weight is read once from memory and multiplied into every row while it is in a register.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "epilogue.h"
#include "linear.h"

namespace piston {
namespace {

constexpr int kMaxRows = 8;

inline __m512i four_codes(const uint8_t* codes) {
  int32_t word;
  __builtin_memcpy(&word, codes, sizeof word);
  return _mm512_set1_epi32(word);
}

template <int Rows>
void dense_rows(const Product& product, int64_t row, const Strip& strip) {
  fetch_goal(product.epilogue, row, Rows, strip.index);
  const int64_t depth = product.depth;
  const uint8_t* codes = product.codes + row * depth;
  // Two chains of sums for each tile where there are few rows: one alone would wait for its own additions.
  constexpr int kChains = Rows <= 2 ? 2 : 1;
  __m512i sums[Rows][2][kChains];
  for (auto& row_sums : sums)
    for (auto& tile_sums : row_sums)
      for (auto& sum : tile_sums) sum = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += 4 * kChains) {
#pragma GCC unroll 2
    for (int chain = 0; chain < kChains; ++chain) {
      const int64_t at = k + 4 * chain;
      const __m512i weights[2] = {_mm512_loadu_si512(strip.left + at * kLanes), _mm512_loadu_si512(strip.right + at * kLanes)};
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m512i word = four_codes(codes + r * depth + at);
        sums[r][0][chain] = add_dots(sums[r][0][chain], word, weights[0]);
        sums[r][1][chain] = add_dots(sums[r][1][chain], word, weights[1]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    __m512i first = sums[r][0][0], second = sums[r][1][0];
    if (kChains == 2) {
      first = _mm512_add_epi32(first, sums[r][0][kChains - 1]);
      second = _mm512_add_epi32(second, sums[r][1][kChains - 1]);
    }
    finish(product.epilogue, first, second, row + r, strip);
  }
}

template <int Rows>
void sparse_rows(const Product& product, int64_t row, const Strip& strip) {
  fetch_goal(product.epilogue, row, Rows, strip.index);
  const int64_t depth = product.depth;
  const uint8_t* codes = product.codes + row * depth;
  const uint8_t *left = reinterpret_cast<const uint8_t*>(strip.left), *right = reinterpret_cast<const uint8_t*>(strip.right);
  __m512i sums[Rows][2];
  for (auto& row_sums : sums)
    for (auto& sum : row_sums) sum = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += 8, left += kSparseRow, right += kSparseRow) {
    const SparseRow tiles[2] = {load_sparse<8>(left), load_sparse<8>(right)};
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      sums[r][0] = add_dots(sums[r][0], tiles[0].select(codes + r * depth + k), tiles[0].weights);
      sums[r][1] = add_dots(sums[r][1], tiles[1].select(codes + r * depth + k), tiles[1].weights);
    }
  }
  for (int r = 0; r < Rows; ++r) finish(product.epilogue, sums[r][0], sums[r][1], row + r, strip);
}

template <int Rows>
void strip_rows(const Product& product, int64_t row, const Strip& strip) {
  if (strip.is_sparse) {
    sparse_rows<Rows>(product, row, strip);
  } else {
    dense_rows<Rows>(product, row, strip);
  }
}

void rows_of(const Product& product, int64_t row, int64_t count, const Strip& strip) {
  switch (count) {
    case 1: return strip_rows<1>(product, row, strip);
    case 2: return strip_rows<2>(product, row, strip);
    case 3: return strip_rows<3>(product, row, strip);
    case 4: return strip_rows<4>(product, row, strip);
    case 5: return strip_rows<5>(product, row, strip);
    case 6: return strip_rows<6>(product, row, strip);
    case 7: return strip_rows<7>(product, row, strip);
    default: return strip_rows<kMaxRows>(product, row, strip);
  }
}

}  // namespace

void find_groups(const uint8_t* codes, int64_t rows, int64_t depth, int32_t* groups, int64_t* first) {
  constexpr uint64_t kFourths = 0x1111111111111111;
  const __m512i none = _mm512_set1_epi8(static_cast<char>(128));
  int64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) {
    first[row] = count;
    for (int64_t k = 0; k < depth; k += 64) {
      const uint64_t some = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(codes + row * depth + k), none);
      uint64_t found = (some | some >> 1 | some >> 2 | some >> 3) & kFourths;
      for (; found != 0; found &= found - 1) groups[count++] = static_cast<int32_t>((k + __builtin_ctzll(found)) / 4);
    }
  }
  first[rows] = count;
}

void multiply_vnni(const Product& product, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const Strip strip = strip_of(product, index, true);
    for (int64_t row = 0; row < product.rows; row += kMaxRows) {
      const int64_t left = product.rows - row;
      rows_of(product, row, left < kMaxRows ? left : kMaxRows, strip);
    }
  }
}

}  // namespace piston
