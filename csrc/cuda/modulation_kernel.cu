// scale_, batched_cosine and modulate_ share a kernel: blocks work on chunks of the head gradients and of the gradients, and
// write one partial sum per chunk. A second, small kernel adds the partial sums up in a fixed order.
//
// A grid barrier would save the second launch, but needs a cooperative launch, which depends on the device and on what else
// runs on it. The usual counter of finished blocks would have to be zeroed before every launch, or live in a buffer that
// outlasts the call, and two streams or replays of a graph could use it at once.
#include <algorithm>

#include "launch.cuh"
#include "modulation.cuh"
#include "pack.cuh"
#include "rows.cuh"

namespace cggm::cuda {

namespace {

// Multiplies the first n elements, rounds them once, and returns the sum of their squares afterwards.
template <typename T>
__device__ double scale_pack(Pack<T>& pack, float coefficient, bool is_scaled, int n = Pack<T>::kSize) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    // An infinite coefficient would turn the padding into NaN.
    if (is_scaled && i < n) pack.values[i] = narrow<T>(widen(pack.values[i]) * coefficient);
    const double value = widen(pack.values[i]);
    sum += value * value;
  }
  return sum;
}

// Returns this thread's part of the sum of squares of count <= kChunk elements.
template <typename T>
__device__ double scale_chunk(T* data, int count, float coefficient, bool is_scaled) {
  constexpr int kSize = Pack<T>::kSize, kStep = kThreads * kSize, kBatch = 4;
  static_assert(kChunk % (kStep * kBatch) == 0, "a full chunk is a whole number of batches");
  double sum = 0;
  if (count == kChunk && is_aligned(data)) {
    for (int start = threadIdx.x * kSize; start < kChunk; start += kBatch * kStep) {
      Pack<T> packs[kBatch];  // start all loads before the first is used
#pragma unroll
      for (int b = 0; b < kBatch; ++b) packs[b] = load(data + start + b * kStep);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        sum += scale_pack(packs[b], coefficient, is_scaled);
        if (is_scaled) store(data + start + b * kStep, packs[b]);
      }
    }
  } else {
    for (int start = threadIdx.x * kSize; start < count; start += kStep) {
      const int n = min(kSize, count - start);
      Pack<T> pack = load(data + start, n);
      sum += scale_pack(pack, coefficient, is_scaled, n);
      if (is_scaled) store(data + start, pack, n);
    }
  }
  return sum;
}

template <int kCapacity>
__device__ void scale_gradients(const ModulateTable<kCapacity>& table, double (&shared)[2][kWarps]) {
  for_each_chunk(table.entries, table.entry_count, table.chunks, [&](int index, int chunk, int part) {
    const TableEntry<1>& entry = table.entries[index];
    const int64_t offset = static_cast<int64_t>(part) * kChunk;
    const int count = min(static_cast<int64_t>(kChunk), entry.numel - offset);
    const float coefficient = factor_of(table.coefficients, entry.modality);
    double sum = 0;
    dispatch(entry.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      // A coefficient of one leaves every bit as it is, those of a NaN included: the tensor is only read.
      sum = scale_chunk(static_cast<T*>(entry.data[0]) + offset, count, coefficient, coefficient != 1);
    });
    // Two alternating buffers need only one barrier per chunk.
    double(&sums)[kWarps] = shared[chunk & 1];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = 0;
      for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
      table.outputs.partials[table.chunk_base + chunk] = total;
    }
  });
}

// Products of one chunk: each warp keeps its part of fusion in registers while it reads the rows.
template <typename T>
__device__ void head_chunk(const HeadTable& head, int chunk, double (*shared)[2 * kMaxModalities + 1], double* out) {
  constexpr int kPiece = kHeadChunk / kWarps, kPacks = kPiece / (32 * Pack<T>::kSize);
  const int warp = threadIdx.x / 32;
  const bool is_writer = threadIdx.x % 32 == 0;
  const int64_t offset = static_cast<int64_t>(chunk) * kHeadChunk + warp * kPiece;
  const int64_t left = head.numel - offset;
  Pack<T> fusion[kPacks], row[kPacks];  // [kPiece / 32] of this lane
  read_row(static_cast<const T*>(head.fusion) + offset, left, fusion);
  const double sq_fusion = dot(fusion, fusion);
  if (is_writer) shared[warp][2 * head.modalities] = sq_fusion;
  for (int m = 0; m < head.modalities; ++m) {
    read_row(static_cast<const T*>(head.rows[m]) + offset, left, row);
    const double product = dot(row, fusion), square = dot(row, row);
    if (!is_writer) continue;
    shared[warp][m] = product;
    shared[warp][head.modalities + m] = square;
  }
  __syncthreads();
  for (int k = threadIdx.x; k < 2 * head.modalities + 1; k += kThreads) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w][k];
    out[k] = sum;
  }
  __syncthreads();
}

// 0 if a norm is 0. Clamped to [-1, 1] against rounding; NaN stays NaN.
__device__ double cosine(double dot, double sq_fusion, double sq_unimodal) {
  if (sq_fusion == 0 || sq_unimodal == 0) return 0;
  const double value = dot / sqrt(sq_fusion) / sqrt(sq_unimodal);
  return value > 1 ? 1 : value < -1 ? -1 : value;
}

// Each block computes the results of one modality after another.
__device__ void finish_head(const HeadTable& head, const ModulateOutputs& outputs, double (&shared)[kWarps]) {
  const int width = 2 * head.modalities + 1;
  const auto column = [&](int k) {
    double sum = 0;
    for (int chunk = threadIdx.x; chunk < head.chunks; chunk += kThreads)
      sum += outputs.head_partials[static_cast<int64_t>(chunk) * width + k];
    return block_sum(sum, shared);
  };
  for (int m = blockIdx.x; m < max(head.modalities, 1); m += gridDim.x) {
    const double sq_fusion = column(width - 1);
    if (m == 0 && threadIdx.x == 0) outputs.products[width - 1] = sq_fusion;
    if (m == head.modalities) break;  // there is no unimodal gradient
    const double dot = column(m), square = column(head.modalities + m);
    if (threadIdx.x != 0) continue;
    outputs.products[m] = dot;
    outputs.products[head.modalities + m] = square;
    outputs.cosines[m] = static_cast<float>(cosine(dot, sq_fusion, square));
  }
}

__device__ void finish_norms(const ModulateShared& table, double (&shared)[kWarps]) {
  for (int m = blockIdx.x; m <= table.modalities; m += gridDim.x) {
    double sum = 0;
    for (int chunk = table.modality_begin[m] + threadIdx.x; chunk < table.modality_begin[m + 1]; chunk += kThreads)
      sum += table.outputs.partials[chunk];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) table.outputs.sq_norms[m] = sum;
  }
}

template <int kCapacity>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    modulate_kernel(const __grid_constant__ ModulateTable<kCapacity> table) {
  __shared__ double head_sums[kWarps][2 * kMaxModalities + 1];
  __shared__ double sums[2][kWarps];
  const HeadTable& head = table.head;
  for (int chunk = blockIdx.x; chunk < table.head_chunks; chunk += gridDim.x) {
    double* out = table.outputs.head_partials + static_cast<int64_t>(chunk) * (2 * head.modalities + 1);
    dispatch(head.dtype, [&](auto* type) {
      head_chunk<std::remove_pointer_t<decltype(type)>>(head, chunk, head_sums, out);
    });
  }
  scale_gradients(table, sums);
}

__global__ void __launch_bounds__(kThreads) modulate_sums_kernel(const __grid_constant__ ModulateShared table) {
  __shared__ double shared[kWarps];
  if (table.outputs.products != nullptr) finish_head(table.head, table.outputs, shared);
  if (table.outputs.sq_norms != nullptr) finish_norms(table, shared);
}

}  // namespace

template <int kCapacity>
void launch_modulate(const ModulateTable<kCapacity>& table, int multiprocessors, cudaStream_t stream) {
  const int grid = std::clamp(std::max(table.head_chunks, table.chunks), 1, multiprocessors * kBlocksPerMultiprocessor);
  launch("modulate", &modulate_kernel<kCapacity>, {grid, stream}, table);
}
template void launch_modulate(const ModulateTable<kFewGradients>&, int, cudaStream_t);
template void launch_modulate(const ModulateTable<kMaxGradients>&, int, cudaStream_t);

void launch_modulate_sums(const ModulateShared& shared, cudaStream_t stream) {
  launch("modulate_sums", &modulate_sums_kernel, {std::max(shared.head.modalities, shared.modalities + 1), stream}, shared);
}

}  // namespace cggm::cuda
