// adamw_ and sgd_ on CUDA: checks, and the tables of one or more launches.
#include "step.cuh"

#include <cmath>

#include "check_step.h"
#include "cuda/ops.h"
#include "cuda/runtime.h"

namespace cggm::cuda {

namespace {

Scale scale_of(const std::optional<Tensor>& scale) {
  if (!scale) return {};
  return {scale->const_data_ptr(), scale->stride(0), scale->scalar_type() == ScalarType::Double};
}

StepShared shared_of(const Modulation& modulation, double lr, double weight_decay, bool maximize) {
  const void* found_inf = modulation.found_inf ? modulation.found_inf->const_data_ptr() : nullptr;
  return {scale_of(modulation.grad_scale), scale_of(modulation.update_scale), static_cast<const float*>(found_inf), lr,
          weight_decay, maximize};
}

// Appends a tensor to a table; false where the table is full.
template <typename Table>
bool append(Table& table, const StepSegment& segment) {
  if (table.segment_count == Table::kSegmentCapacity) return false;
  auto& place = table.segments[table.segment_count];
  place.data[0] = segment.param;
  place.data[1] = const_cast<void*>(segment.grad);
  for (int l = 2; l < Table::kListCount; ++l) place.data[l] = segment.state[l - 2];
  place.numel = segment.numel;
  place.first_chunk = table.chunks;
  place.modality = static_cast<int16_t>(segment.modality);
  place.dtype = to_dtype(segment.dtype);
  const int64_t chunks = table.chunks + static_cast<int64_t>(count_chunks(segment.numel, kChunk));
  if (chunks > INT32_MAX) refuse("params hold too many elements for one call: split it");
  table.chunks = static_cast<int32_t>(chunks);
  table.segments[++table.segment_count].first_chunk = table.chunks;
  return true;
}

template <typename Table>
void flush(Table& table, const CurrentDevice& device) {
  if (table.segment_count > 0) launch_step(table, device.multiprocessors(), device.stream());
  table.segment_count = table.chunks = 0;
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

// Fills AdamTables, with the counters that are on the host turned into corrections.
class AdamLaunches {
 public:
  AdamLaunches(AdamTable& table, const CurrentDevice& device, int32_t device_type)
      : table_(table), device_(device), device_type_(device_type) {}

  void add(const StepSegment& segment, const View& counter) {
    const bool on_device = counter.device_type == device_type_;
    const bool is_double = counter.dtype == ScalarType::Double;
    const double count = on_device ? 0 : read(counter) + 1;
    const bool is_new = !on_device && (corrections_ == 0 || count != count_);
    const bool is_full = table_.segment_count == AdamTable::kSegmentCapacity || (is_new && corrections_ == kMaxCorrections) ||
        (on_device && table_.counts_on_device && is_double != table_.counts_are_double);
    if (is_full) flush();
    if (!on_device && (corrections_ == 0 || count != count_)) {
      count_ = count;
      table_.corrections[corrections_++] = {
          1 - std::pow(table_.beta1, count), 1 / std::sqrt(1 - std::pow(table_.beta2, count))};
    }
    const int32_t s = table_.segment_count;
    append(table_, segment);
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
  double count_ = 0;  // that the last correction belongs to
};

template <typename Table>
void run_sgd(Table& table, const Step& step, const CurrentDevice& device) {
  for (const StepSegment& segment : step.segments)
    if (!append(table, segment)) {
      flush(table, device);
      append(table, segment);
    }
  flush(table, device);
}

void check_owners(const Modulation& modulation) {
  for (const int64_t modality : modulation.owner)
    if (modality > INT16_MAX) refuse("owner must stay below ", INT16_MAX, " on CUDA, found ", modality);
}

}  // namespace

void adamw_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), grads(stack[1]), exp_avgs(stack[2]), exp_avg_sqs(stack[3]), steps(stack[4]);
  const Modulation modulation(stack + 5);
  AdamTable table = {};
  table.shared = shared_of(modulation, take<double>(stack[9]), take<double>(stack[13]), take<bool>(stack[15]));
  table.beta1 = take<double>(stack[10]);
  table.beta2 = take<double>(stack[11]);
  table.eps = take<double>(stack[12]);
  table.decoupled = take<bool>(stack[14]);
  const Step step = check_step(params, grads, {{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}}, modulation);
  const std::vector<View> counters = check_steps(steps, params, modulation.found_inf.has_value());
  check_owners(modulation);
  if (step.segments.empty()) return;
  const CurrentDevice device(share(params[0]));
  AdamLaunches launches(table, device, view(params[0]).device_type);
  for (size_t s = 0; s < step.segments.size(); ++s) launches.add(step.segments[s], counters[s]);
  launches.flush();
  for (const View& counter : counters)
    if (counter.device_type != view(params[0]).device_type) increment(counter);
}

void sgd_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), grads(stack[1]), momentum_buffers(stack[2]);
  const Modulation modulation(stack + 3);
  const StepShared shared = shared_of(modulation, take<double>(stack[7]), take<double>(stack[10]), take<bool>(stack[12]));
  const SgdSettings settings{
      take<double>(stack[8]), take<double>(stack[9]), take<bool>(stack[11]), take<bool>(stack[13])};
  const Step step = settings.momentum != 0
      ? check_step(params, grads, {{"momentum_buffers", &momentum_buffers}}, modulation)
      : check_step(params, grads, {}, modulation);
  check_owners(modulation);
  if (step.segments.empty()) return;
  const CurrentDevice device(share(params[0]));
  if (settings.momentum == 0) {
    SgdTable table = {};
    table.shared = shared;
    run_sgd(table, step, device);
  } else {
    SgdMomentumTable table = {};
    table.shared = shared;
    table.settings = settings;
    run_sgd(table, step, device);
  }
}

}  // namespace cggm::cuda
