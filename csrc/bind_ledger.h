// Adds the class Ledger to the module. Unlike bindings.cpp it takes NumPy arrays, not DLPack views.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdc {

void bind_ledger(pybind11::module_& m);

}  // namespace fastdc
