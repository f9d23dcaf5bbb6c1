// Implements bind_view.h.
#include "bind_view.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "exceptions.h"
#include "tensor_view.h"

namespace py = pybind11;

namespace fastdc {
namespace {

// Takes over the DLPack capsule of `object`. With `dtype` "bfloat16", uint16 elements are read as bfloat16.
TensorView make_view(const py::object& object, const std::string& dtype) {
  FASTDC_CHECK(py::hasattr(object, "__dlpack__"), "expected an array that speaks DLPack (NumPy, torch, ...), got ",
               std::string(py::str(py::type::of(object).attr("__name__"))));
  py::dict arguments;
  const auto device = object.attr("__dlpack_device__")().cast<py::tuple>();
  // -1: the producer need not synchronise, because our kernels are enqueued on the stream that the caller names.
  if (device[0].cast<int>() == kDLCUDA) arguments["stream"] = -1;
  py::object capsule;
  try {
    arguments["max_version"] = py::make_tuple(DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION);
    capsule = object.attr("__dlpack__")(**arguments);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    arguments.attr("pop")("max_version");
    capsule = object.attr("__dlpack__")(**arguments);
  }
  std::optional<TensorView> view;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    view.emplace(managed);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    view.emplace(managed);
  } else {
    throw InputError("__dlpack__ returned no DLPack capsule");
  }
  if (dtype == "bfloat16" && view->element() == Element::kUInt16) view->reinterpret(Element::kBFloat16);
  FASTDC_CHECK(dtype.empty() || dtype == name_of(view->element()), "array must be ", dtype, ", got ",
               name_of(view->element()));
  return std::move(*view);
}

Element element_named(const std::string& name) {
  for (const Element element :
       {Element::kFloat32, Element::kFloat16, Element::kBFloat16, Element::kInt32, Element::kInt64}) {
    if (name == name_of(element)) return element;
  }
  throw InputError(concat("dtype must be float32, float16, bfloat16, int32 or int64, got \"", name, "\""));
}

// Keeps a Python object alive from C++. Not py::keep_alive, which crashes if another argument cannot be converted.
std::shared_ptr<void> held(const py::object& object) {
  return {object.inc_ref().ptr(), [](void* pointer) {
            if (!Py_IsInitialized()) return;
            py::gil_scoped_acquire acquire;
            Py_DECREF(static_cast<PyObject*>(pointer));
          }};
}

TensorView view_of_memory(uint64_t pointer, std::vector<int64_t> shape, const std::string& dtype, int device_type,
                          int device_id, const py::object& owner) {
  FASTDC_CHECK(device_type == kDLCPU || device_type == kDLCUDA || device_type == kDLCUDAHost,
               "device_type must be 1 (CPU), 2 (CUDA) or 3 (pinned), got ", device_type);
  FASTDC_CHECK(device_id >= 0 && (device_id == 0 || device_type == kDLCUDA),
               "device_id must name a device of that type, got ", device_id);
  return TensorView(reinterpret_cast<void*>(static_cast<uintptr_t>(pointer)), element_named(dtype), std::move(shape),
                    device_type == kDLCUDA ? Device::kCuda : Device::kCpu, device_id, held(owner));
}

DLDataType type_of(Element element) {
  switch (element) {
    case Element::kFloat32: return {kDLFloat, 32, 1};
    case Element::kFloat16: return {kDLFloat, 16, 1};
    case Element::kBFloat16: return {kDLBfloat, 16, 1};
    case Element::kInt32: return {kDLInt, 32, 1};
    case Element::kInt64: return {kDLInt, 64, 1};
    case Element::kUInt16: return {kDLUInt, 16, 1};
  }
  throw InputError("unknown element type");
}

const char* capsule_name(const DLManagedTensorVersioned&) { return "dltensor_versioned"; }
const char* capsule_name(const DLManagedTensor&) { return "dltensor"; }

// The exported tensor: it refers to the view's memory and keeps the Python object of the view alive.
template <class Managed>
struct Export {
  Managed managed{};
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  PyObject* view = nullptr;

  static void release(Managed* managed) {
    auto* exported = static_cast<Export*>(managed->manager_ctx);
    if (Py_IsInitialized()) {
      py::gil_scoped_acquire acquire;
      Py_DECREF(exported->view);
    }
    delete exported;
  }

  // Destructor of a capsule that no consumer took over.
  static void drop(PyObject* capsule) {
    const char* name = capsule_name(Managed{});
    if (!PyCapsule_IsValid(capsule, name)) return;
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
    managed->deleter(managed);
  }
};

template <class Managed>
py::object export_view(const py::object& self) {
  const auto& view = self.cast<const TensorView&>();
  auto exported = std::make_unique<Export<Managed>>();
  exported->shape = view.shape();
  exported->strides.assign(exported->shape.size(), 1);
  for (size_t axis = exported->shape.size(); axis-- > 1;) {
    exported->strides[axis - 1] = exported->strides[axis] * exported->shape[axis];
  }
  DLTensor& tensor = exported->managed.dl_tensor;
  tensor.data = view.data();
  tensor.device = {view.device() == Device::kCuda ? kDLCUDA : kDLCPU, view.device_index()};
  tensor.ndim = static_cast<int>(exported->shape.size());
  tensor.dtype = type_of(view.element());
  tensor.shape = exported->shape.data();
  tensor.strides = exported->strides.data();
  exported->managed.manager_ctx = exported.get();
  exported->managed.deleter = &Export<Managed>::release;
  if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>) {
    exported->managed.version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
    exported->managed.flags = view.read_only() ? DLPACK_FLAG_BITMASK_READ_ONLY : 0;
  }
  PyObject* capsule = PyCapsule_New(&exported->managed, capsule_name(Managed{}), &Export<Managed>::drop);
  if (capsule == nullptr) throw py::error_already_set();
  exported->view = self.inc_ref().ptr();
  exported.release();
  return py::reinterpret_steal<py::object>(capsule);
}

// Implements the DLPack protocol without synchronisation: the code that exports a view must know when it is ready.
py::object dlpack_of(const py::object& self, const py::object& /*stream*/, const py::object& max_version,
                     const py::object& dl_device, const py::object& copy) {
  const auto& view = self.cast<const TensorView&>();
  if (!copy.is_none() && copy.cast<bool>()) {
    py::set_error(PyExc_BufferError, "a TensorView exports its own memory, not a copy");
    throw py::error_already_set();
  }
  if (!dl_device.is_none()) {
    const auto wanted = dl_device.cast<std::pair<int, int>>();
    const int type = view.device() == Device::kCuda ? kDLCUDA : kDLCPU;
    if (wanted.first != type || wanted.second != view.device_index()) {
      py::set_error(PyExc_BufferError, "a TensorView exports its memory on its own device only");
      throw py::error_already_set();
    }
  }
  const bool versioned = !max_version.is_none() && max_version.cast<std::pair<int, int>>().first >= 1;
  if (versioned) return export_view<DLManagedTensorVersioned>(self);
  FASTDC_CHECK(!view.read_only(), "a read-only array cannot be exported to a consumer of DLPack before 1.0");
  return export_view<DLManagedTensor>(self);
}

}  // namespace

void bind_view(py::module_& m) {
  py::class_<TensorView>(m, "TensorView", "A borrowed array on the CPU or a CUDA device.")
      .def(py::init(&make_view), py::arg("array"), py::arg("dtype") = "")
      .def_property_readonly("shape",
                             [](const TensorView& view) {
                               py::tuple shape(view.shape().size());
                               for (size_t axis = 0; axis < view.shape().size(); ++axis)
                                 shape[axis] = view.shape()[axis];
                               return shape;
                             })
      .def_property_readonly("dtype", [](const TensorView& view) { return name_of(view.element()); })
      .def_property_readonly("is_cuda", [](const TensorView& view) { return view.device() == Device::kCuda; })
      .def_property_readonly("read_only", &TensorView::read_only)
      .def_property_readonly("pointer", [](const TensorView& view) { return reinterpret_cast<uintptr_t>(view.data()); })
      .def("__dlpack__", &dlpack_of, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
           py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const TensorView& view) {
        return std::make_pair(static_cast<int>(view.device() == Device::kCuda ? kDLCUDA : kDLCPU), view.device_index());
      });
  m.def("view_of_memory", &view_of_memory, py::arg("pointer"), py::arg("shape"), py::arg("dtype"),
        py::arg("device_type"), py::arg("device_id"), py::arg("owner"));
}

}  // namespace fastdc
