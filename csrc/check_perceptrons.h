// Validation of perceptrons and their inputs; the same rules in Python are in cggm_ops/checks_perceptrons.py.
#pragma once

#include "check_sets.h"

namespace cggm {

// One linear layer: weight [outputs, inputs] and bias [outputs].
struct Layer {
  const float* weight;
  const float* bias;
  int64_t inputs;
  int64_t outputs;
};

// Linear layers with rectifiers between them, and one before the first where `rectified`.
struct Perceptron {
  const float* input;  // [B, width]
  int64_t width;
  bool rectified;
  std::vector<Layer> layers;
};

struct Perceptrons {
  std::vector<Perceptron> list;
  std::vector<Tensor> copies;  // of tensors with gaps
  int64_t rows = 0;
  int64_t outputs = 0;
  int64_t products = 0;  // multiplications of a forward pass
};

inline const float* floats(AtenTensorHandle tensor, const View& seen, std::vector<Tensor>& copies) {
  if (seen.contiguous) return static_cast<const float*>(seen.data);
  copies.push_back(torch::stable::contiguous(share(tensor)));
  return static_cast<const float*>(copies.back().data_ptr());
}

inline View float_view(AtenTensorHandle tensor, int64_t dim, const char* name, size_t index) {
  const View seen = view(tensor);
  if (seen.dim != dim || seen.dtype != ScalarType::Float || seen.device_type != aoti_torch_device_type_cpu())
    refuse(name, "[", index, "] must be a ", dim, "-dimensional float32 tensor on the CPU, found ", seen.dim, " dimensions of ",
           torch::headeronly::toString(seen.dtype));
  return seen;
}

inline Perceptrons check_perceptrons(
    const TensorList& inputs, const TensorList& parameters, const std::vector<int64_t>& layers,
    const std::vector<int64_t>& rectified) {
  size_t linear = 0;
  for (const int64_t count : layers) {
    if (count < 1) refuse("layers must be positive, found ", count);
    linear += static_cast<size_t>(count);
  }
  if (layers.empty() || layers.size() != inputs.size() || rectified.size() != inputs.size() || parameters.size() != 2 * linear)
    refuse("inputs, layers and rectified must have one entry per perceptron, and parameters a weight and a bias per layer, found ",
           inputs.size(), ", ", layers.size(), ", ", rectified.size(), " and ", parameters.size());
  Perceptrons out;
  size_t next = 0;
  for (size_t m = 0; m < inputs.size(); ++m) {
    const View input = float_view(inputs[m], 2, "inputs", m);
    if (m == 0) out.rows = input.sizes[0];
    if (input.sizes[0] != out.rows)
      refuse("inputs[", m, "] must have as many rows as inputs[0] (", out.rows, "), found ", input.sizes[0]);
    Perceptron one{floats(inputs[m], input, out.copies), input.sizes[1], rectified[m] != 0, {}};
    int64_t width = one.width;
    for (int64_t l = 0; l < layers[m]; ++l, next += 2) {
      const View weight = float_view(parameters[next], 2, "parameters", next);
      const View bias = float_view(parameters[next + 1], 1, "parameters", next + 1);
      if (weight.sizes[1] != width || bias.sizes[0] != weight.sizes[0])
        refuse("parameters[", next, "] and [", next + 1, "] must be a weight [outputs, ", width, "] and a bias [outputs], found [",
               weight.sizes[0], ", ", weight.sizes[1], "] and [", bias.sizes[0], "]");
      one.layers.push_back({floats(parameters[next], weight, out.copies), floats(parameters[next + 1], bias, out.copies), width,
                            weight.sizes[0]});
      out.products += out.rows * width * weight.sizes[0];
      width = weight.sizes[0];
    }
    if (m == 0) out.outputs = width;
    if (width != out.outputs) refuse("perceptrons must have equally many outputs, found ", out.outputs, " and ", width);
    out.list.push_back(std::move(one));
  }
  return out;
}

}  // namespace cggm
