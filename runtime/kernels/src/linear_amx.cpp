// Products of many rows on the tile registers: 32 rows by 32 columns at a time, 64 of the depth in each instruction.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")
#include <cstring>

#include "epilogue.h"
#include "linear.h"
#include "tiles.h"

namespace piston {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 64, kTile = kTileRows * kTileBytes, kBlock = 2 * kTileRows;

// 32 rows of codes by one strip of weights; `stride` bytes lie between rows.
void block(const uint8_t* codes, int64_t stride, const int8_t* left, const int8_t* right, int64_t depth, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTileBytes) {
    _tile_loadd(4, codes + k, stride);
    _tile_loadd(6, left + k * kTileRows, kTileBytes);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, right + k * kTileRows, kTileBytes);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, codes + kTileRows * stride + k, stride);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, sums, kTileBytes);
  _tile_stored(1, sums + kTile / 4, kTileBytes);
  _tile_stored(2, sums + 2 * kTile / 4, kTileBytes);
  _tile_stored(3, sums + 3 * kTile / 4, kTileBytes);
}

}  // namespace

void multiply_amx(const Product& product, int64_t begin, int64_t end) {
  static thread_local Scratch padded;
  alignas(64) int32_t sums[4 * kTile / 4];
  const Tiles tiles;
  const int64_t depth = product.depth, whole = product.rows / kBlock * kBlock;
  const uint8_t* tail = nullptr;
  if (whole < product.rows) {  // tiles read 32 rows: the last ones are copied where there are as many
    uint8_t* copy = padded.at_least<uint8_t>(kBlock * depth);
    const int64_t count = product.rows - whole;
    std::memcpy(copy, product.codes + whole * depth, count * depth);
    std::memset(copy + count * depth, 0, (kBlock - count) * depth);
    tail = copy;
  }
  for (int64_t strip = begin; strip < end; ++strip) {
    const bool has_second = (strip * 2 + 1) * kTileRows < product.columns;
    const int8_t* left = product.weights + strip * 2 * depth * kTileRows;
    const int8_t* right = has_second ? left + depth * kTileRows : left;
    for (int64_t row = 0; row < product.rows; row += kBlock) {
      block(row < whole ? product.codes + row * depth : tail, depth, left, right, depth, sums);
      const int64_t rows_left = product.rows - row, count = rows_left < kBlock ? rows_left : kBlock;
      for (int64_t r = 0; r < count; ++r) {
        const int32_t* at = sums + (r / kTileRows) * 2 * kTile / 4 + (r % kTileRows) * kTileRows;
        finish(product.epilogue, _mm512_load_si512(at), _mm512_load_si512(at + kTile / 4), row + r, strip, has_second);
      }
    }
  }
}

}  // namespace piston
