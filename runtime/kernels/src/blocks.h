// Linear layers of float activations and INT8 weights that share a scale by blocks of inputs, as an lm_head has them.
#pragma once
#include <cstdint>

namespace piston {

struct BlockProduct {
  const float* input;      // [rows, depth]
  const uint8_t* weights;  // [columns / 16, depth / 4, 16, 4], counted from 0: 128 is none
  const float* scales;     // [columns / 16, blocks, 16]
  int64_t rows, depth, columns, blocks;
  float* out;  // [rows, columns]
  // Room for the rounded input: codes [rows, depth], and for each block its scale and 128 times the sum of its codes.
  int8_t* codes;
  float* input_scales;
  int32_t* input_sums;
};

// Round the input, row by row and block by block, to INT8 by the largest of each block.
void round_blocks(const BlockProduct& product, int64_t begin_row, int64_t end_row);
// Compute tiles of 16 columns, for all rows.
void multiply_blocks(const BlockProduct& product, int64_t begin_tile, int64_t end_tile);

}  // namespace piston
