// A Tensor[] argument without a shared pointer per tensor, which would double the cost of a call with hundreds of gradients.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/shim_utils.h>

namespace cggm {

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
  // Kernels run without Python's global lock, but releasing a tensor that Python holds needs it: take it once for all tensors.
  ~TensorList() {
    if (!Py_IsInitialized()) return;  // the interpreter has ended and freed the tensors
    const PyGILState_STATE state = PyGILState_Ensure();
    for (AtenTensorHandle tensor : tensors_) aoti_torch_delete_tensor_object(tensor);
    torch_delete_list(list_);
    PyGILState_Release(state);
  }
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;

  size_t size() const { return tensors_.size(); }
  AtenTensorHandle operator[](size_t index) const { return tensors_[index]; }

 private:
  StableListHandle list_;
  std::vector<AtenTensorHandle> tensors_;
};

// Takes ownership of one argument on the dispatcher's stack.
template <typename T>
T take(StableIValue argument) {
  return torch::stable::detail::to<T>(argument);
}

}  // namespace cggm
