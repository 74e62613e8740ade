// Attention of many tokens on the vector unit: 12 tokens of a head with a span of 64 keys at a time, so that a key or value
// that was loaded is multiplied 12 times. The running softmax is that of Milakov and Gimelshein (arXiv:1805.02867).
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include <cmath>
#include <cstring>

#include "attention.h"
#include "attention_cache.h"
#include "attention_spans.h"

namespace piston {
namespace {

constexpr int64_t kTokens = 12;  // with two vectors of sums for each: 24 of the 32 registers
constexpr int64_t kWidth = 2 * kLanes;
constexpr int64_t kKeys = kSpan;
constexpr int64_t kBlockTokens = 2 * kTokens;

// Of 64 keys: their channels [head_dim, 64]; and of INT8 codes their values as float [64, head_dim].
int64_t block_size(const Attention& attention) {
  return (attention.values.values != nullptr ? 1 : 2) * kKeys * attention.head_dim;
}

int64_t size(const Attention& attention, int64_t length) {
  return (length + kKeys - 1) / kKeys * block_size(attention) * static_cast<int64_t>(sizeof(float));
}

// The channels of 16 keys, `step` items apart, to 16 columns of a block.
void turn_keys(const Cache& cache, int64_t from, int64_t step, int64_t dim, float* columns) {
  __m512 words[4];
  if (cache.values != nullptr) {
    for (int64_t i = 0; i < dim; i += 4) {
      turn(cache.values + from + i, step * 4, words);
      for (int64_t c = 0; c < 4; ++c) _mm512_storeu_ps(columns + (i + c) * kKeys, words[c]);
    }
    return;
  }
  for (int64_t i = 0; i < dim; i += kLanes) {
    turn(cache.codes + from + i, step, words);
    for (int64_t c = 0; c < kLanes; ++c)
      _mm512_storeu_ps(columns + (i + c) * kKeys, code_of(words[c / 4], static_cast<unsigned>(c % 4)));
  }
}

// The same of fewer than 16 keys, behind which may be no memory; the other columns are 0.
void turn_last_keys(const Cache& cache, int64_t from, int64_t step, int64_t count, int64_t dim, float* columns) {
  alignas(64) float lanes[kLanes];
  for (int64_t i = 0; i < dim; i += kLanes) {
    for (int64_t key = 0; key < kLanes; ++key) {
      _mm512_store_ps(lanes, key < count ? load_cached(cache, from + key * step + i) : _mm512_setzero_ps());
      for (int64_t lane = 0; lane < kLanes; ++lane) columns[(i + lane) * kKeys + key] = lanes[lane];
    }
  }
}

void make(const Attention& attention, int64_t row, int64_t kv_head, int64_t block, uint8_t* room) {
  const int64_t dim = attention.head_dim, first = block * kKeys, left = attention.length(row) - first;
  const int64_t at = attention.at(row, kv_head) + first * attention.step, count = left < kKeys ? left : kKeys;
  float* keys = reinterpret_cast<float*>(room) + block * block_size(attention);
  for (int64_t key = 0; key < (count + kWidth - 1) / kWidth * kWidth; key += kLanes) {
    const int64_t from = at + key * attention.step;
    if (count - key >= kLanes) {
      turn_keys(attention.keys, from, attention.step, dim, keys + key);
    } else {
      turn_last_keys(attention.keys, from, attention.step, count - key, dim, keys + key);
    }
  }
  if (attention.values.values != nullptr) return;
  float* values = keys + kKeys * dim;
  for (int64_t key = 0; key < count; ++key)
    for (int64_t i = 0; i < dim; i += kLanes)
      _mm512_storeu_ps(values + key * dim + i, load_cached(attention.values, at + key * attention.step + i));
}

// found [12, 32] = left [12, depth] times right [depth, 32].
inline __attribute__((always_inline)) void multiply(const float* left, int64_t left_stride, const float* right,
                                                    int64_t right_stride, int64_t depth, __m512 (&found)[kTokens][2]) {
  for (auto& token : found) token[0] = token[1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k) {
    const __m512 one = _mm512_loadu_ps(right + k * right_stride), other = _mm512_loadu_ps(right + k * right_stride + kLanes);
    for (int64_t t = 0; t < kTokens; ++t) {
      const __m512 item = _mm512_set1_ps(left[t * left_stride + k]);
      found[t][0] = _mm512_fmadd_ps(item, one, found[t][0]);
      found[t][1] = _mm512_fmadd_ps(item, other, found[t][1]);
    }
  }
}

// 12 tokens of a head: what was summed of the spans so far.
struct Tokens {
  alignas(64) float most[kLanes], total[kLanes];  // a lane for each
  float* sums;                                    // [12, head_dim] of weighted values
  float* queries;                                 // [12, head_dim]
  alignas(64) float scores[kTokens * kKeys];      // of one span, then weights
};

// Scores [12, 64] of a span's keys [head_dim, 64], of which the first `count` are there.
void score(Tokens& tokens, const float* keys, int64_t count, int64_t dim) {
  __m512 found[kTokens][2];
  for (int64_t column = 0; column < count; column += kWidth) {
    multiply(tokens.queries, dim, keys + column, kKeys, dim, found);
    for (int64_t t = 0; t < kTokens; ++t)
      for (int64_t half = 0; half < 2; ++half)
        _mm512_store_ps(tokens.scores + t * kKeys + column + half * kLanes, found[t][half]);
  }
}

// Weigh a span's `count` values, `step` apart, of which token t sees the first visible[t], and merge it with those before.
void add_span(Tokens& tokens, const float* values, int64_t step, const int64_t* visible, int64_t count, int64_t num_tokens,
              int64_t dim) {
  alignas(64) float most[kLanes] = {}, total[kLanes] = {}, before[kLanes], next[kLanes];
  for (int64_t t = 0; t < num_tokens; ++t) {
    const Softmax found = weigh(tokens.scores + t * kKeys, visible[t]);
    most[t] = found.most;
    total[t] = found.total;
  }
  const __m512 most_before = _mm512_load_ps(tokens.most), most_next = _mm512_load_ps(most);
  const Factors by = factors(most_before, most_next);
  _mm512_store_ps(before, by.before);
  _mm512_store_ps(next, by.next);
  _mm512_store_ps(tokens.most, _mm512_max_ps(most_before, most_next));
  _mm512_store_ps(tokens.total, merged(_mm512_load_ps(tokens.total), by.before, _mm512_load_ps(total), by.next));
  __m512 found[kTokens][2];
  for (int64_t column = 0; column < dim; column += kWidth) {
    multiply(tokens.scores, kKeys, values + column, step, count, found);
    for (int64_t t = 0; t < kTokens; ++t) {
      const __m512 before_factor = _mm512_set1_ps(before[t]), next_factor = _mm512_set1_ps(next[t]);
      for (int64_t half = 0; half < 2; ++half) {
        float* sums = tokens.sums + t * dim + column + half * kLanes;
        _mm512_storeu_ps(sums, merged(_mm512_loadu_ps(sums), before_factor, found[t][half], next_factor));
      }
    }
  }
}

// Up to 12 tokens of a head, from `first` on.
void attend_few(const Attention& attention, int64_t row, int64_t head, int64_t first, int64_t count, const float* blocks) {
  static thread_local Scratch room;
  const int64_t dim = attention.head_dim, kv_head = head / (attention.heads / attention.kv_heads);
  Tokens tokens{};
  tokens.queries = room.at_least<float>(static_cast<size_t>(2 * kTokens * dim));
  tokens.sums = tokens.queries + kTokens * dim;
  std::memset(tokens.queries, 0, static_cast<size_t>(2 * kTokens * dim) * sizeof(float));
  int64_t visible[kTokens];
  for (int64_t t = 0; t < count; ++t) {
    tokens.most[t] = -INFINITY;
    visible[t] = attention.visible(row, first + t);
    const float* query = attention.query_at(row, first + t, head);
    for (int64_t i = 0; i < dim; i += kLanes)
      _mm512_storeu_ps(tokens.queries + t * dim + i, _mm512_mul_ps(_mm512_loadu_ps(query + i), _mm512_set1_ps(attention.factor)));
  }
  const int64_t length = visible[count - 1];
  const bool has_floats = attention.values.values != nullptr;
  const float* values = has_floats ? attention.values.values + attention.at(row, kv_head) : blocks + kKeys * dim;
  const int64_t step = has_floats ? attention.step : dim, next = has_floats ? kKeys * step : block_size(attention);
  for (int64_t key = 0; key < length; key += kKeys, blocks += block_size(attention), values += next) {
    const int64_t left = length - key, keys = left < kKeys ? left : kKeys;
    score(tokens, blocks, keys, dim);
    for (int64_t t = 0; attention.bias != nullptr && t < count; ++t)
      add_bias(attention.bias_at(row, first + t, head) + key, keys, tokens.scores + t * kKeys);
    add_span(tokens, values, step, visible, keys, count, dim);
    for (int64_t t = 0; t < count; ++t) visible[t] -= kKeys;
  }
  for (int64_t t = 0; t < count; ++t) {
    const int64_t at = attention.out_at(row, first + t, head);
    const __m512 inverse = _mm512_set1_ps(1.0f / tokens.total[t]);
    for (int64_t i = 0; i < dim; i += kLanes)
      give_out(attention, at + i, kv_head * dim + i, _mm512_mul_ps(_mm512_loadu_ps(tokens.sums + t * dim + i), inverse));
  }
}

void attend(const Attention& attention, int64_t row, int64_t head, int64_t block, const uint8_t* room) {
  const int64_t tokens = attention.tokens(row);
  for (int64_t first = block * kBlockTokens; first < (block + 1) * kBlockTokens && first < tokens; first += kTokens) {
    const int64_t left = tokens - first;
    attend_few(attention, row, head, first, left < kTokens ? left : kTokens, reinterpret_cast<const float*>(room));
  }
}

}  // namespace

const Blocks kOnVectors{kBlockTokens, kKeys, size, make, attend};

}  // namespace piston
