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
      const __m512 normed = _mm512_mul_ps(_mm512_loadu_ps(norm.sum + first + i), inverse);
      store_codes(norm.codes + first + i, _mm512_mul_ps(normed, _mm512_loadu_ps(norm.weight + i)), inverse_scale);
    }
  }
}

}  // namespace piston
