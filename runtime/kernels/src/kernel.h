// An operator of one node: its attributes; and the operators there are, as ONNX Runtime calls them.
#pragma once
#include <cstdint>

#include "context.h"
#include "cpu.h"

namespace piston {

struct Kernel {
  const ort::Api* api;
  float real = 0;
  int64_t integer = 0;
};

// Work for as many rows as are worth a thread.
inline int64_t pieces(int64_t count, int64_t worth) {
  const int64_t most = count / worth, cores = num_cores();
  return most < 1 ? 1 : most < cores ? most : cores;
}

// Call work(begin, end) on `count` items cut into so many pieces, on the session's threads.
template <typename Work>
void share(const Context& context, int64_t count, int64_t pieces, const Work& work) {
  context.parallel(static_cast<size_t>(pieces), [&](size_t index) {
    const int64_t at = static_cast<int64_t>(index);
    work(count * at / pieces, count * (at + 1) / pieces);
  });
}

ort::Status* run_attention(const Context& context, const Kernel& kernel, bool gives_codes);
ort::Status* run_linear(const Context& context, bool gives_codes, bool is_gated);
ort::Status* run_block_linear(const Context& context, const Kernel& kernel, bool is_gated, bool is_split);
ort::Status* run_block_rows(const Context& context, const Kernel& kernel);
ort::Status* run_norm(const Context& context, const Kernel& kernel);

}  // namespace piston
