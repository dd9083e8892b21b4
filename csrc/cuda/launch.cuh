// Shared by all kernels: a launch that raises errors as exceptions, and the search for the tensor of a chunk.
#pragma once

#include <cuda_runtime.h>
#include <stdexcept>
#include <string>

#include "table.h"

namespace cggm::cuda {

struct LaunchShape {
  int grid;
  cudaStream_t stream;
};

template <typename... Parameters>
void launch(
    const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, const std::decay_t<Parameters>&... arguments) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  const cudaError_t error = cudaLaunchKernel(kernel, shape.grid, kThreads, pointers, 0, shape.stream);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which the next call would report again
  std::string message = std::string("the CUDA kernel ") + name + " could not be launched: " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    message += "; this extension was built for other devices: build it again with CGGM_CUDA_ARCHS naming this one";
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver < kOldestDriver)
    message += "; the driver is older than CUDA 12.1, which brought kernels with 32 KB of parameters: update it";
  throw std::runtime_error(message);
}

// Calls f(index of the entry, chunk of the launch, chunk of the entry) for the chunks of this block. They are consecutive, so
// that a block searches for its first entry only once. One entry behind the last marks the end.
template <typename Entry, typename F>
__device__ inline void for_each_chunk(const Entry* entries, int count, int chunks, const F& f) {
  const int begin = static_cast<int64_t>(chunks) * blockIdx.x / gridDim.x;
  const int end = static_cast<int64_t>(chunks) * (blockIdx.x + 1) / gridDim.x;
  int index = 0;  // becomes the last entry whose first chunk is at or before `begin`
  for (int high = count; high - index > 1;) {
    const int middle = (index + high) / 2;
    if (entries[middle].first_chunk <= begin)
      index = middle;
    else
      high = middle;
  }
  for (int chunk = begin; chunk < end; ++chunk) {
    while (chunk >= entries[index + 1].first_chunk) ++index;
    f(index, chunk, chunk - entries[index].first_chunk);
  }
}

}  // namespace cggm::cuda
