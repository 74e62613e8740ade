// Weights with 2:4 sparsity: of every four inputs of a column at most two are not zero, and two are stored. A row of a
// tile is eight inputs by 16 columns then: four weights of each column, two of the first four inputs and two of the next
// four, and which inputs they are of, in two bits each.
#pragma once
#include <cstdint>

namespace piston {

// Bytes of a row of a tile; how many there are says how it is stored.
constexpr int64_t kDenseRow = 64;       // four inputs of 8 bits, or eight of 4
constexpr int64_t kSparseRow = 80;      // 64 weights of 8 bits from -128 to 127, then 16 bytes of inputs
constexpr int64_t kSparseNibbles = 48;  // 64 weights of 4 bits, counted from 0, those of the first eight columns in the
                                        // low halves of 32 bytes, and the same 16 bytes

// Write the weights of `rows` rows as dense ones of 8 bits, [2 * rows, 64], counted from -zero.
void expand_tile(const uint8_t* from, int64_t rows, int bits, int zero, uint8_t* to);

}  // namespace piston
