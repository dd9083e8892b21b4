// segment_gram: all dot products of K sets in one read from memory; a second kernel adds them up, as in modulation_kernel.cu.
// segment_combine_: one pass that writes the weighted sum.
#include <algorithm>

#include "launch.cuh"
#include "pack.cuh"
#include "rows.cuh"
#include "segments.cuh"

namespace cggm::cuda {

namespace {

// Each row comes from memory once; later reads find it in the cache.
template <typename T>
__device__ void gram_chunk(void* const* rows, int sets, int64_t numel, int chunk, double (*shared)[kMaxPairs]) {
  constexpr int kPiece = kHeadChunk / kWarps, kPacks = kPiece / (32 * Pack<T>::kSize);
  const int warp = threadIdx.x / 32;
  const bool is_writer = threadIdx.x % 32 == 0;
  const int64_t offset = static_cast<int64_t>(chunk) * kHeadChunk + warp * kPiece;
  Pack<T> a[kPacks], b[kPacks];  // [kPiece / 32] of this lane
  int pair = 0;
  for (int j = 0; j < sets; ++j) {
    read_row(static_cast<const T*>(rows[j]) + offset, numel - offset, a);
    const double square = dot(a, a);
    if (is_writer) shared[warp][pair] = square;
    ++pair;
    for (int k = j + 1; k < sets; ++k, ++pair) {
      read_row(static_cast<const T*>(rows[k]) + offset, numel - offset, b);
      const double product = dot(a, b);
      if (is_writer) shared[warp][pair] = product;
    }
  }
}

__global__ void __launch_bounds__(kThreads) gram_sums_kernel(const __grid_constant__ GramTable table) {
  const SegmentTable& sets = table.sets;
  const int lane = threadIdx.x % 32, pairs = sets.sets * (sets.sets + 1) / 2;
  const int64_t outputs = static_cast<int64_t>(sets.segment_count) * pairs;
  for (int64_t output = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; output < outputs;
       output += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int segment = static_cast<int>(output / pairs), pair = static_cast<int>(output % pairs);
    double sum = 0;
    for (int chunk = sets.segments[segment].first_chunk + lane; chunk < sets.segments[segment + 1].first_chunk; chunk += 32)
      sum += table.partials[static_cast<int64_t>(chunk) * pairs + pair];
    sum = warp_sum(sum);
    int j = 0, k = pair;  // row j of the triangle holds sets.sets - j pairs
    while (k >= sets.sets - j) k -= sets.sets - j++;
    k += j;
    double* gram = table.gram + static_cast<int64_t>(sets.first_segment + segment) * sets.sets * sets.sets;
    if (lane == 0) gram[j * sets.sets + k] = gram[k * sets.sets + j] = sum;
  }
}

constexpr int kGramBlocks = 2;  // per multiprocessor: two rows at a time take more registers

__global__ void __launch_bounds__(kThreads, kGramBlocks) gram_kernel(const __grid_constant__ GramTable table) {
  __shared__ double shared[kWarps][kMaxPairs];
  const int sets = table.sets.sets, pairs = sets * (sets + 1) / 2;
  for_each_chunk(table.sets.segments, table.sets.segment_count, table.sets.chunks, [&](int index, int chunk, int part) {
    const Segment& segment = table.sets.segments[index];
    dispatch(segment.dtype, [&](auto* type) {
      gram_chunk<std::remove_pointer_t<decltype(type)>>(table.sets.data + index * sets, sets, segment.numel, part, shared);
    });
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
      double sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp][pair];
      table.partials[static_cast<int64_t>(chunk) * pairs + pair] = sum;
    }
    __syncthreads();
  });
}

template <typename T>
__device__ void combine_chunk(const CombineTable& table, int index, int part) {
  constexpr int kSize = Pack<T>::kSize, kPacks = kHeadChunk / (kThreads * kSize);
  const int sets = table.sets.sets, segment = table.sets.first_segment + index;
  void* const* rows = table.sets.data + index * sets;
  const int64_t start = static_cast<int64_t>(part) * kHeadChunk + threadIdx.x * kSize;
  const auto elements = [&](int p) {  // of this thread's pack p
    const int64_t left = table.sets.segments[index].numel - start - p * kThreads * kSize;
    return static_cast<int>(max(static_cast<int64_t>(0), min(left, static_cast<int64_t>(kSize))));
  };
  float sums[kPacks][kSize] = {};
  for (int k = 0; k < sets; ++k) {
    const float weight = number_at(table.weights, segment * table.row_stride + k * table.weights.stride);
    const T* row = static_cast<const T*>(rows[k]) + start;
    const bool is_fast = is_aligned(row) && elements(kPacks - 1) == kSize;
    Pack<T> packs[kPacks];
    if (is_fast) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) packs[p] = load(row + p * kThreads * kSize);
    } else {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) packs[p] = load(row + p * kThreads * kSize, elements(p));
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
#pragma unroll
      for (int i = 0; i < kSize; ++i) sums[p][i] += widen(packs[p].values[i]) * weight;
  }
  T* out = static_cast<T*>(rows[0]) + start;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kSize; ++i) pack.values[i] = narrow<T>(sums[p][i]);
    if (is_aligned(out) && elements(p) == kSize)
      store(out + p * kThreads * kSize, pack);
    else
      store(out + p * kThreads * kSize, pack, elements(p));
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    combine_kernel(const __grid_constant__ CombineTable table) {
  for_each_chunk(table.sets.segments, table.sets.segment_count, table.sets.chunks, [&](int index, int, int part) {
    dispatch(table.sets.segments[index].dtype, [&](auto* type) {
      combine_chunk<std::remove_pointer_t<decltype(type)>>(table, index, part);
    });
  });
}

int grid_for(const SegmentTable& table, int blocks) { return std::clamp(table.chunks, 1, blocks); }

}  // namespace

void launch_gram(const GramTable& table, int multiprocessors, cudaStream_t stream) {
  const int grid = grid_for(table.sets, multiprocessors * kGramBlocks);
  launch("segment_gram", &gram_kernel, {grid, stream}, table);
  launch("segment_gram", &gram_sums_kernel, {grid, stream}, table);
}

void launch_combine(const CombineTable& table, int multiprocessors, cudaStream_t stream) {
  const int grid = grid_for(table.sets, multiprocessors * kBlocksPerMultiprocessor);
  launch("segment_combine_", &combine_kernel, {grid, stream}, table);
}

}  // namespace cggm::cuda
