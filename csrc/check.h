// Validation shared by all compiled implementations. Every refusal is a std::invalid_argument, which Python sees as ValueError.
// The same rules, for the implementations in Python, are in cggm_ops/checks.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "tensor_list.h"

namespace cggm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One gradient tensor, as the kernels see it.
struct Segment {
  void* data;
  int64_t numel;
  int64_t bytes;
  int64_t modality;  // -1: leave unscaled
  ScalarType dtype;
};

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline bool is_supported(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ||
      dtype == ScalarType::Double;
}

// torch's own conversion asks for one type after the other; here the most frequent ones come first.
inline ScalarType to_scalar_type(int32_t dtype) {
  static const int32_t float32 = aoti_torch_dtype_float32(), bfloat16 = aoti_torch_dtype_bfloat16();
  if (dtype == float32) return ScalarType::Float;
  if (dtype == bfloat16) return ScalarType::BFloat16;
  return take<ScalarType>(torch::stable::detail::from(dtype));
}

// True where the elements fill one block of memory without gaps or overlaps, in whatever order.
inline bool is_dense(AtenTensorHandle tensor) {
  bool contiguous = false;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &contiguous));
  if (contiguous) return true;
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < dim; ++d)
    if (sizes[d] != 1) dims.emplace_back(strides[d], sizes[d]);
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Elements from the first to the last one in memory, gaps included.
inline int64_t extent(const Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return last + 1;
}

inline void check_dtype(ScalarType dtype, const char* name) {
  if (!is_supported(dtype))
    refuse(name, " must be float32, bfloat16, float16 or float64, found ", torch::headeronly::toString(dtype),
           ": convert it first");
}

inline void check_same_device(const Tensor& tensor, const Tensor& other, const char* name, const char* other_name) {
  if (tensor.is_cpu() != other.is_cpu() || tensor.get_device_index() != other.get_device_index())
    refuse(name, " must be on the device of ", other_name, ": move one of them with .to(device)");
}

// grads, owner and coefficients of scale_ and modulate_; nothing is changed when they are refused.
inline std::vector<Segment> check_segments(
    const TensorList& grads, const std::vector<int64_t>& owner, const Tensor& coefficients) {
  const ScalarType kind = coefficients.scalar_type();
  if (coefficients.dim() != 1 || (kind != ScalarType::Float && kind != ScalarType::Double))
    refuse("coefficients must be one-dimensional, float32 or float64, found ", coefficients.dim(), " dimensions of ",
           torch::headeronly::toString(kind));
  if (owner.size() != grads.size())
    refuse("owner must name one modality per tensor in grads, found ", owner.size(), " for ", grads.size());
  const int64_t modalities = coefficients.numel();
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(coefficients.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(coefficients.get(), &device_index));
  std::vector<Segment> segments(grads.size());
  for (size_t s = 0; s < grads.size(); ++s) {
    Segment& segment = segments[s];
    int32_t dtype = 0, type = 0, index = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(grads[s], &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(grads[s], &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(grads[s], &index));
    segment.dtype = to_scalar_type(dtype);
    segment.modality = owner[s];
    check_dtype(segment.dtype, "grads");
    if (type != device_type || index != device_index)
      refuse("grads[", s, "] must be on the device of coefficients: move one of them with .to(device)");
    if (owner[s] < -1 || owner[s] >= modalities)
      refuse("owner must lie in [-1, ", modalities, ") for ", modalities, " coefficients, found ", owner[s], " at ", s);
    if (!is_dense(grads[s]))
      refuse("grads[", s, "] must fill its memory without gaps or overlaps: pass .contiguous() and copy the result back");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(grads[s], &segment.numel));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(grads[s], &segment.data));
    segment.bytes = segment.numel * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  }
  return segments;
}

// Refuses memory that occurs twice in grads.
inline std::vector<const Segment*> check_disjoint(const std::vector<Segment>& segments) {
  std::vector<const Segment*> order;
  order.reserve(segments.size());
  for (const Segment& segment : segments)
    if (segment.numel > 0) order.push_back(&segment);
  const auto before = [](const Segment* a, const Segment* b) { return a->data < b->data; };
  if (!std::is_sorted(order.begin(), order.end(), before)) std::sort(order.begin(), order.end(), before);
  for (size_t i = 1; i < order.size(); ++i)
    if (static_cast<const char*>(order[i - 1]->data) + order[i - 1]->bytes > order[i]->data)
      refuse("grads must not share memory, but grads[", order[i - 1] - segments.data(), "] and grads[",
             order[i] - segments.data(), "] do: pass every tensor once");
  return order;
}

// Refuses a head gradient that scaling would change while it is read. `order` is sorted by address and disjoint.
inline void check_not_scaled(const Tensor& tensor, const std::vector<const Segment*>& order, const char* name) {
  const char* begin = static_cast<const char*>(tensor.data_ptr());
  const char* end = begin + extent(tensor) * tensor.element_size();
  auto found = std::upper_bound(order.begin(), order.end(), begin, [](const char* address, const Segment* segment) {
    return address < static_cast<const char*>(segment->data) + segment->bytes;
  });
  for (; found != order.end() && static_cast<const char*>((*found)->data) < end; ++found)
    if ((*found)->modality >= 0)
      refuse(name, " shares memory with a tensor in grads that is to be scaled: give that one the owner -1, or pass a copy");
}

// fusion [D] and unimodal, M tensors of D elements.
inline void check_head(const Tensor& fusion, const std::vector<Tensor>& unimodal) {
  check_dtype(fusion.scalar_type(), "fusion");
  for (size_t m = 0; m < unimodal.size(); ++m) {
    if (unimodal[m].numel() != fusion.numel())
      refuse("unimodal[", m, "] must have as many elements as fusion (", fusion.numel(), "), found ", unimodal[m].numel(),
             ": both are gradients of output layers of one shape");
    if (unimodal[m].scalar_type() != fusion.scalar_type())
      refuse("unimodal[", m, "] must have the dtype of fusion (", torch::headeronly::toString(fusion.scalar_type()),
             "), found ", torch::headeronly::toString(unimodal[m].scalar_type()));
    check_same_device(unimodal[m], fusion, "unimodal", "fusion");
  }
}

}  // namespace cggm
