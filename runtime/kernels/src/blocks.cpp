// Weights are the unsigned side of the products, so that what counting them from 0 adds is one number for each block
// of a row, whatever the column.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "blocks.h"

#include "simd.h"

namespace piston {
namespace {

constexpr int kMaxRows = 8;
constexpr float kLargest = 127.0f;

template <int Rows>
void tile_of(const BlockProduct& product, int64_t row, int64_t tile) {
  const int64_t depth = product.depth, block = depth / product.blocks;
  const uint8_t* weights = product.weights + tile * depth * kLanes;
  const float* scales = product.scales + tile * product.blocks * kLanes;
  const int8_t* codes = product.codes + row * depth;
  __m512 totals[Rows];
  for (auto& total : totals) total = _mm512_setzero_ps();
  for (int64_t b = 0; b < product.blocks; ++b) {
    __m512i sums[Rows];
    for (int r = 0; r < Rows; ++r)
      sums[r] = _mm512_set1_epi32(-product.input_sums[(row + r) * product.blocks + b]);
    for (int64_t k = b * block; k < (b + 1) * block; k += 4) {
      const __m512i four = _mm512_loadu_si512(weights + k * kLanes);
      for (int r = 0; r < Rows; ++r) {
        int32_t word;
        __builtin_memcpy(&word, codes + r * depth + k, sizeof word);
        sums[r] = _mm512_dpbusd_epi32(sums[r], four, _mm512_set1_epi32(word));
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

void rows_of(const BlockProduct& product, int64_t row, int64_t count, int64_t tile) {
  switch (count) {
    case 1: return tile_of<1>(product, row, tile);
    case 2: return tile_of<2>(product, row, tile);
    case 3: return tile_of<3>(product, row, tile);
    case 4: return tile_of<4>(product, row, tile);
    case 5: return tile_of<5>(product, row, tile);
    case 6: return tile_of<6>(product, row, tile);
    case 7: return tile_of<7>(product, row, tile);
    default: return tile_of<kMaxRows>(product, row, tile);
  }
}

}  // namespace

void round_blocks(const BlockProduct& product, int64_t begin_row, int64_t end_row) {
  const int64_t block = product.depth / product.blocks;
  for (int64_t index = begin_row * product.blocks; index < end_row * product.blocks; ++index) {
    const float* from = product.input + index * block;
    int8_t* to = product.codes + index * block;
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
    product.input_sums[index] = 128 * _mm512_reduce_add_epi32(sum);
  }
}

void multiply_blocks(const BlockProduct& product, int64_t begin_tile, int64_t end_tile) {
  for (int64_t tile = begin_tile; tile < end_tile; ++tile) {
    for (int64_t row = 0; row < product.rows; row += kMaxRows) {
      const int64_t left = product.rows - row;
      rows_of(product, row, left < kMaxRows ? left : kMaxRows, tile);
    }
  }
}

}  // namespace piston
