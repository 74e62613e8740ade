// The residual sum and its norm, or the codes of that.
#pragma once
#include <cstdint>

namespace piston {

// By the root mean square.
struct Norm {
  const float *input, *skip, *weight;  // [rows, width] twice, [width]
  float epsilon, inverse_scale;
  int64_t width;
  float *normed, *sum;  // [rows, width], the first or null
  uint8_t* codes;       // [rows, width] or null
};

void norm_rows(const Norm& norm, int64_t begin, int64_t end);

// By mean and variance.
struct LayerNorm {
  const float *input, *skip;                 // [rows, width], the second or null
  const float *input_bias, *weight, *bias;  // [width], both biases or null
  float epsilon, inverse_scale;
  int64_t width;
  float *normed, *sum;  // [rows, width] or null
  uint8_t* codes;       // [rows, width] or null
};

void layer_norm_rows(const LayerNorm& norm, int64_t begin, int64_t end);

}  // namespace piston
