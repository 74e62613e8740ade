#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "norm.h"

#include <cmath>

#include "simd.h"

namespace piston {

void norm_rows(const Norm& norm, int64_t begin, int64_t end) {
  const __m512 inverse_scale = _mm512_set1_ps(norm.inverse_scale);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * norm.width;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < norm.width; i += kLanes) {
      const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(norm.input + first + i), _mm512_loadu_ps(norm.skip + first + i));
      _mm512_storeu_ps(norm.sum + first + i, sum);
      squares = _mm512_fmadd_ps(sum, sum, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(norm.width);
    const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(mean + norm.epsilon));
    for (int64_t i = 0; i < norm.width; i += kLanes) {
      __m512 value = _mm512_mul_ps(_mm512_loadu_ps(norm.sum + first + i), inverse);
      value = _mm512_mul_ps(value, _mm512_loadu_ps(norm.weight + i));
      if (norm.normed != nullptr) _mm512_storeu_ps(norm.normed + first + i, value);
      if (norm.codes != nullptr) store_codes(norm.codes + first + i, value, inverse_scale);
    }
  }
}

void layer_norm_rows(const LayerNorm& norm, int64_t begin, int64_t end) {
  static thread_local Scratch room;
  const __m512 inverse_scale = _mm512_set1_ps(norm.inverse_scale);
  const auto width = static_cast<float>(norm.width);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * norm.width;
    float* sums = norm.sum != nullptr ? norm.sum + first : room.at_least<float>(static_cast<size_t>(norm.width));
    __m512 total = _mm512_setzero_ps(), squares = total;
    for (int64_t i = 0; i < norm.width; i += kLanes) {
      __m512 sum = _mm512_loadu_ps(norm.input + first + i);
      if (norm.input_bias != nullptr) sum = _mm512_add_ps(sum, _mm512_loadu_ps(norm.input_bias + i));
      if (norm.skip != nullptr) sum = _mm512_add_ps(sum, _mm512_loadu_ps(norm.skip + first + i));
      _mm512_storeu_ps(sums + i, sum);
      total = _mm512_add_ps(total, sum);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / width);
    for (int64_t i = 0; i < norm.width; i += kLanes) {
      const __m512 apart = _mm512_sub_ps(_mm512_loadu_ps(sums + i), mean);
      squares = _mm512_fmadd_ps(apart, apart, squares);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + norm.epsilon));
    for (int64_t i = 0; i < norm.width; i += kLanes) {
      __m512 value = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(sums + i), mean), inverse);
      const __m512 weight = _mm512_loadu_ps(norm.weight + i);
      value = norm.bias == nullptr ? _mm512_mul_ps(value, weight) : _mm512_fmadd_ps(value, weight, _mm512_loadu_ps(norm.bias + i));
      if (norm.normed != nullptr) _mm512_storeu_ps(norm.normed + first + i, value);
      if (norm.codes != nullptr) store_codes(norm.codes + first + i, value, inverse_scale);
    }
  }
}

}  // namespace piston
