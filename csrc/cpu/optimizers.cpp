// adamw_ and sgd_: optimizer steps that multiply the gradient by its modality's coefficient in registers.
#include <cmath>

#include "../check_step.h"
#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

namespace {

std::vector<double> numbers(const std::optional<Tensor>& scale) {
  std::vector<double> out(scale ? scale->numel() : 0);
  for (size_t m = 0; m < out.size(); ++m) {
    const int64_t place = static_cast<int64_t>(m) * scale->stride(0);
    out[m] = scale->scalar_type() == ScalarType::Double ? static_cast<const double*>(scale->data_ptr())[place]
                                                        : static_cast<const float*>(scale->data_ptr())[place];
  }
  return out;
}

double factor(const std::vector<double>& scale, int64_t modality) {
  return modality < 0 || scale.empty() ? 1.0 : scale[modality];
}

bool is_skipped(const std::optional<Tensor>& found_inf) {
  return found_inf && *static_cast<const float*>(found_inf->data_ptr()) != 0;
}

// Calls f(segment, offset, count) for every chunk of every segment.
template <typename F>
void for_each_part(const std::vector<StepSegment>& segments, const F& f) {
  struct Part {
    int64_t segment, offset, count;
  };
  std::vector<Part> parts;
  int64_t elements = 0;
  for (size_t s = 0; s < segments.size(); ++s) {
    elements += segments[s].numel;
    for (int64_t offset = 0; offset < segments[s].numel; offset += kChunk)
      parts.push_back({static_cast<int64_t>(s), offset, std::min(kChunk, segments[s].numel - offset)});
  }
  for_each_chunk(parts.size(), elements, [&](int64_t i) { f(parts[i].segment, parts[i].offset, parts[i].count); });
}

double read(const View& number) {
  return number.dtype == ScalarType::Double ? *static_cast<double*>(number.data) : *static_cast<float*>(number.data);
}

void increment(const View& number) {
  if (number.dtype == ScalarType::Double)
    *static_cast<double*>(number.data) += 1;
  else
    *static_cast<float*>(number.data) += 1;
}

}  // namespace

void adamw_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), grads(stack[1]), exp_avgs(stack[2]), exp_avg_sqs(stack[3]), steps(stack[4]);
  const Modulation modulation(stack + 5);
  const double lr = take<double>(stack[9]), beta1 = take<double>(stack[10]), beta2 = take<double>(stack[11]);
  const double eps = take<double>(stack[12]), weight_decay = take<double>(stack[13]);
  const bool decoupled = take<bool>(stack[14]), maximize = take<bool>(stack[15]);
  const Step step = check_step(params, grads, {{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}}, modulation);
  const std::vector<View> counters = check_steps(steps, params, modulation.found_inf.has_value());
  if (is_skipped(modulation.found_inf)) return;
  const std::vector<double> grad_scale = numbers(modulation.grad_scale), update_scale = numbers(modulation.update_scale);
  std::vector<AdamFactors> factors(step.segments.size());
  double count = 0, correction1 = 0, correction2 = 0;
  for (size_t s = 0; s < factors.size(); ++s) {
    const int64_t modality = step.segments[s].modality;
    const double now = read(counters[s]) + 1;
    if (now != count) {  // nearly always the same for all
      count = now;
      correction1 = 1 - std::pow(beta1, count);
      correction2 = 1 - std::pow(beta2, count);
    }
    const double rate = lr * factor(update_scale, modality);
    AdamFactors& f = factors[s];
    f.grad = maximize ? -factor(grad_scale, modality) : factor(grad_scale, modality);
    f.decay = decoupled ? 1 - rate * weight_decay : 1;
    f.coupled = decoupled ? 0 : weight_decay;
    f.beta1_rest = 1 - beta1;
    f.beta2 = beta2;
    f.beta2_rest = 1 - beta2;
    f.step_size = rate / correction1;
    f.inverse_root = 1 / std::sqrt(correction2);
    f.eps = eps;
  }
  for_each_part(step.segments, [&](int64_t s, int64_t offset, int64_t n) {
    const StepSegment& segment = step.segments[s];
    dispatch(segment.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      loops<T>().adamw(
          static_cast<T*>(segment.param) + offset, static_cast<const T*>(segment.grad) + offset,
          static_cast<T*>(segment.state[0]) + offset, static_cast<T*>(segment.state[1]) + offset, n, factors[s]);
    });
  });
  for (const View& counter : counters) increment(counter);
}

void sgd_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), grads(stack[1]), momentum_buffers(stack[2]);
  const Modulation modulation(stack + 3);
  const double lr = take<double>(stack[7]), momentum = take<double>(stack[8]), dampening = take<double>(stack[9]);
  const double weight_decay = take<double>(stack[10]);
  const bool nesterov = take<bool>(stack[11]), maximize = take<bool>(stack[12]), first = take<bool>(stack[13]);
  const Step step = momentum != 0
      ? check_step(params, grads, {{"momentum_buffers", &momentum_buffers}}, modulation)
      : check_step(params, grads, {}, modulation);
  if (is_skipped(modulation.found_inf)) return;
  const std::vector<double> grad_scale = numbers(modulation.grad_scale), update_scale = numbers(modulation.update_scale);
  for_each_part(step.segments, [&](int64_t s, int64_t offset, int64_t n) {
    const StepSegment& segment = step.segments[s];
    const double coefficient = factor(grad_scale, segment.modality);
    SgdFactors f;
    f.grad = maximize ? -coefficient : coefficient;
    f.weight_decay = weight_decay;
    f.momentum = momentum;
    f.rest = 1 - dampening;
    f.rate = lr * factor(update_scale, segment.modality);
    dispatch(segment.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      T* param = static_cast<T*>(segment.param) + offset;
      const T* grad = static_cast<const T*>(segment.grad) + offset;
      if (momentum == 0)
        loops<T>().sgd(param, grad, n, f);
      else
        loops<T>().sgd_momentum(param, grad, static_cast<T*>(segment.state[0]) + offset, n, f, nesterov, first);
    });
  });
}

}  // namespace cggm::cpu
