// adamw_ and sgd_ on CUDA: checks, and the tables of one or more launches.
#include "optimizers.cuh"

#include <cmath>

#include "check_optimizers.h"
#include "cuda/runtime.h"
#include "ops.h"

namespace cggm::cuda {

namespace {

// Refuses what no launch can take, before anything is changed.
void check_launches(const StepArguments& a) {
  for (const int64_t modality : a.owner)
    if (modality > INT16_MAX) refuse("owner must stay below ", INT16_MAX, " on CUDA, found ", modality);
  for (const ParameterStep& step : a.steps) to_dtype(step.dtype);
}

StepShared shared_of(const StepArguments& a) {
  const auto scale = [](const std::optional<Tensor>& factors) { return factors ? factors_of(*factors) : Factors{}; };
  return {scale(a.grad_scale), scale(a.update_scale), a.lr, a.weight_decay, a.maximize};
}

// Appends a parameter to a table with room for it.
template <typename Table>
void append(Table& table, const ParameterStep& step) {
  auto& entry = table.entries[table.entry_count];
  entry.data[0] = step.param;
  entry.data[1] = const_cast<void*>(step.grad);
  for (int l = 2; l < Table::kListCount; ++l) entry.data[l] = step.state[l - 2];
  entry.numel = step.numel;
  entry.first_chunk = table.chunks;
  entry.modality = static_cast<int16_t>(step.modality);
  entry.dtype = to_dtype(step.dtype);
  const int64_t chunks = table.chunks + static_cast<int64_t>(count_chunks(step.numel, kChunk));
  if (chunks > INT32_MAX) refuse("params hold too many elements for one call: split it");
  table.chunks = static_cast<int32_t>(chunks);
  table.entries[++table.entry_count].first_chunk = table.chunks;
}

template <typename Table>
void flush(Table& table, const CurrentDevice& device) {
  if (table.entry_count > 0) launch_step(table, device.multiprocessors(), device.stream());
  table.entry_count = table.chunks = 0;
}

// Fills tables for AdamW. Counters on the host become bias corrections; counters on the device go in as pointers.
class AdamLaunches {
 public:
  AdamLaunches(AdamTable& table, const CurrentDevice& device, int32_t device_type)
      : table_(table), device_(device), device_type_(device_type) {}

  void add(const ParameterStep& step, const View& counter) {
    const bool on_device = counter.device_type == device_type_;
    const bool is_double = counter.dtype == ScalarType::Double;
    const double count = on_device ? 0 : AdamArguments::read(counter) + 1;
    const bool is_new = !on_device && (corrections_ == 0 || count != count_);
    const bool is_full = table_.entry_count == AdamTable::kParameters || (is_new && corrections_ == kMaxCorrections) ||
        (on_device && table_.counts_on_device && is_double != table_.counts_are_double);
    if (is_full) flush();
    if (!on_device && (corrections_ == 0 || count != count_)) {  // tested again: flush() resets the corrections
      count_ = count;
      table_.corrections[corrections_++] = {
          1 - std::pow(table_.beta1, count), 1 / std::sqrt(1 - std::pow(table_.beta2, count))};
    }
    const int32_t s = table_.entry_count;
    append(table_, step);
    table_.steps[s] = on_device ? counter.data : nullptr;
    table_.correction[s] = static_cast<uint8_t>(on_device ? 0 : corrections_ - 1);
    if (on_device) {
      table_.counts_on_device = true;
      table_.counts_are_double = is_double;
    }
  }
  void flush() {
    cuda::flush(table_, device_);
    table_.counts_on_device = false;
    corrections_ = 0;
  }

 private:
  AdamTable& table_;
  const CurrentDevice& device_;
  int32_t device_type_;
  int corrections_ = 0;
  double count_ = 0;  // the step count of the last correction
};

template <typename Table>
void run_sgd(Table& table, const SgdArguments& a) {
  const CurrentDevice device(share(a.params[0]));
  table.shared = shared_of(a);
  for (const ParameterStep& step : a.steps) {
    if (table.entry_count == Table::kParameters) flush(table, device);
    append(table, step);
  }
  flush(table, device);
}

}  // namespace

void adamw_(StableIValue* stack, uint64_t, uint64_t) {
  AdamArguments a(stack);
  a.check();
  check_launches(a);
  if (a.steps.empty()) return;
  AdamTable table = {};
  table.shared = shared_of(a);
  table.beta1 = a.beta1;
  table.beta2 = a.beta2;
  table.eps = a.eps;
  table.decoupled = a.decoupled;
  const CurrentDevice device(share(a.params[0]));
  const int32_t device_type = view(a.params[0]).device_type;
  AdamLaunches launches(table, device, device_type);
  for (size_t s = 0; s < a.steps.size(); ++s) launches.add(a.steps[s], a.counters[s]);
  launches.flush();
  for (const View& counter : a.counters)
    if (counter.device_type != device_type) AdamArguments::increment(counter);
}

void sgd_(StableIValue* stack, uint64_t, uint64_t) {
  SgdArguments a(stack);
  a.check();
  check_launches(a);
  if (a.steps.empty()) return;
  if (a.momentum == 0) {
    SgdTable table = {};
    run_sgd(table, a);
  } else {
    SgdMomentumTable table = {};
    table.settings = {a.momentum, a.dampening, a.nesterov, a.first};
    run_sgd(table, a);
  }
}

}  // namespace cggm::cuda
