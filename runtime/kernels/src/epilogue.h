// From INT32 sums to what the layer gives out. Include after the pragma that names the instructions.
#pragma once
#include "linear.h"
#include "simd.h"
#include "sparse_rows.h"

namespace piston {

struct Sums {
  __m512i first, second;
};

// Of a tile the product of four inputs' codes, and of as many zeros.
inline void add_group(const int8_t* tile, int64_t group, bool is_sparse, uint32_t codes, __m512i& sums, __m512i& offsets) {
  constexpr uint32_t kZeros = 0x80808080;
  if (is_sparse) {
    const SparseRow row = load_sparse<8>(reinterpret_cast<const uint8_t*>(tile) + group / 2 * kSparseRow);
    const int shift = group % 2 * 32;  // of eight inputs the other four are none
    const uint64_t eight[2] = {uint64_t{codes} << shift, uint64_t{kZeros} << shift};
    sums = add_dots(sums, row.select(reinterpret_cast<const uint8_t*>(&eight[0])), row.weights);
    offsets = add_dots(offsets, row.select(reinterpret_cast<const uint8_t*>(&eight[1])), row.weights);
  } else {
    const __m512i weights = _mm512_loadu_si512(tile + group * kDenseRow);
    sums = add_dots(sums, _mm512_set1_epi32(static_cast<int>(codes)), weights);
    offsets = add_dots(offsets, _mm512_set1_epi32(static_cast<int>(kZeros)), weights);
  }
}

// Of a remainder's codes, in both tiles of a strip: the few groups that are not all zero.
inline Sums remainder_sums(const Remainder& remainder, int64_t row, const Strip& strip) {
  Sums sums{_mm512_setzero_si512(), _mm512_setzero_si512()}, offset = sums;
  for (int64_t i = remainder.first[row]; i < remainder.first[row + 1]; ++i) {
    const int64_t group = remainder.groups[i];
    uint32_t codes;
    __builtin_memcpy(&codes, remainder.codes + row * remainder.depth + 4 * group, sizeof codes);
    add_group(strip.left, group, strip.is_sparse, codes, sums.first, offset.first);
    add_group(strip.right, group, strip.is_sparse, codes, sums.second, offset.second);
  }
  return {_mm512_sub_epi32(sums.first, offset.first), _mm512_sub_epi32(sums.second, offset.second)};
}

inline __m512 scaled(const Epilogue& epilogue, __m512i sums, __m512i rest, int64_t column) {
  const __m512i centred = _mm512_sub_epi32(sums, _mm512_loadu_si512(epilogue.offset + column));
  const __m512 scale = _mm512_loadu_ps(epilogue.scale + column);
  __m512 whole = _mm512_cvtepi32_ps(centred);
  if (epilogue.remainder.codes != nullptr)
    whole = _mm512_fmadd_ps(_mm512_cvtepi32_ps(rest), _mm512_set1_ps(epilogue.remainder.ratio), whole);
  const __m512 value = _mm512_mul_ps(whole, scale);
  return epilogue.bias == nullptr ? value : _mm512_add_ps(value, _mm512_loadu_ps(epilogue.bias + column));
}

inline void store(const Epilogue& epilogue, __m512 value, int64_t row, int64_t column) {
  const int64_t at = row * epilogue.width + column;
  if (epilogue.values != nullptr) {
    _mm512_storeu_ps(epilogue.values + at, value);
    return;
  }
  const __m128i codes = codes_of(value, _mm512_set1_ps(epilogue.inverse_scale));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(epilogue.codes + at), codes);
  if (epilogue.left_over == nullptr) return;
  const __m512i steps = _mm512_sub_epi32(_mm512_cvtepu8_epi32(codes), _mm512_set1_epi32(128));
  const __m512 held = _mm512_mul_ps(_mm512_cvtepi32_ps(steps), _mm512_set1_ps(epilogue.code_scale));
  store_codes(epilogue.left_over + at, _mm512_sub_ps(value, held), _mm512_set1_ps(epilogue.inverse_coarse_scale));
}

inline __m512 with_outliers(const Epilogue& epilogue, __m512 value, int64_t row, int64_t column) {
  const float* weights = epilogue.outlier_weights + column;
  const float* inputs = epilogue.outliers + row * epilogue.num_outliers;
  for (int64_t i = 0; i < epilogue.num_outliers; ++i)
    value = _mm512_fmadd_ps(_mm512_set1_ps(inputs[i]), _mm512_loadu_ps(weights + i * epilogue.width), value);
  return value;
}

inline void pick(const Epilogue& epilogue, __m512 value, int64_t row, int64_t tile) {
  const int64_t begin = epilogue.first[tile], end = epilogue.first[tile + 1];
  if (begin == end) return;
  alignas(64) float lanes[kLanes];
  _mm512_store_ps(lanes, value);
  for (int64_t i = begin; i < end; ++i)
    epilogue.picked[row * epilogue.num_channels + i] = lanes[epilogue.channels[i] - tile * kLanes];
}

// 16 values of a row, of the layer's tile `tile`.
inline void give(const Epilogue& epilogue, __m512 value, int64_t row, int64_t tile) {
  store(epilogue, value, row, tile * kLanes);
  if (epilogue.picked != nullptr) pick(epilogue, value, row, tile);
}

// Ask for where the sums of some rows of a strip will go, a product ahead: 5 % of a product of few inputs (docs/performance.md).
inline void fetch_goal(const Epilogue& epilogue, int64_t row, int64_t count, int64_t strip) {
  if (epilogue.values == nullptr) return;
  const int64_t lanes = epilogue.is_gated ? kLanes : 2 * kLanes;
  for (int64_t r = row; r < row + count; ++r)
    for (int64_t i = 0; i < lanes; i += kLanes) __builtin_prefetch(epilogue.values + r * epilogue.width + strip * lanes + i, 1);
}

// One row of a strip: the sums of its two tiles.
inline void finish(const Epilogue& epilogue, __m512i first, __m512i second, int64_t row, const Strip& strip) {
  const int64_t index = strip.index, column = index * 2 * kLanes;
  Sums rest{};
  if (epilogue.remainder.codes != nullptr) rest = remainder_sums(epilogue.remainder, row, strip);
  __m512 left = scaled(epilogue, first, rest.first, column);
  if (epilogue.outliers != nullptr) left = with_outliers(epilogue, left, row, column);
  if (!strip.has_second) return give(epilogue, activated(epilogue.activation, left), row, 2 * index);
  __m512 right = scaled(epilogue, second, rest.second, column + kLanes);
  if (epilogue.outliers != nullptr) right = with_outliers(epilogue, right, row, column + kLanes);
  if (epilogue.is_gated) {
    const __m512 product = _mm512_mul_ps(silu_ps(left), right);
    give(epilogue, product, row, index);
  } else {
    give(epilogue, activated(epilogue.activation, left), row, 2 * index);
    give(epilogue, activated(epilogue.activation, right), row, 2 * index + 1);
  }
}

}  // namespace piston
