// modulate_: scale_ and the cosines of the head gradients in one parallel region.
#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

std::tuple<Tensor, Tensor> modulate_(
    std::vector<Tensor> grads,
    std::vector<int64_t> owner,
    Tensor coefficients,
    Tensor fusion,
    std::vector<Tensor> unimodal) {
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
  return {head.cosines(head.products()), scaling.sq_norms()};
}

}  // namespace cggm::cpu
