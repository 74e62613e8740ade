// Linear layers of float activations and weights of 8 or 4 bits that share a scale by blocks of inputs.
#pragma once
#include <cstdint>

#include "activation.h"
#include "sparse.h"

namespace piston {

// Activations, and room for what they are rounded to: row by row and block by block, by the largest of each block.
// For sparse weights the codes are counted from 0, too.
struct BlockInput {
  const float* values;    // [rows, given]
  int64_t given;          // up to `depth`: what is beyond are copies of those that `source` names
  const int64_t* source;  // [depth - given]
  int64_t rows, depth, blocks, block;  // the last block may be shorter
  int8_t* codes;   // [rows, depth]
  uint8_t* counted;  // [rows, depth], 128 more each; null where no weights are sparse
  float* scales;   // [rows, blocks]
  int32_t* minus_sums;  // [rows, blocks] of codes, negated
};

struct BlockWeights {
  const uint8_t* codes;  // counted from 0. 8 bits: [tiles, depth / 4, 16, 4]. 4 bits: [tiles, depth / 8, 16, 4] bytes,
                         // the first four inputs in the low halves, the next four in the high ones. Sparse ones:
                         // [tiles, depth / 8, 80 or 48] (sparse.h)
  const float* scales;   // [tiles, blocks, 16], or [tiles, 1, 16] where all blocks of a column have one
  const float* bias;     // [16 * tiles] or null
  int64_t tiles;         // of 16 columns
  int bits;
  int64_t row_bytes, scale_blocks;
  float* out;  // [rows, 16 * tiles]; of a gated pair the first's alone

  int zero() const { return bits == 8 ? 128 : 8; }
  bool is_sparse() const { return row_bytes != kDenseRow; }
  const float* scale(int64_t tile, int64_t block) const {
    return scales + (scale_blocks == 1 ? tile : tile * scale_blocks + block) * 16;
  }
  int64_t tile_bytes(int64_t depth) const { return depth / (is_sparse() ? 8 : 32 / bits) * row_bytes; }
  const uint8_t* tile(int64_t index, int64_t depth) const { return codes + index * tile_bytes(depth); }
};

constexpr int64_t kMostParts = 3, kLargestBlock = 256;  // the latter where inputs are copied

// Parts read one input. Either each gives its own, or there are two of them, a gate and what it gates: silu(gate) * up.
struct BlockProduct {
  BlockInput input;
  BlockWeights parts[kMostParts];
  bool is_gated;
  Activation activation;  // of what is not gated

  // Tiles are computed two by two: neighbours of one part, or gate and up.
  int64_t pairs(int64_t part) const { return is_gated ? parts[0].tiles : (parts[part].tiles + 1) / 2; }
};

void round_blocks(const BlockInput& input, int64_t begin_row, int64_t end_row);
// Compute pairs of tiles of a part, for all rows. Both give the same bits; on the tile registers depth and block must be
// multiples of 64.
void multiply_blocks_vnni(const BlockProduct& product, int64_t part, int64_t begin_pair, int64_t end_pair);
void multiply_blocks_amx(const BlockProduct& product, int64_t part, int64_t begin_pair, int64_t end_pair);

// Rows of a table of 8 bits, which lie as a linear layer's columns do.
struct BlockTable {
  BlockWeights weights;
  int64_t depth, blocks, block;
};
void read_row(const BlockTable& table, int64_t row, float* out);

}  // namespace piston
