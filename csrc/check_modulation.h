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
  check_factors(view(grad.get()), 1, "grad");
  check_factors(view(products.get()), 1, "products");
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
  Operand coefficients;  // [M]
  View factors{};        // its memory
  std::vector<Gradient> gradients;
  Written written;

  // Takes ownership of all arguments before any of them can be refused.
  template <typename Argument>
  explicit ScaleArguments(const Argument* stack)
      : grads(stack[0]), owner(take<std::vector<int64_t>>(stack[1])), coefficients(stack[2]), written(grads.size()) {}

  void check() {
    factors = *coefficients;
    check_factors(factors, 1, "coefficients");
    check_owner(owner, grads.size(), "grads", factors.numel, "coefficients");
    gradients.reserve(grads.size());
    for (size_t s = 0; s < grads.size(); ++s) {
      const View grad = grads[s];
      check_dtype(grad.dtype, "grads");
      if (!same_device(grad, factors))
        refuse("grads[", s, "] must be on the device of coefficients: move one of them with .to(device)");
      written.add(grad, "grads", s);
      gradients.push_back({grad.data, grad.numel, owner[s], grad.dtype});
    }
    written.check_disjoint();
    check_not_scaled(Range(factors, "coefficients"));
  }

 protected:
  void check_not_scaled(const Range& read) {
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
    if (static_cast<int64_t>(unimodal.size()) != factors.numel)
      refuse("unimodal must hold one tensor per coefficient (", factors.numel, "), found ", unimodal.size());
    const View head = view(fusion.get());
    check_same_device(head, factors, "fusion", "coefficients");
    check_not_scaled(Range(head, "fusion"));
    for (size_t m = 0; m < unimodal.size(); ++m) check_not_scaled(Range(view(unimodal[m].get()), "unimodal", m));
  }
};

}  // namespace cggm
