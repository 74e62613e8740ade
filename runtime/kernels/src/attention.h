// Attention: causal, of new tokens over a cache, rotary embedding and writing the cache included; of a whole text over itself;
// or of tokens over another text.
#pragma once
#include <cstdint>

namespace piston {

constexpr int64_t kSpan = 64;  // positions that are summed together; see attention_spans.h

// Keys or values of one layer, in float or as INT8 codes with a scale. Where they lie is Attention's to say.
struct Cache {
  const float* values;  // or null
  const int8_t* codes;  // where values is null
  const float* scales;  // [kv_heads, head_dim] of codes, laid out for every channel
};

// What a token sees.
enum Sight {
  kText,    // the text whose tokens are the first positions of its row
  kBefore,  // what comes before it: the last `seq` positions of each row are new tokens
  kSource,  // another text
};

struct Attention {
  Cache keys, values;
  int64_t row_step, head_step, step;  // items of keys and values from one row, kv_head and position to the next
  const int32_t* last;                // [rows] position of the last token
  int64_t rows, seq, heads, kv_heads, head_dim;
  Sight sight;
  const float* queries;  // [rows, seq, query_stride], of which the first heads * head_dim are read, times `factor`
  int64_t query_stride;
  float factor;
  const float* bias;  // added to scores, or null; its last axis is positions
  int64_t bias_row_step, bias_head_step, bias_token_step;
  float* out;  // [rows, seq, heads * head_dim] or null
  uint8_t* codes;
  float inverse_scale;

  int64_t start(int64_t row) const { return length(row) - seq; }
  int64_t length(int64_t row) const { return int64_t{last[row]} + 1; }
  int64_t tokens(int64_t row) const { return sight == kText ? length(row) : seq; }
  // How many positions a token sees.
  int64_t visible(int64_t row, int64_t token) const { return sight == kBefore ? start(row) + token + 1 : length(row); }
  int64_t at(int64_t row, int64_t kv_head) const { return row * row_step + kv_head * head_step; }
  int64_t out_at(int64_t row, int64_t token, int64_t head) const { return ((row * seq + token) * heads + head) * head_dim; }
  const float* query_at(int64_t row, int64_t token, int64_t head) const {
    return queries + (row * seq + token) * query_stride + head * head_dim;
  }
  const float* bias_at(int64_t row, int64_t token, int64_t head) const {
    return bias + row * bias_row_step + head * bias_head_step + token * bias_token_step;
  }
};

// New tokens of a decoder: [rows, seq, stride], of which the first heads * head_dim, or kv_heads * head_dim.
struct NewTokens {
  const float *query, *key, *value;
  int64_t query_stride, key_stride, value_stride;
  const float *cos, *sin;  // [positions, head_dim / 2], or null
  float scale;
  float* queries;  // [rows, seq, heads, head_dim]: rotated and scaled
};

// Rotate queries and write new keys and values to the cache: tokens begin .. end of rows * seq.
void write_tokens(const Attention& attention, const NewTokens& tokens, int64_t begin, int64_t end);

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
constexpr int64_t kFewTokens = 8;    // up to so many are computed one at a time
constexpr int64_t kVectorTokens = 16;  // up to so many are computed on the vector unit where there are tile registers

}  // namespace piston
