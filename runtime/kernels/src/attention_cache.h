// What every way to attend does to the cache and to its result. Include after the pragma that names the instructions.
#pragma once
#include "attention.h"
#include "simd.h"

namespace piston {

inline __m512 load_cached(const Cache& cache, int64_t at) {
  if (cache.values != nullptr) return _mm512_loadu_ps(cache.values + at);
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cache.codes + at));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

// Scores of `count` positions, in room for a multiple of 16.
inline void add_bias(const float* bias, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = count - i >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1);
    _mm512_storeu_ps(scores + i, _mm512_add_ps(_mm512_loadu_ps(scores + i), _mm512_maskz_loadu_ps(mask, bias + i)));
  }
}

// 16 channels of one head's result: `channel` counts through the kv_heads, as the scales of INT8 values do.
inline void give_out(const Attention& attention, int64_t at, int64_t channel, __m512 sum) {
  if (attention.values.values == nullptr) sum = _mm512_mul_ps(sum, _mm512_loadu_ps(attention.values.scales + channel));
  if (attention.out != nullptr) {
    _mm512_storeu_ps(attention.out + at, sum);
  } else {
    store_codes(attention.codes + at, sum, _mm512_set1_ps(attention.inverse_scale));
  }
}

}  // namespace piston
