// Attention of one token at a time: as fast as its cache can be read.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "attention.h"

#include <cmath>

#include "attention_cache.h"

namespace piston {
namespace {

constexpr int64_t kChunk = 64;  // positions whose scores are held at once
constexpr int64_t kAhead = 16;  // positions

// Ask for one position's channels; beyond the end it asks in vain.
void fetch(const Cache& cache, int64_t at, int64_t dim) {
  const int64_t item = cache.values != nullptr ? 4 : 1;
  const char* base = cache.values != nullptr ? reinterpret_cast<const char*>(cache.values)
                                             : reinterpret_cast<const char*>(cache.codes);
  for (int64_t i = 0; i < dim * item; i += 64) _mm_prefetch(base + at * item + i, _MM_HINT_T0);
}

void store_cached(const Cache& cache, int64_t at, int64_t channel, __m512 value) {
  if (cache.values != nullptr) {
    _mm512_storeu_ps(cache.values + at, value);
    return;
  }
  const __m512 limit = _mm512_set1_ps(1024.0f);
  __m512 scaled = _mm512_div_ps(value, _mm512_loadu_ps(cache.scales + channel));
  scaled = _mm512_max_ps(_mm512_min_ps(scaled, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(cache.codes + at), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(scaled)));
}

// Both halves of 16 channel pairs of one head, turned by the angle of their position.
struct Pair {
  __m512 low, high;
};

Pair rotated(const Attention& attention, const float* head, int64_t position, int64_t channel) {
  const int64_t half = attention.head_dim / 2;
  const __m512 low = _mm512_loadu_ps(head + channel), high = _mm512_loadu_ps(head + half + channel);
  const __m512 cos = _mm512_loadu_ps(attention.cos + position * half + channel);
  const __m512 sin = _mm512_loadu_ps(attention.sin + position * half + channel);
  return {_mm512_fmsub_ps(low, cos, _mm512_mul_ps(high, sin)), _mm512_fmadd_ps(high, cos, _mm512_mul_ps(low, sin))};
}

// `Group` heads that share a kv_head: each key and value is read once for all of them.
template <int Group>
void part_of(const Attention& attention, const float* queries, int64_t cache, int64_t begin, int64_t end, float* part) {
  const int64_t dim = attention.head_dim, width = 2 + dim;
  alignas(64) float scores[Group][kChunk];
  for (int g = 0; g < Group; ++g) {
    part[g * width] = -INFINITY;
    for (int64_t i = 1; i < width; ++i) part[g * width + i] = 0;
  }
  for (int64_t from = begin; from < end; from += kChunk) {
    const int64_t count = end - from < kChunk ? end - from : kChunk;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = cache + (from + j) * dim;
      fetch(attention.keys, at + kAhead * dim, dim);  // cores alone ask memory for too little at a time
      fetch(attention.values, at, dim);               // the second loop will find it
      __m512 sums[Group];
      for (int g = 0; g < Group; ++g) sums[g] = _mm512_setzero_ps();
      for (int64_t i = 0; i < dim; i += kLanes) {
        const __m512 key = load_cached(attention.keys, at + i);
        for (int g = 0; g < Group; ++g)
          sums[g] = _mm512_fmadd_ps(key, _mm512_loadu_ps(queries + g * dim + i), sums[g]);
      }
      for (int g = 0; g < Group; ++g) scores[g][j] = _mm512_reduce_add_ps(sums[g]);
    }
    for (int g = 0; g < Group; ++g) {
      for (int64_t j = count; j < kChunk; ++j) scores[g][j] = -INFINITY;
      __m512 largest = _mm512_set1_ps(part[g * width]);
      for (int64_t j = 0; j < kChunk; j += kLanes) largest = _mm512_max_ps(largest, _mm512_load_ps(scores[g] + j));
      const float most = _mm512_reduce_max_ps(largest), shrink = std::exp(part[g * width] - most);
      __m512 total = _mm512_setzero_ps();
      for (int64_t j = 0; j < kChunk; j += kLanes) {
        const __m512 weight = exp_ps(_mm512_sub_ps(_mm512_load_ps(scores[g] + j), _mm512_set1_ps(most)));
        _mm512_store_ps(scores[g] + j, weight);
        total = _mm512_add_ps(total, weight);
      }
      float* mine = part + g * width;
      mine[0] = most;
      mine[1] = mine[1] * shrink + _mm512_reduce_add_ps(total);
      for (int64_t i = 2; i < width; ++i) mine[i] *= shrink;
    }
    for (int64_t i = 0; i < dim; i += kLanes) {
      __m512 sums[Group];
      for (int g = 0; g < Group; ++g) sums[g] = _mm512_loadu_ps(part + g * width + 2 + i);
      for (int64_t j = 0; j < count; ++j) {
        const __m512 value = load_cached(attention.values, cache + (from + j) * dim + i);
        for (int g = 0; g < Group; ++g)
          sums[g] = _mm512_fmadd_ps(_mm512_set1_ps(scores[g][j]), value, sums[g]);
      }
      for (int g = 0; g < Group; ++g) _mm512_storeu_ps(part + g * width + 2 + i, sums[g]);
    }
  }
}

}  // namespace

void write_tokens(const Attention& attention, int64_t begin, int64_t end) {
  const int64_t dim = attention.head_dim, half = dim / 2, heads = attention.heads, kv_heads = attention.kv_heads;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t row = index / attention.seq, position = attention.start(row) + index % attention.seq;
    const float *query = attention.query + index * attention.query_stride, *keys = attention.key + index * attention.key_stride;
    const float* values = attention.value + index * attention.value_stride;
    for (int64_t head = 0; head < heads; ++head) {
      float* to = attention.queries + (index * heads + head) * dim;
      const int64_t channels = head / (heads / kv_heads) * dim;  // queries meet codes: they take the keys' scales
      for (int64_t channel = 0; channel < half; channel += kLanes) {
        const Pair pair = rotated(attention, query + head * dim, position, channel);
        __m512 low = _mm512_set1_ps(attention.scale), high = low;
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
        const Pair pair = rotated(attention, key, position, channel);
        store_cached(attention.keys, at + channel, head * dim + channel, pair.low);
        store_cached(attention.keys, at + half + channel, head * dim + half + channel, pair.high);
      }
      for (int64_t channel = 0; channel < dim; channel += kLanes)
        store_cached(attention.values, at + channel, head * dim + channel, _mm512_loadu_ps(value + channel));
    }
  }
}

void attend_part(const Attention& attention, int64_t row, int64_t token, int64_t kv_head, int64_t begin, int64_t end,
                 float* part) {
  const int64_t group = attention.heads / attention.kv_heads;
  const float* queries =
      attention.queries + ((row * attention.seq + token) * attention.heads + kv_head * group) * attention.head_dim;
  const int64_t cache = attention.at(row, kv_head);
  int64_t done = 0;
  for (; done + 4 <= group; done += 4)
    part_of<4>(attention, queries + done * attention.head_dim, cache, begin, end, part + done * (2 + attention.head_dim));
  queries += done * attention.head_dim;
  part += done * (2 + attention.head_dim);
  switch (group - done) {
    case 1: return part_of<1>(attention, queries, cache, begin, end, part);
    case 2: return part_of<2>(attention, queries, cache, begin, end, part);
    case 3: return part_of<3>(attention, queries, cache, begin, end, part);
    default: return;
  }
}

void merge_parts(const Attention& attention, int64_t row, int64_t token, int64_t kv_head, const float* parts,
                 int64_t count, int64_t stride) {
  const int64_t dim = attention.head_dim, group = attention.heads / attention.kv_heads, width = 2 + dim;
  for (int64_t g = 0; g < group; ++g) {
    float most = -INFINITY, total = 0, weights[kMostPastParts];
    for (int64_t p = 0; p < count; ++p) most = std::fmax(most, parts[p * stride + g * width]);
    for (int64_t p = 0; p < count; ++p) {
      const float* part = parts + p * stride + g * width;
      weights[p] = std::exp(part[0] - most);
      total += part[1] * weights[p];
    }
    const int64_t at = ((row * attention.seq + token) * attention.heads + kv_head * group + g) * dim;
    for (int64_t i = 0; i < dim; i += kLanes) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t p = 0; p < count; ++p)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[p]), _mm512_loadu_ps(parts + p * stride + g * width + 2 + i), sum);
      give_out(attention, at + i, kv_head * dim + i, _mm512_mul_ps(sum, _mm512_set1_ps(1.0f / total)));
    }
  }
}

}  // namespace piston
