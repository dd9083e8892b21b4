// The inner loops, each over one contiguous chunk on one thread. They are compiled once per instruction set
// (loops_avx2.cpp, loops_baseline.cpp) and chosen at run time, so one binary is right on every machine of its architecture.
#pragma once

#include <cstdint>

namespace cggm::cpu {

// Storage types; arithmetic happens in float (double for double).
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Elements per loop iteration, on every instruction set.
constexpr int kUnit = 16;

// Elements converted at a time into a buffer of doubles that stays in the first-level cache.
constexpr int64_t kBlock = 512;

// The constants of an AdamW step of one tensor; rate = lr * update_scale, t = the steps with this one.
struct AdamFactors {
  double grad;          // what the gradient is multiplied by, negative to maximize
  double decay;         // 1 - rate * weight_decay, or 1
  double coupled;       // weight decay that is part of the gradient, or 0
  double beta1_rest;    // 1 - beta1
  double beta2;
  double beta2_rest;    // 1 - beta2
  double step_size;     // rate / (1 - beta1^t)
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
  double eps;
};

// The same of an SGD step.
struct SgdFactors {
  double grad;
  double weight_decay;
  double momentum;
  double rest;  // 1 - dampening
  double rate;
};

// Sums are always taken in double over a fixed arrangement of lanes: the result depends on neither the address nor the
// thread count. Products of two floats are exact in double, so no scale of gradients over- or underflows.
template <typename T>
struct Loops {
  // -> sum of x[i]^2
  double (*sum_squares)(const T* x, int64_t n);
  // x[i] *= coefficient -> sum of the stored x[i]^2
  double (*scale)(T* x, int64_t n, double coefficient);
  // out [2M + 1] = sums of fusion * unimodal[m], of unimodal[m]^2 and of fusion^2
  void (*products)(const T* fusion, const T* const* unimodal, int64_t modalities, int64_t offset, int64_t n, double* out);
  // out[i] = sum_m weights[m] * unimodal[m][i] + weights[M] * fusion[i]
  void (*combine)(
      const T* fusion, const T* const* unimodal, int64_t modalities, int64_t offset, int64_t n, const double* weights, T* out);
  // out [K, K] = sums of rows[j] * rows[k]
  void (*gram)(const T* const* rows, int64_t sets, int64_t offset, int64_t n, double* out);
  // out[i] = sum_k weights[k] * rows[k][i], in float; out may be a row
  void (*mix)(T* out, const T* const* rows, int64_t sets, int64_t offset, int64_t n, const double* weights);
  // one step of param, exp_avg and exp_avg_sq
  void (*adamw)(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, int64_t n, const AdamFactors& factors);
  // one step of param, without and with momentum
  void (*sgd)(T* param, const T* grad, int64_t n, const SgdFactors& factors);
  void (*sgd_momentum)(
      T* param, const T* grad, T* buffer, int64_t n, const SgdFactors& factors, bool nesterov, bool first);
};

// The loops for this machine.
template <typename T>
const Loops<T>& loops();

// The name of the instruction set they were chosen for.
const char* isa();

namespace baseline {
template <typename T>
Loops<T> make_loops();
}
namespace avx2 {
template <typename T>
Loops<T> make_loops();
}

}  // namespace cggm::cpu
