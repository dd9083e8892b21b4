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

// How many steps a parameter has taken.
struct Counter {
  void* data;
  bool is_double;
  bool on_host;  // and not beside the parameter

  double read() const { return is_double ? *static_cast<double*>(data) : *static_cast<float*>(data); }
  void increment() const {
    if (is_double)
      *static_cast<double*>(data) += 1;
    else
      *static_cast<float*>(data) += 1;
  }
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
  std::vector<Counter> counters;
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

  // `counts`: single numbers that the step changes, too.
  void check_lists(std::initializer_list<NamedList> states, const TensorList* counts = nullptr) {
    const size_t count = params.size();
    check_number(lr, "lr");
    check_number(weight_decay, "weight_decay");
    check_count("grads", grads.size());
    for (const NamedList& state : states) check_count(state.name, state.tensors->size());
    if (!owner.empty() && owner.size() != count)
      refuse("owner must name one modality per tensor in params, found ", owner.size(), " for ", count);
    check_scale(grad_scale, "grad_scale");
    check_scale(update_scale, "update_scale");
    if (counts != nullptr) check_count("steps", counts->size());
    Written written(count * (2 + states.size()));
    std::vector<Range> read;
    read.reserve(count);
    steps.resize(count);
    if (counts != nullptr) counters.resize(count);
    View first{};
    for (size_t s = 0; s < count; ++s) {
      const View param = params[s], grad = grads[s];
      if (s == 0) first = param;
      check_dtype(param.dtype, "params");
      check_same_device(param, first, "params", "params[0]");
      written.add(param, "params", s);
      check_fits(grad, param, "grads", s, true);
      read.emplace_back(grad, "grads", s);
      ParameterStep& step = steps[s];
      step.param = param.data;
      step.grad = in_order_of(grad, param, copies);
      step.numel = param.numel;
      step.modality = owner.empty() ? -1 : owner[s];
      step.dtype = param.dtype;
      size_t k = 0;
      for (const NamedList& state : states) {
        const View tensor = (*state.tensors)[s];
        check_fits(tensor, param, state.name, s, tensor.dim == param.dim && same_order(tensor, param));
        written.add(tensor, state.name, s);
        step.state[k++] = tensor.data;
      }
      if (counts == nullptr) continue;
      const View counter = counts->counter(s);
      counters[s] = check_counter(counter, param, s);
      written.add(counter, "steps", s);
    }
    written.check_disjoint();
    if (count > 0) check_scale_memory(grad_scale, "grad_scale", first, written);
    if (count > 0) check_scale_memory(update_scale, "update_scale", first, written);
    for (const Range& grad : read) written.check_not_read(grad);
  }

 private:
  static void check_scale_memory(const Operand& scale, const char* name, const View& param, Written& written) {
    if (!scale) return;
    check_same_device(*scale, param, name, "params");
    written.check_not_read(Range(*scale, name));
  }
  void check_scale(const Operand& scale, const char* name) const {
    if (!scale) return;
    check_factors(*scale, 1, name);
    check_owner(owner, params.size(), "params", (*scale).numel, name);
  }
  static Counter check_counter(const View& counter, const View& param, size_t index) {
    if (counter.numel != 1 || (counter.dtype != ScalarType::Float && counter.dtype != ScalarType::Double))
      refuse("steps[", index, "] must be one float32 or float64 number, found ", counter.numel, " of ",
             torch::headeronly::toString(counter.dtype));
    const bool on_host = !same_device(counter, param);
    if (on_host && counter.device_type != cpu_type())
      refuse("steps[", index, "] must be on the CPU or on the device of params: move it with .to(device)");
    return {counter.data, counter.dtype == ScalarType::Double, on_host};
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
    check_lists({{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}}, &counter_list);
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
