// Registers the CUDA implementations for CPU tensors, with stand-ins for functions that only CUDA builds of torch have.
#include "cuda_runtime.h"
#include "ops.h"

extern "C" {
int launches() { return on_host::launches; }
// Counters are then on the host, and all other tensors as if on a GPU.
bool counters_on_host = false;
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* type) {
  int64_t dim = 0;
  aoti_torch_get_dim(tensor, &dim);
  *type = counters_on_host && dim > 0 ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  return AOTI_TORCH_SUCCESS;
}
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
