// Binds the CUDA implementations to operators, beside csrc/register.cpp for the CPU.
#include "cuda/ops.h"

STABLE_TORCH_LIBRARY_IMPL(cggm_ops, CUDA, library) {
  library.impl("batched_cosine", TORCH_BOX(&cggm::cuda::batched_cosine));
  library.impl("batched_cosine_backward", TORCH_BOX(&cggm::cuda::batched_cosine_backward));
  library.impl("scale_", &cggm::cuda::scale_);
  library.impl("modulate_", &cggm::cuda::modulate_);
}
