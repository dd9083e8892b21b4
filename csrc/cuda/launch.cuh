// What every kernel's file needs: a launch with its errors as exceptions, and the way from a chunk to its tensor.
#pragma once

#include <cuda_runtime.h>
#include <stdexcept>
#include <string>

#include "table.h"

namespace cggm::cuda {

struct LaunchShape {
  int grid;
  cudaStream_t stream;
  bool is_cooperative;  // the kernel has a barrier over the grid
};

template <typename... Parameters>
void launch(
    const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, const std::decay_t<Parameters>&... arguments) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  const cudaError_t error = shape.is_cooperative
      ? cudaLaunchCooperativeKernel(kernel, shape.grid, kThreads, pointers, 0, shape.stream)
      : cudaLaunchKernel(kernel, shape.grid, kThreads, pointers, 0, shape.stream);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  std::string message = std::string("the CUDA kernel ") + name + " could not be launched: " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    message += "; this extension was built for other devices: build it again with CGGM_CUDA_ARCHS naming this one";
  throw std::runtime_error(message);
}

// -> the last segment whose first chunk is not beyond `chunk`
template <typename Segment>
__device__ inline int find_segment(const Segment* segments, int count, int chunk) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (segments[middle].first_chunk <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace cggm::cuda
