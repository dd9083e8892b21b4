// Binds the CUDA implementations to operators, beside csrc/register.cpp for the CPU.
#include "cuda/ops.h"

STABLE_TORCH_LIBRARY_IMPL(cggm_ops, CUDA, library) {
  library.impl("batched_cosine", TORCH_BOX(&cggm::cuda::batched_cosine));
  library.impl("batched_cosine_backward", TORCH_BOX(&cggm::cuda::batched_cosine_backward));
  library.impl("scale_", &cggm::cuda::scale_);
  library.impl("modulate_", &cggm::cuda::modulate_);
  library.impl("segment_gram", &cggm::cuda::segment_gram);
  library.impl("segment_combine_", &cggm::cuda::segment_combine_);
  library.impl("adamw_", &cggm::cuda::adamw_);
  library.impl("sgd_", &cggm::cuda::sgd_);
}
