// Causal attention of new tokens over a cache, rotary embedding and writing the cache included.
#pragma once
#include <cstdint>

namespace piston {

constexpr int64_t kSpan = 64;  // positions that are summed together; see attention_spans.h

// A cache of one part of one layer: [rows, kv_heads, capacity, head_dim] float, or INT8 codes with a scale.
struct Cache {
  float* values;        // or null
  int8_t* codes;        // where values is null
  const float* scales;  // [kv_heads, head_dim] of codes, laid out for every channel
};

struct Attention {
  // Heads of token after token: [rows, seq, stride], of which the first heads * head_dim, or kv_heads * head_dim.
  const float *query, *key, *value;
  int64_t query_stride, key_stride, value_stride;
  Cache keys, values;
  const int32_t* last;      // [rows] position of the last new token
  const float *cos, *sin;   // [positions, head_dim / 2]
  int64_t rows, seq, heads, kv_heads, head_dim, capacity;
  float scale;
  float* out;  // [rows, seq, heads * head_dim] or null
  uint8_t* codes;
  float inverse_scale;
  float* queries;  // room for [rows, seq, heads, head_dim]: rotated and scaled

  int64_t start(int64_t row) const { return length(row) - seq; }
  int64_t length(int64_t row) const { return int64_t{last[row]} + 1; }
  int64_t at(int64_t row, int64_t kv_head) const { return (row * kv_heads + kv_head) * capacity * head_dim; }
};

// Rotate queries into `queries` and write new keys and values to the cache: tokens begin .. end of rows * seq.
void write_tokens(const Attention& attention, int64_t begin, int64_t end);

// One token of one row, the heads of one kv_head, over one span of positions (attention_spans.h): for each head its
// largest score, the sum of weights and the weighted values go to `part`, heads / kv_heads times [2 + head_dim].
void attend_span(const Attention& attention, int64_t row, int64_t token, int64_t kv_head, int64_t span, float* part);
// Merge all `count` spans of one token's kv_head, `stride` apart, and give the result out.
void merge_spans(const Attention& attention, int64_t row, int64_t token, int64_t kv_head, const float* parts, int64_t count,
                 int64_t stride);

// For many tokens: keys and values of each kv_head in another order, then blocks of tokens of a head.
struct Blocks {
  int64_t tokens, keys;                                         // of a block
  int64_t (*size)(const Attention& attention, int64_t length);  // bytes for one kv_head
  void (*make)(const Attention& attention, int64_t row, int64_t kv_head, int64_t key_block, uint8_t* room);
  void (*attend)(const Attention& attention, int64_t row, int64_t head, int64_t block, const uint8_t* room);
};
extern const Blocks kOnVectors;  // gives a token the same bits as one at a time
extern const Blocks kOnTiles;    // does not: floats are split into two bfloat16 there
constexpr int64_t kFewTokens = 16;  // up to so many are computed one at a time

}  // namespace piston
