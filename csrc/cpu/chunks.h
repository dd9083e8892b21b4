// Cuts work into chunks of a fixed size, so that sums do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../check_modulation.h"
#include "loops.h"

namespace cggm::cpu {

constexpr int64_t kChunk = 16384;     // elements of a gradient
constexpr int64_t kHeadChunk = 8192;  // elements of each head gradient
constexpr int64_t kGrain = 32768;     // elements that make a thread worth its start

// Calls f(index) for every chunk, on as many threads as the amount of work justifies.
template <typename F>
void for_each_chunk(int64_t chunks, int64_t elements, const F& f) {
  if (chunks == 1) return f(0);
  const int64_t grain = elements > 0 ? std::max<int64_t>(1, chunks * kGrain / elements) : chunks + 1;
  torch::stable::parallel_for(0, chunks, grain, [&f](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

struct Chunk {
  int64_t tensor;
  int64_t offset;
  int64_t count;
};

// The chunks of a list of tensors. A chunk holds `size` elements of each of `width` tensors that are processed together.
struct Chunks {
  std::vector<Chunk> list;
  int64_t elements = 0;

  template <typename Tensors, typename Numel>
  Chunks(const Tensors& tensors, const Numel& numel, int64_t size = kChunk, int64_t width = 1) {
    list.reserve(tensors.size());
    for (size_t s = 0; s < tensors.size(); ++s) {
      const int64_t n = numel(tensors[s]);
      elements += n * width;
      for (int64_t offset = 0; offset < n; offset += size)
        list.push_back({static_cast<int64_t>(s), offset, std::min(size, n - offset)});
    }
  }
  int64_t count() const { return static_cast<int64_t>(list.size()); }
};

// An uninitialized tensor on the CPU. torch::stable::new_empty would take three times as long, looking up its operator.
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

inline double* zeroed(Tensor& tensor) {
  double* data = static_cast<double*>(tensor.data_ptr());
  std::fill(data, data + tensor.numel(), 0.0);
  return data;
}

// Reads the element at an offset, float32 or float64, as a double.
inline double number_at(const View& tensor, int64_t place) {
  return tensor.dtype == ScalarType::Double ? static_cast<const double*>(tensor.data)[place]
                                            : static_cast<const float*>(tensor.data)[place];
}

// Reads a one-dimensional tensor.
inline std::vector<double> numbers(const View& tensor) {
  std::vector<double> out(tensor.numel);
  for (size_t i = 0; i < out.size(); ++i) out[i] = number_at(tensor, static_cast<int64_t>(i) * tensor.strides[0]);
  return out;
}

// Calls f with a null pointer to the storage type of a supported dtype.
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

}  // namespace cggm::cpu
