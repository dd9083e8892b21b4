// 16 bytes of elements in registers, conversions to and from float, and sums in a fixed order.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "table.h"

namespace cggm::cuda {

// Arithmetic is in float, sums are in double.
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

template <typename T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) { return x; }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }

template <typename T>
struct Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

__device__ inline bool is_aligned(const void* address) { return (reinterpret_cast<uintptr_t>(address) & 15) == 0; }

// One 16-byte access; `from` must be aligned.
template <typename T>
__device__ inline Pack<T> load(const T* from) {
  Pack<T> pack;
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  memcpy(&pack, &bits, sizeof(bits));
  return pack;
}
template <typename T>
__device__ inline void store(T* to, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof(bits));
  *reinterpret_cast<uint4*>(to) = bits;
}

// The first n elements one by one, zeros after them: for the ends of tensors and for views that are not aligned.
template <typename T>
__device__ inline Pack<T> load(const T* from, int n) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) pack.values[i] = i < n ? from[i] : narrow<T>(0);
  return pack;
}
template <typename T>
__device__ inline void store(T* to, const Pack<T>& pack, int n) {
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i)
    if (i < n) to[i] = pack.values[i];
}

// Sums are in double, over threads in a fixed order: neither the grid nor the address changes their bits.
__device__ inline double warp_sum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Returns the sum over the block. All threads must call it; calls may follow each other directly.
__device__ inline double block_sum(double value, double (&shared)[kWarps]) {
  value = warp_sum(value);
  __syncthreads();  // threads may still be reading the previous call's sums
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp];
  return sum;
}

__device__ inline double number_at(const Factors& factors, int64_t place) {
  return factors.is_double ? static_cast<const double*>(factors.data)[place] : static_cast<const float*>(factors.data)[place];
}
// The factor of a modality, or 1.
__device__ inline double factor_of(const Factors& factors, int modality) {
  return factors.data == nullptr || modality < 0 ? 1 : number_at(factors, modality * factors.stride);
}

// Calls f with a null pointer to the element type of dtype.
template <typename F>
__device__ inline void dispatch(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat:
      return f(static_cast<float*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case DType::kHalf:
      return f(static_cast<__half*>(nullptr));
  }
}

}  // namespace cggm::cuda
