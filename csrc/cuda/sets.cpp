// segment_gram and segment_combine_ on CUDA: checks, memory for the result, and the tables of one or more launches.
#include "sets.cuh"

#include <algorithm>

#include "check_sets.h"
#include "cuda/ops.h"
#include "cuda/runtime.h"

namespace cggm::cuda {

namespace {

// Fills a table with as many segments as fit, from `next` on; returns the first one that is left over.
int64_t fill(const Sets& sets, int64_t width, int64_t next, SetTable& table) {
  const int64_t room = std::min<int64_t>(kSetSegments, kSetPointers / width);
  const int64_t end = std::min<int64_t>(sets.numel.size(), next + room);
  table.first_segment = static_cast<int32_t>(next);
  table.segment_count = static_cast<int32_t>(end - next);
  table.sets = static_cast<int32_t>(width);
  int64_t chunks = 0;
  for (int64_t s = next; s < end; ++s) {
    for (int64_t k = 0; k < width; ++k)
      table.data[(s - next) * width + k] = const_cast<void*>(sets.data[s * width + k]);
    table.segments[s - next] = {sets.numel[s], static_cast<int32_t>(chunks), to_dtype(sets.dtype[s])};
    chunks += count_chunks(sets.numel[s], sets.dtype[s] == ScalarType::Double ? kSetChunk<double> : kSetChunk<float>);
    if (chunks > INT32_MAX) refuse("the sets hold too many elements for one call: split it");
  }
  table.chunks = table.segments[end - next].first_chunk = static_cast<int32_t>(chunks);
  return end;
}

void check_width(int64_t width) {
  if (width > kMaxSets) refuse("at most ", kMaxSets, " sets are taken on CUDA, found ", width, ": split the call");
}

}  // namespace

void segment_gram(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList tensors(stack[0]);
  const auto width = take<int64_t>(stack[1]);
  std::vector<View> views;
  append_views(tensors, views);
  check_width(width);
  const Sets sets = order_sets(views, std::max<int64_t>(width, 0));
  const int64_t count = static_cast<int64_t>(sets.numel.size());
  const Tensor like = share(tensors[0]);
  const CurrentDevice device(like);
  const Tensor out = torch::stable::new_empty(like, {count, width, width}, ScalarType::Double);
  GramTable table = {};
  table.gram = static_cast<double*>(out.mutable_data_ptr());
  for (int64_t next = 0; next < count;) {
    next = fill(sets, width, next, table.sets);
    // Freed at the end of the turn: torch's allocator hands memory on in the order of the stream.
    const Tensor partials = torch::stable::new_empty(
        like, {static_cast<int64_t>(table.sets.chunks) * width * (width + 1) / 2}, ScalarType::Double);
    table.partials = static_cast<double*>(partials.mutable_data_ptr());
    launch_gram(table, device.multiprocessors(), device.stream());
  }
  stack[0] = torch::stable::detail::from(out);
}

void segment_combine_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList into(stack[0]), others(stack[1]);
  const auto weights = take<Tensor>(stack[2]);
  const Sets sets = check_combination(into, others, weights);
  const int64_t count = static_cast<int64_t>(sets.numel.size());
  if (count == 0) return;
  check_width(weights.size(1));
  const CurrentDevice device(weights);
  CombineTable table = {};
  table.weights = weights.const_data_ptr();
  table.row_stride = weights.stride(0);
  table.column_stride = weights.stride(1);
  table.is_double = weights.scalar_type() == ScalarType::Double;
  for (int64_t next = 0; next < count;) {
    next = fill(sets, weights.size(1), next, table.sets);
    launch_combine(table, device.multiprocessors(), device.stream());
  }
}

}  // namespace cggm::cuda
