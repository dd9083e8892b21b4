// d cos_m / d fusion = (u_m / |u_m| - cos_m f / |f|) / |f|: every block computes the M + 1 weights, then sums its elements.
#include <algorithm>

#include "launch.cuh"
#include "modulation.cuh"
#include "pack.cuh"

namespace cggm::cuda {

namespace {

__device__ void compute_weights(const CosineBackwardTable& table, double* weights) {
  const int modalities = table.head.modalities;
  const double sq_fusion = table.products[2 * modalities];
  for (int m = threadIdx.x; m < modalities; m += kThreads) {
    const double sq_unimodal = table.products[modalities + m];
    weights[m] = sq_fusion == 0 || sq_unimodal == 0 ? 0 : factor_of(table.grad, m) / sqrt(sq_fusion) / sqrt(sq_unimodal);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double along_fusion = 0;
    for (int m = 0; m < modalities; ++m)
      if (weights[m] != 0) along_fusion -= weights[m] * (table.products[m] / sq_fusion);
    weights[modalities] = along_fusion;
  }
  __syncthreads();
}

template <typename T>
__device__ void combine(const CosineBackwardTable& table, const double* weights) {
  constexpr int kSize = Pack<T>::kSize;
  const HeadTable& head = table.head;
  const int64_t packs = (head.numel + kSize - 1) / kSize;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < packs;
       p += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t start = p * kSize;
    const int n = static_cast<int>(min(head.numel - start, static_cast<int64_t>(kSize)));
    double sums[kSize] = {};
    for (int m = 0; m <= head.modalities; ++m) {
      const T* row = static_cast<const T*>(m < head.modalities ? head.rows[m] : head.fusion) + start;
      const Pack<T> pack = n == kSize && is_aligned(row) ? load(row) : load(row, n);
#pragma unroll
      for (int i = 0; i < kSize; ++i) sums[i] += weights[m] * static_cast<double>(widen(pack.values[i]));
    }
    Pack<T> result;
#pragma unroll
    for (int i = 0; i < kSize; ++i) result.values[i] = narrow<T>(static_cast<float>(sums[i]));
    T* out = static_cast<T*>(table.out) + start;
    if (n == kSize && is_aligned(out))
      store(out, result);
    else
      store(out, result, n);
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    cosine_backward_kernel(const __grid_constant__ CosineBackwardTable table) {
  __shared__ double weights[kMaxModalities + 1];
  compute_weights(table, weights);
  dispatch(table.head.dtype, [&](auto* type) { combine<std::remove_pointer_t<decltype(type)>>(table, weights); });
}

}  // namespace

void launch_cosine_backward(const CosineBackwardTable& table, int multiprocessors, cudaStream_t stream) {
  const int64_t blocks = (table.head.numel + 4 * kThreads - 1) / (4 * kThreads);
  const int grid = static_cast<int>(
      std::clamp<int64_t>(blocks, 1, static_cast<int64_t>(multiprocessors) * kBlocksPerMultiprocessor));
  launch("cosine_backward", &cosine_backward_kernel, {grid, stream}, table);
}

}  // namespace cggm::cuda
