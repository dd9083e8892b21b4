// The current device and stream, element types and limits, for the code that prepares a launch.
#pragma once

#include <cuda_runtime_api.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "table.h"

// Only CUDA builds of torch have this function. The weak reference lets the library load with a CPU build of torch, too, where
// it is never called because no tensor is on a GPU.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#pragma weak aoti_torch_get_current_cuda_stream

namespace cggm::cuda {

// Makes the device of a tensor the current one for the lifetime of this object.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    const int32_t index = tensor.get_device_index();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    const cudaError_t error = cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, index);
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  }
  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  int multiprocessors_ = 0;
};

// No kernel is built for float64.
inline DType to_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      refuse("the CUDA kernels take float32, bfloat16 and float16, found float64: call the functions of cggm_ops, which ",
             "choose the reference for it");
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kHalf;
    default:
      return DType::kFloat;
  }
}

inline Factors factors_of(const View& tensor) {
  return {tensor.data, tensor.strides[0], tensor.dtype == ScalarType::Double};
}

inline int32_t count_chunks(int64_t numel, int64_t size) {
  const int64_t chunks = (numel + size - 1) / size;
  if (chunks > INT32_MAX / 2) refuse("a tensor of ", numel, " elements is too large for one call: split it");
  return static_cast<int32_t>(chunks);
}

inline void check_modalities(size_t modalities, const char* name) {
  if (modalities > kMaxModalities)
    refuse(name, " must hold at most ", kMaxModalities, " modalities on CUDA, found ", modalities, ": split the call");
}

}  // namespace cggm::cuda
