// Linear layers in bfloat16: float inputs are rounded to 8 bits of mantissa, as the weights are, and summed in float32.
#pragma once
#include <cstdint>

#include "activation.h"

namespace piston {

struct Bfloat16Product {
  const uint16_t* inputs;   // [rows, depth]
  const uint16_t* weights;  // [columns / 16, depth / 2, 16, 2]
  int64_t rows, depth, columns;
  const float* bias;  // [columns] or null
  Activation activation;
  float* values;  // [rows, columns]
};

constexpr int64_t kBfloat16Depth = 32;  // what the depth must be a multiple of

// Round `count` floats, a multiple of 16, to nearest, halves to even.
void round_to_bfloat16(const float* values, int64_t count, uint16_t* rounded);

// Compute the strips begin .. end, of two tiles of 16 columns each, for all rows. The sum of an output is made in one
// order, so that a row gets the same bits among any others.
void multiply_bfloat16(const Bfloat16Product& product, int64_t begin, int64_t end);

}  // namespace piston
