// Binds implementations to operators. The schemas are defined in cggm_ops/schema.py, so that everything works without this library.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(cggm_ops, CPU, library) {
  library.impl("batched_cosine", TORCH_BOX(&cggm::cpu::batched_cosine));
  library.impl("batched_cosine_backward", TORCH_BOX(&cggm::cpu::batched_cosine_backward));
  library.impl("scale_", &cggm::cpu::scale_);
  library.impl("modulate_", &cggm::cpu::modulate_);
  library.impl("segment_gram", &cggm::cpu::segment_gram);
  library.impl("segment_combine_", &cggm::cpu::segment_combine_);
  library.impl("adamw_", &cggm::cpu::adamw_);
  library.impl("sgd_", &cggm::cpu::sgd_);
  library.impl("perceptrons", &cggm::cpu::perceptrons);
}
