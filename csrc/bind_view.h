// TensorView in Python: made from any object that speaks DLPack or from plain memory, and exported as DLPack.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdc {

void bind_view(pybind11::module_& m);

}  // namespace fastdc
