// The tile registers for as long as a scope lasts: 8 tiles of 16 rows by 64 bytes, put back as they were found,
// because other kernels on these threads (ONNX Runtime's own) load their shapes once and rely on them.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace piston {

// GCC 12's intrinsics do not tell it what memory they read: without this it drops or moves what is written for them.
inline void written_for_tiles() { __asm__ volatile("" ::: "memory"); }

class Tiles {
 public:
  __attribute__((target("amx-tile"))) Tiles() {
    _tile_storeconfig(&found_);
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } wanted;
    written_for_tiles();
    _tile_loadconfig(&wanted);
  }
  __attribute__((target("amx-tile"))) ~Tiles() {
    if (found_[0] == 0) {
      _tile_release();
    } else {
      _tile_loadconfig(&found_);
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  alignas(64) uint8_t found_[64] = {};
};

}  // namespace piston
