// The arguments of adamw_ and sgd_, and their checks; the same rules in Python are in cggm_ops/checks/optimizers.py.
#pragma once

#include <cmath>
#include <initializer_list>

#include "check.h"

namespace cggm {

// One parameter with its gradient and state, their elements all in the same order.
struct ParameterStep {
  void* param;
  const void* grad;
  void* state[2];
  int64_t numel;
  int64_t modality;  // -1: neither scale applies
  ScalarType dtype;
};

struct NamedList {
  const char* name;
  const TensorList* tensors;
};

// Hyper-parameters lie in [0, below).
inline void check_number(double number, const char* name, double below = INFINITY) {
  if (!(number >= 0 && number < below))
    refuse(name, " must be ", below == 1 ? "in [0, 1)" : "finite and not negative", ", found ", number);
}

// What adamw_ and sgd_ share: params, grads, owner, grad_scale, update_scale, lr, weight_decay, maximize.
struct StepArguments {
  TensorList params, grads;
  std::vector<int64_t> owner;
  Operand grad_scale, update_scale;
  double lr, weight_decay;
  bool maximize;
  std::vector<ParameterStep> steps;
  std::vector<Tensor> copies;  // of gradients with other strides

 protected:
  // `modulation` points to owner, grad_scale and update_scale on the stack.
  template <typename Argument>
  StepArguments(const Argument* stack, const Argument* modulation, Argument lr, Argument weight_decay, Argument maximize)
      : params(stack[0]),
        grads(stack[1]),
        owner(take<std::vector<int64_t>>(modulation[0])),
        grad_scale(modulation[1], true),
        update_scale(modulation[2], true),
        lr(take<double>(lr)),
        weight_decay(take<double>(weight_decay)),
        maximize(take<bool>(maximize)) {}

  void check_count(const char* name, size_t found) const {
    if (found != params.size()) refuse(name, " must hold one tensor per parameter (", params.size(), "), found ", found);
  }

  // `counters`: single numbers that the step changes, too.
  void check_lists(std::initializer_list<NamedList> states, const std::vector<View>& counters = {}) {
    const size_t count = params.size();
    check_number(lr, "lr");
    check_number(weight_decay, "weight_decay");
    check_count("grads", grads.size());
    for (const NamedList& state : states) check_count(state.name, state.tensors->size());
    if (!owner.empty() && owner.size() != count)
      refuse("owner must name one modality per tensor in params, found ", owner.size(), " for ", count);
    check_scale(grad_scale, "grad_scale");
    check_scale(update_scale, "update_scale");
    Written written(count * (1 + states.size()) + counters.size());
    std::vector<View> views, gradients;
    views.reserve(count);
    gradients.reserve(count);
    steps.reserve(count);
    for (size_t s = 0; s < count; ++s) {
      views.push_back(params[s]);
      const View& param = views.back();
      check_dtype(param.dtype, "params");
      check_same_device(param, views[0], "params", "params[0]");
      written.add(param, "params", s);
      gradients.push_back(grads[s]);
      check_fits(gradients.back(), param, "grads", s, true);
      steps.push_back({param.data, nullptr, {}, param.numel, owner.empty() ? -1 : owner[s], param.dtype});
      size_t k = 0;
      for (const NamedList& state : states) {
        const View tensor = (*state.tensors)[s];
        check_fits(tensor, param, state.name, s, tensor.dim == param.dim && same_order(tensor, param));
        written.add(tensor, state.name, s);
        steps.back().state[k++] = tensor.data;
      }
    }
    for (size_t s = 0; s < counters.size(); ++s) written.add(counters[s], "steps", s);
    written.check_disjoint();
    check_scale_memory(grad_scale, "grad_scale", views, written);
    check_scale_memory(update_scale, "update_scale", views, written);
    for (size_t s = 0; s < count; ++s) written.check_not_read(gradients[s], "grads", s);
    for (size_t s = 0; s < count; ++s) steps[s].grad = in_order_of(gradients[s], views[s], copies);
  }

 private:
  static void check_scale_memory(
      const Operand& scale, const char* name, const std::vector<View>& params, const Written& written) {
    if (!scale || params.empty()) return;
    check_same_device(*scale, params[0], name, "params");
    written.check_not_read(*scale, name, -1);
  }
  void check_scale(const Operand& scale, const char* name) const {
    if (!scale) return;
    check_factors(*scale, 1, name);
    check_owner(owner, params.size(), "params", (*scale).numel, name);
  }
  static void check_fits(const View& tensor, const View& param, const char* name, size_t index, bool in_order) {
    if (!same_shape(tensor, param) || tensor.dtype != param.dtype || !in_order)
      refuse(name, "[", index, "] must have the shape, strides and dtype of its parameter (", shape_of(param), ", ",
             torch::headeronly::toString(param.dtype), "), found ", shape_of(tensor), ", ",
             torch::headeronly::toString(tensor.dtype), in_order ? "" : " with other strides");
    check_same_device(tensor, param, name, "params");
  }
};

// adamw_: params, grads, exp_avgs, exp_avg_sqs, steps, modulation, lr, beta1, beta2, eps, weight_decay, decoupled, maximize
struct AdamArguments : StepArguments {
  TensorList exp_avgs, exp_avg_sqs, counter_list;
  double beta1, beta2, eps;
  bool decoupled;
  std::vector<View> counters;  // steps taken before this one, single numbers on the CPU or beside the parameters

  template <typename Argument>
  explicit AdamArguments(const Argument* stack)
      : StepArguments(stack, stack + 5, stack[8], stack[12], stack[14]),
        exp_avgs(stack[2]),
        exp_avg_sqs(stack[3]),
        counter_list(stack[4]),
        beta1(take<double>(stack[9])),
        beta2(take<double>(stack[10])),
        eps(take<double>(stack[11])),
        decoupled(take<bool>(stack[13])) {}

  void check() {
    check_number(beta1, "beta1", 1);
    check_number(beta2, "beta2", 1);
    check_number(eps, "eps");
    check_count("steps", counter_list.size());
    counters.reserve(counter_list.size());
    for (size_t s = 0; s < counter_list.size(); ++s) {
      counters.push_back(counter_list.counter(s));
      const View& counter = counters.back();
      if (counter.numel != 1 || (counter.dtype != ScalarType::Float && counter.dtype != ScalarType::Double))
        refuse("steps[", s, "] must be one float32 or float64 number, found ", counter.numel, " of ",
               torch::headeronly::toString(counter.dtype));
      if (!is_on_host(counter) && !same_device(counter, params[s]))
        refuse("steps[", s, "] must be on the CPU or on the device of params: move it with .to(device)");
    }
    check_lists({{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}}, counters);
  }

  static bool is_on_host(const View& counter) { return counter.device_type == aoti_torch_device_type_cpu(); }
  static double read(const View& counter) {
    return counter.dtype == ScalarType::Double ? *static_cast<double*>(counter.data) : *static_cast<float*>(counter.data);
  }
  static void increment(const View& counter) {
    if (counter.dtype == ScalarType::Double)
      *static_cast<double*>(counter.data) += 1;
    else
      *static_cast<float*>(counter.data) += 1;
  }
};

// sgd_: params, grads, momentum_buffers, modulation, lr, momentum, dampening, weight_decay, nesterov, maximize, first
struct SgdArguments : StepArguments {
  TensorList momentum_buffers;
  double momentum, dampening;
  bool nesterov, first;

  template <typename Argument>
  explicit SgdArguments(const Argument* stack)
      : StepArguments(stack, stack + 3, stack[6], stack[9], stack[11]),
        momentum_buffers(stack[2]),
        momentum(take<double>(stack[7])),
        dampening(take<double>(stack[8])),
        nesterov(take<bool>(stack[10])),
        first(take<bool>(stack[12])) {}

  void check() {
    check_number(momentum, "momentum");
    check_number(dampening, "dampening");
    if (momentum != 0)
      check_lists({{"momentum_buffers", &momentum_buffers}});
    else
      check_lists({});
  }
};

}  // namespace cggm
