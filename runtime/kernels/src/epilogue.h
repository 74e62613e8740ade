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

// One row of a strip: the sums of its two tiles; the second is absent where the columns end.
inline void finish(const Epilogue& epilogue, __m512i first, __m512i second, int64_t row, int64_t strip, bool has_second) {
  const int64_t column = strip * 2 * kLanes;
  const __m512 left = scaled(epilogue, first, column);
  if (!has_second) {
    store(epilogue, left, row, column);
    return;
  }
  const __m512 right = scaled(epilogue, second, column + kLanes);
  if (epilogue.is_gated) {
    store(epilogue, _mm512_mul_ps(silu_ps(left), right), row, strip * kLanes);
  } else {
    store(epilogue, left, row, column);
    store(epilogue, right, row, column + kLanes);
  }
}

}  // namespace piston
