// Which tiles make a pair, and what becomes of a row of it. Include after the pragma that names the instructions.
#pragma once
#include "blocks.h"
#include "simd.h"

namespace piston {

struct BlockPair {
  const BlockWeights *left, *right;  // right: null where a part has an odd number of tiles
  int64_t left_tile, right_tile;
};

inline BlockPair pair_of(const BlockProduct& product, int64_t part, int64_t index) {
  if (product.is_gated) return {&product.parts[0], &product.parts[1], index, index};
  const BlockWeights& weights = product.parts[part];
  return {&weights, 2 * index + 1 < weights.tiles ? &weights : nullptr, 2 * index, 2 * index + 1};
}

inline __m512 finished(const BlockProduct& product, const BlockWeights& part, int64_t tile, __m512 value) {
  if (part.bias != nullptr) value = _mm512_add_ps(value, _mm512_loadu_ps(part.bias + tile * kLanes));
  return activated(product.activation, value);
}

inline void store_pair(const BlockProduct& product, const BlockPair& pair, int64_t row, __m512 left, __m512 right) {
  float* to = pair.left->out + (row * pair.left->tiles + pair.left_tile) * kLanes;
  if (product.is_gated) {
    _mm512_storeu_ps(to, _mm512_mul_ps(silu_ps(left), right));
    return;
  }
  _mm512_storeu_ps(to, finished(product, *pair.left, pair.left_tile, left));
  if (pair.right != nullptr) _mm512_storeu_ps(to + kLanes, finished(product, *pair.right, pair.right_tile, right));
}

// One block's sums of a row become part of its totals.
inline __m512 added(__m512 totals, __m512i sums, __m512 weight_scale, float input_scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(weight_scale, _mm512_set1_ps(input_scale)), totals);
}

}  // namespace piston
