// Loops of the optimizer steps; a part of loops_impl.h.

namespace cggm::cpu::CGGM_ISA {
namespace {

// Calls f(x) for one register of elements after the other, and for the last, incomplete ones with copies. f changes
// x[1], x[2] and so on, which are written back; x[0] is of the gradient, which is only read.
template <int kArrays, typename T, typename F>
inline void for_each_vector(T* const (&arrays)[kArrays], int64_t n, const F& f) {
  constexpr int kStep = 2 * kVector<T>;
  const auto step = [&f](T* const (&at)[kArrays]) {
    VectorOf<T> x[2][kArrays];
    for (int k = 0; k < kArrays; ++k) load_pair(static_cast<const T*>(at[k]), x[0][k], x[1][k]);
    f(x[0]);
    f(x[1]);
    for (int k = 1; k < kArrays; ++k) store_pair(at[k], x[0][k], x[1][k]);
  };
  T* at[kArrays];
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int k = 0; k < kArrays; ++k) at[k] = arrays[k] + i;
    step(at);
  }
  if (i == n) return;
  T tails[kArrays][kStep] = {};
  for (int k = 0; k < kArrays; ++k) {
    __builtin_memcpy(tails[k], arrays[k] + i, (n - i) * sizeof(T));
    at[k] = tails[k];
  }
  step(at);
  for (int k = 1; k < kArrays; ++k) __builtin_memcpy(arrays[k] + i, tails[k], (n - i) * sizeof(T));
}

template <bool kCoupled, typename T>
void adamw_of(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, int64_t n, const AdamFactors& factors) {
  using S = ScalarOf<T>;
  const S scale = scalar<T>(factors.grad), decay = scalar<T>(factors.decay), coupled = scalar<T>(factors.coupled);
  const S beta1_rest = scalar<T>(factors.beta1_rest);
  const S beta2 = scalar<T>(factors.beta2), beta2_rest = scalar<T>(factors.beta2_rest);
  const S step_size = scalar<T>(factors.step_size), inverse_root = scalar<T>(factors.inverse_root);
  const S eps = scalar<T>(factors.eps);
  T* const arrays[] = {const_cast<T*>(grad), param, exp_avg, exp_avg_sq};
  for_each_vector(arrays, n, [=](VectorOf<T> (&x)[4]) {
    auto g = x[0] * scale;
    if (kCoupled) g += x[1] * coupled;
    x[2] += (g - x[2]) * beta1_rest;
    x[3] = x[3] * beta2 + g * g * beta2_rest;
    x[1] = x[1] * decay - x[2] / (square_root(x[3]) * inverse_root + eps) * step_size;
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
  const S scale = scalar<T>(factors.grad), weight_decay = scalar<T>(factors.weight_decay), rate = scalar<T>(factors.rate);
  T* const arrays[] = {const_cast<T*>(grad), param};
  for_each_vector(arrays, n, [=](VectorOf<T> (&x)[2]) {
    x[1] -= decayed<kDecay>(x[0], x[1], scale, weight_decay) * rate;
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
  const S scale = scalar<T>(factors.grad), weight_decay = scalar<T>(factors.weight_decay), rate = scalar<T>(factors.rate);
  const S momentum = scalar<T>(factors.momentum), rest = scalar<T>(factors.rest);
  const S scale_rest = scalar<T>(factors.grad * factors.rest);
  T* const arrays[] = {const_cast<T*>(grad), param, buffer};
  for_each_vector(arrays, n, [=](VectorOf<T> (&x)[3]) {
    const auto g = decayed<kDecay>(x[0], x[1], scale, weight_decay);
    x[2] = kFirst ? g : x[2] * momentum + (kDecay || kNesterov ? g * rest : x[0] * scale_rest);
    x[1] -= (kNesterov ? g + x[2] * momentum : x[2]) * rate;
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
