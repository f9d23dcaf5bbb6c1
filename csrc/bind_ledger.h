// The second file that knows Python; kept from bindings.cpp because it needs NumPy's arrays, not DLPack views.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdc {

void bind_ledger(pybind11::module_& m);

}  // namespace fastdc
