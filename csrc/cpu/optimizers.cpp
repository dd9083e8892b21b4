// adamw_ and sgd_: optimizer steps that multiply the gradient by its modality's coefficient in registers.
#include <cmath>

#include "chunks.h"
#include "direct.h"
#include "ops.h"

namespace cggm::cpu {

namespace {

// The entries of a scale; ones if there is none.
class Scale {
 public:
  explicit Scale(const Operand& scale) : factors_(scale ? numbers(*scale) : std::vector<double>()) {}
  double operator()(int64_t modality) const { return modality < 0 || factors_.empty() ? 1.0 : factors_[modality]; }

 private:
  std::vector<double> factors_;
};

// Calls f(loops, step, chunk, param, grad, states) for every chunk, with pointers to its first elements.
template <typename F>
void for_each_part(const std::vector<ParameterStep>& steps, const F& f) {
  const Chunks chunks(steps, [](const ParameterStep& step) { return step.numel; });
  for_each_chunk(chunks.count(), chunks.elements, [&](int64_t index) {
    const Chunk& chunk = chunks.list[index];
    const ParameterStep& step = steps[chunk.tensor];
    dispatch(step.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const auto at = [&chunk](void* data) { return data == nullptr ? nullptr : static_cast<T*>(data) + chunk.offset; };
      T* const states[] = {at(step.state[0]), at(step.state[1])};
      f(loops<T>(), step, chunk, at(step.param), static_cast<const T*>(at(const_cast<void*>(step.grad))), states);
    });
  });
}

}  // namespace

void step(AdamArguments& a) {
  const Scale grad_scale(a.grad_scale), update_scale(a.update_scale);
  std::vector<AdamFactors> factors(a.steps.size());
  double count = 0, correction1 = 0, inverse_root = 0;
  for (size_t s = 0; s < factors.size(); ++s) {
    const int64_t modality = a.steps[s].modality;
    const double now = a.counters[s].read() + 1;
    if (now != count) {  // nearly always the same for all parameters
      count = now;
      correction1 = 1 - std::pow(a.beta1, count);
      inverse_root = 1 / std::sqrt(1 - std::pow(a.beta2, count));
    }
    const double rate = a.lr * update_scale(modality);
    AdamFactors& f = factors[s];
    f.grad = a.maximize ? -grad_scale(modality) : grad_scale(modality);
    f.decay = a.decoupled ? 1 - rate * a.weight_decay : 1;
    f.coupled = a.decoupled ? 0 : a.weight_decay;
    f.beta1_rest = 1 - a.beta1;
    f.beta2 = a.beta2;
    f.beta2_rest = 1 - a.beta2;
    f.step_size = rate / correction1;
    f.inverse_root = inverse_root;
    f.eps = a.eps;
  }
  for_each_part(a.steps, [&](const auto& loop, const ParameterStep&, const Chunk& chunk, auto* param, auto* grad, auto* states) {
    loop.adamw(param, grad, states[0], states[1], chunk.count, factors[chunk.tensor]);
  });
  for (const Counter& counter : a.counters) counter.increment();
}

void step(SgdArguments& a) {
  const Scale grad_scale(a.grad_scale), update_scale(a.update_scale);
  for_each_part(a.steps, [&](const auto& loop, const ParameterStep& step, const Chunk& chunk, auto* param, auto* grad, auto* states) {
    SgdFactors f;
    f.grad = a.maximize ? -grad_scale(step.modality) : grad_scale(step.modality);
    f.weight_decay = a.weight_decay;
    f.momentum = a.momentum;
    f.rest = 1 - a.dampening;
    f.rate = a.lr * update_scale(step.modality);
    if (a.momentum == 0)
      loop.sgd(param, grad, chunk.count, f);
    else
      loop.sgd_momentum(param, grad, states[0], chunk.count, f, a.nesterov, a.first);
  });
}

void adamw_(StableIValue* stack, uint64_t, uint64_t) {
  AdamArguments arguments(stack);
  arguments.check();
  step(arguments);
}

void sgd_(StableIValue* stack, uint64_t, uint64_t) {
  SgdArguments arguments(stack);
  arguments.check();
  step(arguments);
}

}  // namespace cggm::cpu
