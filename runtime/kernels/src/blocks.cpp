// Weights are the unsigned side of the products, so that what counting them from 0 adds is one number for each block
// of a row, whatever the column.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "blocks.h"

#include "simd.h"

namespace piston {
namespace {

constexpr int kMaxRows = 8;
constexpr float kLargest = 127.0f;

// Four codes of each row, times those of 16 columns.
template <int Rows>
void add_products(__m512i (&sums)[Rows], __m512i weights, const int8_t* codes, int64_t depth) {
  for (int r = 0; r < Rows; ++r) {
    int32_t word;
    __builtin_memcpy(&word, codes + r * depth, sizeof word);
    sums[r] = _mm512_dpbusd_epi32(sums[r], weights, _mm512_set1_epi32(word));
  }
}

template <int Rows, int Bits>
void tile_of(const BlockProduct& product, int64_t row, int64_t tile) {
  const int64_t depth = product.depth;
  const uint8_t* weights = product.weights + tile * depth * kLanes * Bits / 8;
  const float* scales = product.scales + tile * product.blocks * kLanes;
  const int8_t* codes = product.codes + row * depth;
  __m512 totals[Rows];
  for (auto& total : totals) total = _mm512_setzero_ps();
  for (int64_t b = 0; b < product.blocks; ++b) {
    __m512i sums[Rows];
    for (int r = 0; r < Rows; ++r)
      sums[r] = _mm512_set1_epi32(-product.input_sums[(row + r) * product.blocks + b]);
    const int64_t rest = depth - b * product.block, count = rest < product.block ? rest : product.block;
    const int64_t first = b * product.block, end = first + count;
    if constexpr (Bits == 8) {
      for (int64_t k = first; k < end; k += 4) add_products(sums, _mm512_loadu_si512(weights + k * kLanes), codes + k, depth);
    } else {
      const __m512i low = _mm512_set1_epi8(0x0F);
      for (int64_t k = first; k < end; k += 8) {
        const __m512i both = _mm512_loadu_si512(weights + k * kLanes / 2);
        add_products(sums, _mm512_and_si512(both, low), codes + k, depth);
        add_products(sums, _mm512_and_si512(_mm512_srli_epi16(both, 4), low), codes + k + 4, depth);
      }
    }
    const __m512 scale = _mm512_loadu_ps(scales + b * kLanes);
    for (int r = 0; r < Rows; ++r) {
      const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(product.input_scales[(row + r) * product.blocks + b]));
      totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), by, totals[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) _mm512_storeu_ps(product.out + (row + r) * product.columns + tile * kLanes, totals[r]);
}

template <int Bits>
void rows_of(const BlockProduct& product, int64_t row, int64_t count, int64_t tile) {
  switch (count) {
    case 1: return tile_of<1, Bits>(product, row, tile);
    case 2: return tile_of<2, Bits>(product, row, tile);
    case 3: return tile_of<3, Bits>(product, row, tile);
    case 4: return tile_of<4, Bits>(product, row, tile);
    case 5: return tile_of<5, Bits>(product, row, tile);
    case 6: return tile_of<6, Bits>(product, row, tile);
    case 7: return tile_of<7, Bits>(product, row, tile);
    default: return tile_of<kMaxRows, Bits>(product, row, tile);
  }
}

}  // namespace

void round_blocks(const BlockProduct& product, int64_t begin_row, int64_t end_row) {
  const int zero = product.bits == 8 ? 128 : 8;
  for (int64_t index = begin_row * product.blocks; index < end_row * product.blocks; ++index) {
    const int64_t first = index % product.blocks * product.block, at = index / product.blocks * product.depth + first;
    const int64_t rest = product.depth - first, block = rest < product.block ? rest : product.block;
    const float* from = product.input + at;
    int8_t* to = product.codes + at;
    __m512 largest = _mm512_setzero_ps();
    for (int64_t i = 0; i < block; i += kLanes) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(from + i)));
    const float most = _mm512_reduce_max_ps(largest);
    const __m512 inverse = _mm512_set1_ps(most > 0 ? kLargest / most : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < block; i += kLanes) {
      const __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + i), inverse));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtsepi32_epi8(codes));
      sum = _mm512_add_epi32(sum, codes);
    }
    product.input_scales[index] = most / kLargest;
    product.input_sums[index] = zero * _mm512_reduce_add_epi32(sum);
  }
}

void multiply_blocks(const BlockProduct& product, int64_t begin_tile, int64_t end_tile) {
  for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
    for (int64_t row = 0; row < product.rows; row += kMaxRows) {
      const int64_t left = product.rows - row;
      const int64_t count = left < kMaxRows ? left : kMaxRows;
      if (product.bits == 8) {
        rows_of<8>(product, row, count, tile);
      } else {
        rows_of<4>(product, row, count, tile);
      }
    }
  }
}

}  // namespace piston
