// Implements tensor_view.h.
#include "tensor_view.h"

#include <limits>

namespace fastdc {
namespace {

Element element_of(DLDataType type) {
  if (type.lanes == 1) {
    if (type.code == kDLFloat && type.bits == 32) return Element::kFloat32;
    if (type.code == kDLFloat && type.bits == 16) return Element::kFloat16;
    if (type.code == kDLBfloat && type.bits == 16) return Element::kBFloat16;
    if (type.code == kDLInt && type.bits == 32) return Element::kInt32;
    if (type.code == kDLInt && type.bits == 64) return Element::kInt64;
    if (type.code == kDLUInt && type.bits == 16) return Element::kUInt16;
  }
  throw InputError(concat("unsupported element type (DLPack code ", int{type.code}, ", ", int{type.bits},
                          " bits): expected float32, float16, bfloat16, int32 or int64"));
}

int64_t bytes_of(Element element) {
  switch (element) {
    case Element::kFloat32:
    case Element::kInt32: return 4;
    case Element::kInt64: return 8;
    default: return 2;
  }
}

bool contiguous(const DLTensor& tensor) {
  if (tensor.strides == nullptr) return true;
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    if (tensor.shape[axis] == 0) return true;  // the strides of an empty array do not matter
  }
  int64_t expected = 1;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) return false;
    expected *= tensor.shape[axis];
  }
  return true;
}

}  // namespace

const char* name_of(Element element) {
  switch (element) {
    case Element::kFloat32: return "float32";
    case Element::kFloat16: return "float16";
    case Element::kBFloat16: return "bfloat16";
    case Element::kInt32: return "int32";
    case Element::kInt64: return "int64";
    case Element::kUInt16: return "uint16";
  }
  return "unknown";
}

TensorView::TensorView(DLManagedTensorVersioned* managed) : versioned_(managed) {
  try {
    if (managed->version.major != DLPACK_MAJOR_VERSION) {
      throw InputError(concat("the array speaks DLPack ", managed->version.major, ", expected ", DLPACK_MAJOR_VERSION));
    }
    read(managed->dl_tensor, (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0);
  } catch (...) {  // the destructor does not run if the constructor throws
    if (managed->deleter != nullptr) managed->deleter(managed);
    throw;
  }
}

TensorView::TensorView(DLManagedTensor* managed) : unversioned_(managed) {
  try {
    read(managed->dl_tensor, false);
  } catch (...) {
    if (managed->deleter != nullptr) managed->deleter(managed);
    throw;
  }
}

TensorView::TensorView(void* data, Element element, std::vector<int64_t> shape, Device device, int device_index,
                       std::shared_ptr<void> owner)
    : data_(data),
      element_(element),
      device_(device),
      device_index_(device_index),
      shape_(std::move(shape)),
      owner_(std::move(owner)) {
  bool empty = false;
  for (const int64_t extent : shape_) {
    FASTDC_CHECK(extent >= 0, "a shape must have no negative extents, got ", shape_text());
    empty = empty || extent == 0;
  }
  if (empty) return;
  int64_t left = std::numeric_limits<int64_t>::max() / bytes_of(element_);
  for (const int64_t extent : shape_) left /= extent;
  FASTDC_CHECK(left > 0, "an array of shape ", shape_text(), " is larger than memory allows");
  FASTDC_CHECK(data_ != nullptr, "an array of shape ", shape_text(), " must have a pointer, got 0");
  check_aligned();
}

TensorView::TensorView(TensorView&& other) noexcept
    : data_(other.data_),
      element_(other.element_),
      device_(other.device_),
      device_index_(other.device_index_),
      read_only_(other.read_only_),
      shape_(std::move(other.shape_)),
      versioned_(std::exchange(other.versioned_, nullptr)),
      unversioned_(std::exchange(other.unversioned_, nullptr)),
      owner_(std::move(other.owner_)) {}

TensorView::~TensorView() {
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
  if (unversioned_ != nullptr && unversioned_->deleter != nullptr) unversioned_->deleter(unversioned_);
}

void TensorView::read(const DLTensor& tensor, bool read_only) {
  switch (tensor.device.device_type) {
    case kDLCPU:
    case kDLCUDAHost: device_ = Device::kCpu; break;
    case kDLCUDA:
    case kDLCUDAManaged: device_ = Device::kCuda; break;
    default:
      throw InputError(
          concat("array on DLPack device type ", int{tensor.device.device_type}, ": expected CPU or CUDA"));
  }
  device_index_ = tensor.device.device_id;
  element_ = element_of(tensor.dtype);
  read_only_ = read_only;
  shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
  FASTDC_CHECK(contiguous(tensor), "array of shape ", shape_text(), " is not contiguous: expected row-major order");
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  check_aligned();
}

void TensorView::check_aligned() const {
  const auto bytes = static_cast<uintptr_t>(bytes_of(element_));
  FASTDC_CHECK(reinterpret_cast<uintptr_t>(data_) % bytes == 0, "array of ", name_of(element_),
               " does not start at a multiple of ", bytes, " bytes");
}

int64_t TensorView::count() const {
  int64_t product = 1;
  for (const int64_t extent : shape_) product *= extent;
  return product;
}

bool TensorView::overlaps(const TensorView& other) const {
  if (device_ != other.device_ || device_index_ != other.device_index_) return false;
  const auto begin = reinterpret_cast<uintptr_t>(data_);
  const auto other_begin = reinterpret_cast<uintptr_t>(other.data_);
  const auto bytes = static_cast<uintptr_t>(count() * bytes_of(element_));
  const auto other_bytes = static_cast<uintptr_t>(other.count() * bytes_of(other.element_));
  if (bytes == 0 || other_bytes == 0) return false;
  return begin < other_begin ? other_begin - begin < bytes : begin - other_begin < other_bytes;
}

std::string TensorView::shape_text() const {
  std::ostringstream text;
  text << '(';
  for (size_t axis = 0; axis < shape_.size(); ++axis) text << (axis == 0 ? "" : ", ") << shape_[axis];
  text << (shape_.size() == 1 ? ",)" : ")");
  return text.str();
}

std::pair<int64_t, int64_t> TensorView::rows() const {
  if (shape_.empty()) return {1, 1};
  int64_t size = 1;
  for (size_t axis = 1; axis < shape_.size(); ++axis) size *= shape_[axis];
  return {shape_[0], size};
}

void TensorView::reinterpret(Element element) {
  FASTDC_CHECK(element_ == Element::kUInt16 && element == Element::kBFloat16, "cannot see ", name_of(element_), " as ",
               name_of(element), ": only uint16 as bfloat16");
  element_ = element;
}

}  // namespace fastdc
