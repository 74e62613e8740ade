#pragma once
#include <cstddef>
#include <cstdlib>

namespace piston {

// Memory of one thread that grows and is kept: no operator allocates while it computes.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  template <typename T>
  T* at_least(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      size_ = bytes;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace piston
