// Shapes and borrowed tensors. Dense row-major; dimensions in elements.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"

namespace pinion {

class Shape {  // at most 8 dimensions, no allocation
 public:
  static constexpr int kMaxRank = 8;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    check(dims.size() <= kMaxRank, "a shape has at most 8 dimensions");
    for (int i = 0; i < rank_; ++i) dims_[i] = dims[i];
  }
  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i]; }
  int64_t& operator[](int i) { return dims_[i]; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[i];
    return n;
  }
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  bool operator==(const Shape& o) const { return std::ranges::equal(dims(), o.dims()); }
  std::string str() const;  // "[128, 64]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

struct TensorSpec {
  DType dtype = DType::f32;
  Shape shape;
  size_t bytes() const { return static_cast<size_t>(shape.elements()) * bit_size(dtype) / 8; }
  bool operator==(const TensorSpec&) const = default;
};

// Borrows dense row-major memory; trivially copyable.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  size_t bytes() const { return TensorSpec{dtype, shape}.bytes(); }
};

}  // namespace pinion
