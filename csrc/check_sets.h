// Validation of gradient sets and of their combination; the same rules in Python are in cggm_ops/checks.py.
#pragma once

#include <cstring>
#include <string>

#include <torch/csrc/stable/ops.h>

#include "check.h"

namespace cggm {

// What the kernels have to know of a tensor.
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
  if (layout != aoti_torch_layout_strided()) refuse("only dense tensors are taken, found a sparse one: call .to_dense() on it");
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
// Whether elements of equal index lie at equal distances from the start. Strides along sizes of 1 mean nothing.
inline bool same_order(const View& a, const View& b) {
  if (a.contiguous && b.contiguous) return true;
  for (int64_t d = 0; d < a.dim; ++d)
    if (a.sizes[d] != 1 && a.strides[d] != b.strides[d]) return false;
  return true;
}

inline Tensor share(AtenTensorHandle tensor) {
  AtenTensorHandle copy = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor, &copy));
  return Tensor(copy);
}

// The elements of `tensor` in the order of `like`, which has no gaps; a copy, kept alive in `copies`, where it has another.
inline const void* in_order_of(const View& tensor, const View& like, std::vector<Tensor>& copies) {
  if (same_order(tensor, like)) return tensor.data;
  copies.push_back(torch::stable::empty_like(share(like.handle)));
  torch::stable::copy_(copies.back(), share(tensor.handle));
  return copies.back().data_ptr();
}

// Memory that an operator writes: tensors without gaps that share nothing.
class Written {
 public:
  explicit Written(size_t tensors) { ranges_.reserve(tensors); }
  void add(const View& tensor, const char* name) {
    if (!tensor.contiguous && !is_dense(tensor.handle))
      refuse(name, " must fill their memory without gaps or overlaps: make them .contiguous()");
    if (tensor.numel > 0) ranges_.push_back(range(tensor));
  }
  void check_disjoint(const char* name) {
    if (!std::is_sorted(ranges_.begin(), ranges_.end())) std::sort(ranges_.begin(), ranges_.end());
    for (size_t i = 1; i < ranges_.size(); ++i)
      if (ranges_[i - 1].second > ranges_[i].first) refuse(name, " must not share memory: pass every tensor once");
  }
  // Refuses a tensor that would change while it is read; after check_disjoint.
  void check_not_read(const View& tensor, const char* name, const char* where) const {
    if (tensor.numel == 0) return;
    const auto [begin, end] = range(tensor);
    const auto after = std::lower_bound(ranges_.begin(), ranges_.end(), std::make_pair(end, static_cast<const char*>(nullptr)));
    if (after != ranges_.begin() && std::prev(after)->second > begin)
      refuse(name, " share memory with ", where, ", which are changed: pass a copy");
  }

 private:
  static std::pair<const char*, const char*> range(const View& tensor) {
    const char* begin = static_cast<const char*>(tensor.data);
    int64_t last = tensor.contiguous ? tensor.numel - 1 : 0;
    for (int64_t d = 0; d < tensor.dim && !tensor.contiguous; ++d) last += (tensor.sizes[d] - 1) * tensor.strides[d];
    return {begin, begin + (last + 1) * tensor.element_size};
  }
  std::vector<std::pair<const char*, const char*>> ranges_;
};

// K sets of S tensors, given one set after the other.
struct Sets {
  std::vector<const void*> data;  // [S, K]: the elements of a segment's tensors in one and the same order
  std::vector<int64_t> numel;     // [S]
  std::vector<ScalarType> dtype;  // [S]
  std::vector<Tensor> copies;     // of tensors with strides of their own
};

// `views` [K, S]. Where the elements of set 0 lie in some order without gaps the others follow it, else all become contiguous.
inline Sets order_sets(const std::vector<View>& views, size_t sets) {
  if (sets < 1 || views.empty() || views.size() % sets != 0)
    refuse("sets must be one or more lists of equally many tensors, found ", views.size(), " tensors in ", sets, " sets");
  const size_t count = views.size() / sets;
  Sets out;
  out.data.resize(views.size());
  out.numel.reserve(count);
  out.dtype.reserve(count);
  for (size_t s = 0; s < count; ++s) {
    const View& first = views[s];
    check_dtype(first.dtype, "sets");
    for (size_t k = 0; k < sets; ++k) {
      const View& tensor = views[k * count + s];
      if (!same_shape(tensor, first) || tensor.dtype != first.dtype)
        refuse("sets[", k, "][", s, "] must have the shape and dtype of its segment in sets[0] (",
               torch::headeronly::toString(first.dtype), "), found ", torch::headeronly::toString(tensor.dtype));
      if (!same_device(tensor, views[0])) refuse("sets[", k, "][", s, "] must be on the device of sets[0][0]: move one of them with .to(device)");
    }
    View copy;
    const View* order = &first;
    if (!first.contiguous && !is_dense(first.handle)) {
      out.copies.push_back(torch::stable::contiguous(share(first.handle)));
      copy = view(out.copies.back().get());
      order = &copy;
    }
    for (size_t k = 0; k < sets; ++k)
      out.data[s * sets + k] = in_order_of(k == 0 ? *order : views[k * count + s], *order, out.copies);
    out.numel.push_back(first.numel);
    out.dtype.push_back(first.dtype);
  }
  return out;
}

inline void append_views(const TensorList& tensors, std::vector<View>& views) {
  views.reserve(views.size() + tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) views.push_back(view(tensors[i]));
}

// set 0, the other sets, and weights [S, K] of segment_combine_; nothing is changed when they are refused.
inline Sets check_combination(const TensorList& into, const TensorList& others, const Tensor& weights) {
  const ScalarType kind = weights.scalar_type();
  if (weights.dim() != 2 || (kind != ScalarType::Float && kind != ScalarType::Double))
    refuse("weights must be [S, K], one row per segment and one column per set, float32 or float64, found ", weights.dim(),
           " dimensions of ", torch::headeronly::toString(kind));
  const int64_t count = weights.size(0), sets = weights.size(1);
  if (static_cast<int64_t>(into.size()) != count || static_cast<int64_t>(others.size()) != count * (sets - 1))
    refuse("weights [", count, ", ", sets, "] must have one row per tensor of a set (", into.size(),
           ") and one column per set, found ", others.size(), " tensors in the other sets");
  if (count == 0) return {};
  std::vector<View> views;
  append_views(into, views);
  append_views(others, views);
  if (!same_device(views[0], view(weights.get())))
    refuse("sets must be on the device of weights: move one of them with .to(device)");
  Written written(count);
  for (int64_t s = 0; s < count; ++s) written.add(views[s], "sets[0]");
  written.check_disjoint("sets[0]");
  for (size_t i = count; i < views.size(); ++i) written.check_not_read(views[i], "the other sets", "sets[0]");
  return order_sets(views, sets);
}

}  // namespace cggm
