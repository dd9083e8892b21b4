// scale_, batched_cosine with its backward, and modulate_ on CUDA: checks, memory for the results, and tables of launches.
#include "modulation.cuh"

#include <algorithm>
#include <optional>

#include "check_modulation.h"
#include "cuda/runtime.h"
#include "ops.h"

namespace cggm::cuda {

namespace {

// Non-empty gradients in the order of the launches: sorted by modality, those without one last.
struct Order {
  std::vector<const Gradient*> gradients;
  int32_t modality_begin[kMaxModalities + 2] = {};  // in chunks
  int32_t chunks = 0;

  Order(const std::vector<Gradient>& all, int modalities) {
    for (const Gradient& gradient : all)
      if (gradient.numel > 0) gradients.push_back(&gradient);
    const auto bucket = [modalities](const Gradient* g) { return g->modality < 0 ? modalities : g->modality; };
    const auto before = [&](const Gradient* a, const Gradient* b) { return bucket(a) < bucket(b); };
    if (!std::is_sorted(gradients.begin(), gradients.end(), before))
      std::stable_sort(gradients.begin(), gradients.end(), before);
    int64_t total = 0;
    size_t next = 0;
    for (int m = 0; m <= modalities; ++m) {
      modality_begin[m] = static_cast<int32_t>(total);
      for (; next < gradients.size() && bucket(gradients[next]) == m; ++next)
        total += count_chunks(gradients[next]->numel, kChunk);
    }
    if (total > INT32_MAX) refuse("grads hold too many elements for one call: split it");
    modality_begin[modalities + 1] = chunks = static_cast<int32_t>(total);
  }
};

HeadTable table_of(const HeadRows& head) {
  check_modalities(head.modalities(), "unimodal");
  HeadTable table = {};
  table.fusion = head.rows[0];
  std::copy(head.rows.begin() + 1, head.rows.end(), table.rows);
  table.numel = head.numel();
  table.chunks = count_chunks(table.numel, kHeadChunk);
  table.modalities = static_cast<int32_t>(head.modalities());
  table.dtype = to_dtype(head.dtype());
  return table;
}

// The head gradients of a call and the results for them; empty for scale_.
struct Head {
  HeadTable table = {};
  std::optional<HeadRows> rows;
  Tensor products, cosines;

  Head() = default;
  Head(const Tensor& fusion, const std::vector<Tensor>& unimodal) : rows(std::in_place, fusion, unimodal) {
    table = table_of(*rows);
    products = torch::stable::new_empty(fusion, {2 * rows->modalities() + 1}, ScalarType::Double);
    cosines = torch::stable::new_empty(fusion, {rows->modalities()}, ScalarType::Float);
  }
  int64_t partials() const { return static_cast<int64_t>(table.chunks) * (2 * table.modalities + 1); }
};

template <int kCapacity>
void launch_all(const Order& order, ModulateTable<kCapacity>& table, const CurrentDevice& device) {
  std::copy(std::begin(order.modality_begin), std::end(order.modality_begin), table.modality_begin);
  table.head_chunks = table.head.chunks;
  for (size_t next = 0; next < order.gradients.size() || table.head_chunks > 0; table.head_chunks = 0) {
    const size_t count = std::min<size_t>(kCapacity, order.gradients.size() - next);
    table.entry_count = static_cast<int32_t>(count);
    table.chunk_base += table.chunks;
    table.chunks = 0;
    for (size_t s = 0; s < count; ++s) {
      const Gradient& gradient = *order.gradients[next + s];
      table.entries[s] = {
          {gradient.data}, gradient.numel, table.chunks, static_cast<int16_t>(gradient.modality), to_dtype(gradient.dtype)};
      table.chunks += count_chunks(gradient.numel, kChunk);
    }
    table.entries[count].first_chunk = table.chunks;
    next += count;
    launch_modulate(table, device.multiprocessors(), device.stream());
  }
  launch_modulate_sums(table, device.stream());
}

template <int kCapacity>
void run(const Order& order, const Head& head, const View* coefficients, Tensor* sq_norms, const Tensor& like) {
  const CurrentDevice device(like);
  // Freed when this call returns: torch's allocator reuses memory in stream order, so the kernels still see it.
  const Tensor workspace = torch::stable::new_empty(like, {order.chunks + head.partials()}, ScalarType::Double);
  ModulateTable<kCapacity> table = {};
  table.outputs.partials = static_cast<double*>(workspace.mutable_data_ptr());
  table.outputs.head_partials = table.outputs.partials + order.chunks;
  if (coefficients != nullptr) {
    table.modalities = static_cast<int32_t>(coefficients->numel);
    table.coefficients = factors_of(*coefficients);
    *sq_norms = torch::stable::new_empty(like, {coefficients->numel + 1}, ScalarType::Double);
    table.outputs.sq_norms = static_cast<double*>(sq_norms->mutable_data_ptr());
  }
  if (head.rows) {
    table.outputs.products = static_cast<double*>(head.products.mutable_data_ptr());
    table.outputs.cosines = static_cast<float*>(head.cosines.mutable_data_ptr());
  }
  table.head = head.table;
  launch_all(order, table, device);
}

// Small calls copy a small table.
void run_sized(const Order& order, const Head& head, const View* coefficients, Tensor* sq_norms, const Tensor& like) {
  const auto chosen = order.gradients.size() <= kFewGradients ? run<kFewGradients> : run<kMaxGradients>;
  chosen(order, head, coefficients, sq_norms, like);
}

Tensor scale(const ScaleArguments& arguments, const Head& head) {
  check_modalities(arguments.factors.numel, "coefficients");
  for (const Gradient& gradient : arguments.gradients) to_dtype(gradient.dtype);  // refuses float64 before anything is changed
  Tensor sq_norms;
  const Order order(arguments.gradients, static_cast<int>(arguments.factors.numel));
  run_sized(order, head, &arguments.factors, &sq_norms, share(arguments.factors.handle));
  return sq_norms;
}

}  // namespace

void scale_(StableIValue* stack, uint64_t, uint64_t) {
  ScaleArguments arguments(stack);
  arguments.check();
  stack[0] = torch::stable::detail::from(scale(arguments, Head()));
}

std::tuple<Tensor, Tensor> batched_cosine(Tensor fusion, std::vector<Tensor> unimodal) {
  const Head head(fusion, unimodal);
  run_sized(Order({}, 0), head, nullptr, nullptr, fusion);
  return {head.cosines, head.products};
}

void modulate_(StableIValue* stack, uint64_t, uint64_t) {
  ModulateArguments arguments(stack);
  arguments.check();
  const Head head(arguments.fusion, arguments.unimodal);
  const Tensor sq_norms = scale(arguments, head);
  stack[0] = torch::stable::detail::from(head.cosines);
  stack[1] = torch::stable::detail::from(sq_norms);
}

Tensor batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal) {
  const HeadRows head(fusion, unimodal);
  check_backward(grad, products, head);
  const Tensor out = torch::stable::empty_like(head.tensors[0]), sums = torch::stable::contiguous(products);
  CosineBackwardTable table = {table_of(head), static_cast<const double*>(sums.const_data_ptr()), factors_of(view(grad.get())),
                               out.mutable_data_ptr()};
  const CurrentDevice device(fusion);
  launch_cosine_backward(table, device.multiprocessors(), device.stream());
  return out;
}

}  // namespace cggm::cuda
