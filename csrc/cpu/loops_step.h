// Loops of the optimizer steps; a part of loops_impl.h.

namespace cggm::cpu::CGGM_ISA {
namespace {

// Calls f(pointers) for one vector after the other, and for the last, incomplete one with copies that are written back.
// pointers[0] is the gradient, which is only read.
template <int kPointers, typename T, typename F>
inline void for_each_vector(T* const (&arrays)[kPointers], int64_t n, const F& f) {
  constexpr int kStep = kVector<T>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    T* here[kPointers];
    for (int k = 0; k < kPointers; ++k) here[k] = arrays[k] + i;
    f(here);
  }
  if (i == n) return;
  T tails[kPointers][kStep] = {};
  T* here[kPointers];
  for (int k = 0; k < kPointers; ++k) {
    __builtin_memcpy(tails[k], arrays[k] + i, (n - i) * sizeof(T));
    here[k] = tails[k];
  }
  f(here);
  for (int k = 1; k < kPointers; ++k) __builtin_memcpy(arrays[k] + i, tails[k], (n - i) * sizeof(T));
}

template <bool kCoupled, typename T>
void adamw_of(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, int64_t n, const AdamFactors& factors) {
  using S = ScalarOf<T>;
  const S scale = (S)factors.grad, decay = (S)factors.decay, coupled = (S)factors.coupled;
  const S beta1_rest = (S)factors.beta1_rest, beta2 = (S)factors.beta2, beta2_rest = (S)factors.beta2_rest;
  const S step_size = (S)factors.step_size, inverse_root = (S)factors.inverse_root, eps = (S)factors.eps;
  T* const arrays[] = {const_cast<T*>(grad), param, exp_avg, exp_avg_sq};
  for_each_vector(arrays, n, [=](T* const (&x)[4]) {
    const auto p = load(x[1]);
    auto g = load(x[0]) * scale;
    if (kCoupled) g += p * coupled;
    auto m = load(x[2]);
    m += (g - m) * beta1_rest;
    const auto v = load(x[3]) * beta2 + g * g * beta2_rest;
    store(x[2], m);
    store(x[3], v);
    store(x[1], p * decay - m / (square_root(v) * inverse_root + eps) * step_size);
  });
}

template <typename T>
void adamw(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, int64_t n, const AdamFactors& factors) {
  if (factors.coupled != 0)
    adamw_of<true>(param, grad, exp_avg, exp_avg_sq, n, factors);
  else
    adamw_of<false>(param, grad, exp_avg, exp_avg_sq, n, factors);
}

// The gradient as the rule sees it. Without weight decay the parameter stays out of it, whatever it is.
template <bool kDecay, typename V, typename S>
inline V decayed(V g, V p, S scale, S weight_decay) {
  return kDecay ? g * scale + p * weight_decay : g * scale;
}

template <bool kDecay, typename T>
void sgd_of(T* param, const T* grad, int64_t n, const SgdFactors& factors) {
  using S = ScalarOf<T>;
  const S scale = (S)factors.grad, weight_decay = (S)factors.weight_decay, rate = (S)factors.rate;
  T* const arrays[] = {const_cast<T*>(grad), param};
  for_each_vector(arrays, n, [=](T* const (&x)[2]) {
    const auto p = load(x[1]);
    store(x[1], p - decayed<kDecay>(load(x[0]), p, scale, weight_decay) * rate);
  });
}

template <typename T>
void sgd(T* param, const T* grad, int64_t n, const SgdFactors& factors) {
  if (factors.weight_decay != 0)
    sgd_of<true>(param, grad, n, factors);
  else
    sgd_of<false>(param, grad, n, factors);
}

template <bool kDecay, bool kNesterov, bool kFirst, typename T>
void sgd_momentum_of(T* param, const T* grad, T* buffer, int64_t n, const SgdFactors& factors) {
  using S = ScalarOf<T>;
  const S scale = (S)factors.grad, weight_decay = (S)factors.weight_decay, rate = (S)factors.rate;
  const S momentum = (S)factors.momentum, rest = (S)factors.rest;
  T* const arrays[] = {const_cast<T*>(grad), param, buffer};
  for_each_vector(arrays, n, [=](T* const (&x)[3]) {
    const auto p = load(x[1]);
    const auto g = decayed<kDecay>(load(x[0]), p, scale, weight_decay);
    auto b = g;
    if (!kFirst) b = load(x[2]) * momentum + g * rest;
    store(x[2], b);
    store(x[1], p - (kNesterov ? g + b * momentum : b) * rate);
  });
}

template <bool kDecay, typename T>
void sgd_momentum_with(T* param, const T* grad, T* buffer, int64_t n, const SgdFactors& factors, bool nesterov, bool first) {
  if (nesterov && first)
    sgd_momentum_of<kDecay, true, true>(param, grad, buffer, n, factors);
  else if (nesterov)
    sgd_momentum_of<kDecay, true, false>(param, grad, buffer, n, factors);
  else if (first)
    sgd_momentum_of<kDecay, false, true>(param, grad, buffer, n, factors);
  else
    sgd_momentum_of<kDecay, false, false>(param, grad, buffer, n, factors);
}

template <typename T>
void sgd_momentum(T* param, const T* grad, T* buffer, int64_t n, const SgdFactors& factors, bool nesterov, bool first) {
  if (factors.weight_decay != 0)
    sgd_momentum_with<true>(param, grad, buffer, n, factors, nesterov, first);
  else
    sgd_momentum_with<false>(param, grad, buffer, n, factors, nesterov, first);
}

}  // namespace
}  // namespace cggm::cpu::CGGM_ISA
