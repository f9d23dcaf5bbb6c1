// TensorView in Python: made of anything that speaks DLPack or of plain memory, and given on as DLPack.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdc {

void bind_view(pybind11::module_& m);

}  // namespace fastdc
