// Runs CUDA kernels on the host, for tests. A C++ compiler that finds this header before the toolkit's can build csrc/cuda/*.cu.
// Every CUDA thread is a fiber. Blocks run one after the other on one core; their warps advance from barrier to barrier. A
// barrier that some threads do not reach is an error: on a GPU it would hang or race.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <setjmp.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct uint4 {
  uint32_t x, y, z, w;
};
struct Index {
  int x = 0;
};
inline Index threadIdx, blockIdx, gridDim;

namespace on_host {

enum class Stop { kWarp, kBlock, kEnd };

// A context starts a fiber; jumps, which need no system call, switch between fibers.
struct Fiber {
  static constexpr size_t kStack = 256 * 1024;
  ucontext_t context;
  jmp_buf place;
  bool is_started = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Stop stop;
};

inline jmp_buf scheduler;
inline Fiber* running;
inline std::function<void()> body;
inline int launches;  // so far
inline uint64_t exchanged[1024];  // values that the lanes of a warp exchange

inline void wait(Stop stop) {
  running->stop = stop;
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
  body();
  running->stop = Stop::kEnd;
  _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.is_started) _longjmp(fiber.place, 1);
  fiber.is_started = true;
  setcontext(&fiber.context);
}

inline Stop agree(Stop a, Stop b, const char* whose) {
  if (a == b) return a;
  std::fprintf(stderr, "the threads of a %s are at different barriers\n", whose);
  std::abort();
}

class Grid {
 public:
  Grid(int blocks, int threads) : threads_(threads), fibers_(blocks * threads) {
    for (Fiber& fiber : fibers_) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = Fiber::kStack;
      makecontext(&fiber.context, enter, 0);
    }
    gridDim.x = blocks;
  }
  void run() {
    for (int block = 0; block < gridDim.x; ++block) run_block(block);
  }

 private:
  void run_block(int block) {
    Stop stop;
    blockIdx.x = block;
    do {
      stop = run_warp(block, 0);
      for (int warp = 1; warp < threads_ / 32; ++warp) stop = agree(stop, run_warp(block, warp), "block");
    } while (stop == Stop::kBlock);
  }
  Stop run_warp(int block, int warp) {
    Stop stop;
    do {
      for (int lane = 0; lane < 32; ++lane) {
        threadIdx.x = warp * 32 + lane;
        resume(fibers_[block * threads_ + threadIdx.x]);
        stop = lane == 0 ? running->stop : agree(stop, running->stop, "warp");
      }
    } while (stop == Stop::kWarp);
    return stop;
  }
  int threads_;
  std::vector<Fiber> fibers_;
};

template <typename... P, size_t... I>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<P>*>(arguments[I])...);
}

}  // namespace on_host

inline void __syncthreads() { on_host::wait(on_host::Stop::kBlock); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  std::memcpy(&on_host::exchanged[threadIdx.x], &value, sizeof(T));
  on_host::wait(on_host::Stop::kWarp);
  std::memcpy(&value, &on_host::exchanged[threadIdx.x ^ mask], sizeof(T));
  on_host::wait(on_host::Stop::kWarp);
  return value;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorNoKernelImageForDevice };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "on the host"; }
inline cudaError_t cudaDriverGetVersion(int*) { return cudaErrorNoKernelImageForDevice; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}

template <typename... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), int grid, int threads, void** arguments, size_t, cudaStream_t) {
  ++on_host::launches;
  on_host::body = [=] { on_host::call(kernel, arguments, std::index_sequence_for<P...>{}); };
  on_host::Grid(grid, threads).run();
  return cudaSuccess;
}
