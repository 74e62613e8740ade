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
