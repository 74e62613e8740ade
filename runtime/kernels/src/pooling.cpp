// Sums over the tokens of a text, token after token: padding, whose weights are 0, changes no bit, and neither do other texts.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "kernel.h"
#include "simd.h"

namespace piston {
namespace {

// Columns `begin` .. end, multiples of 16, of one row's sum: values [seq, width] times weights [seq].
void sum_tokens(const float* values, const float* weights, int64_t seq, int64_t width, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin; i < end; i += kLanes) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t token = 0; token < seq; ++token)
      if (weights[token] != 0) sum = _mm512_fmadd_ps(_mm512_loadu_ps(values + token * width + i), _mm512_set1_ps(weights[token]), sum);
    _mm512_storeu_ps(out + i, sum);
  }
}

}  // namespace

ort::Status* run_sum_tokens(const Context& context, const Kernel&) {
  // values [batch, seq, width], weights [batch, seq, 1] -> [batch, width]
  const Tensor values = context.input(0), weights = context.input(1);
  if (values.rank != 3 || weights.rank != 3 || weights.dims[0] != values.dims[0] || weights.dims[1] != values.dims[1] || weights.dims[2] != 1)
    return context.failure("piston: values and weights of a sum over tokens do not fit");
  const int64_t rows = values.dims[0], seq = values.dims[1], width = values.dims[2], pieces = width / kLanes;
  if (width % kLanes != 0 || width == 0) return context.failure("piston: the width of a sum over tokens is no multiple of 16, or is 0");
  const int64_t dims[2] = {rows, width};
  float* out = context.output<float>(0, dims, 2);
  share(context, rows * pieces, worth_reading(seq * kLanes * 4), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at)
      sum_tokens(values.as<float>() + at / pieces * seq * width, weights.as<float>() + at / pieces * seq, seq, width,
                 at % pieces * kLanes, (at % pieces + 1) * kLanes, out + at / pieces * width);
  });
  return nullptr;
}

}  // namespace piston
