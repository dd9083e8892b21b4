// The arguments of segment_gram and segment_combine_, and their checks; the same rules in Python are in
// cggm_ops/checks/segments.py.
#pragma once

#include "check.h"

namespace cggm {

// K sets of S tensors.
struct GradientSets {
  std::vector<const void*> data;  // [S, K]: the elements of a segment's tensors, all in the same order
  std::vector<int64_t> numel;     // [S]
  std::vector<ScalarType> dtype;  // [S]
  std::vector<Tensor> copies;     // of tensors with other strides

  int64_t count() const { return static_cast<int64_t>(numel.size()); }
};

inline void append_views(const TensorList& tensors, std::vector<View>& views) {
  views.reserve(views.size() + tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) views.push_back(tensors[i]);
}

// `views` [K, S]. The other sets follow the order in memory of set 0; tensors with gaps become contiguous.
inline GradientSets check_sets(const std::vector<View>& views, int64_t sets) {
  if (sets < 1 || views.empty() || views.size() % sets != 0)
    refuse("sets must be one or more lists of equally many tensors, found ", views.size(), " tensors in ", sets, " sets");
  const size_t count = views.size() / sets;
  GradientSets out;
  out.data.resize(views.size());
  for (size_t s = 0; s < count; ++s) {
    const View& first = views[s];
    check_dtype(first.dtype, "sets");
    for (int64_t k = 0; k < sets; ++k) {
      const View& tensor = views[k * count + s];
      if (!same_shape(tensor, first) || tensor.dtype != first.dtype)
        refuse("sets[", k, "][", s, "] must have the shape and dtype of its segment in sets[0] (",
               torch::headeronly::toString(first.dtype), "), found ", torch::headeronly::toString(tensor.dtype));
      if (!same_device(tensor, views[0]))
        refuse("sets[", k, "][", s, "] must be on the device of sets[0][0]: move one of them with .to(device)");
    }
    View copy;
    const View* order = &first;
    if (!is_dense(first)) {
      out.copies.push_back(torch::stable::contiguous(share(first.handle)));
      copy = view(out.copies.back().get());
      order = &copy;
    }
    for (int64_t k = 0; k < sets; ++k)
      out.data[s * sets + k] = in_order_of(k == 0 ? *order : views[k * count + s], *order, out.copies);
    out.numel.push_back(first.numel);
    out.dtype.push_back(first.dtype);
  }
  return out;
}

// The arguments of segment_gram: the tensors of K sets, one set after the other, and K.
struct GramArguments {
  TensorList tensors;
  int64_t width;  // K
  GradientSets sets;

  explicit GramArguments(const StableIValue* stack) : tensors(stack[0]), width(take<int64_t>(stack[1])) {}

  void check() {
    std::vector<View> views;
    append_views(tensors, views);
    sets = check_sets(views, width);
  }
};

// The arguments of segment_combine_: set 0, the other sets one after the other, and weights [S, K].
struct CombineArguments {
  TensorList into, others;
  Tensor weights;
  int64_t width = 1;  // K
  GradientSets sets;

  explicit CombineArguments(const StableIValue* stack) : into(stack[0]), others(stack[1]), weights(take<Tensor>(stack[2])) {}

  void check() {
    check_factors(view(weights.get()), 2, "weights");
    const int64_t count = weights.size(0), columns = weights.size(1);
    if (static_cast<int64_t>(into.size()) != count || static_cast<int64_t>(others.size()) != count * (columns - 1))
      refuse("weights [", count, ", ", columns, "] must have one row per tensor of a set (", into.size(),
             ") and one column per set, found ", others.size(), " tensors in the other sets");
    if (count == 0) return;
    width = columns;
    std::vector<View> views;
    append_views(into, views);
    append_views(others, views);
    check_same_device(views[0], view(weights.get()), "sets", "weights");
    Written written(count);
    for (int64_t s = 0; s < count; ++s) written.add(views[s], "sets[0]", s);
    written.check_disjoint();
    written.check_not_read(Range(view(weights.get()), "weights"));
    for (size_t i = count; i < views.size(); ++i) written.check_not_read(Range(views[i], "others", i - count));
    sets = check_sets(views, width);
  }
};

}  // namespace cggm
