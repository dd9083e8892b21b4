// The operators that Python can call without the dispatcher, on checked arguments.
#pragma once

#include "../check_modulation.h"
#include "../check_optimizers.h"

namespace cggm::cpu {

// The arguments of scale_, and a tensor [M + 1] in float64 for the squared norms.
struct DirectScale : ScaleArguments {
  Operand sums;
  View out{};

  explicit DirectScale(PyObject* const* values) : ScaleArguments(values), sums(values[3]) {}

  void check() {
    ScaleArguments::check();
    out = *sums;
    if (out.dtype != ScalarType::Double || out.numel != factors.numel + 1) throw Unsuited();
  }
};

void step(AdamArguments& arguments);
void step(SgdArguments& arguments);
void scale(DirectScale& arguments);

}  // namespace cggm::cpu
