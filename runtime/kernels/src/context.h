// What an operator sees of one execution: its inputs and outputs, and the session's threads.
#pragma once
#include <cstdint>

#include "ort_abi.h"

namespace piston {

constexpr int kMaxRank = 4;

struct Tensor {
  void* data = nullptr;
  int64_t dims[kMaxRank] = {};
  size_t rank = 0;
  ort::ElementType type = ort::kFloat;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  bool is_given() const { return data != nullptr; }
  int64_t last() const { return rank ? dims[rank - 1] : 1; }
  int64_t rows() const {  // all axes but the last
    int64_t product = 1;
    for (size_t axis = 0; axis + 1 < rank; ++axis) product *= dims[axis];
    return product;
  }
};

class Context {
 public:
  Context(const ort::Api* api, ort::KernelContext* context) : api_(api), context_(context) {}

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

  // Data alone, for constants whose shape is known.
  template <typename T>
  const T* data(size_t index) const {
    const ort::Value* value = nullptr;
    drop(api_->call<ort::Status*>(ort::kKernelContextGetInput, context_, index, &value));
    void* data = nullptr;
    if (value != nullptr) drop(api_->call<ort::Status*>(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data));
    return static_cast<const T*>(data);
  }

  template <typename T>
  T* output(size_t index, const int64_t* dims, size_t rank) const {
    ort::Value* value = nullptr;
    drop(api_->call<ort::Status*>(ort::kKernelContextGetOutput, context_, index, dims, rank, &value));
    void* data = nullptr;
    if (value != nullptr) drop(api_->call<ort::Status*>(ort::kGetTensorMutableData, value, &data));
    return static_cast<T*>(data);
  }

  // Call work(i) for i < count on the session's threads, and wait.
  template <typename Work>
  void parallel(size_t count, const Work& work) const {
    if (count == 1) {
      work(size_t{0});
      return;
    }
    auto call = [](void* data, size_t index) { (*static_cast<const Work*>(data))(index); };
    drop(api_->call<ort::Status*>(ort::kKernelContextParallelFor, static_cast<const ort::KernelContext*>(context_),
                                  static_cast<void (*)(void*, size_t)>(call), count, size_t{0},
                                  const_cast<void*>(static_cast<const void*>(&work))));
  }

  ort::Status* failure(const char* message) const {
    return api_->call<ort::Status*>(ort::kCreateStatus, ort::kInvalidArgument, message);
  }

 private:
  void drop(ort::Status* status) const {
    if (status != nullptr) api_->call<void>(ort::kReleaseStatus, status);
  }

  Tensor tensor_of(ort::Value* value) const {
    Tensor tensor;
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
};

}  // namespace piston
