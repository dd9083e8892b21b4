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

// Addresses from the first element of a tensor to behind its last one, gaps included. The constructor lets vectors build it in place:
// a copy right after it would wait for the processor.
struct Range {
  const char* begin;
  const char* end;
  const char* name;  // of the argument
  int64_t index;     // in the argument's list, or -1 if it is a single tensor

  Range(const View& tensor, const char* name, int64_t index = -1)
      : begin(static_cast<const char*>(tensor.data)), end(begin + span(tensor) * tensor.element_size), name(name), index(index) {
    if (begin == nullptr && end != begin) refuse(label(), " has no memory: its storage has been resized to 0");
  }
  bool operator==(const Range& other) const {
    return begin == other.begin && end == other.end && name == other.name && index == other.index;
  }
  std::string label() const { return index < 0 ? name : name + ("[" + std::to_string(index) + "]"); }

 private:
  static int64_t span(const View& tensor) {  // in elements
    if (tensor.contiguous || tensor.numel == 0) return tensor.numel;
    int64_t last = 0;
    for (int64_t d = 0; d < tensor.dim; ++d) last += (tensor.sizes[d] - 1) * tensor.strides[d];
    return last + 1;
  }
};

// The memory that an operator changes. What has been found free of overlaps is remembered: steady training passes the same addresses
// in every step, and sorting them again would take a fifth of a call.
class Written {
 public:
  explicit Written(size_t tensors) { ranges_.reserve(tensors); }

  void add(const View& tensor, const char* name, int64_t index) {
    if (!is_dense(tensor))
      refuse(name, "[", index, "] must fill its memory without gaps or overlaps: pass .contiguous() and copy the result back");
    if (tensor.numel > 0) ranges_.emplace_back(tensor, name, index);
  }

  void check_disjoint() {
    constexpr size_t kLayouts = 8;  // of the optimizers and parameter groups that take turns
    struct Layout {
      std::vector<Range> added, sorted;
    };
    thread_local Layout layouts[kLayouts];
    thread_local size_t oldest = 0;
    for (const Layout& layout : layouts)
      if (layout.added == ranges_) {
        sorted_ = &layout.sorted;
        return;
      }
    std::vector<Range> sorted = ranges_;
    std::stable_sort(sorted.begin(), sorted.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < sorted.size(); ++i)
      if (sorted[i - 1].end > sorted[i].begin)
        refuse(sorted[i - 1].label(), " and ", sorted[i].label(), " must not share memory: pass every tensor once");
    Layout& layout = layouts[oldest++ % kLayouts];
    layout = {std::move(ranges_), std::move(sorted)};
    sorted_ = &layout.sorted;
  }

  // Refuses a tensor that would change while it is read. Call check_disjoint first. `is_changed` tells which of the tensors that
  // were added really change.
  template <typename F>
  void check_not_read(const Range& read, const char* fix, const F& is_changed) {
    if (read.begin == read.end) return;
    const std::vector<Range>& ranges = *sorted_;
    // Tensors that are read often lie side by side, between the same two that are written.
    const bool is_behind = gap_ == 0 || ranges[gap_ - 1].end <= read.begin;
    if (is_behind && (gap_ == ranges.size() || read.end <= ranges[gap_].begin)) return;
    const auto ends_after = [](const char* address, const Range& range) { return address < range.end; };
    auto found = std::upper_bound(ranges.begin(), ranges.end(), read.begin, ends_after);
    gap_ = found - ranges.begin();
    for (; found != ranges.end() && found->begin < read.end; ++found)
      if (is_changed(*found))
        refuse(read.label(), " shares memory with ", found->label(), ", which is changed: ", fix);
  }
  void check_not_read(const Range& read) {
    check_not_read(read, "pass a copy", [](const Range&) { return true; });
  }

 private:
  std::vector<Range> ranges_;                   // in the order in which they were added
  const std::vector<Range>* sorted_ = nullptr;  // by address
  size_t gap_ = 0;                              // the first that ends behind what was last read
};

}  // namespace cggm
