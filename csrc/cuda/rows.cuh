// Dot products of rows that a warp holds in registers.
#pragma once

#include "pack.cuh"

namespace cggm::cuda {

// Reads this warp's part of a row: kPacks packs per lane, with zeros beyond the row's end.
template <int kPacks, typename T>
__device__ void read_row(const T* row, int64_t left, Pack<T> (&packs)[kPacks]) {
  constexpr int kSize = Pack<T>::kSize, kStep = 32 * kSize;
  const int lane_offset = threadIdx.x % 32 * kSize;
  if (left >= kPacks * kStep && is_aligned(row)) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) packs[p] = load(row + lane_offset + p * kStep);
  } else {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int start = lane_offset + p * kStep;
      packs[p] = load(row + start, start < left ? static_cast<int>(min(left - start, static_cast<int64_t>(kSize))) : 0);
    }
  }
}

template <int kPacks, typename T>
__device__ double dot(const Pack<T> (&a)[kPacks], const Pack<T> (&b)[kPacks]) {
  double sum = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i)
      sum += static_cast<double>(widen(a[p].values[i])) * static_cast<double>(widen(b[p].values[i]));
  return warp_sum(sum);
}

}  // namespace cggm::cuda
