// modulate_: scale_ and the cosines of the head gradients in one parallel region.
#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

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
  ProductsTask head(fusion, unimodal);
  ScaleTask scaling(segments, coefficients);
  const int64_t first = head.chunks();
  for_each_chunk(first + scaling.chunks(), head.elements() + scaling.elements(), [&](int64_t index) {
    if (index < first)
      head.run(index);
    else
      scaling.run(index - first);
  });
  stack[0] = torch::stable::detail::from(head.cosines(head.products()));
  stack[1] = torch::stable::detail::from(scaling.sq_norms());
}

}  // namespace cggm::cpu
