// Linear layers and norms as ONNX Runtime calls them: what they read and give, and how their work is shared.
#include <cstring>
#include <vector>

#include "cpu.h"
#include "kernel.h"
#include "linear.h"
#include "norm.h"
#include "scratch.h"
#include "sparse.h"

namespace piston {

namespace {

// Where the channels of each tile begin; empty where they are not ascending channels of `width`.
std::vector<int64_t> first_of_tiles(const int64_t* channels, int64_t count, int64_t width) {
  std::vector<int64_t> first(static_cast<size_t>(width / 16 + 1), count);
  for (int64_t i = count; i-- > 0;) {
    if (channels[i] < 0 || channels[i] >= width || (i > 0 && channels[i - 1] >= channels[i])) return {};
    first[static_cast<size_t>(channels[i] / 16)] = i;
  }
  for (size_t tile = first.size() - 1; tile-- > 0;)
    if (first[tile] > first[tile + 1]) first[tile] = first[tile + 1];
  return first;
}

// Inputs 5 and 6 of a plain layer: values in float and their weights.
const char* take_outliers(const Context& context, Product& product) {
  const Tensor values = context.input(5);
  if (!values.is_given) return nullptr;
  Epilogue& epilogue = product.epilogue;
  const Tensor weight = context.input(6);
  if (!values.has_axes() || weight.rank != 2 || weight.dims[0] != values.last() || weight.last() != epilogue.width ||
      values.rows() != product.rows)
    return "piston: outliers of a linear layer and their weights do not fit";
  epilogue.outliers = values.as<float>();
  epilogue.outlier_weights = weight.as<float>();
  epilogue.num_outliers = values.last();
  return nullptr;
}

// Inputs 7 and 8 of a plain layer: codes of what its own codes leave over, and the ratio of their scales.
const char* take_remainder(const Context& context, Product& product) {
  const Tensor codes = context.input(7);
  if (!codes.is_given) return nullptr;
  const float* ratio = context.sized<float>(8, 1);
  if (ratio == nullptr || !codes.has_axes() || codes.last() != product.depth || codes.rows() != product.rows)
    return "piston: the remainder of a linear layer does not fit its codes, or has no ratio";
  static thread_local Scratch groups, first_of_rows;  // other threads read them while this one waits
  auto* found = groups.at_least<int32_t>(static_cast<size_t>(product.rows * product.depth / 4));
  auto* first = first_of_rows.at_least<int64_t>(static_cast<size_t>(product.rows + 1));
  find_groups(codes.as<uint8_t>(), product.rows, product.depth, found, first);
  product.epilogue.remainder = {codes.as<uint8_t>(), found, first, product.depth, *ratio};
  return nullptr;
}

// Three inputs, from `index` on, of a layer that gives codes: their scale, channels given in float too, a remainder's scale.
const char* take_codes(const Context& context, size_t index, Product& product, int64_t* dims, size_t rank, std::vector<int64_t>& first) {
  Epilogue& epilogue = product.epilogue;
  const float *scale = context.sized<float>(index, 1), *coarse = context.sized<float>(index + 2, 1);
  if (scale == nullptr || (coarse == nullptr && context.input(index + 2).is_given))
    return "piston: a layer's codes need one scale, and their remainder another";
  const Tensor channels = context.input(index + 1);
  if (channels.is_given) {
    if (channels.rank != 1) return "piston: the channels of a layer are no list";
    first = first_of_tiles(channels.as<int64_t>(), channels.last(), epilogue.width);
    if (first.empty()) return "piston: the channels of a layer are not ascending, or not its own";
    epilogue.channels = channels.as<int64_t>();
    epilogue.num_channels = dims[rank - 1] = channels.last();
    epilogue.first = first.data();
    epilogue.picked = context.output<float>(1, dims, rank);
  }
  dims[rank - 1] = epilogue.width;
  epilogue.code_scale = *scale;
  epilogue.inverse_scale = 1.0f / epilogue.code_scale;
  epilogue.codes = context.output<uint8_t>(0, dims, rank);
  if (coarse != nullptr) {
    epilogue.inverse_coarse_scale = 1.0f / *coarse;
    epilogue.left_over = context.output<uint8_t>(2, dims, rank);
  }
  return nullptr;
}

}  // namespace

ort::Status* run_linear(const Context& context, bool gives_codes, bool is_gated, Activation activation) {
  // codes, weights [columns / 16, depth / 4, 64] or of sparse ones [.., depth / 8, 80], offset, scale, of what is not gated [bias], then
  // of floats [outliers [.., k]], [outlier_weights [k, columns]], [remainder], [ratio];
  // of codes code_scale, [channels [k]], [coarse_scale], which asks for the remainder as output 2
  const Tensor codes = context.input(0), weights = context.input(1);
  if (!codes.has_axes() || weights.rank != 3) return context.failure("piston: codes or weights of a linear layer have no such rank");
  Product product{};
  product.codes = codes.as<uint8_t>();
  product.weights = weights.as<int8_t>();
  product.rows = codes.rows();
  product.depth = codes.last();
  product.columns = weights.dims[0] * 16;
  product.is_sparse = weights.dims[2] == kSparseRow;
  if (weights.dims[1] * (product.is_sparse ? 8 : 4) != product.depth || (weights.dims[2] != kDenseRow && !product.is_sparse) || product.depth % 64 != 0 || product.depth == 0)
    return context.failure("piston: codes and weights of a linear layer do not fit");
  if (is_gated && weights.dims[0] % 2 != 0) return context.failure("piston: a gated layer has an odd number of tiles");
  Epilogue& epilogue = product.epilogue;
  epilogue.offset = context.sized<int32_t>(2, product.columns);
  epilogue.scale = context.sized<float>(3, product.columns);
  epilogue.bias = is_gated ? nullptr : context.sized<float>(4, product.columns);
  if (epilogue.offset == nullptr || epilogue.scale == nullptr ||
      (!is_gated && epilogue.bias == nullptr && context.input(4).is_given))
    return context.failure("piston: offsets, scales or bias of a linear layer do not fit its columns");
  epilogue.is_gated = is_gated;
  epilogue.activation = activation;
  epilogue.width = is_gated ? product.columns / 2 : product.columns;
  int64_t dims[kMaxRank];
  std::memcpy(dims, codes.dims, sizeof dims);
  std::vector<int64_t> first;
  const char* problem = gives_codes ? take_codes(context, is_gated ? 4 : 5, product, dims, codes.rank, first) : take_outliers(context, product);
  if (problem == nullptr && !gives_codes) problem = take_remainder(context, product);
  if (problem != nullptr) return context.failure(problem);
  dims[codes.rank - 1] = epilogue.width;
  if (!gives_codes) epilogue.values = context.output<float>(0, dims, codes.rank);
  if (product.rows == 0) return nullptr;
  const int64_t strips = (weights.dims[0] + 1) / 2;
  const bool on_tiles = level() == kAmx && product.rows > 8;
  const auto multiply = on_tiles ? multiply_amx : multiply_vnni;
  const int64_t worth = product.rows > 8 ? 1 : worth_reading(2 * weights.dims[1] * weights.dims[2]);
  share(context, strips, worth, [&](int64_t begin, int64_t end) { multiply(product, begin, end); });
  return nullptr;
}

ort::Status* run_norm(const Context& context, const Kernel& kernel, bool gives_codes) {
  // input, skip, weight, [code_scale] -> codes or normed, sum
  const Tensor input = context.input(0), skip = context.input(1);
  if (!input.has_axes() || !skip.is_like(input)) return context.failure("piston: a norm and what it adds do not fit");
  Norm norm{};
  norm.width = input.last();
  norm.input = input.as<float>();
  norm.skip = skip.as<float>();
  norm.weight = context.sized<float>(2, norm.width);
  const float* scale = gives_codes ? context.sized<float>(3, 1) : nullptr;
  if (norm.weight == nullptr || (gives_codes && scale == nullptr) || norm.width % 16 != 0)
    return context.failure("piston: the width of a norm is no multiple of 16, or does not fit its weight");
  norm.epsilon = kernel.real;
  if (gives_codes) {
    norm.inverse_scale = 1.0f / *scale;
    norm.codes = context.output<uint8_t>(0, input.dims, input.rank);
  } else {
    norm.normed = context.output<float>(0, input.dims, input.rank);
  }
  norm.sum = context.output<float>(1, input.dims, input.rank);
  const int64_t rows = input.rows();
  share(context, rows, 16, [&](int64_t begin, int64_t end) { norm_rows(norm, begin, end); });
  return nullptr;
}

ort::Status* run_layer_norm(const Context& context, const Kernel& kernel, bool gives_codes) {
  // input, [skip], weight, [bias], [code_scale], [a bias of the input] -> [codes], [normed], [sum]
  const Tensor input = context.input(0), skip = context.input(1);
  if (!input.has_axes() || (skip.is_given && !skip.is_like(input))) return context.failure("piston: a norm and what it adds do not fit");
  LayerNorm norm{};
  norm.width = input.last();
  norm.input = input.as<float>();
  norm.skip = skip.as<float>();
  norm.weight = context.sized<float>(2, norm.width);
  norm.bias = context.sized<float>(3, norm.width);
  norm.input_bias = context.sized<float>(5, norm.width);
  const float* scale = gives_codes ? context.sized<float>(4, 1) : nullptr;
  if ((norm.input_bias == nullptr && context.input(5).is_given) || norm.weight == nullptr || (norm.bias == nullptr && context.input(3).is_given) || (gives_codes && scale == nullptr) || norm.width % 16 != 0)
    return context.failure("piston: the width of a norm is no multiple of 16, or does not fit its weight and biases");
  norm.epsilon = kernel.real;
  if (gives_codes) {
    norm.inverse_scale = 1.0f / *scale;
    norm.codes = context.output<uint8_t>(0, input.dims, input.rank);
  }
  const size_t first = gives_codes ? 1 : 0;
  norm.normed = context.output<float>(first, input.dims, input.rank);
  norm.sum = context.output<float>(first + 1, input.dims, input.rank);
  share(context, input.rows(), 8, [&](int64_t begin, int64_t end) { layer_norm_rows(norm, begin, end); });
  return nullptr;
}

}  // namespace piston
