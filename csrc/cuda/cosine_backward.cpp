// batched_cosine_backward on CUDA: checks, memory for the result, and the launch.
#include "cosine_backward.cuh"

#include "cuda/ops.h"
#include "cuda/runtime.h"

namespace cggm::cuda {

Tensor batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal) {
  check_head(fusion, unimodal);
  check_modalities(unimodal.size(), "unimodal");
  check_same_device(grad, fusion, "grad", "fusion");
  check_same_device(products, fusion, "products", "fusion");
  std::vector<Tensor> kept;
  const auto address = [&kept](const Tensor& tensor) {
    kept.push_back(as_contiguous(tensor));
    return kept.back().const_data_ptr();
  };
  CosineBackwardTable table = {};
  table.head.fusion = address(fusion);
  const Tensor out = torch::stable::empty_like(kept.front());
  for (size_t m = 0; m < unimodal.size(); ++m) table.head.rows[m] = address(unimodal[m]);
  table.head.numel = fusion.numel();
  table.head.modalities = static_cast<int32_t>(unimodal.size());
  table.head.dtype = to_dtype(fusion.scalar_type());
  table.products = static_cast<const double*>(address(products));
  table.grad = address(grad);
  table.out = out.mutable_data_ptr();
  const CurrentDevice device(fusion);
  launch_cosine_backward(table, device.multiprocessors(), device.stream());
  return out;
}

}  // namespace cggm::cuda
