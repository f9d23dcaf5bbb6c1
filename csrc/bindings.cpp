// The kernels in Python: each function checks every shape, type and index, releases the GIL and calls the launcher for
// the device. There is no arithmetic here. bind_view.cpp makes the views.
#include <pybind11/pybind11.h>

#include <initializer_list>

#include "bind_ledger.h"
#include "bind_view.h"
#include "dispatch.h"
#include "exceptions.h"
#include "kernels.h"
#include "philox.h"
#include "tensor_view.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace fastdc {
namespace {

void check_element(const TensorView& view, const char* name, Element expected) {
  FASTDC_CHECK(view.element() == expected, name, " must be ", name_of(expected), ", got ", name_of(view.element()));
}

void check_shape(const TensorView& view, const char* name, const char* meaning, const std::vector<int64_t>& expected) {
  if (view.shape() == expected) return;
  std::ostringstream text;
  for (size_t axis = 0; axis < expected.size(); ++axis) text << (axis == 0 ? "" : ", ") << expected[axis];
  throw InputError(concat(name, " must have shape ", meaning, " = (", text.str(), "), got ", view.shape_text()));
}

// Rows of `size` elements in any shape with that many elements per row: images may be (B, c, h, w) or (B, D).
void check_rows(const TensorView& view, const char* name, int64_t rows, int64_t size) {
  const auto [got_rows, got_size] = view.rows();
  FASTDC_CHECK(got_rows == rows && got_size == size, name, " must hold ", rows, " rows of ", size,
               " elements, got shape ", view.shape_text());
}

void check_writable(const TensorView& view, const char* name) {
  FASTDC_CHECK(!view.read_only(), name, " is read-only: expected a writable array");
}

void check_same_device(const TensorView& view, const char* name, const TensorView& reference,
                       const char* reference_name = "images") {
  FASTDC_CHECK(view.device() == reference.device() && view.device_index() == reference.device_index(), name,
               " is on another device than ", reference_name);
}

struct Named {
  const char* name;
  const TensorView* view;
};

// Refuses an output that shares memory with another array of the call: indices are checked once, before the kernel
// writes, and every input is read while outputs are written.
void check_apart(const TensorView& out, const char* name, std::initializer_list<Named> others) {
  for (const Named& other : others) {
    FASTDC_CHECK(other.view == nullptr || !out.overlaps(*other.view), name, " overlaps ", other.name,
                 ": expected memory of its own");
  }
}

DType network_dtype(const TensorView& view, const char* name) {
  switch (view.element()) {
    case Element::kFloat32: return DType::kFloat32;
    case Element::kFloat16: return DType::kFloat16;
    case Element::kBFloat16: return DType::kBFloat16;
    default: throw InputError(concat(name, " must be float32, float16 or bfloat16, got ", name_of(view.element())));
  }
}

void check_purpose(int64_t purpose) {
  FASTDC_CHECK(purpose >= 0 && purpose < 256, "purpose must be in [0, 256), got ", purpose);
}

void check_streams(const TensorView& view, int64_t expected) {
  check_element(view, "streams", Element::kInt64);
  check_shape(view, "streams", "(n,)", {expected});
  if (view.device() != Device::kCpu) return;
  const auto* streams = static_cast<const int64_t*>(view.data());
  for (int64_t i = 0; i < expected; ++i) {
    FASTDC_CHECK(streams[i] >= 0 && streams[i] < (int64_t{1} << 56), "streams[", i, "] must be in [0, 2^56), got ",
                 streams[i]);
  }
}

// Indices are checked if the host can read them. The CUDA kernels guard themselves (kernels.h).
void check_cells(const Step& step) {
  for (int64_t b = 0; b < step.n_cells; ++b) {
    const Cell& cell = step.cells[b];
    FASTDC_CHECK(cell.image >= 0 && cell.image < step.n_images, "cells[", b, ", 0] (image) must be in [0, ",
                 step.n_images, "), got ", cell.image);
    FASTDC_CHECK(cell.label >= 0 && cell.label < step.n_classes, "cells[", b, ", 1] (class) must be in [0, ",
                 step.n_classes, "), got ", cell.label);
    FASTDC_CHECK(cell.draw >= 0 && cell.draw < step.n_draws, "cells[", b, ", 2] (draw) must be in [0, ", step.n_draws,
                 "), got ", cell.draw);
  }
}

Step make_step(const TensorView& images, const TensorView& cells, const TensorView& rows, const TensorView& streams,
               uint64_t seed, int64_t n_classes, int64_t purpose, bool antithetic) {
  check_element(images, "images", Element::kFloat32);
  FASTDC_CHECK(images.shape().size() >= 2, "images must have shape (n, ...), got ", images.shape_text());
  check_element(cells, "cells", Element::kInt32);
  FASTDC_CHECK(cells.shape().size() == 2 && cells.shape()[1] == 3, "cells must have shape (B, 3), got ",
               cells.shape_text());
  check_element(rows, "rows", Element::kFloat32);
  FASTDC_CHECK(rows.shape().size() == 2 && rows.shape()[1] == 8, "rows must have shape (J, 8), got ",
               rows.shape_text());
  check_same_device(cells, "cells", images);
  check_same_device(rows, "rows", images);
  check_same_device(streams, "streams", images);
  check_purpose(purpose);
  const auto [n_images, size] = images.rows();
  FASTDC_CHECK(size > 0 && size < (int64_t{1} << 33), "images must have 1 to 2^33 - 1 pixels each, got ", size);
  check_streams(streams, n_images);
  Step step{};
  step.images = static_cast<const float*>(images.data());
  step.n_images = n_images;
  step.size = size;
  step.cells = static_cast<const Cell*>(cells.data());
  step.n_cells = cells.shape()[0];
  step.rows = static_cast<const CoefficientRow*>(rows.data());
  step.n_draws = rows.shape()[0];
  step.n_classes = n_classes;
  step.streams = static_cast<const int64_t*>(streams.data());
  step.seed = seed;
  step.purpose = static_cast<uint32_t>(purpose);
  step.noise_shift = antithetic ? 1 : 0;
  if (images.device() == Device::kCpu) check_cells(step);
  return step;
}

ErrorForm make_form(const std::string& loss, float delta, bool map) {
  if (loss == "l2") return {Loss::kL2, delta};
  if (loss == "l1") return {Loss::kL1, delta};
  if (map && loss == "residual") return {Loss::kResidual, delta};
  FASTDC_CHECK(loss == "huber", "loss must be l2, l1 or huber, got \"", loss, "\"");
  FASTDC_CHECK(delta > 0.0f, "delta of the huber loss must be positive, got ", delta);
  return {Loss::kHuber, delta};
}

const float* target_data(const TensorView* target, const Step& step, const TensorView& images) {
  if (target == nullptr) return nullptr;
  check_element(*target, "target", Element::kFloat32);
  check_rows(*target, "target", step.n_images, step.size);
  check_same_device(*target, "target", images);
  return static_cast<const float*>(target->data());
}

void* as_stream(uint64_t stream) { return reinterpret_cast<void*>(static_cast<uintptr_t>(stream)); }

void philox_normal(const TensorView& streams, const TensorView& draws, uint64_t seed, const TensorView& out,
                   int64_t purpose, uint64_t stream) {
  check_element(out, "out", Element::kFloat32);
  check_writable(out, "out");
  check_purpose(purpose);
  const auto [m, size] = out.rows();
  check_streams(streams, m);
  check_element(draws, "draws", Element::kInt32);
  check_shape(draws, "draws", "(m,)", {m});
  check_same_device(streams, "streams", out, "out");
  check_same_device(draws, "draws", out, "out");
  if (draws.device() == Device::kCpu) {
    const auto* values = static_cast<const int32_t*>(draws.data());
    for (int64_t i = 0; i < m; ++i) {
      FASTDC_CHECK(values[i] >= 0, "draws[", i, "] must not be negative, got ", values[i]);
    }
  }
  FASTDC_CHECK(size < (int64_t{1} << 33), "out must have fewer than 2^33 elements per row, got ", size);
  check_apart(out, "out", {{"streams", &streams}, {"draws", &draws}});
  const Kernels& kernels = kernels_for(out.device());
  py::gil_scoped_release release;
  kernels.philox_normal(static_cast<const int64_t*>(streams.data()), static_cast<const int32_t*>(draws.data()), m, size,
                        seed, static_cast<uint32_t>(purpose), static_cast<float*>(out.data()), as_stream(stream));
}

void add_noise(const TensorView& images, const TensorView& cells, const TensorView& rows, const TensorView& streams,
               uint64_t seed, const TensorView& u, const TensorView* timestep, const TensorView* labels,
               int64_t n_classes, int64_t purpose, uint64_t stream, bool antithetic) {
  const Step step = make_step(images, cells, rows, streams, seed, n_classes, purpose, antithetic);
  // Messages use the names of fastdc/diffusion/kernels.py.
  const DType dtype = network_dtype(u, "out");
  check_rows(u, "out", step.n_cells, step.size);
  check_same_device(u, "out", images);
  check_writable(u, "out");
  if (timestep != nullptr) {
    check_element(*timestep, "timestep", Element::kFloat32);
    check_shape(*timestep, "timestep", "(B,)", {step.n_cells});
    check_writable(*timestep, "timestep");
    check_same_device(*timestep, "timestep", images);
  }
  if (labels != nullptr) {
    check_element(*labels, "labels", Element::kInt64);
    check_shape(*labels, "labels", "(B,)", {step.n_cells});
    check_writable(*labels, "labels");
    check_same_device(*labels, "labels", images);
  }
  const std::initializer_list<Named> inputs = {
      {"images", &images}, {"cells", &cells}, {"rows", &rows}, {"streams", &streams}};
  check_apart(u, "out", inputs);
  check_apart(u, "out", {{"timestep", timestep}, {"labels", labels}});
  if (timestep != nullptr) {
    check_apart(*timestep, "timestep", inputs);
    check_apart(*timestep, "timestep", {{"labels", labels}});
  }
  if (labels != nullptr) check_apart(*labels, "labels", inputs);
  const Kernels& kernels = kernels_for(images.device());
  py::gil_scoped_release release;
  kernels.add_noise(step, dtype, u.data(), timestep ? static_cast<float*>(timestep->data()) : nullptr,
                    labels ? static_cast<int64_t*>(labels->data()) : nullptr, as_stream(stream));
}

void denoising_error(const TensorView& output, const TensorView& images, const TensorView& cells,
                     const TensorView& rows, const TensorView& streams, uint64_t seed, const TensorView& errors,
                     const TensorView* target, const std::string& loss, float delta, int64_t n_classes, int64_t purpose,
                     uint64_t stream, bool antithetic) {
  const Step step = make_step(images, cells, rows, streams, seed, n_classes, purpose, antithetic);
  const DType dtype = network_dtype(output, "network_output");
  check_rows(output, "network_output", step.n_cells, step.size);
  check_same_device(output, "network_output", images);
  check_element(errors, "out", Element::kFloat32);
  check_shape(errors, "out", "(B,)", {step.n_cells});
  check_same_device(errors, "out", images);
  check_writable(errors, "out");
  const ErrorForm form = make_form(loss, delta, /*map=*/false);
  const float* z = target_data(target, step, images);
  check_apart(errors, "out",
              {{"network_output", &output},
               {"images", &images},
               {"cells", &cells},
               {"rows", &rows},
               {"streams", &streams},
               {"target", target}});
  const Kernels& kernels = kernels_for(images.device());
  py::gil_scoped_release release;
  kernels.denoising_error(step, form, dtype, output.data(), z, static_cast<float*>(errors.data()), as_stream(stream));
}

void error_map(const TensorView& output, const TensorView& images, const TensorView& cells, const TensorView& rows,
               const TensorView& streams, uint64_t seed, const TensorView& maps, const TensorView* target,
               const std::string& loss, float delta, int64_t purpose, uint64_t stream, bool antithetic) {
  FASTDC_CHECK(maps.shape().size() >= 3, "maps must have shape (n, K, ...), got ", maps.shape_text());
  const int64_t n_classes = maps.shape()[1];
  const Step step = make_step(images, cells, rows, streams, seed, n_classes, purpose, antithetic);
  const DType dtype = network_dtype(output, "network_output");
  check_rows(output, "network_output", step.n_cells, step.size);
  check_same_device(output, "network_output", images);
  check_element(maps, "maps", Element::kFloat32);
  check_rows(maps, "maps", step.n_images, n_classes * step.size);
  check_same_device(maps, "maps", images);
  check_writable(maps, "maps");
  const ErrorForm form = make_form(loss, delta, /*map=*/true);
  const float* z = target_data(target, step, images);
  check_apart(maps, "maps",
              {{"network_output", &output},
               {"images", &images},
               {"cells", &cells},
               {"rows", &rows},
               {"streams", &streams},
               {"target", target}});
  const Kernels& kernels = kernels_for(images.device());
  py::gil_scoped_release release;
  kernels.error_map(step, form, dtype, output.data(), z, static_cast<float*>(maps.data()), as_stream(stream));
}

// The raw generator, for tests against published answers.
py::tuple philox_words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  uint64_t words[4] = {c0, c1, c2, c3};
  philox4x32_10(words[0], words[1], words[2], words[3], PhiloxKey{k0, k1});
  return py::make_tuple(static_cast<uint32_t>(words[0]), static_cast<uint32_t>(words[1]),
                        static_cast<uint32_t>(words[2]), static_cast<uint32_t>(words[3]));
}

py::dict build_config() {
  py::dict config;
  config["version"] = FASTDC_VERSION;
  config["compiler"] = FASTDC_COMPILER;
  config["build_type"] = FASTDC_BUILD_TYPE;
  config["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  config["dlpack"] = concat(DLPACK_MAJOR_VERSION, ".", DLPACK_MINOR_VERSION);
  config["cpu_isas"] = available_cpu_isas();
  config["cuda"] = built_with_cuda();
  config["cuda_compiler"] = FASTDC_CUDA_COMPILER;
  config["cuda_architectures"] = FASTDC_CUDA_ARCHITECTURES;
  return config;
}

template <class Error>
void raise_as(const char* python_name, const Error& error) {
  const py::object type = py::module_::import("fastdc.support.exceptions").attr(python_name);
  py::set_error(type, error.what());
}

}  // namespace
}  // namespace fastdc

// Needs no GIL: views do not change, calls on a ledger exclude each other, and what the module keeps (the thread pool,
// the instruction set) is atomic or locked. tools/sanitize.sh thread looks for races.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace fastdc;
  m.doc() = "Native kernels of fastdc. Private: use fastdc.diffusion.kernels.";

  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const fastdc::InputError& error) {
      raise_as("InputError", error);
    } catch (const fastdc::BackendError& error) {
      raise_as("BackendError", error);
    }
  });

  bind_view(m);

  m.def("philox_words", &philox_words, py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"), py::arg("k0"),
        py::arg("k1"));
  m.def("philox_normal", &philox_normal, py::arg("streams"), py::arg("draws"), py::arg("seed"), py::arg("out"),
        py::arg("purpose"), py::arg("stream"));
  m.def("add_noise", &add_noise, py::arg("images"), py::arg("cells"), py::arg("rows"), py::arg("streams"),
        py::arg("seed"), py::arg("u"), py::arg("timestep").none(true), py::arg("labels").none(true),
        py::arg("n_classes"), py::arg("purpose"), py::arg("stream"), py::arg("antithetic") = false);
  m.def("denoising_error", &denoising_error, py::arg("network_output"), py::arg("images"), py::arg("cells"),
        py::arg("rows"), py::arg("streams"), py::arg("seed"), py::arg("errors"), py::arg("target").none(true),
        py::arg("loss"), py::arg("delta"), py::arg("n_classes"), py::arg("purpose"), py::arg("stream"),
        py::arg("antithetic") = false);
  m.def("error_map", &error_map, py::arg("network_output"), py::arg("images"), py::arg("cells"), py::arg("rows"),
        py::arg("streams"), py::arg("seed"), py::arg("maps"), py::arg("target").none(true), py::arg("loss"),
        py::arg("delta"), py::arg("purpose"), py::arg("stream"), py::arg("antithetic") = false);

  m.def("build_config", &build_config);
  m.def("num_threads", &num_threads);
  m.def(
      "set_num_threads",
      [](int threads) {
        FASTDC_CHECK(threads >= 0 && threads <= 1024, "threads must be in [0, 1024] (0: all usable CPUs), got ",
                     threads);
        set_num_threads(threads);
      },
      py::arg("threads"));
  m.def("cpu_isa", [] { return std::string(cpu_isa()); });
  m.def("set_cpu_isa", [](const std::string& name) { set_cpu_isa(name.c_str()); }, py::arg("name"));
  m.def("cuda_device_count", &cuda_device_count);
  bind_ledger(m);
}
