// Weights with 2:4 sparsity: of every four inputs of a column at most two are not zero, and two are stored. What is 64
// bytes of a tile otherwise, 4 inputs by 16 columns, is a mask of 64 bits, 32 of them set, and 32 values in their order.
#pragma once
#include <cstdint>

namespace piston {

// Bytes of a row of a tile; how long it is says how it is stored.
constexpr int64_t kDenseRow = 64;
constexpr int64_t kSparseRow = 40;      // mask and values of 8 bits
constexpr int64_t kSparseNibbles = 48;  // 4 bits: masks of four inputs and of the next four, values of the former in the
                                        // low halves of bytes, of the latter in the high ones

// Write the weights of `rows` rows as bytes, [rows, 64] of 8 bits or [2 * rows, 64] of 4, on any processor.
void expand_tile(const uint8_t* from, int64_t rows, int bits, uint8_t zero, uint8_t* to);

}  // namespace piston
