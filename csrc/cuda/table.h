// What travels to a kernel by value: tables of pointers in its parameter space, so that neither a copy nor a buffer on the
// device is needed. Plain structures, shared by the host code (.cpp) and the kernels (.cu).
#pragma once

#include <cstddef>
#include <cstdint>

namespace cggm::cuda {

constexpr std::size_t kParameterBytes = 32764;  // all arguments of one launch together, since CUDA 12.1 on sm_70 and later
constexpr int kMaxModalities = 128;
constexpr int kMaxSegments = 1024;  // of one launch
constexpr int kFewSegments = 64;    // a small table, so that a small call does not pay for a large one

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 3;  // leaves 80 registers a thread: enough for the head gradients
constexpr int kChunk = 8192;      // elements of a gradient that a block sums at a time

enum class DType : int16_t { kFloat, kDouble, kBFloat16, kHalf };

// Elements of each head gradient that a block sums at a time: as many as its registers hold.
template <typename T>
constexpr int kHeadChunk = sizeof(T) == sizeof(double) ? 2048 : 4096;

// Chunk `first_chunk + i` of a launch is the part [i * kChunk, (i + 1) * kChunk) of this tensor.
struct TableSegment {
  void* data;
  int64_t numel;
  int32_t first_chunk;
  int16_t modality;  // -1: leave unscaled
  DType dtype;
};

struct Coefficients {
  const void* data;  // [M], on the device
  int64_t stride;
  bool is_double;
};

// The head gradients of one launch; M rows of numel elements.
struct HeadTable {
  const void* fusion;               // [D]
  const void* rows[kMaxModalities]; // [M][D]
  int64_t numel;
  int32_t chunks;
  int32_t modalities;
  DType dtype;
};

// Where the results go. Sums of chunks are kept in `partials` until all blocks have finished.
struct ModulateOutputs {
  double* partials;       // [chunks of all launches]
  double* head_partials;  // [head chunks, 2M + 1]
  double* sq_norms;       // [M + 1], or null
  double* products;       // [2M + 1], or null
  void* cosines;          // [M], float or double
};

template <int kCapacity>
struct ModulateTable {
  TableSegment segments[kCapacity + 1];  // sorted by modality (-1 last); one more that marks the end
  int32_t modality_begin[kMaxModalities + 2];  // chunks of all launches: modality m owns [begin[m], begin[m + 1])
  HeadTable head;
  Coefficients coefficients;
  ModulateOutputs outputs;
  int32_t segment_count;
  int32_t chunks;      // of this launch
  int32_t chunk_base;  // chunks of earlier launches
  int32_t modalities;
  bool is_last;        // all partial sums are there once this launch has finished its own
};
static_assert(sizeof(ModulateTable<kMaxSegments>) <= kParameterBytes, "the table must fit a kernel's parameters");

}  // namespace cggm::cuda
