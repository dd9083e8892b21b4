// scale_, batched_cosine and modulate_ on CUDA: checks, memory for the results, and the tables of one or more launches.
#include "modulate.cuh"

#include <algorithm>

#include "cuda/ops.h"
#include "cuda/runtime.h"

namespace cggm::cuda {

namespace {

// Gradients in the order of the launches: by modality, those without one last, empty ones left out.
struct Order {
  std::vector<const Segment*> segments;
  int32_t modality_begin[kMaxModalities + 2] = {};  // in chunks
  int32_t chunks = 0;

  Order(const std::vector<Segment>& all, int modalities) {
    for (const Segment& segment : all)
      if (segment.numel > 0) segments.push_back(&segment);
    const auto bucket = [modalities](const Segment* s) { return s->modality < 0 ? modalities : s->modality; };
    const auto before = [&](const Segment* a, const Segment* b) { return bucket(a) < bucket(b); };
    if (!std::is_sorted(segments.begin(), segments.end(), before))
      std::stable_sort(segments.begin(), segments.end(), before);
    int64_t total = 0;
    size_t next = 0;
    for (int m = 0; m <= modalities; ++m) {
      modality_begin[m] = static_cast<int32_t>(total);
      for (; next < segments.size() && bucket(segments[next]) == m; ++next)
        total += count_chunks(segments[next]->numel, kChunk);
    }
    if (total > INT32_MAX) refuse("grads hold too many elements for one call: split it");
    modality_begin[modalities + 1] = chunks = static_cast<int32_t>(total);
  }
};

// The head gradients of a call, and the contiguous copies that the table may point to.
struct Head {
  HeadTable table = {};
  std::vector<Tensor> kept;
  Tensor products, cosines;

  Head() = default;
  Head(const Tensor& fusion, const std::vector<Tensor>& unimodal) {
    check_head(fusion, unimodal);
    check_modalities(unimodal.size(), "unimodal");
    const int64_t modalities = static_cast<int64_t>(unimodal.size());
    table.dtype = to_dtype(fusion.scalar_type());
    table.numel = fusion.numel();
    table.modalities = static_cast<int32_t>(modalities);
    const bool is_double = table.dtype == DType::kDouble;
    table.chunks = count_chunks(table.numel, is_double ? kHeadChunk<double> : kHeadChunk<float>);
    const auto address = [this](const Tensor& tensor) {
      kept.push_back(as_contiguous(tensor));
      return kept.back().const_data_ptr();
    };
    table.fusion = address(fusion);
    for (int64_t m = 0; m < modalities; ++m) table.rows[m] = address(unimodal[m]);
    products = torch::stable::new_empty(fusion, {2 * modalities + 1}, ScalarType::Double);
    cosines = torch::stable::new_empty(fusion, {modalities}, is_double ? ScalarType::Double : ScalarType::Float);
  }
  int64_t partials() const { return static_cast<int64_t>(table.chunks) * (2 * table.modalities + 1); }
};

template <int kCapacity>
void launch_all(const Order& order, const HeadTable& head, ModulateTable<kCapacity>& table, const CurrentDevice& device) {
  std::copy(std::begin(order.modality_begin), std::end(order.modality_begin), table.modality_begin);
  size_t next = 0;
  do {
    const size_t count = std::min<size_t>(kCapacity, order.segments.size() - next);
    table.segment_count = static_cast<int32_t>(count);
    table.chunk_base += table.chunks;
    table.chunks = 0;
    for (size_t s = 0; s < count; ++s) {
      const Segment& segment = *order.segments[next + s];
      table.segments[s] = {segment.data, segment.numel, table.chunks, static_cast<int16_t>(segment.modality),
                           to_dtype(segment.dtype)};
      table.chunks += count_chunks(segment.numel, kChunk);
    }
    table.segments[count].first_chunk = table.chunks;
    next += count;
    table.is_last = next == order.segments.size();
    if (table.is_last) table.head = head;
    launch_modulate(table, device.multiprocessors(), device.stream());
  } while (!table.is_last);
}

template <int kCapacity>
void run(const Order& order, const Head& head, const Tensor* coefficients, Tensor* sq_norms, const Tensor& like) {
  const CurrentDevice device(like);
  // The partial sums live as long as this call: torch's allocator hands memory on in the order of the stream.
  const Tensor workspace = torch::stable::new_empty(like, {order.chunks + head.partials()}, ScalarType::Double);
  ModulateTable<kCapacity> table = {};
  table.outputs.partials = static_cast<double*>(workspace.mutable_data_ptr());
  table.outputs.head_partials = table.outputs.partials + order.chunks;
  if (coefficients != nullptr) {
    table.modalities = static_cast<int32_t>(coefficients->numel());
    table.coefficients = {
        coefficients->const_data_ptr(), coefficients->stride(0), coefficients->scalar_type() == ScalarType::Double};
    *sq_norms = torch::stable::new_empty(like, {coefficients->numel() + 1}, ScalarType::Double);
    table.outputs.sq_norms = static_cast<double*>(sq_norms->mutable_data_ptr());
  }
  if (head.products.defined()) {
    table.outputs.products = static_cast<double*>(head.products.mutable_data_ptr());
    table.outputs.cosines = head.cosines.mutable_data_ptr();
  }
  launch_all(order, head.table, table, device);
}

// A small call does not pay for copying a large table.
void run_sized(const Order& order, const Head& head, const Tensor* coefficients, Tensor* sq_norms, const Tensor& like) {
  const auto chosen = order.segments.size() <= kFewSegments ? run<kFewSegments> : run<kMaxSegments>;
  chosen(order, head, coefficients, sq_norms, like);
}

}  // namespace

void scale_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList grads(stack[0]);
  const auto owner = take<std::vector<int64_t>>(stack[1]);
  const auto coefficients = take<Tensor>(stack[2]);
  const std::vector<Segment> segments = check_segments(grads, owner, coefficients);
  check_disjoint(segments);
  check_modalities(coefficients.numel(), "coefficients");
  Tensor sq_norms;
  run_sized(Order(segments, coefficients.numel()), Head(), &coefficients, &sq_norms, coefficients);
  stack[0] = torch::stable::detail::from(sq_norms);
}

std::tuple<Tensor, Tensor> batched_cosine(Tensor fusion, std::vector<Tensor> unimodal) {
  const Head head(fusion, unimodal);
  run_sized(Order({}, 0), head, nullptr, nullptr, fusion);
  return {head.cosines, head.products};
}

void modulate_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList grads(stack[0]);
  const auto owner = take<std::vector<int64_t>>(stack[1]);
  const auto coefficients = take<Tensor>(stack[2]);
  const auto fusion = take<Tensor>(stack[3]);
  const auto unimodal = take<std::vector<Tensor>>(stack[4]);
  const std::vector<Segment> segments = check_segments(grads, owner, coefficients);
  const std::vector<const Segment*> order = check_disjoint(segments);
  if (static_cast<int64_t>(unimodal.size()) != coefficients.numel())
    refuse("unimodal must hold one tensor per coefficient (", coefficients.numel(), "), found ", unimodal.size());
  check_same_device(fusion, coefficients, "fusion", "coefficients");
  check_not_scaled(fusion, order, "fusion");
  for (const Tensor& tensor : unimodal) check_not_scaled(tensor, order, "unimodal");
  const Head head(fusion, unimodal);
  Tensor sq_norms;
  run_sized(Order(segments, coefficients.numel()), head, &coefficients, &sq_norms, coefficients);
  stack[0] = torch::stable::detail::from(head.cosines);
  stack[1] = torch::stable::detail::from(sq_norms);
}

}  // namespace cggm::cuda
