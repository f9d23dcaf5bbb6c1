// The launchers of csrc/kernels_cuda.cu, compiled against the cuda_runtime.h beside this file, with a C interface that
// tests/diffusion/test_cuda_emulation.py calls through ctypes. Every function returns null or the message of the error.
#include <string>

#include "cuda_runtime.h"
#include "kernels.h"

namespace {

thread_local std::string message;

template <class Body>
const char* guarded(Body&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

int current_device() { return emulation::current_device; }

void set_order(int order) { emulation::order = static_cast<emulation::Order>(order); }

const char* philox_normal(const int64_t* streams, const int32_t* draws, int64_t m, int64_t size, uint64_t seed,
                          uint32_t purpose, float* out) {
  return guarded([&] { fastdc::cuda::philox_normal(streams, draws, m, size, seed, purpose, out, nullptr); });
}

const char* add_noise(const fastdc::Step* step, int dtype, void* u, float* timestep, int64_t* labels) {
  return guarded(
      [&] { fastdc::cuda::add_noise(*step, static_cast<fastdc::DType>(dtype), u, timestep, labels, nullptr); });
}

const char* denoising_error(const fastdc::Step* step, int loss, float delta, int dtype, const void* network_output,
                            const float* target, float* errors) {
  const fastdc::ErrorForm form{static_cast<fastdc::Loss>(loss), delta};
  return guarded([&] {
    fastdc::cuda::denoising_error(*step, form, static_cast<fastdc::DType>(dtype), network_output, target, errors,
                                  nullptr);
  });
}

const char* error_map(const fastdc::Step* step, int loss, float delta, int dtype, const void* network_output,
                      const float* target, float* maps) {
  const fastdc::ErrorForm form{static_cast<fastdc::Loss>(loss), delta};
  return guarded([&] {
    fastdc::cuda::error_map(*step, form, static_cast<fastdc::DType>(dtype), network_output, target, maps, nullptr);
  });
}

}  // extern "C"
