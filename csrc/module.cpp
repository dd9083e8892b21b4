// The Python module. Importing it registers the operators (register.cpp). build_info() says how it was built. adamw_, sgd_ and scale_
// take the operators' arguments straight from Python, for plain tensors on the CPU.
//
// It uses only Python's limited interface, so that one file serves every Python from 3.10 on. pybind11 has no such mode.
#include <string>

#ifdef CGGM_CUDA_ARCHS
#include <cuda_runtime_api.h>
#endif

#include "cpu/direct.h"
#include "cpu/loops.h"

namespace {

using namespace cggm;

PyObject* build_info(PyObject*, PyObject*) {
#if defined(__clang__)
  const char* compiler = "clang " __clang_version__;
#else
  const char* compiler = "gcc " __VERSION__;
#endif
#ifdef CGGM_CUDA_ARCHS
  const std::string cuda = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  const char *version = cuda.c_str(), *architectures = CGGM_CUDA_ARCHS;
#else
  const char *version = nullptr, *architectures = nullptr;  // None
#endif
  return Py_BuildValue(
      "{sssssssz}", "compiler", compiler, "isa", cpu::isa(), "cuda", version, "cuda_architectures", architectures);
}

class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

// Returns True, or False if only the dispatcher can serve this call; nothing has been changed then.
template <typename Arguments, void (*kRun)(Arguments&), Py_ssize_t kCount>
PyObject* direct(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (torch_types.exchange == nullptr || count != kCount) Py_RETURN_FALSE;
  try {
    Arguments arguments(values);
    arguments.check();
    const WithoutLock released;
    kRun(arguments);
  } catch (const Unsuited&) {
    Py_RETURN_FALSE;
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_TRUE;
}

template <typename Arguments, void (*kRun)(Arguments&), Py_ssize_t kCount>
PyMethodDef method(const char* name, const char* doc) {
  const auto function = reinterpret_cast<void (*)()>(&direct<Arguments, kRun, kCount>);
  return {name, reinterpret_cast<PyCFunction>(function), METH_FASTCALL, doc};
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "How this extension was built, as a dictionary."},
    method<AdamArguments, cpu::step, 15>("adamw_", "Serve plain tensors on the CPU; return whether it did."),
    method<SgdArguments, cpu::step, 13>("sgd_", "Serve plain tensors on the CPU; return whether it did."),
    method<cpu::DirectScale, cpu::scale, 4>("scale_", "Serve plain tensors on the CPU, with a tensor for the sums; return whether it did."),
    {nullptr, nullptr, 0, nullptr}};

PyObject* attribute(const char* module, const char* name) {
  PyObject* imported = PyImport_ImportModule(module);
  PyObject* found = imported == nullptr ? nullptr : PyObject_GetAttrString(imported, name);
  Py_XDECREF(imported);
  return found;
}

// References that are kept: the module stays loaded. Without the exchange interface, which torch 2.11 introduced, the dispatcher
// serves every call.
int execute(PyObject*) {
  torch_types.tensor = attribute("torch", "Tensor");
  torch_types.parameter = attribute("torch.nn", "Parameter");
  if (torch_types.tensor == nullptr || torch_types.parameter == nullptr) return -1;
  torch_types.is_neg = PyObject_GetAttrString(torch_types.tensor, "is_neg");
  if (torch_types.is_neg == nullptr) return -1;
  PyObject* capsule = PyObject_GetAttrString(torch_types.tensor, "__dlpack_c_exchange_api__");
  if (capsule != nullptr) {
    const auto* api = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    if (api != nullptr && api->major_version == dlpack::kMajorVersion && api->read != nullptr) torch_types.exchange = api;
  }
  PyErr_Clear();
  return 0;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(&execute)}, {0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&definition); }
