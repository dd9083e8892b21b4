// Checks that all compiled implementations share. A refused argument raises std::invalid_argument, which Python sees as a
// ValueError; nothing has been changed then. cggm_ops/checks holds the same rules for the implementations in Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "tensor_list.h"

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
  return take<ScalarType>(torch::stable::detail::from(dtype));
}

// Tells whether the elements fill one block of memory without gaps or overlaps, in any order.
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

// What the checks and kernels need to know about a tensor.
struct View {
  AtenTensorHandle handle;
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

inline bool same_device(const View& a, const View& b) {
  return a.device_type == b.device_type && a.device_index == b.device_index;
}
inline bool same_shape(const View& a, const View& b) {
  return a.dim == b.dim && std::equal(a.sizes, a.sizes + a.dim, b.sizes);
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

// Coefficients, scales and weights: float32 or float64 whatever the tensors they multiply.
inline void check_factors(const Tensor& factors, int64_t dim, const char* name) {
  const ScalarType kind = factors.scalar_type();
  if (factors.dim() != dim || (kind != ScalarType::Float && kind != ScalarType::Double))
    refuse(name, " must be ", dim == 1 ? "one" : "two", "-dimensional, float32 or float64, found ", factors.dim(),
           " dimensions of ", torch::headeronly::toString(kind));
}

// Which entry of `factors` belongs to each tensor; -1 for none.
inline void check_owner(
    const std::vector<int64_t>& owner, size_t count, const char* tensors, int64_t factors, const char* name) {
  if (owner.size() != count)
    refuse("owner must name one modality per tensor in ", tensors, ", found ", owner.size(), " for ", count);
  for (size_t s = 0; s < count; ++s)
    if (owner[s] < -1 || owner[s] >= factors)
      refuse("owner must lie in [-1, ", factors, ") for ", factors, " entries of ", name, ", found ", owner[s], " at ", s);
}

// Addresses from the first element of a tensor to behind its last one, gaps included.
struct Range {
  const char* begin;
  const char* end;
  const char* name;  // of the argument
  int64_t index;     // in the argument's list, or -1 if it is a single tensor

  std::string label() const { return index < 0 ? name : name + ("[" + std::to_string(index) + "]"); }
};

inline Range range(const View& tensor, const char* name, int64_t index = -1) {
  const char* begin = static_cast<const char*>(tensor.data);
  int64_t last = tensor.numel - 1;
  if (!tensor.contiguous && tensor.numel > 0) {
    last = 0;
    for (int64_t d = 0; d < tensor.dim; ++d) last += (tensor.sizes[d] - 1) * tensor.strides[d];
  }
  return {begin, begin + (last + 1) * tensor.element_size, name, index};
}

// The memory that an operator changes.
class Written {
 public:
  explicit Written(size_t tensors) { ranges_.reserve(tensors); }

  void add(const Range& range, bool dense) {
    if (!dense)
      refuse(range.label(), " must fill its memory without gaps or overlaps: pass .contiguous() and copy the result back");
    if (range.end > range.begin) ranges_.push_back(range);
  }
  void add(const View& tensor, const char* name, int64_t index) {
    add(range(tensor, name, index), tensor.contiguous || is_dense(tensor.handle));
  }

  void check_disjoint() {
    const auto before = [](const Range& a, const Range& b) { return a.begin < b.begin; };
    if (!std::is_sorted(ranges_.begin(), ranges_.end(), before)) std::stable_sort(ranges_.begin(), ranges_.end(), before);
    for (size_t i = 1; i < ranges_.size(); ++i)
      if (ranges_[i - 1].end > ranges_[i].begin)
        refuse(ranges_[i - 1].label(), " and ", ranges_[i].label(), " must not share memory: pass every tensor once");
  }

  // Refuses a tensor that would change while it is read. Call check_disjoint first, which sorts. `is_changed` tells which of
  // the tensors that were added really change.
  template <typename F>
  void check_not_read(const Range& read, const char* fix, const F& is_changed) const {
    if (read.begin == read.end) return;
    const auto ends_after = [](const char* address, const Range& range) { return address < range.end; };
    auto found = std::upper_bound(ranges_.begin(), ranges_.end(), read.begin, ends_after);
    for (; found != ranges_.end() && found->begin < read.end; ++found)
      if (is_changed(*found))
        refuse(read.label(), " shares memory with ", found->label(), ", which is changed: ", fix);
  }
  void check_not_read(const View& tensor, const char* name, int64_t index) const {
    check_not_read(range(tensor, name, index), "pass a copy", [](const Range&) { return true; });
  }

 private:
  std::vector<Range> ranges_;
};

}  // namespace cggm
