// The launch behind batched_cosine_backward.
#pragma once

#include <cuda_runtime_api.h>

#include "table.h"

namespace cggm::cuda {

struct CosineBackwardTable {
  HeadTable head;
  const double* products;  // [2M + 1]
  const void* grad;        // [M], float or double like the cosines
  void* out;               // [D]
};

// One launch: out = sum_m w[m] * rows[m] + w[M] * fusion.
void launch_cosine_backward(const CosineBackwardTable& table, int multiprocessors, cudaStream_t stream);

}  // namespace cggm::cuda
