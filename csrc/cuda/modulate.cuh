// The launch behind scale_, batched_cosine and modulate_.
#pragma once

#include <cuda_runtime_api.h>

#include "table.h"

namespace cggm::cuda {

// One launch: scales the segments, sums the head gradients' products, and, with is_last, writes all results.
template <int kCapacity>
void launch_modulate(const ModulateTable<kCapacity>& table, int multiprocessors, cudaStream_t stream);

}  // namespace cggm::cuda
