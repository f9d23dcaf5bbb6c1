// Not py::buffer or py::array, which know no CUDA and no bfloat16, nor nanobind's ndarray: its import names no stream.
//
// A borrowed array: pointer, element type, shape and device, taken from any object that speaks DLPack (NumPy, torch,
// CuPy, JAX, OrtValue) or from plain memory. The module links against none of these libraries. A view keeps its
// producer's memory alive until it is destroyed, so that a hot loop makes its views once. A call with five views takes
// about 2 us, including all checks.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common.h"
#include "exceptions.h"

namespace fastdc {

enum class Device : int { kCpu = 0, kCuda = 1 };

// The element types that cross the boundary.
enum class Element : int { kFloat32, kFloat16, kBFloat16, kInt32, kInt64, kUInt16 };

const char* name_of(Element element);

class TensorView {
 public:
  // Takes ownership of the managed tensor, whose deleter runs when the view is destroyed.
  explicit TensorView(DLManagedTensorVersioned* managed);
  explicit TensorView(DLManagedTensor* managed);
  // Views memory that `owner` keeps alive; without an owner, the caller does.
  TensorView(void* data, Element element, std::vector<int64_t> shape, Device device, int device_index,
             std::shared_ptr<void> owner = nullptr);
  TensorView(TensorView&& other) noexcept;
  TensorView(const TensorView&) = delete;
  TensorView& operator=(const TensorView&) = delete;
  TensorView& operator=(TensorView&&) = delete;
  ~TensorView();

  void* data() const { return data_; }
  Element element() const { return element_; }
  Device device() const { return device_; }
  int device_index() const { return device_index_; }
  bool read_only() const { return read_only_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t count() const;
  // Whether any byte belongs to both arrays, as far as their addresses tell.
  bool overlaps(const TensorView& other) const;
  std::string shape_text() const;

  // The first dimension, and the product of the others: (rows, row size).
  std::pair<int64_t, int64_t> rows() const;

  // Reads 16-bit integers as bfloat16: NumPy has no such type, and ml_dtypes' type does not speak DLPack.
  void reinterpret(Element element);

 private:
  void read(const DLTensor& tensor, bool read_only);
  void check_aligned() const;

  void* data_ = nullptr;
  Element element_ = Element::kFloat32;
  Device device_ = Device::kCpu;
  int device_index_ = 0;
  bool read_only_ = false;
  std::vector<int64_t> shape_;
  DLManagedTensorVersioned* versioned_ = nullptr;
  DLManagedTensor* unversioned_ = nullptr;
  std::shared_ptr<void> owner_;
};

}  // namespace fastdc
