// Work cut into pieces that threads take as they come free: a slow one holds back no more than a piece.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace piston {

class Pieces {
 public:
  Pieces(uint32_t count, uint32_t threads) : num_ranges_(threads < kMostRanges ? threads : kMostRanges) {
    for (uint32_t i = 0; i < num_ranges_; ++i) {
      ranges_[i].next.store(static_cast<uint32_t>(uint64_t{count} * i / num_ranges_), std::memory_order_relaxed);
      ranges_[i].end = static_cast<uint32_t>(uint64_t{count} * (i + 1) / num_ranges_);
    }
  }

  // Do every piece that no thread has taken yet, those of range `home` first: neighbours lie side by side in memory,
  // which a core reads fastest one after the other.
  template <typename Work>
  void run(uint32_t home, const Work& work) {
    for (uint32_t i = 0; i < num_ranges_; ++i) {
      Range& range = ranges_[(home + i) % num_ranges_];
      for (uint32_t at; (at = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) work(size_t{at});
    }
  }

 private:
  static constexpr uint32_t kMostRanges = 64;
  struct alignas(64) Range {
    std::atomic<uint32_t> next;
    uint32_t end;
  } ranges_[kMostRanges];
  const uint32_t num_ranges_;
};

}  // namespace piston
