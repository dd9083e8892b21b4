// The arguments of scale_, modulate_ and batched_cosine, and their checks; the same rules in Python are in
// cggm_ops/checks/modulation.py.
#pragma once

#include "check.h"

namespace cggm {

// One gradient tensor, as the kernels see it.
struct Gradient {
  void* data;
  int64_t numel;
  int64_t modality;  // -1: leave unscaled
  ScalarType dtype;
};

// Reads only the properties that are needed, and no View: with hundreds of gradients this is most of a call's cost.
inline Gradient check_gradient(AtenTensorHandle tensor, int64_t index, int64_t modality, const View& coefficients, Written& written) {
  Gradient out{nullptr, 0, modality, ScalarType::Undefined};
  int32_t dtype = 0, type = 0, device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device));
  out.dtype = to_scalar_type(dtype);
  check_dtype(out.dtype, "grads");
  if (type != coefficients.device_type || device != coefficients.device_index)
    refuse("grads[", index, "] must be on the device of coefficients: move one of them with .to(device)");
  const bool dense = is_dense(tensor);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &out.numel));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &out.data));
  const char* begin = static_cast<const char*>(out.data);
  const int64_t bytes = out.numel * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  written.add({begin, begin + bytes, "grads", index}, dense);
  return out;
}

// fusion, of D elements, and the unimodal gradients, M tensors of D elements.
inline void check_head(const Tensor& fusion, const std::vector<Tensor>& unimodal) {
  const View first = view(fusion.get());
  check_dtype(first.dtype, "fusion");
  for (size_t m = 0; m < unimodal.size(); ++m) {
    const View row = view(unimodal[m].get());
    if (row.numel != first.numel)
      refuse("unimodal[", m, "] must have as many elements as fusion (", first.numel, "), found ", row.numel,
             ": both are gradients of output layers of one shape");
    if (row.dtype != first.dtype)
      refuse("unimodal[", m, "] must have the dtype of fusion (", torch::headeronly::toString(first.dtype), "), found ",
             torch::headeronly::toString(row.dtype));
    check_same_device(row, first, "unimodal", "fusion");
  }
}

// The head gradients as contiguous rows; holds the copies that this may need.
struct HeadRows {
  std::vector<Tensor> tensors;    // fusion, then the M unimodal gradients
  std::vector<const void*> rows;  // the same order

  HeadRows(const Tensor& fusion, const std::vector<Tensor>& unimodal) {
    check_head(fusion, unimodal);
    add(fusion);
    for (const Tensor& tensor : unimodal) add(tensor);
  }
  int64_t modalities() const { return static_cast<int64_t>(rows.size()) - 1; }
  int64_t numel() const { return tensors[0].numel(); }
  ScalarType dtype() const { return tensors[0].scalar_type(); }

 private:
  void add(const Tensor& tensor) {
    tensors.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
    rows.push_back(tensors.back().const_data_ptr());
  }
};

// The gradient [M] with respect to the cosines, and the products [2M + 1], of batched_cosine_backward.
inline void check_backward(const Tensor& grad, const Tensor& products, const HeadRows& head) {
  check_factors(grad, 1, "grad");
  check_factors(products, 1, "products");
  if (grad.numel() != head.modalities() || products.numel() != 2 * head.modalities() + 1 ||
      products.scalar_type() != ScalarType::Double)
    refuse("grad must have one number per tensor in unimodal (", head.modalities(), ") and products twice as many and one, in ",
           "float64, found ", grad.numel(), " and ", products.numel());
  for (const Tensor* tensor : {&grad, &products})
    check_same_device(view(tensor->get()), view(head.tensors[0].get()), "grad and products", "fusion");
}

// The arguments of scale_.
struct ScaleArguments {
  TensorList grads;
  std::vector<int64_t> owner;
  Tensor coefficients;  // [M]
  std::vector<Gradient> gradients;
  Written written;

  // Takes ownership of all arguments before any of them can be refused.
  explicit ScaleArguments(const StableIValue* stack)
      : grads(stack[0]), owner(take<std::vector<int64_t>>(stack[1])), coefficients(take<Tensor>(stack[2])), written(grads.size()) {}

  void check() {
    check_factors(coefficients, 1, "coefficients");
    check_owner(owner, grads.size(), "grads", coefficients.numel(), "coefficients");
    const View factors = view(coefficients.get());
    gradients.reserve(grads.size());
    for (size_t s = 0; s < grads.size(); ++s) gradients.push_back(check_gradient(grads[s], s, owner[s], factors, written));
    written.check_disjoint();
    check_not_scaled(range(factors, "coefficients"));
  }

 protected:
  void check_not_scaled(const Range& read) const {
    written.check_not_read(read, "give that one the owner -1 or pass a copy", [this](const Range& grad) {
      return owner[grad.index] >= 0;
    });
  }
};

// The arguments of modulate_.
struct ModulateArguments : ScaleArguments {
  Tensor fusion;                 // D elements
  std::vector<Tensor> unimodal;  // [M], of D elements each

  explicit ModulateArguments(const StableIValue* stack)
      : ScaleArguments(stack), fusion(take<Tensor>(stack[3])), unimodal(take<std::vector<Tensor>>(stack[4])) {}

  void check() {
    ScaleArguments::check();
    if (static_cast<int64_t>(unimodal.size()) != coefficients.numel())
      refuse("unimodal must hold one tensor per coefficient (", coefficients.numel(), "), found ", unimodal.size());
    const View head = view(fusion.get());
    check_same_device(head, view(coefficients.get()), "fusion", "coefficients");
    check_not_scaled(range(head, "fusion"));
    for (size_t m = 0; m < unimodal.size(); ++m) check_not_scaled(range(view(unimodal[m].get()), "unimodal", m));
  }
};

}  // namespace cggm
