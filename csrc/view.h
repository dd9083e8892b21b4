// Refusals, and a tensor as the checks and kernels see it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace cggm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline void check_dtype(ScalarType dtype, const char* name) {
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Half && dtype != ScalarType::Double)
    refuse(name, " must be float32, bfloat16, float16 or float64, found ", torch::headeronly::toString(dtype),
           ": convert it first");
}

// torch's own conversion tries one type after another; this one tries the most frequent types first.
inline ScalarType to_scalar_type(int32_t dtype) {
  static const int32_t float32 = aoti_torch_dtype_float32(), bfloat16 = aoti_torch_dtype_bfloat16();
  if (dtype == float32) return ScalarType::Float;
  if (dtype == bfloat16) return ScalarType::BFloat16;
  return torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype));
}

inline int32_t cpu_type() {
  static const int32_t type = aoti_torch_device_type_cpu();
  return type;
}

// What the checks and kernels need to know about a tensor.
struct View {
  AtenTensorHandle handle;  // null if the tensor came straight from Python; it is contiguous then
  void* data;
  int64_t numel;
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
  ScalarType dtype;
  int32_t element_size;
  int32_t device_type;
  int32_t device_index;
  bool contiguous;
};

inline std::string shape_of(const View& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim; ++d) text += (d > 0 ? ", " : "") + std::to_string(tensor.sizes[d]);
  return text + "]";
}

inline View view(AtenTensorHandle tensor) {
  View out{};
  int32_t dtype = 0, layout = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor, &layout));
  if (layout != aoti_torch_layout_strided()) refuse("all tensors must be dense, found a sparse one: call .to_dense() on it");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &out.device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &out.device_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &out.numel));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &out.dim));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &out.data));
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &out.contiguous));
  out.handle = tensor;
  out.sizes = sizes;
  out.strides = strides;
  out.dtype = to_scalar_type(dtype);
  out.element_size = static_cast<int32_t>(aoti_torch_dtype_element_size(dtype));
  return out;
}

// Tells whether the elements fill one block of memory without gaps or overlaps, in any order.
inline bool is_dense(const View& tensor) {
  if (tensor.contiguous) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < tensor.dim; ++d)
    if (tensor.sizes[d] != 1) dims.emplace_back(tensor.strides[d], tensor.sizes[d]);
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool same_device(const View& a, const View& b) {
  return a.device_type == b.device_type && a.device_index == b.device_index;
}
inline bool same_shape(const View& a, const View& b) {
  if (a.dim != b.dim) return false;
  for (int64_t d = 0; d < a.dim; ++d)  // std::equal would call memcmp
    if (a.sizes[d] != b.sizes[d]) return false;
  return true;
}
// Tells whether elements of equal index lie at equal distances from the start. Strides along sizes of 1 do not matter.
inline bool same_order(const View& a, const View& b) {
  if (a.contiguous && b.contiguous) return true;
  for (int64_t d = 0; d < a.dim; ++d)
    if (a.sizes[d] != 1 && a.strides[d] != b.strides[d]) return false;
  return true;
}

inline void check_same_device(const View& tensor, const View& other, const char* name, const char* other_name) {
  if (!same_device(tensor, other))
    refuse(name, " must be on the device of ", other_name, ": move one of them with .to(device)");
}

inline Tensor share(AtenTensorHandle tensor) {
  AtenTensorHandle copy = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor, &copy));
  return Tensor(copy);
}

// Returns the elements of `tensor` in the order of `like`, which has no gaps. A copy, if needed, is kept alive in `copies`.
inline const void* in_order_of(const View& tensor, const View& like, std::vector<Tensor>& copies) {
  if (same_order(tensor, like)) return tensor.data;
  copies.push_back(torch::stable::empty_like(share(like.handle)));
  torch::stable::copy_(copies.back(), share(tensor.handle));
  return copies.back().data_ptr();
}

}  // namespace cggm
