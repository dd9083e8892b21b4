// The launches behind segment_gram and segment_combine_.
#pragma once

#include <cuda_runtime_api.h>

#include "table.h"

namespace cggm::cuda {

constexpr int kMaxSets = 16;
constexpr int kMaxPairs = kMaxSets * (kMaxSets + 1) / 2;
constexpr int kMaxSegments = 1000;  // of one launch
constexpr int kMaxPointers = 2000;  // of one launch: a thousand segments of two sets

struct Segment {
  int64_t numel;
  int32_t first_chunk;
  DType dtype;
};

struct SegmentTable {
  void* data[kMaxPointers];            // [S, K]
  Segment segments[kMaxSegments + 1];  // one more marks the end
  int32_t segment_count;
  int32_t first_segment;  // segments of earlier launches
  int32_t sets;
  int32_t chunks;  // of kHeadChunk elements
};

struct GramTable {
  SegmentTable sets;
  double* partials;  // [chunks, pairs], pairs in the order (0, 0), (0, 1), ..., (1, 1), ...
  double* gram;      // [S of all launches, K, K]
};

struct CombineTable {
  SegmentTable sets;
  Factors weights;     // [S of all launches, K]; the stride is that of the columns
  int64_t row_stride;
};
static_assert(sizeof(GramTable) <= kParameterBytes && sizeof(CombineTable) <= kParameterBytes, "a kernel's parameters");

// Two launches: all dot products of the sets, per segment.
void launch_gram(const GramTable& table, int multiprocessors, cudaStream_t stream);

// One launch: set 0 becomes the weighted sum of all sets, per segment.
void launch_combine(const CombineTable& table, int multiprocessors, cudaStream_t stream);

}  // namespace cggm::cuda
