// Vector pieces that several operators share. Include after the pragma that names the instructions.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "activation.h"
#include "scratch.h"

namespace piston {

constexpr int kLanes = 16;

// Of each lane the sum and the products of its four codes, unsigned, and its four weights. As an intrinsic GCC 12 copies
// each sum before and after: half of the instructions of a loop that has sums of several rows.
inline __m512i add_dots(__m512i sum, __m512i codes, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(weights));
  return sum;
}

// The same of two numbers in bfloat16.
inline __m512 add_bfloat16_dots(__m512 sum, __m512i inputs, __m512i weights) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(weights));
  return sum;
}

// e^x, relative error below 3e-7: 2^n times Taylor's polynomial of the rest; below -87 it stays at 2e-38.
inline __m512 exp_ps(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// 1 / x of a positive x below 2^126, relative error below 2^-23: a division takes the unit three times as long.
inline __m512 inverse_ps(__m512 x) {
  const __m512 near = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(near, _mm512_fnmadd_ps(x, near, _mm512_set1_ps(2.0f)));
}

inline __m512 silu_ps(__m512 x) {
  const __m512 power = _mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), _mm512_set1_ps(87.0f));  // e^87 < 2^126
  return _mm512_mul_ps(x, inverse_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), exp_ps(power))));
}

// x times the normal distribution up to x: x / 2 * (1 + erf(x / sqrt 2)); erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
inline __m512 gelu_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
  const __m512 size = _mm512_min_ps(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f)), _mm512_set1_ps(9.0f));
  const __m512 t = inverse_ps(_mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f), one));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 power = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(size, size)));
  const __m512 erf = _mm512_fnmadd_ps(_mm512_mul_ps(p, t), power, one);
  return _mm512_fmadd_ps(_mm512_abs_ps(half), erf, half);  // erf has x's sign, and so has half of x
}

// Its approximation by the hyperbolic tangent: x / 2 * (1 + tanh(u)) is x / (1 + e^-2u).
inline __m512 gelu_tanh_ps(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-64.0f), x);  // below, e^-2u is cut off
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 twice = _mm512_fmadd_ps(square, _mm512_set1_ps(2 * 0.7978845608f * 0.044715f), _mm512_set1_ps(2 * 0.7978845608f));
  __m512 power = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(x, twice));
  power = _mm512_min_ps(power, _mm512_set1_ps(87.0f));
  return _mm512_mul_ps(x, inverse_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), exp_ps(power))));
}

inline __m512 activated(Activation activation, __m512 x) {
  switch (activation) {
    case kGelu: return gelu_ps(x);
    case kGeluTanh: return gelu_tanh_ps(x);
    case kSilu: return silu_ps(x);
    case kRelu: return _mm512_max_ps(x, _mm512_setzero_ps());
    default: return x;
  }
}

// Codes as QuantizeLinear makes them with zero point 128: x by the scale's inverse, to even at halves, saturated.
inline __m128i codes_of(__m512 x, __m512 inverse_scale) {
  const __m512 limit = _mm512_set1_ps(1024.0f);  // what is beyond int32 would turn around
  __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(x, inverse_scale), limit));
  code = _mm512_add_epi32(code, _mm512_set1_epi32(128));
  return _mm512_cvtusepi32_epi8(_mm512_max_epi32(code, _mm512_setzero_si512()));
}

inline void store_codes(uint8_t* to, __m512 x, __m512 inverse_scale) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), codes_of(x, inverse_scale));
}

}  // namespace piston
