// An operator of one node: its attributes; and the operators there are, as ONNX Runtime calls them.
#pragma once
#include <cstdint>

#include "activation.h"
#include "context.h"

namespace piston {

struct Kernel {
  const ort::Api* api;
  float real = 0;
  int64_t integer = 0;
  int threads = 1;
};

// Call work(begin, end) on `count` items in pieces of at least `worth`: several for each thread, since threads that share
// their cores with other processes are not equally fast.
template <typename Work>
void share(const Context& context, int64_t count, int64_t worth, const Work& work) {
  constexpr int64_t kForEachThread = 16;
  const int64_t most = count / worth, wanted = kForEachThread * context.threads();
  const int64_t cut = most < 1 ? 1 : most < wanted ? most : wanted;
  context.parallel(static_cast<size_t>(cut), [&](size_t index) {
    const int64_t at = static_cast<int64_t>(index);
    work(count * at / cut, count * (at + 1) / cut);
  });
}

// Of what reads `bytes` of weights for each item, so many items are worth a piece: a few microseconds.
inline int64_t worth_reading(int64_t bytes) { return 1 + (int64_t{1} << 16) / (bytes < 1 ? 1 : bytes); }

ort::Status* run_attention(const Context& context, const Kernel& kernel, bool gives_codes);
ort::Status* run_cross_attention(const Context& context, const Kernel& kernel, bool gives_codes);
ort::Status* run_bidirectional(const Context& context, const Kernel& kernel, bool gives_codes);
ort::Status* run_linear(const Context& context, bool gives_codes, bool is_gated, Activation activation);
ort::Status* run_bfloat16_linear(const Context& context, Activation activation);
ort::Status* run_block_linear(const Context& context, const Kernel& kernel, bool is_gated, bool is_split, bool has_bias, Activation activation);
ort::Status* run_block_rows(const Context& context, const Kernel& kernel);
ort::Status* run_norm(const Context& context, const Kernel& kernel, bool gives_codes);
ort::Status* run_layer_norm(const Context& context, const Kernel& kernel, bool gives_codes);
ort::Status* run_sum_tokens(const Context& context, const Kernel& kernel);

}  // namespace piston
