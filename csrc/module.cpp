// The Python module: importing it registers the operators (register.cpp); build_info() says how it was built.
// This file uses nothing from torch: the copy of pybind11 in torch 2.11 does not compile in stable-ABI mode.
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <string>

#ifdef CGGM_CUDA_ARCHS
#include <cuda_runtime_api.h>
#endif

#include "cpu/loops.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["isa"] = cggm::cpu::isa();
#ifdef CGGM_CUDA_ARCHS
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = CGGM_CUDA_ARCHS;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info, "How this extension was built, as a dictionary.");
}
