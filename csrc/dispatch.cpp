// Implements dispatch.h.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastdc {
namespace {

#define FASTDC_KERNEL_TABLE(space) {space::philox_normal, space::add_noise, space::denoising_error, space::error_map}

struct CpuIsa {
  const char* name;
  Kernels kernels;
  bool (*supported)();
};

// The best instruction set comes first.
const CpuIsa kIsas[] = {
#if defined(FASTDC_HAVE_AVX2)
    {"avx2", FASTDC_KERNEL_TABLE(cpu_avx2), [] { return __builtin_cpu_supports("avx2") != 0; }},
#endif
    {"baseline", FASTDC_KERNEL_TABLE(cpu_baseline), [] { return true; }},
};

const CpuIsa* find_isa(const char* name) {
  for (const CpuIsa& isa : kIsas) {
    if (std::strcmp(isa.name, name) == 0 && isa.supported()) return &isa;
  }
  return nullptr;
}

const CpuIsa* default_isa() {
  if (const char* wanted = std::getenv("FASTDC_ISA")) {
    if (const CpuIsa* isa = find_isa(wanted)) return isa;
    throw InputError(concat("FASTDC_ISA is \"", wanted, "\": expected one of ", available_cpu_isas()));
  }
  for (const CpuIsa& isa : kIsas) {
    if (isa.supported()) return &isa;
  }
  return &kIsas[sizeof kIsas / sizeof kIsas[0] - 1];
}

std::atomic<const CpuIsa*> current_isa{nullptr};

const CpuIsa& isa_in_use() {
  const CpuIsa* isa = current_isa.load(std::memory_order_acquire);
  if (isa == nullptr) {
    isa = default_isa();
    current_isa.store(isa, std::memory_order_release);
  }
  return *isa;
}

}  // namespace

const Kernels& kernels_for(Device device) {
  if (device == Device::kCpu) return isa_in_use().kernels;
#if defined(FASTDC_HAVE_CUDA)
  static const Kernels kernels = FASTDC_KERNEL_TABLE(cuda);
  return kernels;
#else
  throw BackendError("this build of fastdc has no CUDA kernels: rebuild with FASTDC_CUDA=ON and nvcc, or use the CPU");
#endif
}

const char* cpu_isa() { return isa_in_use().name; }

const char* available_cpu_isas() {
  static const std::string names = [] {
    std::string text;
    for (const CpuIsa& isa : kIsas) {
      if (isa.supported()) text += (text.empty() ? "" : ", ") + std::string(isa.name);
    }
    return text;
  }();
  return names.c_str();
}

void set_cpu_isa(const char* name) {
  const CpuIsa* isa = find_isa(name);
  FASTDC_CHECK(isa != nullptr, "isa must be one of ", available_cpu_isas(), ", got \"", name, "\"");
  current_isa.store(isa, std::memory_order_release);
}

bool built_with_cuda() {
#if defined(FASTDC_HAVE_CUDA)
  return true;
#else
  return false;
#endif
}

int cuda_device_count() {
#if defined(FASTDC_HAVE_CUDA)
  return cuda::device_count();
#else
  return 0;
#endif
}

}  // namespace fastdc
