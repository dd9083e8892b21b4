// The operators, declared once for each kind of device. cggm_ops/functional documents what they do.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace cggm {

using torch::stable::Tensor;

// -> cosines [M], products [2M + 1] = (dots [M], squared norms [M], squared norm of fusion)
using BatchedCosine = std::tuple<Tensor, Tensor>(Tensor fusion, std::vector<Tensor> unimodal);

// -> gradient with respect to fusion, of its shape and dtype
using BatchedCosineBackward = Tensor(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal);

// An operator on lists of tensors reads its arguments from the dispatcher's stack itself (tensor_list.h).
using Boxed = void(StableIValue* stack, uint64_t arguments, uint64_t results);

#define CGGM_DECLARE_OPERATORS                    \
  BatchedCosine batched_cosine;                   \
  BatchedCosineBackward batched_cosine_backward;  \
  Boxed scale_, modulate_, segment_gram, segment_combine_, adamw_, sgd_;

namespace cpu {
CGGM_DECLARE_OPERATORS
}
namespace cuda {
CGGM_DECLARE_OPERATORS
}

}  // namespace cggm

// Binds the operators of one namespace to a dispatch key, inside STABLE_TORCH_LIBRARY_IMPL.
#define CGGM_BIND_OPERATORS(library, where)                                                       \
  library.impl("batched_cosine", TORCH_BOX(&cggm::where::batched_cosine));                        \
  library.impl("batched_cosine_backward", TORCH_BOX(&cggm::where::batched_cosine_backward));      \
  library.impl("scale_", &cggm::where::scale_);                                                   \
  library.impl("modulate_", &cggm::where::modulate_);                                             \
  library.impl("segment_gram", &cggm::where::segment_gram);                                       \
  library.impl("segment_combine_", &cggm::where::segment_combine_);                               \
  library.impl("adamw_", &cggm::where::adamw_);                                                   \
  library.impl("sgd_", &cggm::where::sgd_)
