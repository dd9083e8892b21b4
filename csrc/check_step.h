// Validation of optimizer steps; the same rules in Python are in cggm_ops/checks_optimizers.py.
#pragma once

#include <initializer_list>
#include <optional>

#include "check_sets.h"

namespace cggm {

// One parameter with what belongs to it, elements all in the same order.
struct StepSegment {
  void* param;
  const void* grad;
  void* state[2];
  int64_t numel;
  int64_t modality;  // -1: neither scale
  ScalarType dtype;
};

// owner, grad_scale, update_scale and found_inf, as they come from the stack.
struct Modulation {
  std::vector<int64_t> owner;
  std::optional<Tensor> grad_scale;
  std::optional<Tensor> update_scale;
  std::optional<Tensor> found_inf;

  explicit Modulation(const StableIValue* stack)
      : owner(take<std::vector<int64_t>>(stack[0])),
        grad_scale(take<std::optional<Tensor>>(stack[1])),
        update_scale(take<std::optional<Tensor>>(stack[2])),
        found_inf(take<std::optional<Tensor>>(stack[3])) {}
};

struct Step {
  std::vector<StepSegment> segments;
  std::vector<Tensor> copies;  // of gradients with strides of their own
};

struct NamedList {
  const char* name;
  const TensorList* tensors;
};

inline void check_scale(
    const std::optional<Tensor>& scale, const char* name, const std::vector<int64_t>& owner, size_t count) {
  if (!scale) return;
  const ScalarType kind = scale->scalar_type();
  if (scale->dim() != 1 || (kind != ScalarType::Float && kind != ScalarType::Double))
    refuse(name, " must be one-dimensional, float32 or float64, found ", scale->dim(), " dimensions of ",
           torch::headeronly::toString(kind));
  if (owner.size() != count)
    refuse("owner must name one modality per tensor in params, found ", owner.size(), " for ", count);
  for (size_t s = 0; s < count; ++s)
    if (owner[s] < -1 || owner[s] >= scale->numel())
      refuse("owner must lie in [-1, ", scale->numel(), ") for ", scale->numel(), " entries of ", name, ", found ", owner[s],
             " at ", s);
}

inline void check_beside(const std::optional<Tensor>& tensor, const char* name, const View& param) {
  if (tensor && !same_device(view(tensor->get()), param))
    refuse(name, " must be on the device of params: move one of them with .to(device)");
}

// Nothing is changed when the arguments are refused.
inline Step check_step(
    const TensorList& params, const TensorList& grads, std::initializer_list<NamedList> states, const Modulation& modulation) {
  const size_t count = params.size();
  const auto check_count = [count](const char* name, size_t found) {
    if (found != count) refuse(name, " must hold one tensor per parameter (", count, "), found ", found);
  };
  check_count("grads", grads.size());
  for (const NamedList& state : states) check_count(state.name, state.tensors->size());
  check_scale(modulation.grad_scale, "grad_scale", modulation.owner, count);
  check_scale(modulation.update_scale, "update_scale", modulation.owner, count);
  if (modulation.found_inf &&
      (modulation.found_inf->numel() != 1 || modulation.found_inf->scalar_type() != ScalarType::Float))
    refuse("found_inf must be one float32 number, found ", modulation.found_inf->numel(), " of ",
           torch::headeronly::toString(modulation.found_inf->scalar_type()));
  Step step;
  Written written(count * (1 + states.size()));
  std::vector<View> views, gradients;
  views.reserve(count);
  gradients.reserve(count);
  step.segments.reserve(count);
  for (size_t s = 0; s < count; ++s) {
    views.push_back(view(params[s]));
    const View& param = views.back();
    check_dtype(param.dtype, "params");
    if (!same_device(param, views[0])) refuse("params must be on the device of params[0]: move one of them with .to(device)");
    written.add(param, "params and their state");
    StepSegment segment{param.data, nullptr, {}, param.numel, modulation.owner.empty() ? -1 : modulation.owner[s], param.dtype};
    const auto check_fits = [&](const View& tensor, const char* name, bool in_order) {
      if (!same_shape(tensor, param) || tensor.dtype != param.dtype || !in_order)
        refuse(name, "[", s, "] must have the shape, strides and dtype of its parameter (",
               torch::headeronly::toString(param.dtype), "), found ", torch::headeronly::toString(tensor.dtype),
               in_order ? "" : " with other strides");
      if (!same_device(tensor, param)) refuse(name, " must be on the device of params: move one of them with .to(device)");
    };
    gradients.push_back(view(grads[s]));
    check_fits(gradients.back(), "grads", true);
    size_t k = 0;
    for (const NamedList& state : states) {
      const View tensor = view((*state.tensors)[s]);
      check_fits(tensor, state.name, tensor.dim == param.dim && same_order(tensor, param));
      written.add(tensor, "params and their state");
      segment.state[k++] = tensor.data;
    }
    step.segments.push_back(segment);
  }
  if (count > 0) {
    check_beside(modulation.grad_scale, "grad_scale", views[0]);
    check_beside(modulation.update_scale, "update_scale", views[0]);
    check_beside(modulation.found_inf, "found_inf", views[0]);
  }
  written.check_disjoint("params and their state");
  for (const View& gradient : gradients) written.check_not_read(gradient, "grads", "params and their state");
  for (size_t s = 0; s < count; ++s) step.segments[s].grad = in_order_of(gradients[s], views[s], step.copies);
  return step;
}

// Step counters: single numbers, beside the parameters or on the CPU, and beside them where found_inf decides on the device.
inline std::vector<View> check_steps(const TensorList& steps, const TensorList& params, bool has_found_inf) {
  if (steps.size() != params.size())
    refuse("steps must hold one tensor per parameter (", params.size(), "), found ", steps.size());
  std::vector<View> views;
  views.reserve(steps.size());
  for (size_t s = 0; s < steps.size(); ++s) {
    views.push_back(view(steps[s]));
    const View& step = views.back();
    if (step.numel != 1 || (step.dtype != ScalarType::Float && step.dtype != ScalarType::Double))
      refuse("steps[", s, "] must be one float32 or float64 number, found ", step.numel, " of ",
             torch::headeronly::toString(step.dtype));
    const bool on_cpu = step.device_type == aoti_torch_device_type_cpu();
    if (!same_device(step, view(params[s])) && (!on_cpu || has_found_inf))
      refuse("steps[", s, "] must be on the CPU or on the device of params, and there where found_inf is given: move it "
             "with .to(device)");
  }
  return views;
}

}  // namespace cggm
