// Linear layers in bfloat16 as ONNX Runtime calls them.
#include "bfloat16.h"
#include "kernel.h"
#include "scratch.h"

namespace piston {

ort::Status* run_bfloat16_linear(const Context& context, Activation activation) {
  // values, weights [columns / 16, depth / 2, 32], [bias] -> values
  const Tensor input = context.input(0), weights = context.input(1);
  if (!input.has_axes() || weights.rank != 3) return context.failure("piston: values or weights of a linear layer have no such rank");
  Bfloat16Product product{};
  product.rows = input.rows();
  product.depth = input.last();
  product.columns = weights.dims[0] * 16;
  if (weights.dims[1] * 2 != product.depth || weights.dims[2] != 32 || product.depth % kBfloat16Depth != 0 || product.depth == 0)
    return context.failure("piston: values and weights of a linear layer do not fit");
  product.weights = weights.as<uint16_t>();
  product.bias = context.sized<float>(2, product.columns);
  if (product.bias == nullptr && context.input(2).is_given)
    return context.failure("piston: the bias of a linear layer does not fit its columns");
  product.activation = activation;
  int64_t dims[kMaxRank];
  std::memcpy(dims, input.dims, sizeof dims);
  dims[input.rank - 1] = product.columns;
  product.values = context.output<float>(0, dims, input.rank);
  if (product.rows == 0) return nullptr;
  static thread_local Scratch room;  // other threads read it while this one waits
  auto* rounded = room.at_least<uint16_t>(static_cast<size_t>(product.rows * product.depth));
  const auto* values = input.as<float>();
  share(context, product.rows, worth_reading(4 * product.depth), [&](int64_t begin, int64_t end) {
    round_to_bfloat16(values + begin * product.depth, (end - begin) * product.depth, rounded + begin * product.depth);
  });
  product.inputs = rounded;
  const int64_t worth = product.rows > 12 ? 1 : worth_reading(2 * 32 * product.depth);
  share(context, (weights.dims[0] + 1) / 2, worth, [&](int64_t begin, int64_t end) { multiply_bfloat16(product, begin, end); });
  return nullptr;
}

}  // namespace piston
