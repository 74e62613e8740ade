// Attention of many tokens on the vector unit: 12 tokens of a head with 64 keys at a time, so that a key or value that
// was loaded is multiplied 12 times. The running softmax is that of Milakov and Gimelshein (arXiv:1805.02867).
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include <cmath>
#include <cstring>

#include "attention.h"
#include "attention_cache.h"

namespace piston {
namespace {

constexpr int64_t kTokens = 12;  // with two vectors of sums for each: 24 of the 32 registers
constexpr int64_t kWidth = 2 * kLanes;
constexpr int64_t kKeys = 64;
constexpr int64_t kBlockTokens = 2 * kTokens;

// Of 64 keys: their channels [head_dim, 64], then their values [64, head_dim]; what lies beyond the last key is zero.
int64_t block_size(const Attention& attention) { return 2 * kKeys * attention.head_dim; }

int64_t size(const Attention& attention, int64_t length) {
  return (length + kKeys - 1) / kKeys * block_size(attention) * static_cast<int64_t>(sizeof(float));
}

void make(const Attention& attention, int64_t row, int64_t kv_head, int64_t block, uint8_t* room) {
  const int64_t dim = attention.head_dim, first = block * kKeys, left = attention.length(row) - first;
  const int64_t at = attention.at(row, kv_head) + first * dim, count = left < kKeys ? left : kKeys;
  float* keys = reinterpret_cast<float*>(room) + block * block_size(attention);
  float* values = keys + kKeys * dim;
  alignas(64) float lanes[kLanes];
  for (int64_t key = 0; key < kKeys; ++key) {
    for (int64_t i = 0; i < dim; i += kLanes) {
      const bool is_there = key < count;
      _mm512_store_ps(lanes, is_there ? load_cached(attention.keys, at + key * dim + i) : _mm512_setzero_ps());
      for (int64_t lane = 0; lane < kLanes; ++lane) keys[(i + lane) * kKeys + key] = lanes[lane];
      _mm512_storeu_ps(values + key * dim + i,
                       is_there ? load_cached(attention.values, at + key * dim + i) : _mm512_setzero_ps());
    }
  }
}

// sums [12, 32] = left [12, depth] times right [depth, 32], or added to what is there.
template <bool Adds>
void multiply(const float* left, int64_t left_stride, const float* right, int64_t right_stride, int64_t depth, float* sums,
              int64_t stride) {
  __m512 found[kTokens][2];
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t half = 0; half < 2; ++half)
      found[t][half] = Adds ? _mm512_loadu_ps(sums + t * stride + half * kLanes) : _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k) {
    const __m512 one = _mm512_loadu_ps(right + k * right_stride), other = _mm512_loadu_ps(right + k * right_stride + kLanes);
    for (int64_t t = 0; t < kTokens; ++t) {
      const __m512 item = _mm512_set1_ps(left[t * left_stride + k]);
      found[t][0] = _mm512_fmadd_ps(item, one, found[t][0]);
      found[t][1] = _mm512_fmadd_ps(item, other, found[t][1]);
    }
  }
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t half = 0; half < 2; ++half) _mm512_storeu_ps(sums + t * stride + half * kLanes, found[t][half]);
}

// The softmax of one token so far.
struct Running {
  float most = -INFINITY, total = 0;
};

// Scores of 64 keys become weights, 0 beyond the `visible` first; what is summed so far shrinks to the new largest.
void weigh(float* scores, int64_t visible, Running* running, float* sums, int64_t dim) {
  __mmask16 masks[kKeys / kLanes];
  __m512 largest = _mm512_set1_ps(running->most);
  for (int64_t i = 0; i < kKeys / kLanes; ++i) {
    const int64_t left = visible - i * kLanes;
    masks[i] = left >= kLanes ? 0xFFFF : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    largest = _mm512_mask_max_ps(largest, masks[i], largest, _mm512_loadu_ps(scores + i * kLanes));
  }
  const float most = _mm512_reduce_max_ps(largest);
  __m512 total = _mm512_setzero_ps();
  for (int64_t i = 0; i < kKeys / kLanes; ++i) {
    const __m512 above = _mm512_sub_ps(_mm512_loadu_ps(scores + i * kLanes), _mm512_set1_ps(most));
    const __m512 weight = _mm512_maskz_mov_ps(masks[i], exp_ps(above));
    _mm512_storeu_ps(scores + i * kLanes, weight);
    total = _mm512_add_ps(total, weight);
  }
  const float shrink = most == running->most ? 1.0f : std::exp(running->most - most);
  running->total = running->total * shrink + _mm512_reduce_add_ps(total);
  running->most = most;
  if (shrink == 1.0f) return;
  for (int64_t i = 0; i < dim; i += kLanes)
    _mm512_storeu_ps(sums + i, _mm512_mul_ps(_mm512_loadu_ps(sums + i), _mm512_set1_ps(shrink)));
}

// Up to 12 tokens of a head, from the new token `first` on.
void attend_few(const Attention& attention, int64_t row, int64_t head, int64_t first, int64_t count, const float* blocks) {
  static thread_local Scratch room;
  const int64_t dim = attention.head_dim, kv_head = head / (attention.heads / attention.kv_heads);
  float* queries = room.at_least<float>(static_cast<size_t>(2 * kTokens * dim));
  float* sums = queries + kTokens * dim;
  std::memset(queries, 0, static_cast<size_t>(2 * kTokens * dim) * sizeof(float));
  const auto place = [&](int64_t t) { return ((row * attention.seq + first + t) * attention.heads + head) * dim; };
  for (int64_t t = 0; t < count; ++t)
    std::memcpy(queries + t * dim, attention.queries + place(t), static_cast<size_t>(dim) * sizeof(float));
  Running running[kTokens];
  alignas(64) float scores[kTokens * kKeys] = {};
  const int64_t position = attention.start(row) + first, length = position + count;
  for (int64_t key = 0; key < length; key += kKeys, blocks += block_size(attention)) {
    for (int64_t column = 0; column < kKeys && key + column < length; column += kWidth)
      multiply<false>(queries, dim, blocks + column, kKeys, dim, scores + column, kKeys);
    for (int64_t t = 0; t < count; ++t) weigh(scores + t * kKeys, position + t + 1 - key, running + t, sums + t * dim, dim);
    const int64_t left = length - key, depth = left < kKeys ? left : kKeys;
    for (int64_t column = 0; column < dim; column += kWidth)
      multiply<true>(scores, kKeys, blocks + kKeys * dim + column, dim, depth, sums + column, dim);
  }
  for (int64_t t = 0; t < count; ++t) {
    const __m512 inverse = _mm512_set1_ps(1.0f / running[t].total);
    for (int64_t i = 0; i < dim; i += kLanes)
      give_out(attention, place(t) + i, kv_head * dim + i, _mm512_mul_ps(_mm512_loadu_ps(sums + t * dim + i), inverse));
  }
}

void attend(const Attention& attention, int64_t row, int64_t head, int64_t block, const uint8_t* room) {
  for (int64_t first = block * kBlockTokens; first < (block + 1) * kBlockTokens && first < attention.seq; first += kTokens) {
    const int64_t left = attention.seq - first;
    attend_few(attention, row, head, first, left < kTokens ? left : kTokens, reinterpret_cast<const float*>(room));
  }
}

}  // namespace

const Blocks kOnVectors{kBlockTokens, kKeys, size, make, attend};

}  // namespace piston
