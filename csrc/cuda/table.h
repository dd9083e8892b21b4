// What a kernel receives by value: tables of pointers in its parameter space, so that no copy and no buffer on the device is
// needed. Plain structures, shared by the host code (.cpp) and the kernels (.cu).
#pragma once

#include <cstddef>
#include <cstdint>

namespace cggm::cuda {

constexpr std::size_t kParameterBytes = 32764;  // all arguments of one launch together, since CUDA 12.1 on sm_70 and later
constexpr int kOldestDriver = 12010;                  // CUDA 12.1
constexpr int kMaxModalities = 128;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 3;  // leaves 80 registers per thread, enough for the head gradients
constexpr int kChunk = 8192;                 // elements of a gradient that a block works on at a time
constexpr int kHeadChunk = 4096;             // elements of each head gradient or set: what the registers of a block hold

enum class DType : int16_t { kFloat, kBFloat16, kHalf };

// `kLists` tensors of equal length that a kernel processes together. Chunk `first_chunk + i` of a launch is their part
// [i * kChunk, (i + 1) * kChunk).
template <int kLists>
struct TableEntry {
  void* data[kLists];
  int64_t numel;
  int32_t first_chunk;
  int16_t modality;  // -1: none
  DType dtype;
};

// Coefficients, scales or weights on the device. A null pointer means all ones.
struct Factors {
  const void* data;
  int64_t stride;
  bool is_double;
};

// The head gradients of one launch; M rows of numel elements.
struct HeadTable {
  const void* fusion;                // [D]
  const void* rows[kMaxModalities];  // [M][D]
  int64_t numel;
  int32_t chunks;
  int32_t modalities;
  DType dtype;
};

}  // namespace cggm::cuda
