// The launches behind scale_, batched_cosine, modulate_ and batched_cosine_backward.
#pragma once

#include <cuda_runtime_api.h>

#include "table.h"

namespace cggm::cuda {

constexpr int kMaxGradients = 1024;  // of one launch
constexpr int kFewGradients = 64;    // of one launch with a small table, which is cheaper to copy

// Where the results go. `partials` holds the sums of chunks until all blocks have finished.
struct ModulateOutputs {
  double* partials;       // [chunks of all launches]
  double* head_partials;  // [head chunks, 2M + 1]
  double* sq_norms;       // [M + 1], or null
  double* products;       // [2M + 1], or null
  float* cosines;         // [M]
};

// What all launches of a call share.
struct ModulateShared {
  int32_t modality_begin[kMaxModalities + 2];  // chunks of all launches: modality m owns [begin[m], begin[m + 1])
  HeadTable head;
  Factors coefficients;  // [M]
  ModulateOutputs outputs;
  int32_t modalities;
};

template <int kCapacity>
struct ModulateTable : ModulateShared {
  TableEntry<1> entries[kCapacity + 1];  // sorted by modality (-1 last); one more marks the end
  int32_t entry_count;
  int32_t chunks;       // of this launch
  int32_t chunk_base;   // chunks of earlier launches
  int32_t head_chunks;  // of this launch
};
static_assert(sizeof(ModulateTable<kMaxGradients>) <= kParameterBytes, "the table must fit a kernel's parameters");

// One launch: scales the gradients and leaves partial sums of their squares and of the head gradients' products.
template <int kCapacity>
void launch_modulate(const ModulateTable<kCapacity>& table, int multiprocessors, cudaStream_t stream);

// One launch: adds the partial sums up and writes the results.
void launch_modulate_sums(const ModulateShared& shared, cudaStream_t stream);

struct CosineBackwardTable {
  HeadTable head;
  const double* products;  // [2M + 1]
  Factors grad;            // [M]
  void* out;               // [D]
};

// One launch: out = sum_m w[m] * rows[m] + w[M] * fusion.
void launch_cosine_backward(const CosineBackwardTable& table, int multiprocessors, cudaStream_t stream);

}  // namespace cggm::cuda
