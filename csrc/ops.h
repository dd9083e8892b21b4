// The operators, one declaration per implementation. Contracts are documented in cggm_ops/ops.py.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace cggm {

using torch::stable::Tensor;

namespace cpu {

// -> cosines [M], products [2M + 1] = (dots [M], squared norms [M], squared norm of fusion)
std::tuple<Tensor, Tensor> batched_cosine(Tensor fusion, std::vector<Tensor> unimodal);

// -> gradient with respect to fusion, of its shape and dtype
Tensor batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal);

// The operators on lists of gradients take their arguments from the dispatcher's stack themselves (tensor_list.h).

// grads, owner, coefficients -> squared norms after scaling [M + 1]
void scale_(StableIValue* stack, uint64_t arguments, uint64_t results);

// grads, owner, coefficients, fusion, unimodal -> cosines [M], squared norms after scaling [M + 1]
void modulate_(StableIValue* stack, uint64_t arguments, uint64_t results);

// tensors of K sets, one set after the other, K -> dot products [S, K, K]
void segment_gram(StableIValue* stack, uint64_t arguments, uint64_t results);

// set 0, the other sets, weights [S, K] -> nothing
void segment_combine_(StableIValue* stack, uint64_t arguments, uint64_t results);

// params, grads, state, modulation, hyper-parameters as in cggm_ops/schema.py -> nothing
void adamw_(StableIValue* stack, uint64_t arguments, uint64_t results);
void sgd_(StableIValue* stack, uint64_t arguments, uint64_t results);

// inputs, parameters, layers, rectified, target, of_inputs -> losses [M], logits [M, B, C], gradients of the losses' sum with
// respect to the inputs, where asked for, and to the parameters
void perceptrons(StableIValue* stack, uint64_t arguments, uint64_t results);

}  // namespace cpu
}  // namespace cggm
