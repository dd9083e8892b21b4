// perceptrons: the cross entropies of M small networks on one target, and all their gradients.
#include <cmath>

#include "../check_perceptrons.h"
#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

namespace {

constexpr int64_t kIgnored = -100;  // a target that counts for nothing, as in torch

// A NaN stays one.
void rectify(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] < 0 ? 0 : x[i];
}

// out [rows, outputs] = x [rows, inputs] weight^T + bias
void forward(const Layer& layer, const float* x, float* out, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) std::copy(layer.bias, layer.bias + layer.outputs, out + i * layer.outputs);
  multiply()({x, layer.inputs, 1}, {layer.weight, 1, layer.inputs}, out, rows, layer.inputs, layer.outputs);
}

// The mean of the counted rows' cross entropies, and its gradient with respect to the logits.
float cross_entropy(const float* logits, const int64_t* target, int64_t rows, int64_t classes, float* gradient) {
  const int64_t counted = rows - std::count(target, target + rows, kIgnored);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i, logits += classes, gradient += classes) {
    if (target[i] == kIgnored) {
      std::fill(gradient, gradient + classes, 0.0f);
      continue;
    }
    const int64_t first = std::max_element(logits, logits + classes) - logits;
    // The sum without the largest term, which is one, so that small ones are not lost beside it; NaN where that is infinite.
    float rest = logits[first] - logits[first];
    for (int64_t c = 0; c < classes; ++c) {
      gradient[c] = std::exp(logits[c] - logits[first]);
      if (c != first) rest += gradient[c];
    }
    sum += std::log1p(rest) + (logits[first] - logits[target[i]]);
    gradient[target[i]] = target[i] == first ? -rest : gradient[target[i]] - (1 + rest);
    const float scale = 1 / ((1 + rest) * counted);
    for (int64_t c = 0; c < classes; ++c) gradient[c] *= scale;
  }
  return static_cast<float>(sum / counted);
}

// Where a network's gradients go.
struct Gradients {
  float* input;  // null: not asked for
  std::vector<float*> parameters;
};

// gradient [rows, outputs] of a layer's output -> gradients of its parameters
void backward(const Layer& layer, const float* x, const float* gradient, int64_t rows, float* weight, float* bias) {
  std::fill(weight, weight + layer.outputs * layer.inputs, 0.0f);
  multiply()({gradient, 1, layer.outputs}, {x, layer.inputs, 1}, weight, layer.outputs, rows, layer.inputs);
  std::fill(bias, bias + layer.outputs, 0.0f);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < layer.outputs; ++j) bias[j] += gradient[i * layer.outputs + j];
}

// read: what each layer has read; gradient: of the logits
void backward(
    const Perceptron& network, int64_t rows, const std::vector<const float*>& read, std::vector<float>& gradient,
    const Gradients& out) {
  std::vector<float> before;
  for (size_t l = network.layers.size(); l-- > 0;) {
    const Layer& layer = network.layers[l];
    backward(layer, read[l], gradient.data(), rows, out.parameters[2 * l], out.parameters[2 * l + 1]);
    if (l == 0 && out.input == nullptr) return;
    const int64_t count = rows * layer.inputs;
    float* values = out.input;
    if (l > 0) {
      before.resize(count);
      values = before.data();
    }
    std::fill(values, values + count, 0.0f);
    multiply()({gradient.data(), layer.outputs, 1}, {layer.weight, layer.inputs, 1}, values, rows, layer.outputs, layer.inputs);
    if (l > 0 || network.rectified)
      for (int64_t i = 0; i < count; ++i) values[i] = read[l][i] <= 0 ? 0 : values[i];
    gradient.swap(before);
  }
}

// -> the loss
float run(const Perceptron& network, int64_t rows, const int64_t* target, float* logits, const Gradients& out) {
  std::vector<std::vector<float>> made;  // the rectified input, and the hidden layers
  std::vector<const float*> read{network.input};
  made.reserve(network.layers.size());
  if (network.rectified) {
    made.emplace_back(rows * network.width);
    rectify(network.input, made.back().data(), rows * network.width);
    read[0] = made.back().data();
  }
  for (size_t l = 0; l + 1 < network.layers.size(); ++l) {
    const int64_t count = rows * network.layers[l].outputs;
    made.emplace_back(count);
    forward(network.layers[l], read[l], made.back().data(), rows);
    rectify(made.back().data(), made.back().data(), count);
    read.push_back(made.back().data());
  }
  const Layer& last = network.layers.back();
  forward(last, read.back(), logits, rows);
  std::vector<float> gradient(rows * last.outputs);
  const float loss = cross_entropy(logits, target, rows, last.outputs, gradient.data());
  backward(network, rows, read, gradient, out);
  return loss;
}

// The targets, each a class or to be ignored.
const int64_t* check_target(const Tensor& target, int64_t rows, int64_t classes) {
  if (target.dim() != 1 || target.scalar_type() != ScalarType::Long || target.numel() != rows || !target.is_cpu())
    refuse("target must hold ", rows, " class indices, int64 on the CPU, found ", target.numel(), " of ",
           torch::headeronly::toString(target.scalar_type()));
  const int64_t* values = static_cast<const int64_t*>(target.data_ptr());
  for (int64_t i = 0; i < rows; ++i)
    if (values[i] != kIgnored && (values[i] < 0 || values[i] >= classes))
      refuse("target must lie in [0, ", classes, "), or be ", kIgnored, " to be ignored, found ", values[i], " at ", i);
  return values;
}

Tensor without_gaps(Tensor tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

}  // namespace

void perceptrons(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList inputs(stack[0]), parameters(stack[1]);
  const auto layers = take<std::vector<int64_t>>(stack[2]), rectified = take<std::vector<int64_t>>(stack[3]);
  const Tensor target = without_gaps(take<Tensor>(stack[4]));
  const bool of_inputs = take<bool>(stack[5]);
  const Perceptrons networks = check_perceptrons(inputs, parameters, layers, rectified);
  const int64_t* classes = check_target(target, networks.rows, networks.outputs);
  const int64_t count = static_cast<int64_t>(networks.list.size()), each = networks.rows * networks.outputs;
  Tensor losses = new_empty({count}, ScalarType::Float);
  Tensor logits = new_empty({count, networks.rows, networks.outputs}, ScalarType::Float);
  std::vector<Tensor> results;
  const auto add = [&results](Tensor tensor) {
    results.push_back(std::move(tensor));
    return static_cast<float*>(results.back().data_ptr());
  };
  std::vector<Gradients> gradients(networks.list.size());
  if (of_inputs)
    for (size_t m = 0; m < gradients.size(); ++m)
      gradients[m].input = add(new_empty({networks.rows, networks.list[m].width}, ScalarType::Float));
  for (size_t m = 0; m < gradients.size(); ++m)
    for (const Layer& layer : networks.list[m].layers) {
      gradients[m].parameters.push_back(add(new_empty({layer.outputs, layer.inputs}, ScalarType::Float)));
      gradients[m].parameters.push_back(add(new_empty({layer.outputs}, ScalarType::Float)));
    }
  float* loss = static_cast<float*>(losses.data_ptr());
  float* logit = static_cast<float*>(logits.data_ptr());
  for_each_chunk(count, 3 * networks.products, [&](int64_t m) {
    loss[m] = run(networks.list[m], networks.rows, classes, logit + m * each, gradients[m]);
  });
  stack[0] = torch::stable::detail::from(losses);
  stack[1] = torch::stable::detail::from(logits);
  stack[2] = torch::stable::detail::from(results);
}

}  // namespace cggm::cpu
