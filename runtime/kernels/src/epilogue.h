// From INT32 sums to what the layer gives out. Include after the pragma that names the instructions.
#pragma once
#include "linear.h"
#include "simd.h"

namespace piston {

inline __m512 scaled(const Epilogue& epilogue, __m512i sums, int64_t column) {
  const __m512i centred = _mm512_sub_epi32(sums, _mm512_loadu_si512(epilogue.offset + column));
  const __m512 scale = _mm512_loadu_ps(epilogue.scale + column);
  const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(centred), scale);
  return epilogue.bias == nullptr ? value : _mm512_add_ps(value, _mm512_loadu_ps(epilogue.bias + column));
}

inline void store(const Epilogue& epilogue, __m512 value, int64_t row, int64_t column) {
  const int64_t at = row * epilogue.width + column;
  if (epilogue.values != nullptr) {
    _mm512_storeu_ps(epilogue.values + at, value);
  } else {
    store_codes(epilogue.codes + at, value, _mm512_set1_ps(epilogue.inverse_scale));
  }
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

// One row of a strip: the sums of its two tiles; the second is absent where the columns end.
inline void finish(const Epilogue& epilogue, __m512i first, __m512i second, int64_t row, int64_t strip, bool has_second) {
  const int64_t column = strip * 2 * kLanes;
  __m512 left = scaled(epilogue, first, column);
  if (epilogue.outliers != nullptr) left = with_outliers(epilogue, left, row, column);
  if (!has_second) {
    store(epilogue, left, row, column);
    return;
  }
  __m512 right = scaled(epilogue, second, column + kLanes);
  if (epilogue.outliers != nullptr) right = with_outliers(epilogue, right, row, column + kLanes);
  if (epilogue.is_gated) {
    const __m512 product = _mm512_mul_ps(silu_ps(left), right);
    store(epilogue, product, row, strip * kLanes);
    if (epilogue.picked != nullptr) pick(epilogue, product, row, strip);
  } else {
    store(epilogue, left, row, column);
    store(epilogue, right, row, column + kLanes);
  }
}

}  // namespace piston
