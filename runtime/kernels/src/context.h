// What an operator sees of one execution: its inputs and outputs, and the session's threads.
#pragma once
#include <cstdint>
#include <cstring>

#include "ort_abi.h"
#include "pieces.h"
#include "threads.h"

namespace piston {

constexpr int kMaxRank = 4;

struct Tensor {
  void* data = nullptr;  // null where it was left out, has no elements or a rank above kMaxRank
  int64_t dims[kMaxRank] = {};
  size_t rank = 0;
  bool is_given = false;
  ort::ElementType type = ort::kFloat;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  bool has_axes() const { return rank >= 1 && rank <= kMaxRank; }
  // Both of a tensor that has axes.
  int64_t last() const { return dims[rank - 1]; }
  int64_t rows() const {  // all axes but the last
    int64_t product = 1;
    for (size_t axis = 0; axis + 1 < rank; ++axis) product *= dims[axis];
    return product;
  }
  bool is_like(const Tensor& other) const {
    return rank == other.rank && type == other.type && std::memcmp(dims, other.dims, sizeof dims) == 0;
  }
};

class Context {
 public:
  Context(const ort::Api* api, ort::KernelContext* context, int threads) : api_(api), context_(context), threads_(threads) {}

  size_t num_inputs() const {
    size_t count = 0;
    drop(api_->call<ort::Status*>(ort::kKernelContextGetInputCount, context_, &count));
    return count;
  }

  // An input; one that was left out has no data.
  Tensor input(size_t index) const {
    const ort::Value* value = nullptr;
    drop(api_->call<ort::Status*>(ort::kKernelContextGetInput, context_, index, &value));
    return value == nullptr ? Tensor{} : tensor_of(const_cast<ort::Value*>(value));
  }

  // Data of an input of so many elements; null where it was left out or has another number of them.
  template <typename T>
  const T* sized(size_t index, int64_t count) const {
    const Tensor tensor = input(index);
    int64_t found = tensor.rank <= kMaxRank ? 1 : 0;
    for (size_t axis = 0; axis < tensor.rank && axis < kMaxRank; ++axis) found *= tensor.dims[axis];
    return found == count ? tensor.as<T>() : nullptr;
  }

  template <typename T>
  T* output(size_t index, const int64_t* dims, size_t rank) const {
    ort::Value* value = nullptr;
    drop(api_->call<ort::Status*>(ort::kKernelContextGetOutput, context_, index, dims, rank, &value));
    void* data = nullptr;
    if (value != nullptr) drop(api_->call<ort::Status*>(ort::kGetTensorMutableData, value, &data));
    return static_cast<T*>(data);
  }

  // Call work(i) for i < count on as many threads as the session has, as they come free, and wait.
  template <typename Work>
  void parallel(size_t count, const Work& work) const {
    if (count <= 1) {
      if (count == 1) work(size_t{0});
      return;
    }
    struct Shared {
      const Work& work;
      Pieces pieces;
    } shared{work, Pieces(static_cast<uint32_t>(count), static_cast<uint32_t>(threads_))};
    const auto job = [](void* data, uint32_t index) {
      Shared& all = *static_cast<Shared*>(data);
      all.pieces.run(index, all.work);
    };
    run_on_threads(count < static_cast<size_t>(threads_) ? static_cast<int>(count) : threads_, job, &shared);
  }

  int threads() const { return threads_; }

  ort::Status* failure(const char* message) const {
    return api_->call<ort::Status*>(ort::kCreateStatus, ort::kInvalidArgument, message);
  }

 private:
  void drop(ort::Status* status) const {
    if (status != nullptr) api_->call<void>(ort::kReleaseStatus, status);
  }

  Tensor tensor_of(ort::Value* value) const {
    Tensor tensor;
    tensor.is_given = true;
    ort::Shape* shape = nullptr;
    drop(api_->call<ort::Status*>(ort::kGetTensorTypeAndShape, static_cast<const ort::Value*>(value), &shape));
    if (shape == nullptr) return tensor;
    drop(api_->call<ort::Status*>(ort::kGetDimensionsCount, static_cast<const ort::Shape*>(shape), &tensor.rank));
    drop(api_->call<ort::Status*>(ort::kGetTensorElementType, static_cast<const ort::Shape*>(shape), &tensor.type));
    if (tensor.rank <= kMaxRank) {
      drop(api_->call<ort::Status*>(ort::kGetDimensions, static_cast<const ort::Shape*>(shape),
                                    static_cast<int64_t*>(tensor.dims), tensor.rank));
      drop(api_->call<ort::Status*>(ort::kGetTensorMutableData, value, &tensor.data));
    }
    api_->call<void>(ort::kReleaseTensorTypeAndShapeInfo, shape);
    return tensor;
  }

  const ort::Api* api_;
  ort::KernelContext* context_;
  int threads_;  // of the session, this one included
};

}  // namespace piston
