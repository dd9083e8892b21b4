// Cuts work into chunks of a fixed size, so that sums do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "loops.h"

namespace cggm::cpu {

constexpr int64_t kChunk = 16384;     // elements of a gradient
constexpr int64_t kHeadChunk = 8192;  // elements of each head gradient
constexpr int64_t kGrain = 32768;     // elements worth a thread of their own

struct Chunk {
  const Segment* segment;
  int64_t offset;
  int64_t count;
};

// Calls f(index) for every chunk, on as many threads as the amount of work deserves.
template <typename F>
void for_each_chunk(int64_t chunks, int64_t elements, const F& f) {
  if (chunks == 1) return f(0);
  const int64_t grain = elements > 0 ? std::max<int64_t>(1, chunks * kGrain / elements) : chunks + 1;
  torch::stable::parallel_for(0, chunks, grain, [&f](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// An uninitialised tensor in memory of the CPU. torch::stable::new_empty takes three times as long: it looks its operator up.
template <size_t kDim>
Tensor new_empty(const int64_t (&sizes)[kDim], ScalarType dtype) {
  int64_t strides[kDim];
  strides[kDim - 1] = 1;
  for (size_t d = kDim - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes[d];
  const int32_t type = dtype == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(kDim, sizes, strides, type, aoti_torch_device_type_cpu(), 0, &out));
  return Tensor(out);
}

// Calls f with a null pointer of the storage type that belongs to dtype, which must be a supported one.
template <typename F>
auto dispatch(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<Half*>(nullptr));
    default:
      return f(static_cast<float*>(nullptr));
  }
}

// Scales segments chunk by chunk; the squared norms are added up afterwards in a fixed order.
class ScaleTask {
 public:
  ScaleTask(const std::vector<Segment>& segments, const Tensor& coefficients);
  int64_t chunks() const { return static_cast<int64_t>(chunks_.size()); }
  int64_t elements() const { return elements_; }
  void run(int64_t index);
  Tensor sq_norms() const;  // [M + 1]

 private:
  Tensor coefficients_;
  std::vector<double> coefficient_;  // [M]
  std::vector<Chunk> chunks_;
  std::vector<double> sums_;  // [chunks]
  int64_t elements_ = 0;
};

// Dot products and squared norms of the head gradients, chunk by chunk.
class ProductsTask {
 public:
  ProductsTask(const Tensor& fusion, const std::vector<Tensor>& unimodal);
  int64_t chunks() const { return (numel_ + kHeadChunk - 1) / kHeadChunk; }
  int64_t elements() const { return numel_ * (modalities_ + 1); }
  void run(int64_t index);
  Tensor products() const;                       // [2M + 1]
  Tensor cosines(const Tensor& products) const;  // [M]

 private:
  Tensor fusion_;
  std::vector<Tensor> unimodal_;  // contiguous, kept alive for rows_
  std::vector<const void*> rows_;
  int64_t modalities_;
  int64_t numel_;
  std::vector<double> sums_;  // [chunks, 2M + 1]
};

}  // namespace cggm::cpu
