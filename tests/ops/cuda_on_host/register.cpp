// Registers the CUDA implementations for CPU tensors, with stand-ins for functions that only CUDA builds of torch have.
#include "ops.h"

extern "C" {
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
}

#define CUDA CPU
#include "cuda/register.cpp"
