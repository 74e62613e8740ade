// Attention of whole texts over themselves, as encoders have it: what it reads and gives, and how its work is shared.
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "cpu.h"
#include "kernel.h"
#include "scratch.h"

namespace piston {
namespace {

// Blocks begin .. end of tokens of one row, for the heads of one kv_head, whose keys and values are put in order first.
void attend_text(const Attention& attention, const Blocks& way, int64_t row, int64_t kv_head, int64_t begin, int64_t end) {
  static thread_local Scratch room;
  if (begin == end) return;
  const int64_t length = attention.length(row), group = attention.heads / attention.kv_heads;
  uint8_t* made = room.at_least<uint8_t>(static_cast<size_t>(way.size(attention, length)));
  for (int64_t block = 0; block * way.keys < length; ++block) way.make(attention, row, kv_head, block, made);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
    for (int64_t block = begin; block < end; ++block) way.attend(attention, row, head, block, made);
}

// What padding gets, so that nothing reads memory that was not written.
void fill_padding(const Attention& attention, int64_t row) {
  const int64_t at = attention.out_at(row, attention.length(row), 0);
  const auto count = static_cast<size_t>(attention.out_at(row + 1, 0, 0) - at);
  if (attention.out != nullptr) {
    std::memset(attention.out + at, 0, count * sizeof(float));
  } else {
    std::memset(attention.codes + at, 128, count);
  }
}

// Input `index` as [rows or 1, heads or 1, seq or 1, seq], which is added to scores.
bool take_bias(const Context& context, size_t index, Attention* call) {
  const Tensor bias = context.input(index);
  if (!bias.is_given) return true;
  const int64_t wanted[] = {call->rows, call->heads, call->seq};
  if (bias.rank != 4 || bias.dims[3] != call->seq) return false;
  int64_t steps[3], step = bias.dims[3];
  for (int axis = 2; axis >= 0; --axis) {
    if (bias.dims[axis] != 1 && bias.dims[axis] != wanted[axis]) return false;
    steps[axis] = bias.dims[axis] == 1 ? 0 : step;
    step *= bias.dims[axis];
  }
  call->bias = bias.as<float>();
  call->bias_row_step = steps[0];
  call->bias_head_step = steps[1];
  call->bias_token_step = steps[2];
  return true;
}

}  // namespace

ort::Status* run_bidirectional(const Context& context, const Kernel& kernel, bool gives_codes) {
  // query, key and value [batch, seq, heads * head_dim], or all packed in the first, [lengths], [code_scale], [bias] -> out
  static thread_local Scratch last_of_rows;
  const Tensor query = context.input(0), key = context.input(1), value = context.input(2);
  if (query.rank != 3 || kernel.integer <= 0 || key.is_given != value.is_given)
    return context.failure("piston: attention takes queries, keys and values [batch, seq, width], or all in one");
  Attention call{};
  call.rows = query.dims[0];
  call.seq = query.dims[1];
  call.heads = call.kv_heads = kernel.integer;
  call.query_stride = call.step = query.last();
  const int64_t width = key.is_given ? query.last() : query.last() / 3;
  call.head_dim = call.head_step = width / call.heads;
  if (call.head_dim == 0 || call.head_dim % 32 != 0 || width * (key.is_given ? 1 : 3) != query.last() || call.head_dim * call.heads != width ||
      (key.is_given && (!key.is_like(query) || !value.is_like(query))))
    return context.failure("piston: queries, keys and values do not fit the heads");
  call.queries = query.as<float>();
  call.keys.values = key.is_given ? key.as<float>() : call.queries + width;
  call.values.values = key.is_given ? value.as<float>() : call.queries + 2 * width;
  call.row_step = call.seq * call.step;
  call.factor = kernel.real;
  const auto* lengths = context.sized<int64_t>(3, call.rows);
  if (lengths == nullptr && context.input(3).is_given) return context.failure("piston: attention needs one length for each row, or none");
  auto* last = last_of_rows.at_least<int32_t>(static_cast<size_t>(call.rows));
  for (int64_t row = 0; row < call.rows; ++row) {
    const int64_t length = lengths == nullptr ? call.seq : lengths[row];
    if (length < 0 || length > call.seq) return context.failure("piston: lengths lie outside the texts");
    last[row] = static_cast<int32_t>(length - 1);
  }
  call.last = last;
  if (!take_bias(context, 5, &call)) return context.failure("piston: a bias does not fit the scores");
  const int64_t dims[3] = {call.rows, call.seq, width};
  if (gives_codes) {
    const float* code_scale = context.sized<float>(4, 1);
    if (code_scale == nullptr) return context.failure("piston: the codes of attention need one scale");
    call.inverse_scale = 1.0f / *code_scale;
    call.codes = context.output<uint8_t>(0, dims, 3);
  } else {
    call.out = context.output<float>(0, dims, 3);
  }
  if (call.rows * call.seq == 0) return nullptr;
  const Blocks& way = level() == kAmx ? kOnTiles : kOnVectors;
  // Where texts and heads are too few for the threads, a text is cut, and its keys are put in order several times.
  const int64_t units = call.rows * call.heads, wanted = (4 * context.threads() + units - 1) / units;
  const int64_t most = std::max<int64_t>(1, (call.seq + way.tokens - 1) / way.tokens / 4);
  const int64_t cut = std::min(wanted, most);
  context.parallel(static_cast<size_t>(units * cut), [&](size_t index) {
    const int64_t at = static_cast<int64_t>(index), part = at % cut, head = at / cut % call.heads, row = at / cut / call.heads;
    const int64_t blocks = (call.tokens(row) + way.tokens - 1) / way.tokens;
    attend_text(call, way, row, head, blocks * part / cut, blocks * (part + 1) / cut);
    if (head == 0 && part == 0) fill_padding(call, row);
  });
  return nullptr;
}

}  // namespace piston
