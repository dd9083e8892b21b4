// The inner loops, each over one contiguous chunk on one thread. They are compiled once per instruction set
// (loops_avx2.cpp, loops_baseline.cpp) and chosen at run time, so that one binary runs on every machine of its architecture.
#pragma once

#include <cstdint>

namespace cggm::cpu {

// Storage types. Arithmetic is in float, or in double for double.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Elements per loop iteration, on every instruction set.
constexpr int kUnit = 16;

// Elements per block of doubles: a block fits into the first-level cache.
constexpr int64_t kBlock = 512;

// The factors of an AdamW step of one tensor, with rate = lr * update_scale and t counting this step.
struct AdamFactors {
  double grad;          // multiplies the gradient; negative to maximize
  double decay;         // 1 - rate * weight_decay, or 1
  double coupled;       // weight decay that is added to the gradient, or 0
  double beta1_rest;    // 1 - beta1
  double beta2;
  double beta2_rest;    // 1 - beta2
  double step_size;     // rate / (1 - beta1^t)
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
  double eps;
};

// The factors of an SGD step.
struct SgdFactors {
  double grad;
  double weight_decay;
  double momentum;
  double rest;  // 1 - dampening
  double rate;
};

// Sums are in double, over lanes in a fixed order: they depend on neither the address nor the number of threads. Products of
// two floats are exact in double, so gradients of any scale neither overflow nor underflow.
template <typename T>
struct Loops {
  // Returns the sum of x[i]^2.
  double (*sum_squares)(const T* x, int64_t n);
  // x[i] *= coefficient. Returns the sum of the stored x[i]^2.
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

// The name of the instruction set of the chosen loops.
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
