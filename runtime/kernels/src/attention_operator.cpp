// Attention as ONNX Runtime calls it: what it reads and gives, and how its work is shared among threads.
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "cpu.h"
#include "kernel.h"
#include "scratch.h"

namespace piston {
namespace {

// A unit of work is one span of one token's past, for one kv_head.
void attend_tokens(const Context& context, const Attention& attention) {
  static thread_local Scratch room;
  const int64_t tokens = attention.rows * attention.seq, heads = attention.kv_heads;
  const int64_t stride = attention.heads / heads * (2 + attention.head_dim);
  const auto spans_of = [&](int64_t at) {
    return (attention.visible(at / attention.seq, at % attention.seq) + kSpan - 1) / kSpan;
  };
  int64_t most = 1;
  for (int64_t at = 0; at < tokens; ++at) most = std::max(most, spans_of(at));
  float* part = room.at_least<float>(static_cast<size_t>(tokens * heads * most * stride));
  share(context, tokens * heads * most, 2, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t at = unit / most / heads, head = unit / most % heads, span = unit % most;
      if (span < spans_of(at))
        attend_span(attention, at / attention.seq, at % attention.seq, head, span, part + unit * stride);
    }
  });
  share(context, tokens * heads, worth_reading(most * stride * 4), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at)
      merge_spans(attention, at / heads / attention.seq, at / heads % attention.seq, at % heads, part + at * most * stride,
                  spans_of(at / heads), stride);
  });
}

void attend_blocks(const Context& context, const Attention& attention, const Blocks& way) {
  static thread_local Scratch room;
  for (int64_t row = 0; row < attention.rows; ++row) {
    const int64_t key_blocks = (attention.length(row) + way.keys - 1) / way.keys;
    const int64_t size = way.size(attention, attention.length(row));
    uint8_t* made = room.at_least<uint8_t>(static_cast<size_t>(attention.kv_heads * size));
    share(context, attention.kv_heads * key_blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at)
        way.make(attention, row, at / key_blocks, at % key_blocks, made + at / key_blocks * size);
    });
    const int64_t blocks = (attention.seq + way.tokens - 1) / way.tokens;
    context.parallel(static_cast<size_t>(attention.heads * blocks), [&](size_t index) {
      const int64_t head = static_cast<int64_t>(index) % attention.heads;
      const int64_t block = blocks - 1 - static_cast<int64_t>(index) / attention.heads;  // the longest first
      way.attend(attention, row, head, block, made + head / (attention.heads / attention.kv_heads) * size);
    });
  }
}

void attend(const Context& context, const Attention& attention) {
  if (attention.seq > kFewTokens) {
    attend_blocks(context, attention, level() == kAmx && attention.seq > kVectorTokens ? kOnTiles : kOnVectors);
  } else {
    attend_tokens(context, attention);
  }
}

// The result as output 0; false where it is codes whose scale, input `scale_at`, does not fit.
bool take_result(const Context& context, size_t scale_at, bool gives_codes, Attention* call) {
  const int64_t dims[3] = {call->rows, call->seq, call->heads * call->head_dim};
  if (!gives_codes) {
    call->out = context.output<float>(0, dims, 3);
    return true;
  }
  const float* scale = context.sized<float>(scale_at, 1);
  if (scale == nullptr) return false;
  call->inverse_scale = 1.0f / *scale;
  call->codes = context.output<uint8_t>(0, dims, 3);
  return true;
}

// A cache as output `index`; no scales where INT8 codes have none of their form at input `scale_at`.
Cache cache_of(const Context& context, size_t index, size_t scale_at, const Tensor& past) {
  const size_t item = past.type == ort::kInt8 ? 1 : 4;
  size_t bytes = item;
  for (size_t axis = 0; axis < past.rank; ++axis) bytes *= static_cast<size_t>(past.dims[axis]);
  uint8_t* present = context.output<uint8_t>(index, past.dims, past.rank);
  if (present != past.data) std::memcpy(present, past.data, bytes);
  Cache cache{};
  if (past.type == ort::kInt8) {
    cache.codes = reinterpret_cast<int8_t*>(present);
    cache.scales = context.sized<float>(scale_at, past.dims[1] * past.dims[3]);
  } else {
    cache.values = reinterpret_cast<float*>(present);
  }
  return cache;
}

// Where queries, keys and values of each token lie: side by side in one tensor, or in three.
bool find_heads(const Context& context, const Tensor& query, const Attention& call, NewTokens* tokens) {
  const int64_t width = call.heads * call.head_dim, kv_width = call.kv_heads * call.head_dim;
  tokens->query = query.as<float>();
  tokens->query_stride = query.dims[2];
  const Tensor key = context.input(9), value = context.input(10);
  if (key.is_given != value.is_given) return false;
  if (!key.is_given) {
    tokens->key_stride = tokens->value_stride = query.dims[2];
    tokens->key = tokens->query + width;
    tokens->value = tokens->key + kv_width;
    return query.dims[2] == width + 2 * kv_width;
  }
  tokens->key = key.as<float>();
  tokens->value = value.as<float>();
  tokens->key_stride = tokens->value_stride = kv_width;
  if (!key.has_axes() || !value.has_axes()) return false;
  return query.dims[2] == width && key.last() == kv_width && value.last() == kv_width && key.rows() == query.rows() &&
         value.rows() == query.rows();
}

}  // namespace

ort::Status* run_attention(const Context& context, const Kernel& kernel, bool gives_codes) {
  // query or all three packed, past key, past value, last, [cos], [sin], [key scales], [value scales], [code_scale], [key],
  // [value] -> out, present key, present value
  static thread_local Scratch queries;
  const Tensor query = context.input(0), past_key = context.input(1), past_value = context.input(2), cos = context.input(4), sin = context.input(5);
  if (query.rank != 3 || past_key.rank != 4) return context.failure("piston: attention takes [batch, seq, width] and a cache of rank 4");
  Attention call{};
  NewTokens tokens{};
  const int64_t capacity = past_key.dims[2];
  call.sight = kBefore;
  call.rows = query.dims[0];
  call.seq = query.dims[1];
  call.heads = kernel.integer;
  call.kv_heads = past_key.dims[1];
  call.head_dim = call.step = past_key.dims[3];
  call.head_step = capacity * call.step;
  call.row_step = call.kv_heads * call.head_step;
  call.last = context.sized<int32_t>(3, call.rows);
  call.query_stride = call.heads * call.head_dim;
  call.factor = 1;
  tokens.scale = kernel.real;
  tokens.cos = cos.as<float>();
  tokens.sin = sin.as<float>();
  if (call.kv_heads <= 0 || call.heads <= 0 || call.heads % call.kv_heads != 0 || call.head_dim <= 0 || call.head_dim % 32 != 0 ||
      !find_heads(context, query, call, &tokens) || past_key.dims[0] != call.rows || !past_value.is_like(past_key))
    return context.failure("piston: heads and cache do not fit");
  if (call.last == nullptr && call.rows > 0) return context.failure("piston: attention needs one length for each row");
  if (cos.is_given != sin.is_given || (cos.is_given && (cos.rank != 2 || cos.dims[1] != call.head_dim / 2 || !sin.is_like(cos))))
    return context.failure("piston: rotary tables are not [positions, head_dim / 2]");
  for (int64_t row = 0; row < call.rows; ++row) {
    if (call.start(row) < 0 || call.length(row) > capacity) return context.failure("piston: lengths lie outside the cache");
    if (cos.is_given && call.length(row) > cos.dims[0]) return context.failure("piston: lengths lie beyond the rotary tables, which end at the engine's longest");
  }
  call.keys = cache_of(context, 1, 6, past_key);
  call.values = cache_of(context, 2, 7, past_value);
  if (past_key.type == ort::kInt8 && (call.keys.scales == nullptr || call.values.scales == nullptr))
    return context.failure("piston: the scales of an INT8 cache do not fit its heads");
  if (!take_result(context, 8, gives_codes, &call)) return context.failure("piston: the codes of attention need one scale");
  const int64_t count = call.rows * call.seq;
  call.queries = tokens.queries = queries.at_least<float>(static_cast<size_t>(count * call.query_stride));
  share(context, count, 16, [&](int64_t begin, int64_t end) { write_tokens(call, tokens, begin, end); });
  attend(context, call);
  return nullptr;
}

ort::Status* run_cross_attention(const Context& context, const Kernel& kernel, bool gives_codes) {
  // query [batch, seq, heads * head_dim], key and value [batch, kv_heads, positions, head_dim], [lengths], [code_scale] -> out
  static thread_local Scratch last_of_rows, queries;
  const Tensor query = context.input(0), key = context.input(1), value = context.input(2);
  if (query.rank != 3 || key.rank != 4) return context.failure("piston: attention takes [batch, seq, width] and a source of rank 4");
  Attention call{};
  call.sight = kSource;
  call.rows = query.dims[0];
  call.seq = query.dims[1];
  call.heads = kernel.integer;
  call.kv_heads = key.dims[1];
  call.head_dim = call.step = key.dims[3];
  call.head_step = key.dims[2] * call.step;
  call.row_step = call.kv_heads * call.head_step;
  call.query_stride = call.heads * call.head_dim;
  call.factor = 1;
  if (call.kv_heads <= 0 || call.heads <= 0 || call.heads % call.kv_heads != 0 || call.head_dim <= 0 || call.head_dim % 32 != 0 ||
      query.last() != call.query_stride || key.dims[0] != call.rows || !value.is_like(key))
    return context.failure("piston: heads and source do not fit");
  call.keys.values = key.as<float>();
  call.values.values = value.as<float>();
  const auto* lengths = context.sized<int64_t>(3, call.rows);
  if (lengths == nullptr && context.input(3).is_given) return context.failure("piston: attention needs one length for each row, or none");
  auto* last = last_of_rows.at_least<int32_t>(static_cast<size_t>(call.rows));
  for (int64_t row = 0; row < call.rows; ++row) {
    const int64_t length = lengths == nullptr ? key.dims[2] : lengths[row];
    if (length < 1 || length > key.dims[2]) return context.failure("piston: lengths lie outside the source");
    last[row] = static_cast<int32_t>(length - 1);
  }
  call.last = last;
  if (!take_result(context, 4, gives_codes, &call)) return context.failure("piston: the codes of attention need one scale");
  const int64_t count = call.rows * call.seq * call.query_stride;
  float* scaled = queries.at_least<float>(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) scaled[i] = query.as<float>()[i] * kernel.real;
  call.queries = scaled;
  attend(context, call);
  return nullptr;
}

}  // namespace piston
