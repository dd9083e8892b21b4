// segment_gram and segment_combine_ on CUDA: checks, memory for the result, and the tables of one or more launches.
#include "segments.cuh"

#include <algorithm>

#include "check_segments.h"
#include "cuda/runtime.h"
#include "ops.h"

namespace cggm::cuda {

namespace {

// Refuses what no launch can take, before anything is changed.
void check_launches(const GradientSets& sets, int64_t width) {
  if (width > kMaxSets) refuse("sets must be at most ", kMaxSets, " on CUDA, found ", width, ": split the call");
  for (const ScalarType dtype : sets.dtype) to_dtype(dtype);
}

// Fills a table with as many segments as fit, starting with `next`; returns the first segment that did not fit.
int64_t fill(const GradientSets& sets, int64_t width, int64_t next, SegmentTable& table) {
  const int64_t end = std::min<int64_t>(sets.count(), next + std::min<int64_t>(kMaxSegments, kMaxPointers / width));
  table.first_segment = static_cast<int32_t>(next);
  table.segment_count = static_cast<int32_t>(end - next);
  table.sets = static_cast<int32_t>(width);
  int64_t chunks = 0;
  for (int64_t s = next; s < end; ++s) {
    for (int64_t k = 0; k < width; ++k)
      table.data[(s - next) * width + k] = const_cast<void*>(sets.data[s * width + k]);
    table.segments[s - next] = {sets.numel[s], static_cast<int32_t>(chunks), to_dtype(sets.dtype[s])};
    chunks += count_chunks(sets.numel[s], kHeadChunk);
    if (chunks > INT32_MAX) refuse("the sets hold too many elements for one call: split it");
  }
  table.chunks = table.segments[end - next].first_chunk = static_cast<int32_t>(chunks);
  return end;
}

}  // namespace

void segment_gram(StableIValue* stack, uint64_t, uint64_t) {
  GramArguments arguments(stack);
  arguments.check();
  const int64_t width = arguments.width, count = arguments.sets.count();
  check_launches(arguments.sets, width);
  const Tensor like = share(arguments.tensors[0].handle);
  const CurrentDevice device(like);
  const Tensor out = torch::stable::new_empty(like, {count, width, width}, ScalarType::Double);
  GramTable table = {};
  table.gram = static_cast<double*>(out.mutable_data_ptr());
  for (int64_t next = 0; next < count;) {
    next = fill(arguments.sets, width, next, table.sets);
    // Freed after this iteration: torch's allocator reuses memory in stream order, so the kernel still sees it.
    const Tensor partials = torch::stable::new_empty(
        like, {static_cast<int64_t>(table.sets.chunks) * width * (width + 1) / 2}, ScalarType::Double);
    table.partials = static_cast<double*>(partials.mutable_data_ptr());
    launch_gram(table, device.multiprocessors(), device.stream());
  }
  stack[0] = torch::stable::detail::from(out);
}

void segment_combine_(StableIValue* stack, uint64_t, uint64_t) {
  CombineArguments arguments(stack);
  arguments.check();
  if (arguments.sets.count() == 0) return;
  check_launches(arguments.sets, arguments.width);
  const CurrentDevice device(arguments.weights);
  CombineTable table = {};
  table.weights = factors_of(view(arguments.weights.get()));
  table.weights.stride = arguments.weights.stride(1);
  table.row_stride = arguments.weights.stride(0);
  for (int64_t next = 0; next < arguments.sets.count();) {
    next = fill(arguments.sets, arguments.width, next, table.sets);
    launch_combine(table, device.multiprocessors(), device.stream());
  }
}

}  // namespace cggm::cuda
