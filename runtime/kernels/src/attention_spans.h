// What both ways to attend on the vector unit compute alike, so that a token gets the same bits among few others, among
// many, and alone: positions, counted from 0, are cut into spans; each span is summed on its own, a score channel by
// channel and a value position by position; and spans are merged one after the other.
// Include after the pragma that names the instructions.
#pragma once
#include <cmath>

#include "attention.h"
#include "simd.h"

namespace piston {

// The softmax of a span, or of all spans so far.
struct Softmax {
  float most = -INFINITY, total = 0;  // the largest score, and the sum of e^(score - most)
};

// Scores of a span become weights, 0 beyond the `visible` first.
inline Softmax weigh(float* scores, int64_t visible) {
  __mmask16 masks[kSpan / kLanes];
  __m512 largest = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < kSpan / kLanes; ++i) {
    const int64_t left = visible - i * kLanes;
    masks[i] = left >= kLanes ? 0xFFFF : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    largest = _mm512_mask_max_ps(largest, masks[i], largest, _mm512_loadu_ps(scores + i * kLanes));
  }
  const float most = _mm512_reduce_max_ps(largest);
  __m512 total = _mm512_setzero_ps();
  for (int64_t i = 0; i < kSpan / kLanes; ++i) {
    const __m512 above = _mm512_sub_ps(_mm512_loadu_ps(scores + i * kLanes), _mm512_set1_ps(most));
    const __m512 weight = _mm512_maskz_mov_ps(masks[i], exp_ps(above));
    _mm512_storeu_ps(scores + i * kLanes, weight);
    total = _mm512_add_ps(total, weight);
  }
  return {most, _mm512_reduce_add_ps(total)};
}

// What spans so far and the next one are multiplied by when they are merged, for 16 tokens or spans at once.
struct Factors {
  __m512 before, next;
};

inline Factors factors(__m512 most_before, __m512 most_next) {
  const __m512 most = _mm512_max_ps(most_before, most_next);
  return {exp_ps(_mm512_sub_ps(most_before, most)), exp_ps(_mm512_sub_ps(most_next, most))};
}

inline __m512 merged(__m512 before, __m512 before_factor, __m512 next, __m512 next_factor) {
  return _mm512_fmadd_ps(next, next_factor, _mm512_mul_ps(before, before_factor));
}

}  // namespace piston
