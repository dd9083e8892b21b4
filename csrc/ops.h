// The operators, one declaration per implementation. Contracts are documented in cggm_ops/ops.py.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace cggm {

using torch::stable::Tensor;

namespace cpu {

// -> cosines [M], products [2M + 1] = (dots [M], squared norms [M], squared norm of fusion)
std::tuple<Tensor, Tensor> batched_cosine(Tensor fusion, std::vector<Tensor> unimodal);

// -> gradient with respect to fusion, of its shape and dtype
Tensor batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal);

// -> squared norms after scaling [M + 1]
Tensor scale_(std::vector<Tensor> grads, std::vector<int64_t> owner, Tensor coefficients);

// -> cosines [M], squared norms after scaling [M + 1]
std::tuple<Tensor, Tensor> modulate_(
    std::vector<Tensor> grads,
    std::vector<int64_t> owner,
    Tensor coefficients,
    Tensor fusion,
    std::vector<Tensor> unimodal);

}  // namespace cpu
}  // namespace cggm
