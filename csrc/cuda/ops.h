// The operators on CUDA. Contracts are documented in cggm_ops/ops.py; the arguments are those of csrc/ops.h.
#pragma once

#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace cggm::cuda {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> batched_cosine(Tensor fusion, std::vector<Tensor> unimodal);
Tensor batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal);
void scale_(StableIValue* stack, uint64_t arguments, uint64_t results);
void modulate_(StableIValue* stack, uint64_t arguments, uint64_t results);
void segment_gram(StableIValue* stack, uint64_t arguments, uint64_t results);
void segment_combine_(StableIValue* stack, uint64_t arguments, uint64_t results);
void adamw_(StableIValue* stack, uint64_t arguments, uint64_t results);
void sgd_(StableIValue* stack, uint64_t arguments, uint64_t results);

}  // namespace cggm::cuda
