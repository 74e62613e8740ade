// Linear layers of float activations and weights of 8 or 4 bits that share a scale by blocks of inputs.
#pragma once
#include <cstdint>

namespace piston {

struct BlockProduct {
  const float* input;      // [rows, depth]
  const uint8_t* weights;  // counted from 0. 8 bits: [columns / 16, depth / 4, 16, 4]. 4 bits: [columns / 16, depth / 8,
                           // 16, 4] bytes, the first four inputs in the low halves, the next four in the high ones
  const float* scales;     // [columns / 16, blocks, 16]
  int64_t rows, depth, columns, blocks, block;  // the last block may be shorter
  int bits;
  float* out;  // [rows, columns]
  // Room for the rounded input: codes [rows, depth], and for each block its scale and what counting the weights from 0
  // adds to its products: 128 or 8 times the sum of its codes.
  int8_t* codes;
  float* input_scales;
  int32_t* input_sums;
};

// Round the input, row by row and block by block, to INT8 by the largest of each block.
void round_blocks(const BlockProduct& product, int64_t begin_row, int64_t end_row);
// Compute tiles of 16 columns, for all rows.
void multiply_blocks(const BlockProduct& product, int64_t begin_tile, int64_t end_tile);

}  // namespace piston
