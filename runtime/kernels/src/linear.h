// Linear layers on codes: UINT8 activations about 128 times packed INT8 weights, summed in INT32.
#pragma once
#include <cstdint>

#include "activation.h"

namespace piston {

// Codes of what other codes of the same activations leave over, by a coarser scale: nearly all of them are none.
struct Remainder {
  const uint8_t* codes;   // [rows, depth]; null where there is no remainder
  const int32_t* groups;  // of each row: which fours of the depth hold any
  const int64_t* first;   // [rows + 1] where those of each row begin
  int64_t depth;
  float ratio;  // of the scales
};

// What becomes of the sums of 16 columns, or of 32 where gate and up lie side by side.
struct Epilogue {
  const int32_t* offset;  // [columns] 128 times the sum of each column's weights
  const float* scale;     // [columns] activation scale times weight scale
  const float* bias;      // [columns] or null
  bool is_gated;          // even tiles are gates, odd ones what they gate: silu(gate) * up
  Activation activation;  // of what is not gated
  float* values;          // [rows, width] or null
  uint8_t* codes;         // [rows, width] where values is null
  float inverse_scale;
  int64_t width;  // columns, half of them where gated
  // Inputs that are multiplied in float beside the codes, and their weights; null where there are none.
  const float* outliers;         // [rows, num_outliers]
  const float* outlier_weights;  // [num_outliers, columns]
  int64_t num_outliers;
  // Of a layer that gives codes: channels whose values are given in float too, ascending; null where there are none.
  const int64_t* channels;  // [num_channels]
  const int64_t* first;     // [width / 16 + 1] the first of them that is in each tile
  int64_t num_channels;
  float* picked;  // [rows, num_channels]
  Remainder remainder;
  // Of a layer that gives codes: codes of what those leave over, [rows, width]; null where they are not asked for.
  uint8_t* left_over;
  float code_scale, inverse_coarse_scale;
};

struct Product {
  const uint8_t* codes;   // [rows, depth]
  const int8_t* weights;  // [columns / 16, depth / 4, 16, 4]; of sparse ones [columns / 16, depth / 8, 80] (sparse.h)
  int64_t rows, depth, columns;
  bool is_sparse;
  Epilogue epilogue;
};

// Two tiles of 16 columns.
struct Strip {
  int64_t index;
  const int8_t *left, *right;
  bool has_second;  // where the columns end there is none, and `right` is `left`
  bool is_sparse;
};

// Sparse weights are expanded into memory of this thread, until its next call, or left `as_stored`.
Strip strip_of(const Product& product, int64_t index, bool as_stored);

// Compute the strips begin .. end for all rows. Both give the same numbers.
void multiply_vnni(const Product& product, int64_t begin, int64_t end);
void multiply_amx(const Product& product, int64_t begin, int64_t end);

// Find the groups of a remainder; `groups` has room for all, `first` for one more than the rows.
void find_groups(const uint8_t* codes, int64_t rows, int64_t depth, int32_t* groups, int64_t* first);

}  // namespace piston
