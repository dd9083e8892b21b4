// adamw_ and sgd_ on CUDA: checks, and the tables of one or more launches.
#include "optimizers.cuh"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

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
  const auto scale = [](const Operand& factors) { return factors ? factors_of(*factors) : Factors{}; };
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

// Where one parameter's steps are counted, and on the host how many there are with this one.
struct Count {
  CounterPlace place;
  double count;

  explicit Count(const Counter& counter) {
    const CounterPlace on_device = counter.is_double ? CounterPlace::kDeviceDouble : CounterPlace::kDeviceFloat;
    place = counter.on_host ? CounterPlace::kHost : on_device;
    count = counter.on_host ? counter.read() + 1 : 0;
  }
  bool operator<(const Count& other) const { return std::tie(place, count) < std::tie(other.place, other.count); }
};

// The parameters in an order in which equal counts are neighbours, so that they share launches.
std::vector<size_t> order_by(const std::vector<Count>& counts) {
  std::vector<size_t> order(counts.size());
  std::iota(order.begin(), order.end(), 0);
  if (!std::is_sorted(counts.begin(), counts.end()))
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return counts[a] < counts[b]; });
  return order;
}

void count_on_device(
    const AdamArguments& a, const std::vector<Count>& counts, CounterPlace place, const CurrentDevice& device) {
  CounterTable table = {};
  table.place = place;
  for (size_t s = 0; s < counts.size(); ++s) {
    if (counts[s].place == place) table.counters[table.count++] = a.counters[s].data;
    if (table.count == CounterTable::kCapacity || (table.count > 0 && s + 1 == counts.size())) {
      launch_count(table, device.stream());
      table.count = 0;
    }
  }
}

void run_adamw(const AdamArguments& a, const std::vector<Count>& counts, const CurrentDevice& device) {
  AdamTable table = {};
  table.shared = shared_of(a);
  table.beta1 = a.beta1;
  table.beta2 = a.beta2;
  table.eps = a.eps;
  table.decoupled = a.decoupled;
  int corrections = 0;
  double last = 0;  // count that the last correction belongs to
  for (const size_t s : order_by(counts)) {
    const auto [place, count] = counts[s];
    const bool on_host = place == CounterPlace::kHost;
    const bool is_known = !on_host || (corrections > 0 && count == last);
    if (table.entry_count == AdamTable::kParameters || place != table.place ||
        (!is_known && corrections == kMaxCorrections)) {
      flush(table, device);
      corrections = 0;
    }
    table.place = place;
    if (on_host && (corrections == 0 || count != last)) {
      last = count;
      table.corrections[corrections++] = {1 - std::pow(a.beta1, count), 1 / std::sqrt(1 - std::pow(a.beta2, count))};
    }
    table.counters[table.entry_count] = a.counters[s].data;
    table.correction[table.entry_count] = static_cast<uint8_t>(on_host ? corrections - 1 : 0);
    append(table, a.steps[s]);
  }
  flush(table, device);
}

template <typename Table>
void run_sgd(Table& table, const SgdArguments& a) {
  const CurrentDevice device(share(a.params[0].handle));
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
  const CurrentDevice device(share(a.params[0].handle));
  const std::vector<Count> counts(a.counters.begin(), a.counters.end());
  for (const CounterPlace place : {CounterPlace::kDeviceFloat, CounterPlace::kDeviceDouble})
    count_on_device(a, counts, place, device);
  run_adamw(a, counts, device);
  for (const Counter& counter : a.counters)
    if (counter.on_host) counter.increment();
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
