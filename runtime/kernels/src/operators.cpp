// The operators of the domain `piston`, as ONNX Runtime registers them, and what Python asks of the library.
#include <memory>

#include "cpu.h"
#include "kernel.h"
#include "sparse.h"

namespace piston {
namespace {

using Run = ort::Status* (*)(const Context&, const Kernel&);

constexpr size_t kMostInputs = 11, kMostOutputs = 3;

struct Operator : ort::CustomOp {
  const char* name;
  Run run;
  size_t num_inputs, num_outputs;
  ort::ElementType inputs[kMostInputs], outputs[kMostOutputs];
  uint32_t optional_inputs, optional_outputs;  // a bit for each that may be left out
  const char *int_name, *float_name;
};

struct Instance {
  const Operator* op;
  Kernel kernel;
};

thread_local int threads_of_sessions = num_cores();  // that this thread makes

const Operator& self(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

ort::Status* create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info, void** made) {
  auto instance = std::make_unique<Instance>(Instance{&self(op), Kernel{api}});
  instance->kernel.threads = threads_of_sessions;
  ort::Status* status = nullptr;
  if (self(op).int_name != nullptr)
    status = api->call<ort::Status*>(ort::kKernelInfoGetAttributeInt64, info, self(op).int_name, &instance->kernel.integer);
  if (status == nullptr && self(op).float_name != nullptr)
    status = api->call<ort::Status*>(ort::kKernelInfoGetAttributeFloat, info, self(op).float_name, &instance->kernel.real);
  if (status == nullptr) *made = instance.release();
  return status;
}

ort::Status* compute(void* instance, ort::KernelContext* context) {
  const Instance& self = *static_cast<Instance*>(instance);
  return self.op->run(Context(self.kernel.api, context, self.kernel.threads), self.kernel);
}

Operator filled(Operator op) {
  op.version = ort::kApiVersion;
  op.get_name = [](const ort::CustomOp* o) { return self(o).name; };
  op.get_provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.get_input_type = [](const ort::CustomOp* o, size_t i) { return self(o).inputs[i]; };
  op.get_input_count = [](const ort::CustomOp* o) { return self(o).num_inputs; };
  op.get_output_type = [](const ort::CustomOp* o, size_t i) { return self(o).outputs[i]; };
  op.get_output_count = [](const ort::CustomOp* o) { return self(o).num_outputs; };
  op.get_input_characteristic = [](const ort::CustomOp* o, size_t i) {
    return self(o).optional_inputs >> i & 1u ? ort::kOptional : ort::kRequired;
  };
  op.get_output_characteristic = [](const ort::CustomOp* o, size_t i) {
    return self(o).optional_outputs >> i & 1u ? ort::kOptional : ort::kRequired;
  };
  op.get_input_memory_type = [](const ort::CustomOp*, size_t) { return 0; };
  op.get_start_version = [](const ort::CustomOp*) { return 1; };
  op.get_end_version = [](const ort::CustomOp*) { return 1; };
  op.create_kernel_v2 = create;
  op.compute_v2 = compute;
  op.destroy = [](void* instance) { delete static_cast<Instance*>(instance); };
  return op;
}

template <bool GivesCodes, bool IsGated>
ort::Status* linear(const Context& context, const Kernel&) {
  return run_linear(context, GivesCodes, IsGated, kLinear);
}

template <bool GivesCodes>
ort::Status* gelu_linear(const Context& context, const Kernel& kernel) {
  return run_linear(context, GivesCodes, false, kernel.integer != 0 ? kGeluTanh : kGelu);
}

ort::Status* bfloat16_linear(const Context& context, const Kernel&) { return run_bfloat16_linear(context, kLinear); }

ort::Status* gelu_bfloat16_linear(const Context& context, const Kernel& kernel) {
  return run_bfloat16_linear(context, kernel.integer != 0 ? kGeluTanh : kGelu);
}

template <bool GivesCodes>
ort::Status* norm(const Context& context, const Kernel& kernel) {
  return run_norm(context, kernel, GivesCodes);
}

template <bool GivesCodes>
ort::Status* layer_norm(const Context& context, const Kernel& kernel) {
  return run_layer_norm(context, kernel, GivesCodes);
}

template <bool GivesCodes>
ort::Status* bidirectional(const Context& context, const Kernel& kernel) {
  return run_bidirectional(context, kernel, GivesCodes);
}

template <bool GivesCodes>
ort::Status* attention(const Context& context, const Kernel& kernel) {
  return run_attention(context, kernel, GivesCodes);
}

template <bool GivesCodes>
ort::Status* cross_attention(const Context& context, const Kernel& kernel) {
  return run_cross_attention(context, kernel, GivesCodes);
}

template <bool GivesCodes, Activation Last>
ort::Status* activated_linear(const Context& context, const Kernel&) {
  return run_linear(context, GivesCodes, false, Last);
}

template <bool IsGated, bool IsSplit>
ort::Status* block_linear(const Context& context, const Kernel& kernel) {
  return run_block_linear(context, kernel, IsGated, IsSplit, false, kLinear);
}

template <Activation Last>
ort::Status* bias_block_linear(const Context& context, const Kernel& kernel) {
  return run_block_linear(context, kernel, false, false, true, Last);
}

constexpr ort::ElementType F = ort::kFloat, U = ort::kUint8, S = ort::kInt8, H = ort::kUint16, I = ort::kInt32, L = ort::kInt64;

// Inputs of which a bit is set may be left out, and so may outputs.
constexpr uint32_t from(int first) { return ~0u << first; }
constexpr uint32_t kKeyValue = 1u << 1 | 1u << 2, kHeads = from(9), kCode = 1u << 8, kScales = 1u << 6 | 1u << 7, kRotary = 1u << 4 | 1u << 5;
constexpr uint32_t kLengths = 1u << 3;

const Operator* operators(size_t* count) {
  static const Operator all[] = {
      filled({{}, "IntegerLinear", linear<false, false>, 9, 1, {U, S, I, F, F, F, F, U, F}, {F}, from(4), 0, nullptr, nullptr}),
      filled({{}, "GatedLinear", linear<false, true>, 4, 1, {U, S, I, F}, {F}, 0, 0, nullptr, nullptr}),
      filled({{}, "GatedLinearCodes", linear<true, true>, 7, 3, {U, S, I, F, F, L, F}, {U, F, U}, from(5), from(1), nullptr, nullptr}),
      filled({{}, "GeluLinear", gelu_linear<false>, 5, 1, {U, S, I, F, F}, {F}, from(4), 0, "tanh", nullptr}),
      filled({{}, "GeluLinearCodes", gelu_linear<true>, 8, 3, {U, S, I, F, F, F, L, F}, {U, F, U}, 1u << 4 | from(6), from(1), "tanh", nullptr}),
      filled({{}, "SiluLinear", activated_linear<false, kSilu>, 5, 1, {U, S, I, F, F}, {F}, from(4), 0, nullptr, nullptr}),
      filled({{}, "SiluLinearCodes", activated_linear<true, kSilu>, 8, 3, {U, S, I, F, F, F, L, F}, {U, F, U}, 1u << 4 | from(6), from(1), nullptr, nullptr}),
      filled({{}, "ReluLinear", activated_linear<false, kRelu>, 5, 1, {U, S, I, F, F}, {F}, from(4), 0, nullptr, nullptr}),
      filled({{}, "ReluLinearCodes", activated_linear<true, kRelu>, 8, 3, {U, S, I, F, F, F, L, F}, {U, F, U}, 1u << 4 | from(6), from(1), nullptr, nullptr}),
      filled({{}, "Bfloat16Linear", bfloat16_linear, 3, 1, {F, H, F}, {F}, from(2), 0, nullptr, nullptr}),
      filled({{}, "GeluBfloat16Linear", gelu_bfloat16_linear, 3, 1, {F, H, F}, {F}, from(2), 0, "tanh", nullptr}),
      filled({{}, "BlockLinear", block_linear<false, false>, 7, 3, {F, U, F, U, F, U, F}, {F, F, F}, from(3), from(1), "block_size", nullptr}),
      filled({{}, "BiasBlockLinear", bias_block_linear<kLinear>, 10, 3, {F, U, F, F, U, F, F, U, F, F}, {F, F, F}, from(4), from(1), "block_size", nullptr}),
      filled({{}, "GeluBlockLinear", bias_block_linear<kGelu>, 4, 1, {F, U, F, F}, {F}, 0, 0, "block_size", nullptr}),
      filled({{}, "TanhGeluBlockLinear", bias_block_linear<kGeluTanh>, 4, 1, {F, U, F, F}, {F}, 0, 0, "block_size", nullptr}),
      filled({{}, "GatedBlockLinear", block_linear<true, false>, 5, 1, {F, U, F, U, F}, {F}, 0, 0, "block_size", nullptr}),
      filled({{}, "SplitBlockLinear", block_linear<false, true>, 8, 3, {F, L, U, F, U, F, U, F}, {F, F, F}, from(4), from(1), "block_size", nullptr}),
      filled({{}, "SplitGatedBlockLinear", block_linear<true, true>, 6, 1, {F, L, U, F, U, F}, {F}, 0, 0, "block_size", nullptr}),
      filled({{}, "BlockRows", run_block_rows, 3, 1, {L, U, F}, {F}, 0, 0, "block_size", nullptr}),
      filled({{}, "Norm", norm<false>, 3, 2, {F, F, F}, {F, F}, 0, 0, nullptr, "epsilon"}),
      filled({{}, "NormCodes", norm<true>, 4, 2, {F, F, F, F}, {U, F}, 0, 0, nullptr, "epsilon"}),
      filled({{}, "LayerNorm", layer_norm<false>, 6, 2, {F, F, F, F, F, F}, {F, F}, 1u << 1 | from(3), from(1), nullptr, "epsilon"}),
      filled({{}, "LayerNormCodes", layer_norm<true>, 6, 3, {F, F, F, F, F, F}, {U, F, F}, 1u << 1 | 1u << 3 | from(5), from(1), nullptr, "epsilon"}),
      filled({{}, "SumTokens", run_sum_tokens, 2, 1, {F, F}, {F}, 0, 0, nullptr, nullptr}),
      filled({{}, "BidirectionalAttention", bidirectional<false>, 6, 1, {F, F, F, L, F, F}, {F}, kKeyValue | from(3), 0, "num_heads", "scale"}),
      filled({{}, "BidirectionalAttentionCodes", bidirectional<true>, 6, 1, {F, F, F, L, F, F}, {U}, kKeyValue | kLengths | from(5), 0, "num_heads", "scale"}),
      filled({{}, "CrossAttention", cross_attention<false>, 5, 1, {F, F, F, L, F}, {F}, from(3), 0, "num_heads", "scale"}),
      filled({{}, "CrossAttentionCodes", cross_attention<true>, 5, 1, {F, F, F, L, F}, {U}, kLengths, 0, "num_heads", "scale"}),
      filled({{}, "Attention", attention<false>, 11, 3, {F, F, F, I, F, F, F, F, F, F, F}, {F, F, F}, kRotary | kScales | kCode | kHeads, 0, "num_heads", "scale"}),
      filled({{}, "AttentionCodes", attention<true>, 11, 3, {F, F, F, I, F, F, F, F, F, F, F}, {U, F, F}, kRotary | kScales | kHeads, 0, "num_heads", "scale"}),
      filled({{}, "AttentionInt8", attention<false>, 11, 3, {F, S, S, I, F, F, F, F, F, F, F}, {F, S, S}, kRotary | kCode | kHeads, 0, "num_heads", "scale"}),
      filled({{}, "AttentionInt8Codes", attention<true>, 11, 3, {F, S, S, I, F, F, F, F, F, F, F}, {U, S, S}, kRotary | kHeads, 0, "num_heads", "scale"}),
      // What engines made before BlockLinear took weights of both widths call it.
      filled({{}, "BlockLinear4", block_linear<false, false>, 3, 1, {F, U, F}, {F}, 0, 0, "block_size", nullptr}),
  };
  *count = sizeof all / sizeof *all;
  return all;
}

}  // namespace
}  // namespace piston

extern "C" {

// What onnxruntime.SessionOptions.register_custom_ops_library calls.
__attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::Options* options, const ort::ApiBase* base) {
  const ort::Api* api = base->get_api(ort::kApiVersion);
  if (api == nullptr) return nullptr;  // older than this library: its sessions then fail for want of the operators
  static ort::Domain* domain = nullptr;  // outlives every session
  if (domain == nullptr) {
    if (auto* status = api->call<ort::Status*>(ort::kCreateCustomOpDomain, "piston", &domain)) return status;
    size_t count = 0;
    const piston::Operator* all = piston::operators(&count);
    for (size_t i = 0; i < count; ++i)
      if (auto* status = api->call<ort::Status*>(ort::kCustomOpDomainAdd, domain, static_cast<const ort::CustomOp*>(&all[i])))
        return status;
  }
  return api->call<ort::Status*>(ort::kAddCustomOpDomain, options, domain);
}

// 0: this processor runs none of the operators. 1: AVX-512 with VNNI. 2: products of bfloat16 too. 3: AMX too.
__attribute__((visibility("default"))) int piston_kernels_level() { return piston::level(); }

// How many threads the operators of sessions that this thread makes from now on use; at least 1.
__attribute__((visibility("default"))) void piston_kernels_set_threads(int count) {
  piston::threads_of_sessions = count < 1 ? 1 : count;
}

// For tests: use no more than this level from now on; what it became.
__attribute__((visibility("default"))) int piston_kernels_set_level(int wanted) {
  return piston::set_level(static_cast<piston::Level>(wanted));
}

// For tests on processors without tile registers, which alone read what this writes.
__attribute__((visibility("default"))) void piston_kernels_expand(const uint8_t* from, int64_t rows, int bits, int zero, uint8_t* to) {
  piston::expand_tile(from, rows, bits, zero, to);
}

}
