// Linear layers by blocks, and tables of that form, as ONNX Runtime calls them.
#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "cpu.h"
#include "kernel.h"
#include "scratch.h"

namespace piston {
namespace {

constexpr int64_t kLanes = 16, kTileDepth = 64;  // columns of a tile; what a tile register takes of the depth

// Weights [tiles, depth / 4 or 8, 64], sparse ones [tiles, depth / 8, 80 or 48], and scales [tiles, blocks or 1, 16] at inputs `index` and the next; whether they fit.
bool find_weights(const Context& context, size_t index, int64_t depth, int64_t blocks, BlockWeights* found) {
  const Tensor weights = context.input(index), scales = context.input(index + 1);
  if (weights.rank != 3 || scales.rank != 3 || scales.dims[2] != kLanes) return false;
  found->codes = weights.as<uint8_t>();
  found->scales = scales.as<float>();
  found->tiles = weights.dims[0];
  found->row_bytes = weights.dims[2];
  const bool is_byte = found->is_sparse() ? found->row_bytes == kSparseRow : weights.dims[1] * 4 == depth;
  found->bits = is_byte ? 8 : 4;
  found->scale_blocks = scales.dims[1];
  if (found->is_sparse() && !is_byte && found->row_bytes != kSparseNibbles) return false;
  return weights.dims[1] * (found->is_sparse() || !is_byte ? 8 : 4) == depth && scales.dims[0] == found->tiles && (scales.dims[1] == blocks || scales.dims[1] == 1);
}

// Which inputs are copied, at input `index`; whether all are there and a block of them has room.
bool find_copies(const Context& context, size_t index, BlockInput* input) {
  const Tensor source = context.input(index);
  if (source.rank != 1) return false;
  input->source = source.as<int64_t>();
  input->depth += source.dims[0];
  for (int64_t at = 0; at < source.dims[0]; ++at)
    if (input->source[at] < 0 || input->source[at] >= input->given) return false;
  return true;
}

void multiply(const Context& context, const BlockProduct& product, int64_t num_parts) {
  const BlockInput& input = product.input;
  const bool on_tiles = input.rows > 8 && level() == kAmx && input.depth % kTileDepth == 0 && input.block % kTileDepth == 0;
  const auto multiply_part = on_tiles ? multiply_blocks_amx : multiply_blocks_vnni;
  int64_t pairs = 0;
  for (int64_t part = 0; part < num_parts; ++part) pairs += product.pairs(part);
  const int64_t worth = input.rows > 8 ? 1 : worth_reading(2 * product.parts[0].tile_bytes(input.depth));
  share(context, pairs, worth, [&](int64_t begin, int64_t end) {
    for (int64_t part = 0; part < num_parts; ++part) {
      const int64_t size = product.pairs(part);
      if (begin < size && end > 0) multiply_part(product, part, begin < 0 ? 0 : begin, end < size ? end : size);
      begin -= size;
      end -= size;
    }
  });
}

}  // namespace

ort::Status* run_block_linear(const Context& context, const Kernel& kernel, bool is_gated, bool is_split, bool has_bias, Activation activation) {
  // input, source if it is split, weights, scales and perhaps bias of one to three parts, or of gate and up -> one output
  // of each part, or of both
  static thread_local Scratch codes, counted, scales, sums;
  const Tensor given = context.input(0);
  if (!given.has_axes()) return context.failure("piston: the input of a linear layer has no such rank");
  BlockProduct product{};
  BlockInput& input = product.input;
  product.is_gated = is_gated;
  product.activation = activation;
  input.values = given.as<float>();
  input.rows = given.rows();
  input.depth = input.given = given.last();
  input.block = kernel.integer;
  if (is_split && !find_copies(context, 1, &input)) return context.failure("piston: what is copied is not in the input of a linear layer");
  if (input.block <= 0 || input.block % kLanes != 0 || (is_split && input.block > kLargestBlock) || input.depth % kLanes != 0 || input.depth == 0)
    return context.failure("piston: the input of a linear layer does not fit its blocks");
  input.blocks = (input.depth + input.block - 1) / input.block;
  const size_t first = is_split ? 2 : 1;
  const size_t num_inputs = context.num_inputs();
  const size_t each = has_bias ? 3 : 2;
  const int64_t num_parts = static_cast<int64_t>((num_inputs - first) / each);
  if ((num_inputs - first) % each != 0 || num_parts > kMostParts || (is_gated && num_parts != 2)) return context.failure("piston: a linear layer has no such parts");
  int64_t dims[kMaxRank];
  std::memcpy(dims, given.dims, sizeof dims);
  for (int64_t part = 0; part < num_parts; ++part) {
    BlockWeights& weights = product.parts[part];
    const size_t at = first + each * static_cast<size_t>(part);
    if (!find_weights(context, at, input.depth, input.blocks, &weights) || (is_gated && weights.tiles != product.parts[0].tiles))
      return context.failure("piston: input, weights and blocks of a linear layer do not fit");
    if (has_bias) weights.bias = context.sized<float>(at + 2, weights.tiles * kLanes);
    if (has_bias && weights.bias == nullptr) return context.failure("piston: the bias of a linear layer does not fit its columns");
    dims[given.rank - 1] = weights.tiles * kLanes;
    if (part > 0 && is_gated) continue;
    weights.out = context.output<float>(static_cast<size_t>(part), dims, given.rank);
    if (!weights.out && input.rows * weights.tiles > 0) return context.failure("piston: a linear layer has no output for a part");
  }
  if (input.rows == 0) return nullptr;
  input.codes = codes.at_least<int8_t>(static_cast<size_t>(input.rows * input.depth));
  if (std::any_of(product.parts, product.parts + num_parts, [](const BlockWeights& part) { return part.is_sparse(); }))
    input.counted = counted.at_least<uint8_t>(static_cast<size_t>(input.rows * input.depth));
  input.scales = scales.at_least<float>(static_cast<size_t>(input.rows * input.blocks));
  input.minus_sums = sums.at_least<int32_t>(static_cast<size_t>(input.rows * input.blocks));
  share(context, input.rows, 16, [&](int64_t begin, int64_t end) { round_blocks(input, begin, end); });
  multiply(context, product, is_gated ? 1 : num_parts);
  return nullptr;
}

ort::Status* run_block_rows(const Context& context, const Kernel& kernel) {
  // ids, dense weights [tiles, depth / 4, 64], scales [tiles, blocks, 16] -> rows of the table
  const Tensor ids = context.input(0), weights = context.input(1);
  BlockTable table{};
  table.block = kernel.integer;
  table.depth = weights.dims[1] * 4;
  if (weights.rank != 3 || ids.rank + 1 > kMaxRank || table.block <= 0 || table.block % 4 != 0)
    return context.failure("piston: ids and table do not fit");
  table.blocks = (table.depth + table.block - 1) / table.block;
  if (!find_weights(context, 1, table.depth, table.blocks, &table.weights) || table.weights.is_sparse()) return context.failure("piston: a table does not fit its blocks");
  int64_t dims[kMaxRank] = {}, count = 1;
  for (size_t axis = 0; axis < ids.rank; ++axis) count *= dims[axis] = ids.dims[axis];
  dims[ids.rank] = table.depth;
  for (int64_t at = 0; at < count; ++at)
    if (ids.as<int64_t>()[at] < 0 || ids.as<int64_t>()[at] >= table.weights.tiles * kLanes)
      return context.failure("piston: an id lies outside the table");
  float* out = context.output<float>(0, dims, ids.rank + 1);
  share(context, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) read_row(table, ids.as<int64_t>()[at], out + at * table.depth);
  });
  return nullptr;
}

}  // namespace piston
