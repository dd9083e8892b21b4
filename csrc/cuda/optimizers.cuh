// The launches behind adamw_ and sgd_.
#pragma once

#include <cuda_runtime_api.h>

#include "table.h"

namespace cggm::cuda {

// What all parameters of a launch share.
struct StepShared {
  Factors grad_scale;
  Factors update_scale;
  double lr;
  double weight_decay;
  bool maximize;
};

template <int kLists, int kCapacity>
struct StepTable {
  static constexpr int kListCount = kLists;
  static constexpr int kParameters = kCapacity;
  TableEntry<kLists> entries[kCapacity + 1];  // one more marks the end
  StepShared shared;
  int32_t entry_count;
  int32_t chunks;
};

struct AdamCorrection {
  double first;         // 1 - beta1^t
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
};
constexpr int kMaxCorrections = 8;  // distinct step counts in one launch

// Where the steps are counted: on the host, or in device memory in one of two types.
enum class CounterPlace : int32_t { kHost, kDeviceFloat, kDeviceDouble };

struct CounterTable {
  static constexpr int kCapacity = 4000;
  void* counters[kCapacity];
  int32_t count;
  CounterPlace place;
};

// 0: parameter, 1: gradient, 2: exp_avg, 3: exp_avg_sq. Holds as many parameters as fit: the addresses of a thousand would
// already take 32,000 bytes.
struct AdamTable : StepTable<4, 555> {
  void* counters[kParameters];  // on the device, this step included
  uint8_t correction[kParameters];  // where the host counts
  AdamCorrection corrections[kMaxCorrections];
  double beta1, beta2, eps;
  bool decoupled;
  CounterPlace place;
};

struct SgdSettings {
  double momentum, dampening;
  bool nesterov;
  bool first;  // the buffers hold nothing yet
};
struct SgdTable : StepTable<2, 1000> {};  // 0: parameter, 1: gradient
struct SgdMomentumTable : StepTable<3, 800> {  // 2: buffer
  SgdSettings settings;
};
static_assert(sizeof(AdamTable) <= kParameterBytes && sizeof(CounterTable) <= kParameterBytes, "a kernel's parameters");
static_assert(sizeof(SgdTable) <= kParameterBytes && sizeof(SgdMomentumTable) <= kParameterBytes, "a kernel's parameters");

// One launch: adds 1 to counters on the device.
void launch_count(const CounterTable& table, cudaStream_t stream);

// Each is one launch.
void launch_step(const AdamTable& table, int multiprocessors, cudaStream_t stream);
void launch_step(const SgdTable& table, int multiprocessors, cudaStream_t stream);
void launch_step(const SgdMomentumTable& table, int multiprocessors, cudaStream_t stream);

}  // namespace cggm::cuda
