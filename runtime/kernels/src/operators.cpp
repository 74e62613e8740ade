// The operators of the domain `piston`, as ONNX Runtime calls them, and what Python asks of the library.
#include <cstring>
#include <memory>

#include "attention.h"
#include "blocks.h"
#include "context.h"
#include "cpu.h"
#include "linear.h"
#include "norm.h"
#include "scratch.h"

namespace piston {
namespace {

struct Kernel {
  const ort::Api* api;
  float floats[2] = {};
  int64_t ints[2] = {};
};

// Work for as many rows as are worth a thread.
size_t pieces(int64_t count, int64_t worth) {
  const int64_t most = count / worth;
  return most < 1 ? 1 : most < num_cores() ? static_cast<size_t>(most) : static_cast<size_t>(num_cores());
}

ort::Status* linear(const Context& context, bool gives_codes, bool is_gated) {
  // codes, weights [columns / 16, depth / 4, 64], offset, scale, [bias], [code_scale]
  const Tensor codes = context.input(0), weights = context.input(1);
  if (codes.rank < 1 || weights.rank != 3) return context.failure("piston: codes or weights of a linear layer have no such rank");
  Product product{};
  product.codes = codes.as<uint8_t>();
  product.weights = weights.as<int8_t>();
  product.rows = codes.rows();
  product.depth = codes.last();
  product.columns = weights.dims[0] * 16;
  if (weights.dims[1] * 4 != product.depth || product.depth % 64 != 0)
    return context.failure("piston: codes and weights of a linear layer do not fit");
  if (is_gated && weights.dims[0] % 2 != 0) return context.failure("piston: a gated layer has an odd number of tiles");
  Epilogue& epilogue = product.epilogue;
  epilogue.offset = context.data<int32_t>(2);
  epilogue.scale = context.data<float>(3);
  epilogue.bias = is_gated ? nullptr : context.data<float>(4);
  epilogue.is_gated = is_gated;
  epilogue.width = is_gated ? product.columns / 2 : product.columns;
  int64_t dims[kMaxRank];
  std::memcpy(dims, codes.dims, sizeof dims);
  dims[codes.rank - 1] = epilogue.width;
  if (gives_codes) {
    epilogue.code_scale = *context.data<float>(4);
    epilogue.codes = context.output<uint8_t>(0, dims, codes.rank);
  } else {
    epilogue.values = context.output<float>(0, dims, codes.rank);
  }
  if (product.rows == 0) return nullptr;
  const int64_t strips = (weights.dims[0] + 1) / 2;
  const bool on_tiles = level() == kAmx && product.rows > 8;
  // Few rows: one piece a core, since each is a stream of weights. Many: small pieces, since cores differ in progress.
  const int64_t most = on_tiles ? strips : num_cores();
  const int64_t count = strips < most ? strips : most;
  context.parallel(static_cast<size_t>(count), [&](size_t index) {
    const int64_t begin = strips * static_cast<int64_t>(index) / count, end = strips * static_cast<int64_t>(index + 1) / count;
    if (on_tiles) {
      multiply_amx(product, begin, end);
    } else {
      multiply_vnni(product, begin, end);
    }
  });
  return nullptr;
}

ort::Status* block_linear(const Context& context, int64_t block, int bits) {
  // input, weights [columns / 16, depth / 4 or 8, 64], scales [columns / 16, blocks, 16]
  static thread_local Scratch codes, scales, sums;
  const Tensor input = context.input(0), weights = context.input(1), given = context.input(2);
  if (input.rank < 1 || weights.rank != 3 || given.rank != 3 || block % 16 != 0 || block <= 0 ||
      weights.dims[1] * 32 != input.last() * bits || given.dims[1] != (input.last() + block - 1) / block || input.last() % 16 != 0)
    return context.failure("piston: input, weights and blocks of a linear layer do not fit");
  BlockProduct product{};
  product.input = input.as<float>();
  product.weights = weights.as<uint8_t>();
  product.scales = given.as<float>();
  product.rows = input.rows();
  product.depth = input.last();
  product.columns = weights.dims[0] * 16;
  product.blocks = given.dims[1];
  product.block = block;
  product.bits = bits;
  int64_t dims[kMaxRank];
  std::memcpy(dims, input.dims, sizeof dims);
  dims[input.rank - 1] = product.columns;
  product.out = context.output<float>(0, dims, input.rank);
  if (product.rows == 0) return nullptr;
  product.codes = codes.at_least<int8_t>(static_cast<size_t>(product.rows * product.depth));
  product.input_scales = scales.at_least<float>(static_cast<size_t>(product.rows * product.blocks));
  product.input_sums = sums.at_least<int32_t>(static_cast<size_t>(product.rows * product.blocks));
  const int64_t count = static_cast<int64_t>(pieces(product.rows, 16));
  context.parallel(static_cast<size_t>(count), [&](size_t index) {
    round_blocks(product, product.rows * static_cast<int64_t>(index) / count,
                 product.rows * static_cast<int64_t>(index + 1) / count);
  });
  const int64_t tiles = weights.dims[0], parts = static_cast<int64_t>(pieces(tiles, 4)) * (product.rows > 8 ? 4 : 1);
  context.parallel(static_cast<size_t>(parts), [&](size_t index) {
    multiply_blocks(product, tiles * static_cast<int64_t>(index) / parts, tiles * static_cast<int64_t>(index + 1) / parts);
  });
  return nullptr;
}

ort::Status* norm_codes(const Context& context, float epsilon) {
  // input, skip, weight, code_scale -> codes, sum
  const Tensor input = context.input(0);
  Norm norm{};
  norm.input = input.as<float>();
  norm.skip = context.data<float>(1);
  norm.weight = context.data<float>(2);
  norm.code_scale = *context.data<float>(3);
  norm.epsilon = epsilon;
  norm.width = input.last();
  if (norm.width % 16 != 0) return context.failure("piston: the width of a norm is no multiple of 16");
  norm.codes = context.output<uint8_t>(0, input.dims, input.rank);
  norm.sum = context.output<float>(1, input.dims, input.rank);
  const int64_t rows = input.rows();
  const int64_t count = static_cast<int64_t>(pieces(rows, 16));
  context.parallel(static_cast<size_t>(count), [&](size_t index) {
    norm_rows(norm, rows * static_cast<int64_t>(index) / count, rows * static_cast<int64_t>(index + 1) / count);
  });
  return nullptr;
}

// One piece of work is some positions of one token: of a short past all, of a long one a share for each core. How a
// token's past is cut depends on nothing but its length: it gets the same bits among others as alone.
void attend_tokens(const Context& context, const Attention& attention) {
  static thread_local Scratch room;
  constexpr int64_t kWorth = 32;  // positions that are worth a piece of their own
  const int64_t tokens = attention.rows * attention.seq, heads = attention.kv_heads, most = num_cores();
  const int64_t stride = attention.heads / heads * (2 + attention.head_dim);
  float* part = room.at_least<float>(static_cast<size_t>(tokens * heads * most * stride));
  const auto length_of = [&](int64_t at) { return attention.start(at / attention.seq) + at % attention.seq + 1; };
  const auto parts_of = [&](int64_t at) { return static_cast<int64_t>(pieces(length_of(at), kWorth)); };
  const int64_t tasks = tokens == 1 ? parts_of(0) : tokens * most;
  context.parallel(static_cast<size_t>(tasks), [&](size_t index) {
    const int64_t at = static_cast<int64_t>(index) / most, p = static_cast<int64_t>(index) % most;
    const int64_t length = length_of(at), parts = parts_of(at);
    for (int64_t head = 0; head < heads && p < parts; ++head)
      attend_part(attention, at / attention.seq, at % attention.seq, head, length * p / parts, length * (p + 1) / parts,
                  part + ((at * heads + head) * most + p) * stride);
  });
  for (int64_t at = 0; at < tokens; ++at)
    for (int64_t head = 0; head < heads; ++head)
      merge_parts(attention, at / attention.seq, at % attention.seq, head, part + (at * heads + head) * most * stride,
                  parts_of(at), stride);
}

void attend_blocks(const Context& context, const Attention& attention) {
  static thread_local Scratch room;
  for (int64_t row = 0; row < attention.rows; ++row) {
    const int64_t key_blocks = (attention.length(row) + kBlockKeys - 1) / kBlockKeys;
    const int64_t size = tiles_size(attention, attention.length(row));
    uint8_t* tiles = room.at_least<uint8_t>(static_cast<size_t>(attention.kv_heads * size));
    context.parallel(static_cast<size_t>(attention.kv_heads * key_blocks), [&](size_t index) {
      const int64_t head = static_cast<int64_t>(index) / key_blocks;
      make_tiles(attention, row, head, static_cast<int64_t>(index) % key_blocks, tiles + head * size);
    });
    const int64_t blocks = (attention.seq + kBlockTokens - 1) / kBlockTokens;
    context.parallel(static_cast<size_t>(attention.heads * blocks), [&](size_t index) {
      const int64_t head = static_cast<int64_t>(index) % attention.heads;
      const int64_t block = blocks - 1 - static_cast<int64_t>(index) / attention.heads;  // the longest first
      attend_block(attention, row, head, block, tiles + head / (attention.heads / attention.kv_heads) * size);
    });
  }
}

Cache cache_of(const Context& context, size_t index, size_t scale_at, const Tensor& past) {
  const size_t item = past.type == ort::kInt8 ? 1 : 4;
  size_t bytes = item;
  for (size_t axis = 0; axis < past.rank; ++axis) bytes *= static_cast<size_t>(past.dims[axis]);
  uint8_t* present = context.output<uint8_t>(index, past.dims, past.rank);
  if (present != past.data) std::memcpy(present, past.data, bytes);
  Cache cache{};
  if (past.type == ort::kInt8) {
    cache.codes = reinterpret_cast<int8_t*>(present);
    cache.scales = context.data<float>(scale_at);
  } else {
    cache.values = reinterpret_cast<float*>(present);
  }
  return cache;
}

ort::Status* attention(const Context& context, const Kernel& kernel, bool gives_codes) {
  // packed, past key, past value, last, cos, sin, [key scales], [value scales], [code_scale] -> out, present key, value
  static thread_local Scratch queries;
  const Tensor packed = context.input(0), past_key = context.input(1), past_value = context.input(2), last = context.input(3);
  if (packed.rank != 3 || past_key.rank != 4) return context.failure("piston: attention takes [batch, seq, width] and a cache of rank 4");
  Attention call{};
  call.packed = packed.as<float>();
  call.rows = packed.dims[0];
  call.seq = packed.dims[1];
  call.heads = kernel.ints[0];
  call.kv_heads = past_key.dims[1];
  call.capacity = past_key.dims[2];
  call.head_dim = past_key.dims[3];
  call.scale = kernel.floats[0];
  call.last = last.as<int32_t>();
  call.cos = context.data<float>(4);
  call.sin = context.data<float>(5);
  if (packed.dims[2] != (call.heads + 2 * call.kv_heads) * call.head_dim || call.head_dim % 32 != 0 || past_key.dims[0] != call.rows)
    return context.failure("piston: packed heads and cache do not fit");
  for (int64_t row = 0; row < call.rows; ++row)
    if (call.start(row) < 0 || call.length(row) > call.capacity) return context.failure("piston: lengths lie outside the cache");
  call.keys = cache_of(context, 1, 6, past_key);
  call.values = cache_of(context, 2, 7, past_value);
  const int64_t dims[3] = {call.rows, call.seq, call.heads * call.head_dim};
  if (gives_codes) {
    call.code_scale = *context.data<float>(8);
    call.codes = context.output<uint8_t>(0, dims, 3);
  } else {
    call.out = context.output<float>(0, dims, 3);
  }
  const int64_t tokens = call.rows * call.seq;
  call.queries = queries.at_least<float>(static_cast<size_t>(tokens * dims[2]));
  const int64_t count = static_cast<int64_t>(pieces(tokens, 16));
  context.parallel(static_cast<size_t>(count), [&](size_t index) {
    write_tokens(call, tokens * static_cast<int64_t>(index) / count, tokens * static_cast<int64_t>(index + 1) / count);
  });
  if (level() == kAmx && call.seq > kBlockTokens) {
    attend_blocks(context, call);
  } else {
    attend_tokens(context, call);
  }
  return nullptr;
}


using Run = ort::Status* (*)(const Context&, const Kernel&);

constexpr size_t kMostInputs = 9, kMostOutputs = 3;

struct Operator : ort::CustomOp {
  const char* name;
  Run run;
  size_t num_inputs, num_outputs;
  ort::ElementType inputs[kMostInputs], outputs[kMostOutputs];
  uint32_t optional;  // a bit for each input that may be left out
  const char *int_name, *float_name;
};

struct Instance {
  const Operator* op;
  Kernel kernel;
};

const Operator& self(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

ort::Status* create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info, void** made) {
  auto instance = std::make_unique<Instance>(Instance{&self(op), Kernel{api}});
  ort::Status* status = nullptr;
  if (self(op).int_name != nullptr)
    status = api->call<ort::Status*>(ort::kKernelInfoGetAttributeInt64, info, self(op).int_name, &instance->kernel.ints[0]);
  if (status == nullptr && self(op).float_name != nullptr)
    status = api->call<ort::Status*>(ort::kKernelInfoGetAttributeFloat, info, self(op).float_name, &instance->kernel.floats[0]);
  if (status == nullptr) *made = instance.release();
  return status;
}

ort::Status* compute(void* instance, ort::KernelContext* context) {
  const Instance& self = *static_cast<Instance*>(instance);
  return self.op->run(Context(self.kernel.api, context), self.kernel);
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
    return self(o).optional >> i & 1u ? ort::kOptional : ort::kRequired;
  };
  op.get_output_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.get_input_memory_type = [](const ort::CustomOp*, size_t) { return 0; };
  op.get_start_version = [](const ort::CustomOp*) { return 1; };
  op.get_end_version = [](const ort::CustomOp*) { return 1; };
  op.create_kernel_v2 = create;
  op.compute_v2 = compute;
  op.destroy = [](void* instance) { delete static_cast<Instance*>(instance); };
  return op;
}

template <bool GivesCodes, bool IsGated>
ort::Status* run_linear(const Context& context, const Kernel&) {
  return linear(context, GivesCodes, IsGated);
}

template <bool GivesCodes>
ort::Status* run_attention(const Context& context, const Kernel& kernel) {
  return attention(context, kernel, GivesCodes);
}

template <int Bits>
ort::Status* run_blocks(const Context& context, const Kernel& kernel) {
  return block_linear(context, kernel.ints[0], Bits);
}

ort::Status* run_norm(const Context& context, const Kernel& kernel) { return norm_codes(context, kernel.floats[0]); }

constexpr ort::ElementType F = ort::kFloat, U = ort::kUint8, S = ort::kInt8, I = ort::kInt32;
constexpr uint32_t kScalesOptional = 1u << 6 | 1u << 7;

const Operator* operators(size_t* count) {
  static const Operator all[] = {
      filled({{}, "IntegerLinear", run_linear<false, false>, 5, 1, {U, S, I, F, F}, {F}, 1u << 4, nullptr, nullptr}),
      filled({{}, "GatedLinear", run_linear<false, true>, 4, 1, {U, S, I, F}, {F}, 0, nullptr, nullptr}),
      filled({{}, "GatedLinearCodes", run_linear<true, true>, 5, 1, {U, S, I, F, F}, {U}, 0, nullptr, nullptr}),
      filled({{}, "BlockLinear", run_blocks<8>, 3, 1, {F, U, F}, {F}, 0, "block_size", nullptr}),
      filled({{}, "BlockLinear4", run_blocks<4>, 3, 1, {F, U, F}, {F}, 0, "block_size", nullptr}),
      filled({{}, "NormCodes", run_norm, 4, 2, {F, F, F, F}, {U, F}, 0, nullptr, "epsilon"}),
      filled({{}, "Attention", run_attention<false>, 8, 3, {F, F, F, I, F, F, F, F}, {F, F, F}, kScalesOptional, "num_heads", "scale"}),
      filled({{}, "AttentionCodes", run_attention<true>, 9, 3, {F, F, F, I, F, F, F, F, F}, {U, F, F}, kScalesOptional, "num_heads", "scale"}),
      filled({{}, "AttentionInt8", run_attention<false>, 8, 3, {F, S, S, I, F, F, F, F}, {F, S, S}, 0, "num_heads", "scale"}),
      filled({{}, "AttentionInt8Codes", run_attention<true>, 9, 3, {F, S, S, I, F, F, F, F, F}, {U, S, S}, 0, "num_heads", "scale"}),
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

// 0: this processor runs none of the operators. 1: AVX-512 with VNNI. 2: AMX too.
__attribute__((visibility("default"))) int piston_kernels_level() { return piston::level(); }

// For tests: use no more than this level from now on; what it became.
__attribute__((visibility("default"))) int piston_kernels_set_level(int wanted) {
  return piston::set_level(static_cast<piston::Level>(wanted));
}

}
