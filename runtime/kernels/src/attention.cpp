// Attention of few tokens, one at a time: as fast as the cache can be read.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "attention.h"

#include <cmath>
#include <cstring>

#include "attention_cache.h"
#include "attention_spans.h"

namespace piston {
namespace {

constexpr int64_t kFew = 2 * kLanes;  // positions whose scores are in registers at once
static_assert(kSpan % kFew == 0);

// Ask for one position's channels; beyond the end it asks in vain.
void fetch(const Cache& cache, int64_t at, int64_t dim) {
  const int64_t item = cache.values != nullptr ? 4 : 1;
  const char* base = cache.values != nullptr ? reinterpret_cast<const char*>(cache.values)
                                             : reinterpret_cast<const char*>(cache.codes);
  for (int64_t i = 0; i < dim * item; i += 64) _mm_prefetch(base + at * item + i, _MM_HINT_T1);
}

// The cache that is read is this operator's own output: what new tokens are written to.
void store_cached(const Cache& cache, int64_t at, int64_t channel, __m512 value) {
  if (cache.values != nullptr) {
    _mm512_storeu_ps(const_cast<float*>(cache.values) + at, value);
    return;
  }
  const __m512 limit = _mm512_set1_ps(1024.0f);
  __m512 scaled = _mm512_div_ps(value, _mm512_loadu_ps(cache.scales + channel));
  scaled = _mm512_max_ps(_mm512_min_ps(scaled, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(const_cast<int8_t*>(cache.codes) + at), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(scaled)));
}

// Both halves of 16 channel pairs of one head, turned by the angle of their position.
struct Pair {
  __m512 low, high;
};

Pair rotated(const NewTokens& tokens, int64_t half, const float* head, int64_t position, int64_t channel) {
  const __m512 low = _mm512_loadu_ps(head + channel), high = _mm512_loadu_ps(head + half + channel);
  if (tokens.cos == nullptr) return {low, high};
  const __m512 cos = _mm512_loadu_ps(tokens.cos + position * half + channel);
  const __m512 sin = _mm512_loadu_ps(tokens.sin + position * half + channel);
  return {_mm512_fmsub_ps(low, cos, _mm512_mul_ps(high, sin)), _mm512_fmadd_ps(high, cos, _mm512_mul_ps(low, sin))};
}

// Scores of `Group` heads with 32 keys, from the first on.
template <int Group>
struct Scores {
  __m512 sums[Group][2];

  void add(const float* queries, int64_t dim, int64_t channel, __m512 one, __m512 other) {
    for (int g = 0; g < Group; ++g) {
      const __m512 item = _mm512_set1_ps(queries[g * dim + channel]);
      sums[g][0] = _mm512_fmadd_ps(item, one, sums[g][0]);
      sums[g][1] = _mm512_fmadd_ps(item, other, sums[g][1]);
    }
  }

  void add_floats(const float* queries, const float* keys, int64_t dim, int64_t channel) {
    for (int64_t i = channel; i < channel + kLanes; i += 4) {
      __m512 one[4], other[4];
      turn(keys + i, dim * 4, one);
      turn(keys + kLanes * dim + i, dim * 4, other);
      for (int c = 0; c < 4; ++c) add(queries, dim, i + c, one[c], other[c]);
    }
  }

  void add_codes(const float* queries, const int8_t* keys, int64_t dim, int64_t channel) {
    __m512 one[4], other[4];
    turn(keys + channel, dim, one);
    turn(keys + kLanes * dim + channel, dim, other);
    for (int word = 0; word < 4; ++word) {
      for (unsigned c = 0; c < 4; ++c) add(queries, dim, channel + 4 * word + c, code_of(one[word], c), code_of(other[word], c));
    }
  }
};

// The scores of `count` positions, up to 32; meanwhile memory is asked for their values and for the keys that come next.
template <int Group>
void score(const Attention& attention, const float* queries, int64_t at, int64_t count, float* scores) {
  static thread_local Scratch room;
  const int64_t dim = attention.head_dim;
  Scores<Group> found;
  for (auto& head : found.sums) head[0] = head[1] = _mm512_setzero_ps();
  const Cache& cache = attention.keys;
  const float* keys = cache.values + at;
  const bool is_whole = count == kFew, has_codes = cache.values == nullptr && is_whole;
  if (!is_whole) {  // what lies behind the last may be no memory
    float* copy = room.at_least<float>(static_cast<size_t>(kFew * dim));
    for (int64_t i = 0; i < count * dim; i += kLanes) _mm512_store_ps(copy + i, load_cached(cache, at + i));
    std::memset(copy + count * dim, 0, static_cast<size_t>((kFew - count) * dim) * sizeof(float));
    keys = copy;
  }
  int64_t fetched = 0;
  for (int64_t i = 0; i < dim; i += kLanes) {
    for (; fetched < kFew * (i + kLanes) / dim; ++fetched) {
      fetch(attention.keys, at + (kFew + fetched) * dim, dim);  // cores alone ask memory for too little at a time
      fetch(attention.values, at + fetched * dim, dim);
    }
    if (has_codes) {
      found.add_codes(queries, cache.codes + at, dim, i);
    } else {
      found.add_floats(queries, keys, dim, i);
    }
  }
  for (int g = 0; g < Group; ++g)
    for (int half = 0; half < 2; ++half) _mm512_store_ps(scores + g * kSpan + half * kLanes, found.sums[g][half]);
}

// Weighted values of `count` positions: of each of `Group` heads 16 * Vectors channels from `at` on.
template <int Group, int Vectors>
void add_values(const Cache& cache, int64_t at, int64_t count, int64_t dim, const float* weights, float* out, int64_t stride) {
  __m512 sums[Group][Vectors];
  for (auto& head : sums)
    for (auto& sum : head) sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; ++j) {
    for (int v = 0; v < Vectors; ++v) {
      const __m512 value = load_cached(cache, at + j * dim + v * kLanes);
      for (int g = 0; g < Group; ++g) sums[g][v] = _mm512_fmadd_ps(_mm512_set1_ps(weights[g * kSpan + j]), value, sums[g][v]);
    }
  }
  for (int g = 0; g < Group; ++g)
    for (int v = 0; v < Vectors; ++v) _mm512_storeu_ps(out + g * stride + v * kLanes, sums[g][v]);
}

// One span, of `count` positions, for `Group` heads that share a kv_head: each key and value is read once for all.
template <int Group>
void span_of(const Attention& attention, const float* queries, int64_t cache, int64_t count, float* part) {
  const int64_t dim = attention.head_dim, width = 2 + dim;
  alignas(64) float scores[Group * kSpan];
  for (int64_t from = 0; from < count; from += kFew)
    score<Group>(attention, queries, cache + from * dim, count - from < kFew ? count - from : kFew, scores + from);
  for (int g = 0; g < Group; ++g) {
    const Softmax found = weigh(scores + g * kSpan, count);
    part[g * width] = found.most;
    part[g * width + 1] = found.total;
  }
  constexpr int kVectors = Group <= 4 ? 4 : 2;
  int64_t i = 0;
  for (; i + kVectors * kLanes <= dim; i += kVectors * kLanes)
    add_values<Group, kVectors>(attention.values, cache + i, count, dim, scores, part + 2 + i, width);
  for (; i < dim; i += 2 * kLanes) add_values<Group, 2>(attention.values, cache + i, count, dim, scores, part + 2 + i, width);
}

}  // namespace

void write_tokens(const Attention& attention, const NewTokens& tokens, int64_t begin, int64_t end) {
  const int64_t dim = attention.head_dim, half = dim / 2, heads = attention.heads, kv_heads = attention.kv_heads;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t row = index / attention.seq, position = attention.start(row) + index % attention.seq;
    const float *query = tokens.query + index * tokens.query_stride, *keys = tokens.key + index * tokens.key_stride;
    const float* values = tokens.value + index * tokens.value_stride;
    for (int64_t head = 0; head < heads; ++head) {
      float* to = tokens.queries + (index * heads + head) * dim;
      const int64_t channels = head / (heads / kv_heads) * dim;  // queries meet codes: they take the keys' scales
      for (int64_t channel = 0; channel < half; channel += kLanes) {
        const Pair pair = rotated(tokens, half, query + head * dim, position, channel);
        __m512 low = _mm512_set1_ps(tokens.scale), high = low;
        if (attention.keys.values == nullptr) {
          low = _mm512_mul_ps(low, _mm512_loadu_ps(attention.keys.scales + channels + channel));
          high = _mm512_mul_ps(high, _mm512_loadu_ps(attention.keys.scales + channels + half + channel));
        }
        _mm512_storeu_ps(to + channel, _mm512_mul_ps(pair.low, low));
        _mm512_storeu_ps(to + half + channel, _mm512_mul_ps(pair.high, high));
      }
    }
    for (int64_t head = 0; head < kv_heads; ++head) {
      const int64_t at = attention.at(row, head) + position * dim;
      const float *key = keys + head * dim, *value = values + head * dim;
      for (int64_t channel = 0; channel < half; channel += kLanes) {
        const Pair pair = rotated(tokens, half, key, position, channel);
        store_cached(attention.keys, at + channel, head * dim + channel, pair.low);
        store_cached(attention.keys, at + half + channel, head * dim + half + channel, pair.high);
      }
      for (int64_t channel = 0; channel < dim; channel += kLanes)
        store_cached(attention.values, at + channel, head * dim + channel, _mm512_loadu_ps(value + channel));
    }
  }
}

void attend_span(const Attention& attention, int64_t row, int64_t token, int64_t kv_head, int64_t span, float* part) {
  const int64_t group = attention.heads / attention.kv_heads, dim = attention.head_dim;
  const float* queries = attention.query_at(row, token, kv_head * group);
  const int64_t cache = attention.at(row, kv_head) + span * kSpan * dim;
  const int64_t left = attention.visible(row, token) - span * kSpan, count = left < kSpan ? left : kSpan;
  constexpr int64_t kMost = 8;
  int64_t done = 0;
  for (; done + kMost <= group; done += kMost) span_of<kMost>(attention, queries + done * dim, cache, count, part + done * (2 + dim));
  queries += done * dim;
  part += done * (2 + dim);
  switch (group - done) {
    case 1: return span_of<1>(attention, queries, cache, count, part);
    case 2: return span_of<2>(attention, queries, cache, count, part);
    case 3: return span_of<3>(attention, queries, cache, count, part);
    case 4: return span_of<4>(attention, queries, cache, count, part);
    case 5: return span_of<5>(attention, queries, cache, count, part);
    case 6: return span_of<6>(attention, queries, cache, count, part);
    case 7: return span_of<7>(attention, queries, cache, count, part);
    default: return;
  }
}

void merge_spans(const Attention& attention, int64_t row, int64_t token, int64_t kv_head, const float* parts, int64_t count,
                 int64_t stride) {
  static thread_local Scratch room;
  const int64_t dim = attention.head_dim, group = attention.heads / attention.kv_heads, width = 2 + dim;
  const int64_t rounded = (count + kLanes - 1) / kLanes * kLanes;
  float* before = room.at_least<float>(static_cast<size_t>(2 * rounded));  // the largest score so far, then its factor
  float* next = before + rounded;                                          // the span's own, then its factor
  for (int64_t g = 0; g < group; ++g) {
    float most = -INFINITY, total = 0;
    for (int64_t p = 0; p < rounded; ++p) {
      before[p] = most;
      next[p] = p < count ? parts[p * stride + g * width] : most;
      most = std::fmax(most, next[p]);
    }
    for (int64_t p = 0; p < rounded; p += kLanes) {
      const Factors by = factors(_mm512_load_ps(before + p), _mm512_load_ps(next + p));
      _mm512_store_ps(before + p, by.before);
      _mm512_store_ps(next + p, by.next);
    }
    for (int64_t p = 0; p < count; ++p)
      total = __builtin_fmaf(parts[p * stride + g * width + 1], next[p], total * before[p]);
    const __m512 inverse = _mm512_set1_ps(1.0f / total);
    const int64_t at = attention.out_at(row, token, kv_head * group + g);
    for (int64_t i = 0; i < dim; i += 2 * kLanes) {
      __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int64_t p = 0; p < count; ++p) {
        const float* part = parts + p * stride + g * width + 2 + i;
        for (int v = 0; v < 2; ++v)
          sums[v] = merged(sums[v], _mm512_set1_ps(before[p]), _mm512_loadu_ps(part + v * kLanes), _mm512_set1_ps(next[p]));
      }
      for (int64_t v = 0; v < 2; ++v)
        give_out(attention, at + i + v * kLanes, kv_head * dim + i + v * kLanes, _mm512_mul_ps(sums[v], inverse));
    }
  }
}

}  // namespace piston
