// adamw_ and sgd_: optimizer steps that modulate the gradient in registers. Each kind of table has its own update rule; the
// loop over the tensors is the same for all.
#include <algorithm>

#include "launch.cuh"
#include "pack.cuh"
#include "optimizers.cuh"

namespace cggm::cuda {

namespace {

// Without weight decay the parameter stays out of the gradient: 0 times infinity is NaN.
__device__ inline float decayed(float gradient, float param, float weight_decay) {
  return weight_decay == 0 ? gradient : gradient + param * weight_decay;
}

// The factors of one parameter's step, computed in double and rounded to float.
struct AdamFactors {
  float grad, decay, coupled, beta1_rest, beta2, beta2_rest, step_size, inverse_root, eps;

  __device__ void apply(float (&x)[4]) const {
    const float g = decayed(x[1] * grad, x[0], coupled);
    x[2] += (g - x[2]) * beta1_rest;
    x[3] = x[3] * beta2 + g * g * beta2_rest;
    x[0] = x[0] * decay - step_size * (x[2] / (sqrtf(x[3]) * inverse_root + eps));
  }
};

__device__ AdamCorrection correction_of(const AdamTable& table, int index) {
  if (table.place == CounterPlace::kHost) return table.corrections[table.correction[index]];
  const void* counter = table.counters[index];
  const double count =
      table.place == CounterPlace::kDeviceDouble ? *static_cast<const double*>(counter) : *static_cast<const float*>(counter);
  return {1 - pow(table.beta1, count), 1 / sqrt(1 - pow(table.beta2, count))};
}

__device__ AdamFactors factors_of(const AdamTable& table, int index) {
  const StepShared& shared = table.shared;
  const int modality = table.entries[index].modality;
  const double rate = shared.lr * factor_of(shared.update_scale, modality), grad = factor_of(shared.grad_scale, modality);
  const AdamCorrection correction = correction_of(table, index);
  return {
      float(shared.maximize ? -grad : grad),
      float(table.decoupled ? 1 - rate * shared.weight_decay : 1),
      float(table.decoupled ? 0 : shared.weight_decay),
      float(1 - table.beta1),
      float(table.beta2),
      float(1 - table.beta2),
      float(rate / correction.first),
      float(correction.inverse_root),
      float(table.eps)};
}

struct SgdFactors {
  float grad, weight_decay, rate;

  __device__ void apply(float (&x)[2]) const { x[0] -= rate * decayed(x[1] * grad, x[0], weight_decay); }
};

template <typename Table>
__device__ SgdFactors plain_factors_of(const Table& table, int index) {
  const StepShared& shared = table.shared;
  const int modality = table.entries[index].modality;
  const double grad = factor_of(shared.grad_scale, modality);
  return {float(shared.maximize ? -grad : grad), float(shared.weight_decay),
          float(shared.lr * factor_of(shared.update_scale, modality))};
}

__device__ SgdFactors factors_of(const SgdTable& table, int index) { return plain_factors_of(table, index); }

struct SgdMomentumFactors {
  SgdFactors plain;
  float momentum, rest;
  bool nesterov, first;

  __device__ void apply(float (&x)[3]) const {
    const float g = decayed(x[1] * plain.grad, x[0], plain.weight_decay);
    x[2] = first ? g : x[2] * momentum + g * rest;
    x[0] -= plain.rate * (nesterov ? g + x[2] * momentum : x[2]);
  }
};

__device__ SgdMomentumFactors factors_of(const SgdMomentumTable& table, int index) {
  const SgdSettings& settings = table.settings;
  return {plain_factors_of(table, index), float(settings.momentum), float(1 - settings.dampening), settings.nesterov,
          settings.first};
}

// Applies the update rule to one pack of every list; the gradient (list 1) does not change.
template <typename T, int kLists, typename Factors>
__device__ void apply_to_packs(Pack<T> (&packs)[kLists], const Factors& factors) {
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    float x[kLists];
#pragma unroll
    for (int l = 0; l < kLists; ++l) x[l] = widen(packs[l].values[i]);
    factors.apply(x);
#pragma unroll
    for (int l = 0; l < kLists; ++l)
      if (l != 1) packs[l].values[i] = narrow<T>(x[l]);
  }
}

template <typename T, int kLists, typename Factors>
__device__ void step_chunk(const TableEntry<kLists>& entry, int64_t offset, const Factors& factors) {
  constexpr int kSize = Pack<T>::kSize, kStep = kThreads * kSize, kBatch = kLists < 4 ? 2 : 1;
  static_assert(kChunk % (kStep * kBatch) == 0, "a full chunk is a whole number of batches");
  const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), entry.numel - offset));
  T* lists[kLists];
  bool is_fast = count == kChunk;
#pragma unroll
  for (int l = 0; l < kLists; ++l) {
    lists[l] = static_cast<T*>(entry.data[l]) + offset;
    is_fast = is_fast && is_aligned(lists[l]);
  }
  if (is_fast) {
    for (int start = threadIdx.x * kSize; start < kChunk; start += kBatch * kStep) {
      Pack<T> packs[kBatch][kLists];  // start all loads before the first is used
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
#pragma unroll
        for (int l = 0; l < kLists; ++l) packs[b][l] = load(lists[l] + start + b * kStep);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        apply_to_packs(packs[b], factors);
#pragma unroll
        for (int l = 0; l < kLists; ++l)
          if (l != 1) store(lists[l] + start + b * kStep, packs[b][l]);
      }
    }
  } else {
    for (int start = threadIdx.x * kSize; start < count; start += kStep) {
      const int n = min(kSize, count - start);
      Pack<T> packs[kLists];
#pragma unroll
      for (int l = 0; l < kLists; ++l) packs[l] = load(lists[l] + start, n);
      apply_to_packs(packs, factors);
#pragma unroll
      for (int l = 0; l < kLists; ++l)
        if (l != 1) store(lists[l] + start, packs[l], n);
    }
  }
}

// Thread 0 computes the factors whenever the next tensor begins.
template <typename Table>
__device__ void step_parameters(const Table& table) {
  __shared__ decltype(factors_of(table, 0)) shared;
  int known = -1;
  for_each_chunk(table.entries, table.entry_count, table.chunks, [&](int index, int, int part) {
    if (index != known) {
      __syncthreads();
      if (threadIdx.x == 0) shared = factors_of(table, index);
      __syncthreads();
      known = index;
    }
    dispatch(table.entries[index].dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      step_chunk<T>(table.entries[index], static_cast<int64_t>(part) * kChunk, shared);
    });
  });
}

template <typename Table>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) step_kernel(const __grid_constant__ Table table) {
  step_parameters(table);
}

__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ CounterTable table) {
  const int s = blockIdx.x * kThreads + threadIdx.x;
  if (s >= table.count) return;
  if (table.place == CounterPlace::kDeviceDouble)
    *static_cast<double*>(table.counters[s]) += 1;
  else
    *static_cast<float*>(table.counters[s]) += 1;
}

template <typename Table>
int grid_for(const Table& table, int multiprocessors) {
  return std::clamp(table.chunks, 1, multiprocessors * kBlocksPerMultiprocessor);
}

}  // namespace

void launch_count(const CounterTable& table, cudaStream_t stream) {
  launch("adamw_", &count_kernel, {(table.count + kThreads - 1) / kThreads, stream}, table);
}
void launch_step(const AdamTable& table, int multiprocessors, cudaStream_t stream) {
  launch("adamw_", &step_kernel<AdamTable>, {grid_for(table, multiprocessors), stream}, table);
}
void launch_step(const SgdTable& table, int multiprocessors, cudaStream_t stream) {
  launch("sgd_", &step_kernel<SgdTable>, {grid_for(table, multiprocessors), stream}, table);
}
void launch_step(const SgdMomentumTable& table, int multiprocessors, cudaStream_t stream) {
  launch("sgd_", &step_kernel<SgdMomentumTable>, {grid_for(table, multiprocessors), stream}, table);
}

}  // namespace cggm::cuda
