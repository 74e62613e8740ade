// Products of many rows on the tile registers: 32 rows by 32 columns at a time, 64 of the depth in each instruction.
// While the registers work on one block, the vector unit finishes the sums of the one before.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")
#include <cstring>

#include "epilogue.h"
#include "linear.h"
#include "tiles.h"

namespace piston {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 64, kTile = 256, kRows = 2 * kTileRows;  // kTile: sums in a tile

struct Panel {
  const Product& product;
  Strip strip;  // as bytes
  const uint8_t* tail;  // the rows that are no whole 32, filled up
  alignas(64) int32_t sums[2][4 * kTile];

  // Rows begin .. end of the 32 that begin with `row`.
  void give(const int32_t* from, int64_t row, int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end && row + r < product.rows; ++r) {
      const int32_t* at = from + r / kTileRows * 2 * kTile + r % kTileRows * kLanes;
      finish(product.epilogue, _mm512_load_si512(at), _mm512_load_si512(at + kTile), row + r, strip);
    }
  }

  // Sums of 32 rows; meanwhile those of the 32 before them are given out.
  void multiply(int64_t row, int32_t* to, const int32_t* before) const {
    const int64_t depth = product.depth, steps = depth / kTileBytes;
    const uint8_t* codes = row + kRows <= product.rows ? product.codes + row * depth : tail;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t k = step * kTileBytes;
      _tile_loadd(4, codes + k, depth);
      _tile_loadd(6, strip.left + k * kTileRows, kTileBytes);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, strip.right + k * kTileRows, kTileBytes);
      _tile_dpbusd(1, 4, 7);
      _tile_loadd(5, codes + kTileRows * depth + k, depth);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
      if (row > 0) give(before, row - kRows, kRows * step / steps, kRows * (step + 1) / steps);
    }
    _tile_stored(0, to, kTileBytes);
    _tile_stored(1, to + kTile, kTileBytes);
    _tile_stored(2, to + 2 * kTile, kTileBytes);
    _tile_stored(3, to + 3 * kTile, kTileBytes);
  }
};

}  // namespace

void multiply_amx(const Product& product, int64_t begin, int64_t end) {
  static thread_local Scratch padded;
  const int64_t depth = product.depth, whole = product.rows / kRows * kRows, rest = product.rows - whole;
  uint8_t* tail = nullptr;
  if (rest > 0) {
    tail = padded.at_least<uint8_t>(static_cast<size_t>(kRows * depth));
    std::memcpy(tail, product.codes + whole * depth, static_cast<size_t>(rest * depth));
    std::memset(tail + rest * depth, 0, static_cast<size_t>((kRows - rest) * depth));
  }
  const Tiles registers;
  for (int64_t index = begin; index < end; ++index) {
    Panel panel{product, strip_of(product, index, false), tail, {}};
    written_for_tiles();
    int64_t row = 0, turn = 0;
    for (; row < product.rows; row += kRows, turn ^= 1) panel.multiply(row, panel.sums[turn], panel.sums[turn ^ 1]);
    panel.give(panel.sums[turn ^ 1], row - kRows, 0, kRows);
  }
}

}  // namespace piston
