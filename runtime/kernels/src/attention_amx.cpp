// Attention of many tokens on the tile registers. A float is split into two bfloat16, x = high + low, and a product
// into three, which leaves an error of 2^-16 of it: as good as float for what follows. INT8 codes are exact as they are.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,amx-tile,amx-bf16")
#include <cmath>
#include <cstring>

#include "attention.h"
#include "attention_cache.h"
#include "tiles.h"

namespace piston {
namespace {

constexpr int64_t kStep = 32;        // bfloat16 in a row of a tile
constexpr int64_t kTileItems = 512;  // bfloat16 in a tile
constexpr int64_t kRowBytes = 64;
constexpr int64_t kBlockTokens = 16, kBlockKeys = 32;

int64_t rounded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

struct Split {
  __m256i high, low;
};

Split split(__m512 x) {
  const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  return {high, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_sub_ps(x, back)))};
}

void store_split(uint16_t* high, uint16_t* low, __m512 x) {
  const Split parts = split(x);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), parts.high);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), parts.low);
}

// Where the tiles of one kv_head lie: for each 32 keys, [2 x 16 keys][head_dim / 32] of keys and [head_dim / 16] of
// values, each a high tile and a low one.
struct Layout {
  int64_t dim;
  int64_t key(int64_t half, int64_t step) const { return (half * (dim / kStep) + step) * 2 * kTileItems; }
  int64_t value(int64_t column) const { return (2 * (dim / kStep) + column) * 2 * kTileItems; }
  int64_t block() const { return value(dim / kLanes); }
};

// Tiles take the depth in pairs: row d of a key tile holds channels 2d and 2d + 1 of 16 keys.
void key_tiles(const Cache& cache, int64_t at, int64_t step_of_keys, int64_t count, int64_t dim, uint16_t* tiles) {
  alignas(64) uint32_t words[2][16][16];  // [high, low][key][channel pair]
  for (int64_t step = 0; step < dim / kStep; ++step) {
    std::memset(words, 0, sizeof words);
    for (int64_t key = 0; key < count; ++key)
      for (int64_t i = 0; i < kStep; i += kLanes)
        store_split(reinterpret_cast<uint16_t*>(words[0][key]) + i, reinterpret_cast<uint16_t*>(words[1][key]) + i,
                    load_cached(cache, at + key * step_of_keys + step * kStep + i));
    const __m512i stride = _mm512_mullo_epi32(_mm512_set1_epi32(16), _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    for (int64_t part = 0; part < 2; ++part)
      for (int64_t pair = 0; pair < 16; ++pair)
        _mm512_storeu_si512(tiles + step * 2 * kTileItems + part * kTileItems + pair * kStep,
                            _mm512_i32gather_epi32(stride, &words[part][0][pair], 4));
  }
}

__m512i joined(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// Row k of a value tile holds keys 2k and 2k + 1 of 16 channels.
void value_tiles(const Cache& cache, int64_t at, int64_t step, int64_t count, int64_t dim, uint16_t* tiles) {
  for (int64_t column = 0; column < dim / kLanes; ++column) {
    uint16_t* to = tiles + column * 2 * kTileItems;
    for (int64_t pair = 0; pair < kBlockKeys / 2; ++pair) {
      const int64_t from = at + 2 * pair * step + column * kLanes;
      const Split even = split(2 * pair < count ? load_cached(cache, from) : _mm512_setzero_ps());
      const Split odd = split(2 * pair + 1 < count ? load_cached(cache, from + step) : _mm512_setzero_ps());
      _mm512_storeu_si512(to + pair * kStep, joined(even.high, odd.high));
      _mm512_storeu_si512(to + kTileItems + pair * kStep, joined(even.low, odd.low));
    }
  }
}

// Rows of scores and weights are this many items apart: a power of two of bytes would put all in few sets of the cache.
int64_t stride_of(int64_t length) { return length + kStep; }

// Scores of 16 tokens with 32 keys at a time: [16, length].
void score(const Layout& layout, const uint16_t* high, const uint16_t* low, const uint16_t* tiles, int64_t length,
           float* scores) {
  const int64_t stride = stride_of(length) * 4;
  for (int64_t key = 0; key < length; key += kBlockKeys, tiles += layout.block()) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t step = 0; step < layout.dim / kStep; ++step) {
      const uint16_t *left = tiles + layout.key(0, step), *right = tiles + layout.key(1, step);
      _tile_loadd(2, high + step * kStep, layout.dim * 2);
      _tile_loadd(4, left, kRowBytes);
      _tile_dpbf16ps(0, 2, 4);
      _tile_loadd(5, right, kRowBytes);
      _tile_dpbf16ps(1, 2, 5);
      _tile_loadd(3, low + step * kStep, layout.dim * 2);
      _tile_dpbf16ps(0, 3, 4);
      _tile_dpbf16ps(1, 3, 5);
      _tile_loadd(6, left + kTileItems, kRowBytes);
      _tile_dpbf16ps(0, 2, 6);
      _tile_loadd(7, right + kTileItems, kRowBytes);
      _tile_dpbf16ps(1, 2, 7);
    }
    _tile_stored(0, scores + key, stride);
    _tile_stored(1, scores + key + kLanes, stride);
  }
}

// Scores become weights e^(score - largest), split; what lies beyond `visible` becomes 0. Returns their sum.
float weigh(const float* scores, int64_t visible, int64_t length, uint16_t* high, uint16_t* low) {
  const __m512 none = _mm512_set1_ps(-INFINITY);
  __m512 largest = none;
  int64_t i = 0;
  for (; i + kLanes <= visible; i += kLanes) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + i));
  const __mmask16 rest = static_cast<__mmask16>((1u << (visible - i)) - 1);
  if (rest) largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(none, rest, scores + i));
  largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 total = _mm512_setzero_ps();
  for (i = 0; i < length; i += kLanes) {
    const int64_t left = visible - i;
    const __mmask16 mask = left >= kLanes ? 0xFFFF : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    const __m512 weight = _mm512_maskz_mov_ps(mask, exp_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + i), largest)));
    total = _mm512_add_ps(total, weight);
    store_split(high + i, low + i, weight);
  }
  return _mm512_reduce_add_ps(total);
}

// Four tiles of 16 channels: [16 tokens, 64 channels] of weighted values, from channel 16 * column on.
void weighted(const Layout& layout, const uint16_t* high, const uint16_t* low, const uint16_t* tiles, int64_t length,
              int64_t column, int64_t count, float* out) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t key = 0; key < length; key += kBlockKeys, tiles += layout.block()) {
    const uint16_t* values = tiles + layout.value(column);
    _tile_loadd(4, high + key, stride_of(length) * 2);
    _tile_loadd(5, low + key, stride_of(length) * 2);
#define PISTON_COLUMN(sums, index)                                        \
  if (index < count) {                                                    \
    _tile_loadd(6, values + 2 * index * kTileItems, kRowBytes);           \
    _tile_dpbf16ps(sums, 4, 6);                                           \
    _tile_dpbf16ps(sums, 5, 6);                                           \
    _tile_loadd(7, values + (2 * index + 1) * kTileItems, kRowBytes);     \
    _tile_dpbf16ps(sums, 4, 7);                                           \
  }
    PISTON_COLUMN(0, 0)
    PISTON_COLUMN(1, 1)
    PISTON_COLUMN(2, 2)
    PISTON_COLUMN(3, 3)
#undef PISTON_COLUMN
  }
  _tile_stored(0, out, 4 * kRowBytes);
  _tile_stored(1, out + kLanes, 4 * kRowBytes);
  _tile_stored(2, out + 2 * kLanes, 4 * kRowBytes);
  _tile_stored(3, out + 3 * kLanes, 4 * kRowBytes);
}

int64_t size(const Attention& attention, int64_t length) {
  return rounded(length, kBlockKeys) / kBlockKeys * Layout{attention.head_dim}.block() * 2;
}

void make(const Attention& attention, int64_t row, int64_t kv_head, int64_t key_block, uint8_t* tiles) {
  const Layout layout{attention.head_dim};
  uint16_t* to = reinterpret_cast<uint16_t*>(tiles) + key_block * layout.block();
  const int64_t first = key_block * kBlockKeys, dim = attention.head_dim;
  const int64_t at = attention.at(row, kv_head) + first * attention.step;
  const int64_t left = attention.length(row) - first, count = left < kBlockKeys ? left : kBlockKeys;
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t more = count - half * kLanes;
    key_tiles(attention.keys, at + half * kLanes * attention.step, attention.step, more < 0 ? 0 : more < kLanes ? more : kLanes, dim,
              to + layout.key(half, 0));
  }
  value_tiles(attention.values, at, attention.step, count, dim, to + layout.value(0));
}

void attend(const Attention& attention, int64_t row, int64_t head, int64_t block, const uint8_t* tiles) {
  static thread_local Scratch scores_room, high_room, low_room, query_room;
  const Layout layout{attention.head_dim};
  const int64_t dim = attention.head_dim, first = block * kBlockTokens;
  const int64_t left = attention.tokens(row) - first, count = left < kBlockTokens ? left : kBlockTokens;
  const int64_t length = rounded(attention.visible(row, first + count - 1), kBlockKeys);
  uint16_t* query_high = query_room.at_least<uint16_t>(2 * kBlockTokens * dim);
  uint16_t* query_low = query_high + kBlockTokens * dim;
  std::memset(query_high, 0, 2 * kBlockTokens * dim * sizeof(uint16_t));
  for (int64_t t = 0; t < count; ++t) {
    const float* query = attention.query_at(row, first + t, head);
    for (int64_t i = 0; i < dim; i += kLanes)
      store_split(query_high + t * dim + i, query_low + t * dim + i, _mm512_mul_ps(_mm512_loadu_ps(query + i), _mm512_set1_ps(attention.factor)));
  }
  const int64_t stride = stride_of(length);
  float* scores = scores_room.at_least<float>(kBlockTokens * stride);
  uint16_t* high = high_room.at_least<uint16_t>(kBlockTokens * stride);
  uint16_t* low = low_room.at_least<uint16_t>(kBlockTokens * stride);
  const uint16_t* items = reinterpret_cast<const uint16_t*>(tiles);
  const Tiles registers;
  written_for_tiles();
  score(layout, query_high, query_low, items, length, scores);
  float inverse[kBlockTokens];
  for (int64_t t = 0; t < kBlockTokens; ++t) {
    const int64_t token = first + (t < count ? t : 0), visible = attention.visible(row, token);
    if (attention.bias != nullptr) add_bias(attention.bias_at(row, token, head), visible, scores + t * stride);
    inverse[t] = 1.0f / weigh(scores + t * stride, visible, length, high + t * stride, low + t * stride);
  }
  written_for_tiles();
  const int64_t kv_head = head / (attention.heads / attention.kv_heads);
  alignas(64) float sums[kBlockTokens * 4 * kLanes];
  for (int64_t column = 0; column < dim / kLanes; column += 4) {
    const int64_t more = dim / kLanes - column, columns = more < 4 ? more : 4;
    weighted(layout, high, low, items, length, column, columns, sums);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = attention.out_at(row, first + t, head) + column * kLanes;
      for (int64_t i = 0; i < columns * kLanes; i += kLanes) {
        __m512 sum = _mm512_mul_ps(_mm512_load_ps(sums + t * 4 * kLanes + i), _mm512_set1_ps(inverse[t]));
        give_out(attention, at + i, kv_head * dim + column * kLanes + i, sum);
      }
    }
  }
}

}  // namespace

const Blocks kOnTiles{kBlockTokens, kBlockKeys, size, make, attend};

}  // namespace piston
