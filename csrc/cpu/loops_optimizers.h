// Loops of the optimizer steps; a part of loops_impl.h.

namespace cggm::cpu::CGGM_ISA {
namespace {

// Calls f(x) for register after register of elements; the last, incomplete ones are copied. x[0] holds the gradient, which is only
// read. f changes x[1], x[2] and so on, which are written back.
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

// Calls f with the flag as a constant, so that the loop inside is compiled for each value. (std::true_type would bring inline
// functions of the standard library into this instruction set.)
template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};
template <typename F>
inline void with_constant(bool flag, const F& f) {
  if (flag)
    f(Flag<true>());
  else
    f(Flag<false>());
}

template <typename T>
void adamw(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, int64_t n, const AdamFactors& factors) {
  using S = ScalarOf<T>;
  const S scale = scalar<T>(factors.grad), decay = scalar<T>(factors.decay), coupled = scalar<T>(factors.coupled);
  const S beta1_rest = scalar<T>(factors.beta1_rest);
  const S beta2 = scalar<T>(factors.beta2), beta2_rest = scalar<T>(factors.beta2_rest);
  const S step_size = scalar<T>(factors.step_size), inverse_root = scalar<T>(factors.inverse_root);
  const S eps = scalar<T>(factors.eps);
  T* const arrays[] = {const_cast<T*>(grad), param, exp_avg, exp_avg_sq};
  with_constant(factors.coupled != 0, [&](auto is_coupled) {
    for_each_vector(arrays, n, [=](VectorOf<T> (&x)[4]) {
      auto g = x[0] * scale;
      if (is_coupled.value) g += x[1] * coupled;  // not 0 * x[1]: the parameter may be infinite
      x[2] += (g - x[2]) * beta1_rest;
      x[3] = x[3] * beta2 + g * g * beta2_rest;
      x[1] = x[1] * decay - x[2] / (square_root(x[3]) * inverse_root + eps) * step_size;
    });
  });
}

template <typename T>
void sgd(T* param, const T* grad, int64_t n, const SgdFactors& factors) {
  using S = ScalarOf<T>;
  const S scale = scalar<T>(factors.grad), weight_decay = scalar<T>(factors.weight_decay), rate = scalar<T>(factors.rate);
  T* const arrays[] = {const_cast<T*>(grad), param};
  with_constant(factors.weight_decay != 0, [&](auto decays) {
    for_each_vector(arrays, n, [=](VectorOf<T> (&x)[2]) {
      auto g = x[0] * scale;
      if (decays.value) g += x[1] * weight_decay;
      x[1] -= g * rate;
    });
  });
}

template <typename T>
void sgd_momentum(T* param, const T* grad, T* buffer, int64_t n, const SgdFactors& factors, bool nesterov, bool first) {
  using S = ScalarOf<T>;
  const S scale = scalar<T>(factors.grad), weight_decay = scalar<T>(factors.weight_decay), rate = scalar<T>(factors.rate);
  const S momentum = scalar<T>(factors.momentum), rest = scalar<T>(factors.rest);
  const S scale_rest = scalar<T>(factors.grad * factors.rest);
  T* const arrays[] = {const_cast<T*>(grad), param, buffer};
  const auto run = [&](auto decays, auto is_nesterov, auto is_first) {
    for_each_vector(arrays, n, [=](VectorOf<T> (&x)[3]) {
      auto g = x[0] * scale;
      if (decays.value) g += x[1] * weight_decay;
      x[2] = is_first.value ? g : x[2] * momentum + (decays.value || is_nesterov.value ? g * rest : x[0] * scale_rest);
      x[1] -= (is_nesterov.value ? g + x[2] * momentum : x[2]) * rate;
    });
  };
  with_constant(factors.weight_decay != 0, [&](auto decays) {
    with_constant(nesterov, [&](auto is_nesterov) {
      with_constant(first, [&](auto is_first) { run(decays, is_nesterov, is_first); });
    });
  });
}

}  // namespace
}  // namespace cggm::cpu::CGGM_ISA
