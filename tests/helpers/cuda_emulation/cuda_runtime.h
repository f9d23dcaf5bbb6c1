// A replacement for CUDA's own header of this name. With it csrc/kernels_cuda.cu compiles with a C++ compiler, and its
// kernels run on the CPU: the threads of a block are fibers (ucontext) that take turns, barriers and shuffles hand over
// to the next fiber, and blocks run one after the other. It defines only the names that the file uses.
//
// A test that passes shows that the index arithmetic, the division into quads, runs and groups, the barriers and the
// order of the sums are right, and that nothing is written outside the outputs. It cannot show that nvcc generates the
// same arithmetic, that the real scheduler, memory model and launch work, or anything about speed. See docs/gpu.md.
//
// Fibers run in the order of `emulation::order`; if a barrier is missing, the result depends on it. A barrier that some
// threads can never reach, a shuffle without its whole warp, and a launch outside CUDA's limits are errors.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream = nullptr;
};

namespace emulation {

enum class Order { kAscending, kDescending, kInterleaved };
inline Order order = Order::kAscending;
inline cudaError_t last_error = cudaSuccess;

constexpr unsigned kWarpSize = 32;
constexpr size_t kStackBytes = 64 * 1024;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  State state = State::kReady;
  dim3 index;
  float exchanged = 0.0f;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned running;
inline std::function<void()> body;

inline void fiber_main() {
  body();
  fibers[running].state = State::kDone;
  swapcontext(&fibers[running].context, &scheduler);
}

inline void wait(State state) {
  const unsigned self = running;
  fibers[self].state = state;
  swapcontext(&fibers[self].context, &scheduler);
}

// The fiber, of `count` (a power of two), whose turn it is.
inline unsigned position(unsigned turn, unsigned count) {
  if (order == Order::kAscending) return turn;
  if (order == Order::kDescending) return count - 1 - turn;
  return turn * 5 % count;
}

// Releases the fibers [begin, end) if all of them wait in `state`. With `strict`, none of them may have finished.
inline bool release(unsigned begin, unsigned end, State state, bool strict) {
  bool any = false;
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i].state == State::kDone && !strict) continue;
    if (fibers[i].state != state) return false;
    any = true;
  }
  for (unsigned i = begin; i < end && any; ++i) {
    if (fibers[i].state == state) fibers[i].state = State::kReady;
  }
  return any;
}

// Runs one warp to a barrier of the block or to its end. Returns whether any thread moved.
inline bool run_warp(unsigned begin) {
  bool moved = false;
  do {
    for (unsigned turn = 0; turn < kWarpSize; ++turn) {
      running = begin + position(turn, kWarpSize);
      Fiber& fiber = fibers[running];
      if (fiber.state != State::kReady) continue;
      moved = true;
      threadIdx = fiber.index;
      swapcontext(&scheduler, &fiber.context);
    }
  } while (release(begin, begin + kWarpSize, State::kAtWarpBarrier, true));
  return moved;
}

inline void start_fiber(Fiber& fiber, dim3 index) {
  fiber.state = State::kReady;
  fiber.index = index;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
}

// Runs one block to its end. Returns false if threads wait for one another forever.
inline bool run_block(unsigned count) {
  for (unsigned i = 0; i < count; ++i) start_fiber(fibers[i], dim3(i % blockDim.x, i / blockDim.x));
  const unsigned warps = count / kWarpSize;
  bool progress = true;
  while (progress) {
    progress = false;
    for (unsigned turn = 0; turn < warps; ++turn) progress |= run_warp(position(turn, warps) * kWarpSize);
    progress |= release(0, count, State::kAtBlockBarrier, false);
  }
  for (unsigned i = 0; i < count; ++i) {
    if (fibers[i].state != State::kDone) return false;
  }
  return true;
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  const bool legal = count > 0 && count <= 1024 && count % kWarpSize == 0 && (count & (count - 1)) == 0 &&
                     blockDim.z == 1 && gridDim.x > 0 && gridDim.x <= 0x7FFFFFFFu && gridDim.y > 0 &&
                     gridDim.y <= 0xFFFFu && gridDim.z == 1;
  if (!legal) return cudaErrorInvalidConfiguration;
  while (fibers.size() < count) fibers.emplace_back();
  body = kernel;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      if (!run_block(count)) return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

}  // namespace emulation

inline void __syncwarp() { emulation::wait(emulation::State::kAtWarpBarrier); }

inline void __syncthreads() { emulation::wait(emulation::State::kAtBlockBarrier); }

inline float __shfl_down_sync(unsigned, float value, int delta) {
  using namespace emulation;
  const unsigned self = running;
  fibers[self].exchanged = value;
  __syncwarp();
  const unsigned from = self % kWarpSize + static_cast<unsigned>(delta) < kWarpSize ? self + delta : self;
  const float received = fibers[from].exchanged;
  __syncwarp();
  return received;
}

// There are two devices, and every array is on the second.
struct cudaPointerAttributes {
  int device;
};

namespace emulation {
inline int current_device = 0;
constexpr int kDeviceOfArrays = 1;
}  // namespace emulation

inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  attributes->device = emulation::kDeviceOfArrays;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = emulation::current_device;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  emulation::current_device = device;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  emulation::last_error = emulation::current_device != emulation::kDeviceOfArrays
                              ? cudaErrorInvalidDevice
                              : emulation::launch(*config, [&] { kernel(arguments...); });
  return emulation::last_error;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation::last_error;
  emulation::last_error = cudaSuccess;
  return error;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "the device of the arrays is not the current one";
    case cudaErrorLaunchFailure: return "threads wait at barriers that the others never reach";
  }
  return "unknown error";
}
