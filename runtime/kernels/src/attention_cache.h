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

// 16 bytes of each of 16 positions, `stride` bytes apart, as four words by 16 positions.
inline void turn(const void* from, int64_t stride, __m512 (&words)[4]) {
  const auto* at = static_cast<const char*>(from);
  const auto row = [&](int64_t i) { return _mm_loadu_ps(reinterpret_cast<const float*>(at + i * stride)); };
  __m512 rows[4];  // the 128-bit lanes of each hold positions i, i + 4, i + 8, i + 12
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_broadcast_f32x4(row(i));
    rows[i] = _mm512_mask_broadcast_f32x4(rows[i], 0x00F0, row(i + 4));
    rows[i] = _mm512_mask_broadcast_f32x4(rows[i], 0x0F00, row(i + 8));
    rows[i] = _mm512_mask_broadcast_f32x4(rows[i], 0xF000, row(i + 12));
  }
  const __m512 low = _mm512_unpacklo_ps(rows[0], rows[1]), high = _mm512_unpackhi_ps(rows[0], rows[1]);
  const __m512 other_low = _mm512_unpacklo_ps(rows[2], rows[3]), other_high = _mm512_unpackhi_ps(rows[2], rows[3]);
  words[0] = _mm512_shuffle_ps(low, other_low, 0x44);
  words[1] = _mm512_shuffle_ps(low, other_low, 0xEE);
  words[2] = _mm512_shuffle_ps(high, other_high, 0x44);
  words[3] = _mm512_shuffle_ps(high, other_high, 0xEE);
}

// Code `which` of the four in each word, as float.
inline __m512 code_of(__m512 words, unsigned which) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(_mm512_castps_si512(words), 24 - 8 * which), 24));
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
