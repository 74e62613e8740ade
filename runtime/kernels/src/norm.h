// The residual sum, its root mean square norm, and the codes of that.
#pragma once
#include <cstdint>

namespace piston {

struct Norm {
  const float *input, *skip, *weight;  // [rows, width] twice, [width]
  float epsilon, inverse_scale;
  int64_t width;
  float* sum;      // [rows, width]
  uint8_t* codes;  // [rows, width]
};

void norm_rows(const Norm& norm, int64_t begin, int64_t end);

}  // namespace piston
