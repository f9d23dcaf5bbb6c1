// Chooses the implementation of the kernels by the device of the arrays and, on the CPU, by the machine's instruction
// set.
#pragma once

#include "kernels.h"
#include "tensor_view.h"

namespace fastdc {

// A table of launchers with the signatures of kernels.h.
struct Kernels {
  decltype(&cpu_baseline::philox_normal) philox_normal;
  decltype(&cpu_baseline::add_noise) add_noise;
  decltype(&cpu_baseline::denoising_error) denoising_error;
  decltype(&cpu_baseline::error_map) error_map;
};

// Throws BackendError if `device` is CUDA and the module was built without it.
const Kernels& kernels_for(Device device);

// "baseline" or "avx2": the best that machine and build offer, unless the environment variable FASTDC_ISA or
// set_cpu_isa chose another. All give the same bits; the choice is for tests and measurements.
const char* cpu_isa();
void set_cpu_isa(const char* name);
const char* available_cpu_isas();

bool built_with_cuda();
int cuda_device_count();

}  // namespace fastdc
