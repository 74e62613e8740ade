// Products by blocks on the tile registers: 32 rows by a pair of tiles. Sums of a block are scaled into the totals while
// the registers work on the next: the same operations in the same order as on the vector unit, and so the same bits.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")
#include <cstring>

#include "block_pairs.h"
#include "blocks.h"
#include "tiles.h"

namespace piston {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 64, kTile = 256, kRows = 2 * kTileRows;  // kTile: sums in a tile

// Sparse or 4-bit weights of a tile as bytes, so that tiles read them; others lie so already.
const uint8_t* widened(const BlockWeights& weights, int64_t tile, int64_t depth, uint8_t* room) {
  const uint8_t* from = weights.tile(tile, depth);
  if (weights.is_sparse()) {
    expand_tile(from, depth / 8, weights.bits, weights.zero(), room);
    return room;
  }
  if (weights.bits == 8) return from;
  const __m512i low = _mm512_set1_epi8(0x0F);
  for (int64_t k = 0; k < depth; k += 8) {
    const __m512i both = _mm512_loadu_si512(from + k * kLanes / 2);
    _mm512_storeu_si512(room + k * kLanes, _mm512_and_si512(both, low));
    _mm512_storeu_si512(room + (k + 4) * kLanes, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
  }
  return room;
}

struct Panel {
  const BlockProduct& product;
  BlockPair pair;
  const uint8_t *left, *right;  // [depth / 4, 64]
  const int8_t* tail;           // the rows that are no whole 32, filled up with zeros
  alignas(64) int32_t sums[2][4 * kTile];
  alignas(64) float totals[2][kRows * kLanes];

  // Add sums of one block to rows begin .. end of the 32 that begin with `row`; after the last block give them out.
  void add(const int32_t* from, int64_t row, int64_t b, int64_t begin, int64_t end) {
    const BlockInput& input = product.input;
    const BlockWeights& other = pair.right == nullptr ? *pair.left : *pair.right;
    const __m512 scales[2] = {
        _mm512_loadu_ps(pair.left->scale(pair.left_tile, b)),
        _mm512_loadu_ps(other.scale(pair.right == nullptr ? pair.left_tile : pair.right_tile, b))};
    const int zeros[2] = {pair.left->zero(), other.zero()};
    for (int64_t r = begin; r < end && row + r < input.rows; ++r) {
      const int64_t at = (row + r) * input.blocks + b;
      __m512 both[2];
      for (int side = 0; side < 2; ++side) {
        const int32_t* found = from + (r / kTileRows * 2 + side) * kTile + r % kTileRows * kLanes;
        const __m512i counted = _mm512_set1_epi32(zeros[side] * input.minus_sums[at]);
        const __m512i centred = _mm512_add_epi32(_mm512_load_si512(found), counted);
        const __m512 before = b == 0 ? _mm512_setzero_ps() : _mm512_load_ps(totals[side] + r * kLanes);
        both[side] = added(before, centred, scales[side], input.scales[at]);
        _mm512_store_ps(totals[side] + r * kLanes, both[side]);
      }
      if (b + 1 == input.blocks) store_pair(product, pair, row + r, both[0], both[1]);
    }
  }

  // Sums of one block of 32 rows; meanwhile those of the block before it are added.
  void multiply(int64_t index, int32_t* to, const int32_t* before) {
    const BlockInput& input = product.input;
    const int64_t row = index / input.blocks * kRows, b = index % input.blocks, first = b * input.block;
    const int64_t rest = input.depth - first, steps = (rest < input.block ? rest : input.block) / kTileBytes;
    const int8_t* codes = (row + kRows <= input.rows ? input.codes + row * input.depth : tail) + first;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t k = step * kTileBytes;
      _tile_loadd(4, codes + k, input.depth);
      _tile_loadd(6, left + (first + k) * kTileRows, kTileBytes);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(7, right + (first + k) * kTileRows, kTileBytes);
      _tile_dpbsud(1, 4, 7);
      _tile_loadd(5, codes + kTileRows * input.depth + k, input.depth);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
      if (index > 0) add(before, (index - 1) / input.blocks * kRows, (index - 1) % input.blocks, kRows * step / steps, kRows * (step + 1) / steps);
    }
    _tile_stored(0, to, kTileBytes);
    _tile_stored(1, to + kTile, kTileBytes);
    _tile_stored(2, to + 2 * kTile, kTileBytes);
    _tile_stored(3, to + 3 * kTile, kTileBytes);
  }
};

}  // namespace

void multiply_blocks_amx(const BlockProduct& product, int64_t part, int64_t begin_pair, int64_t end_pair) {
  static thread_local Scratch padded, left_room, right_room;
  const BlockInput& input = product.input;
  const int64_t depth = input.depth, whole = input.rows / kRows * kRows, rest = input.rows - whole;
  int8_t* tail = nullptr;
  if (rest > 0) {
    tail = padded.at_least<int8_t>(static_cast<size_t>(kRows * depth));
    std::memcpy(tail, input.codes + whole * depth, static_cast<size_t>(rest * depth));
    std::memset(tail + rest * depth, 0, static_cast<size_t>((kRows - rest) * depth));
  }
  const Tiles registers;
  for (int64_t index = begin_pair; index < end_pair; ++index) {
    const BlockPair pair = pair_of(product, part, index);
    const size_t size = static_cast<size_t>(depth * kTileRows);
    const uint8_t* left = widened(*pair.left, pair.left_tile, depth, left_room.at_least<uint8_t>(size));
    const uint8_t* right = pair.right == nullptr ? left : widened(*pair.right, pair.right_tile, depth, right_room.at_least<uint8_t>(size));
    Panel panel{product, pair, left, right, tail, {}, {}};
    written_for_tiles();
    const int64_t count = (input.rows + kRows - 1) / kRows * input.blocks;
    for (int64_t i = 0; i < count; ++i) panel.multiply(i, panel.sums[i % 2], panel.sums[(i + 1) % 2]);
    panel.add(panel.sums[(count + 1) % 2], (count - 1) / input.blocks * kRows, input.blocks - 1, 0, kRows);
  }
}

}  // namespace piston
