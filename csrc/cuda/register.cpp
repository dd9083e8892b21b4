// Binds the CUDA implementations to the operators, beside csrc/register.cpp for the CPU.
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(cggm_ops, CUDA, library) { CGGM_BIND_OPERATORS(library, cuda); }
