// Binds the CPU implementations to the operators, whose schemas cggm_ops/schema.py defines.
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(cggm_ops, CPU, library) { CGGM_BIND_OPERATORS(library, cpu); }
