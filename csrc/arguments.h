// The arguments of an operator, either from the dispatcher's stack (StableIValue) or straight from Python (PyObject*). The second way
// costs a quarter of the first with hundreds of tensors: nothing is copied, boxed or counted.
#pragma once

#include <Python.h>

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "dlpack.h"
#include "view.h"

namespace cggm {

// A call from Python that only the dispatcher can serve, or refuse with its own message. Nothing has been changed.
struct Unsuited {};

// What module.cpp finds in torch when it is imported: how to read a tensor, and the types that hold nothing but a tensor.
struct TorchTypes {
  const dlpack::Exchange* exchange = nullptr;
  PyObject* tensor = nullptr;
  PyObject* parameter = nullptr;
  PyObject* is_neg = nullptr;  // the method
};
inline TorchTypes torch_types;

inline ScalarType to_scalar_type(uint8_t code, uint8_t bits) {
  if (code == dlpack::kFloat && bits == 32) return ScalarType::Float;
  if (code == dlpack::kBFloat && bits == 16) return ScalarType::BFloat16;
  if (code == dlpack::kFloat && bits == 16) return ScalarType::Half;
  if (code == dlpack::kFloat && bits == 64) return ScalarType::Double;
  throw Unsuited();
}

inline View view(PyObject* object) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != torch_types.tensor && type != torch_types.parameter) throw Unsuited();
  dlpack::TensorView tensor;
  if (torch_types.exchange->read(object, &tensor) != 0) {
    PyErr_Clear();  // sparse tensors, for instance
    throw Unsuited();
  }
  if (tensor.device_type != dlpack::kCpu) throw Unsuited();
  View out{};
  out.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  out.dim = tensor.dim;
  out.sizes = tensor.sizes;
  out.strides = tensor.strides;
  out.element_size = tensor.bits / 8;
  out.device_type = cpu_type();
  out.dtype = to_scalar_type(tensor.code, tensor.bits);
  out.numel = 1;
  for (int64_t d = out.dim - 1; d >= 0; --d) {
    if (out.strides[d] != out.numel) throw Unsuited();  // has gaps
    out.numel *= out.sizes[d];
  }
  out.contiguous = true;
  if (out.data == nullptr && out.numel > 0) throw Unsuited();  // a tensor without memory
  return out;
}

// torch can store a number as its negative, for the imaginary part of a conjugate. Such tensors have gaps, except single numbers.
inline View positive_view(PyObject* object) {
  const View out = view(object);
  if (out.dim == 0) {
    PyObject* negative = PyObject_CallFunctionObjArgs(torch_types.is_neg, object, nullptr);
    Py_XDECREF(negative);  // True and False outlive this
    if (negative != Py_False) {
      PyErr_Clear();
      throw Unsuited();
    }
  }
  return out;
}

// Takes ownership of one argument on the dispatcher's stack, or reads one of Python's.
template <typename T>
T take(StableIValue argument) {
  return torch::stable::detail::to<T>(argument);
}
inline void require(bool success) {
  if (success && PyErr_Occurred() == nullptr) return;
  PyErr_Clear();
  throw Unsuited();
}
template <typename T>
T take(PyObject* argument);
template <>
inline double take<double>(PyObject* argument) {
  const double number = PyFloat_AsDouble(argument);
  if (number == -1) require(true);
  return number;
}
template <>
inline bool take<bool>(PyObject* argument) {
  require(argument == Py_True || argument == Py_False);
  return argument == Py_True;
}
template <>
inline std::vector<int64_t> take<std::vector<int64_t>>(PyObject* argument) {
  PyObject* tuple = PySequence_Tuple(argument);
  require(tuple != nullptr);
  std::vector<int64_t> out(PyTuple_Size(tuple));
  for (size_t i = 0; i < out.size(); ++i) out[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
  Py_DECREF(tuple);
  require(true);
  return out;
}

// A Tensor[] argument without a shared pointer per tensor, which would double the cost of a call with hundreds of gradients.
class TensorList {
 public:
  // Takes ownership of the list that the dispatcher put on the stack.
  explicit TensorList(StableIValue argument) : list_(torch::stable::detail::to<StableListHandle>(argument)) {
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list_, &size));
    tensors_.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list_, i, &item));
      tensors_.push_back(torch::stable::detail::to<AtenTensorHandle>(item));
    }
  }
  // A tuple of its own keeps the tensors alive while the operator runs without Python's global lock.
  explicit TensorList(PyObject* argument) : tuple_(PySequence_Tuple(argument)) { require(tuple_ != nullptr); }
  // Kernels run without Python's global lock, but releasing a tensor that Python holds needs it: take it once for all tensors.
  ~TensorList() {
    if (!Py_IsInitialized()) return;  // the interpreter has ended and freed the tensors
    const PyGILState_STATE state = PyGILState_Ensure();
    for (AtenTensorHandle tensor : tensors_) aoti_torch_delete_tensor_object(tensor);
    if (list_ != nullptr) torch_delete_list(list_);
    Py_XDECREF(tuple_);
    PyGILState_Release(state);
  }
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;

  size_t size() const { return tuple_ == nullptr ? tensors_.size() : PyTuple_Size(tuple_); }
  View operator[](size_t index) const {
    return tuple_ == nullptr ? view(tensors_[index]) : positive_view(PyTuple_GetItem(tuple_, index));
  }
  // One that the optimizer itself has made, which is never stored as its negative.
  View counter(size_t index) const {
    return tuple_ == nullptr ? view(tensors_[index]) : view(PyTuple_GetItem(tuple_, index));
  }

 private:
  StableListHandle list_ = nullptr;
  PyObject* tuple_ = nullptr;
  std::vector<AtenTensorHandle> tensors_;
};

// A Tensor or Tensor? argument.
class Operand {
 public:
  explicit Operand(StableIValue argument, bool optional = false) {
    if (optional)
      tensor_ = take<std::optional<Tensor>>(argument);
    else
      tensor_ = take<Tensor>(argument);
  }
  explicit Operand(PyObject* argument, bool = false) : object_(argument == Py_None ? nullptr : argument) {}

  explicit operator bool() const { return tensor_ || object_ != nullptr; }
  View operator*() const { return tensor_ ? view(tensor_->get()) : view(object_); }

 private:
  std::optional<Tensor> tensor_;
  PyObject* object_ = nullptr;  // the caller holds a reference
};

}  // namespace cggm
