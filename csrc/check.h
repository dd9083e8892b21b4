// Checks that all compiled implementations share. A refused argument raises std::invalid_argument, which Python sees as a
// ValueError; nothing has been changed then. cggm_ops/checks holds the same rules for the implementations in Python.
#pragma once

#include <string>

#include "arguments.h"

namespace cggm {

// Coefficients, scales and weights: float32 or float64 whatever the tensors they multiply.
inline void check_factors(const View& factors, int64_t dim, const char* name) {
  if (factors.dim != dim || (factors.dtype != ScalarType::Float && factors.dtype != ScalarType::Double))
    refuse(name, " must be ", dim == 1 ? "one" : "two", "-dimensional, float32 or float64, found ", factors.dim,
           " dimensions of ", torch::headeronly::toString(factors.dtype));
}

// Which entry of `factors` belongs to each tensor; -1 for none.
inline void check_owner(
    const std::vector<int64_t>& owner, size_t count, const char* tensors, int64_t factors, const char* name) {
  if (owner.size() != count)
    refuse("owner must name one modality per tensor in ", tensors, ", found ", owner.size(), " for ", count);
  for (size_t s = 0; s < count; ++s)
    if (owner[s] < -1 || owner[s] >= factors)
      refuse("owner must lie in [-1, ", factors, ") for ", factors, " entries of ", name, ", found ", owner[s], " at ", s);
}

// Addresses from the first element of a tensor to behind its last one, gaps included.
struct Range {
  const char* begin;
  const char* end;
  const char* name;  // of the argument
  int64_t index;     // in the argument's list, or -1 if it is a single tensor

  std::string label() const { return index < 0 ? name : name + ("[" + std::to_string(index) + "]"); }
};

inline Range range(const View& tensor, const char* name, int64_t index = -1) {
  const char* begin = static_cast<const char*>(tensor.data);
  int64_t last = tensor.numel - 1;
  if (!tensor.contiguous && tensor.numel > 0) {
    last = 0;
    for (int64_t d = 0; d < tensor.dim; ++d) last += (tensor.sizes[d] - 1) * tensor.strides[d];
  }
  return {begin, begin + (last + 1) * tensor.element_size, name, index};
}

// The memory that an operator changes.
class Written {
 public:
  explicit Written(size_t tensors) { ranges_.reserve(tensors); }

  void add(const Range& range, bool dense) {
    if (!dense)
      refuse(range.label(), " must fill its memory without gaps or overlaps: pass .contiguous() and copy the result back");
    if (range.end > range.begin) ranges_.push_back(range);
  }
  void add(const View& tensor, const char* name, int64_t index) {
    add(range(tensor, name, index), is_dense(tensor));
  }

  void check_disjoint() {
    const auto before = [](const Range& a, const Range& b) { return a.begin < b.begin; };
    if (!std::is_sorted(ranges_.begin(), ranges_.end(), before)) std::stable_sort(ranges_.begin(), ranges_.end(), before);
    for (size_t i = 1; i < ranges_.size(); ++i)
      if (ranges_[i - 1].end > ranges_[i].begin)
        refuse(ranges_[i - 1].label(), " and ", ranges_[i].label(), " must not share memory: pass every tensor once");
  }

  // Refuses a tensor that would change while it is read. Call check_disjoint first, which sorts. `is_changed` tells which of
  // the tensors that were added really change.
  template <typename F>
  void check_not_read(const Range& read, const char* fix, const F& is_changed) const {
    if (read.begin == read.end) return;
    const auto ends_after = [](const char* address, const Range& range) { return address < range.end; };
    auto found = std::upper_bound(ranges_.begin(), ranges_.end(), read.begin, ends_after);
    for (; found != ranges_.end() && found->begin < read.end; ++found)
      if (is_changed(*found))
        refuse(read.label(), " shares memory with ", found->label(), ", which is changed: ", fix);
  }
  void check_not_read(const View& tensor, const char* name, int64_t index) const {
    check_not_read(range(tensor, name, index), "pass a copy", [](const Range&) { return true; });
  }

 private:
  std::vector<Range> ranges_;
};

}  // namespace cggm
