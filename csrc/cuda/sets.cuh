// The launches behind segment_gram and segment_combine_.
#pragma once

#include <cuda_runtime_api.h>

#include "table.h"

namespace cggm::cuda {

constexpr int kMaxSets = 16;
constexpr int kMaxPairs = kMaxSets * (kMaxSets + 1) / 2;
constexpr int kSetSegments = 1000;  // of one launch
constexpr int kSetPointers = 2000;  // of one launch: a thousand segments of two sets

// Elements of each set that a block works on at a time.
template <typename T>
constexpr int kSetChunk = kHeadChunk<T>;

struct SetSegment {
  int64_t numel;
  int32_t first_chunk;
  DType dtype;
};

struct SetTable {
  void* data[kSetPointers];               // [S, K]
  SetSegment segments[kSetSegments + 1];  // one more that marks the end
  int32_t segment_count;
  int32_t first_segment;  // segments of earlier launches
  int32_t sets;
  int32_t chunks;
};

struct GramTable {
  SetTable sets;
  double* partials;  // [chunks, pairs], pairs in the order (0, 0), (0, 1), ..., (1, 1), ...
  double* gram;      // [S of all launches, K, K]
};

struct CombineTable {
  SetTable sets;
  const void* weights;  // [S of all launches, K]
  int64_t row_stride;
  int64_t column_stride;
  bool is_double;
};
static_assert(sizeof(GramTable) <= kParameterBytes && sizeof(CombineTable) <= kParameterBytes, "a kernel's parameters");

// One launch: all dot products of the sets, per segment.
void launch_gram(const GramTable& table, int multiprocessors, cudaStream_t stream);

// One launch: set 0 becomes the weighted sum of all sets, per segment.
void launch_combine(const CombineTable& table, int multiprocessors, cudaStream_t stream);

}  // namespace cggm::cuda
