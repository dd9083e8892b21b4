// scale_, batched_cosine with its backward, and modulate_, each in one parallel region.
#include <cmath>

#include "chunks.h"
#include "direct.h"
#include "ops.h"

namespace cggm::cpu {

namespace {

// Scales gradients chunk by chunk; the squared norms are added up afterwards in a fixed order.
class ScaleTask {
 public:
  explicit ScaleTask(const ScaleArguments& arguments)
      : gradients_(arguments.gradients),
        coefficients_(numbers(arguments.factors)),
        chunks_(gradients_, [](const Gradient& gradient) { return gradient.numel; }),
        sums_(chunks_.list.size()) {}

  int64_t chunks() const { return chunks_.count(); }
  int64_t elements() const { return chunks_.elements; }

  void run(int64_t index) {
    const Chunk& chunk = chunks_.list[index];
    const Gradient& gradient = gradients_[chunk.tensor];
    sums_[index] = dispatch(gradient.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      T* data = static_cast<T*>(gradient.data) + chunk.offset;
      const double coefficient = gradient.modality < 0 ? 1.0 : coefficients_[gradient.modality];
      // A coefficient of one leaves every bit as it is, those of a NaN included: the gradient is only read.
      return coefficient == 1.0 ? loops<T>().sum_squares(data, chunk.count) : loops<T>().scale(data, chunk.count, coefficient);
    });
  }

  Tensor sq_norms() const {  // [M + 1]
    Tensor out = new_empty({static_cast<int64_t>(coefficients_.size()) + 1}, ScalarType::Double);
    add_up(static_cast<double*>(out.data_ptr()));
    return out;
  }
  void add_up(double* sums) const {
    const int64_t modalities = static_cast<int64_t>(coefficients_.size());
    std::fill(sums, sums + modalities + 1, 0.0);
    for (size_t i = 0; i < sums_.size(); ++i) {
      const int64_t modality = gradients_[chunks_.list[i].tensor].modality;
      sums[modality < 0 ? modalities : modality] += sums_[i];
    }
  }

 private:
  const std::vector<Gradient>& gradients_;
  std::vector<double> coefficients_;  // [M]
  Chunks chunks_;
  std::vector<double> sums_;  // [chunks]
};

int64_t head_chunks(int64_t numel) { return (numel + kHeadChunk - 1) / kHeadChunk; }

// Dot products and squared norms of the head gradients, chunk by chunk.
class ProductsTask {
 public:
  ProductsTask(const Tensor& fusion, const std::vector<Tensor>& unimodal)
      : head_(fusion, unimodal), sums_(chunks() * (2 * head_.modalities() + 1)) {}

  int64_t chunks() const { return head_chunks(head_.numel()); }
  int64_t elements() const { return head_.numel() * (head_.modalities() + 1); }

  void run(int64_t index) {
    const int64_t offset = index * kHeadChunk, modalities = head_.modalities();
    dispatch(head_.dtype(), [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* const* rows = reinterpret_cast<const T* const*>(head_.rows.data());
      loops<T>().products(
          rows[0], rows + 1, modalities, offset, std::min(kHeadChunk, head_.numel() - offset),
          sums_.data() + index * (2 * modalities + 1));
    });
  }

  // Returns the cosines [M] and the products [2M + 1].
  std::tuple<Tensor, Tensor> results() const {
    const int64_t modalities = head_.modalities(), width = 2 * modalities + 1;
    Tensor products = new_empty({width}, ScalarType::Double);
    double* sums = zeroed(products);
    for (size_t i = 0; i < sums_.size(); ++i) sums[i % width] += sums_[i];
    const bool is_double = head_.dtype() == ScalarType::Double;
    Tensor cosines = new_empty({modalities}, is_double ? ScalarType::Double : ScalarType::Float);
    for (int64_t m = 0; m < modalities; ++m) {
      const double value = cosine(sums[m], sums[2 * modalities], sums[modalities + m]);
      if (is_double)
        static_cast<double*>(cosines.data_ptr())[m] = value;
      else
        static_cast<float*>(cosines.data_ptr())[m] = static_cast<float>(value);
    }
    return {cosines, products};
  }

 private:
  // 0 if a norm is 0. Clamped to [-1, 1] against rounding; NaN stays NaN.
  static double cosine(double dot, double sq_fusion, double sq_unimodal) {
    if (sq_fusion == 0 || sq_unimodal == 0) return 0;
    const double value = dot / std::sqrt(sq_fusion) / std::sqrt(sq_unimodal);
    return value > 1 ? 1 : value < -1 ? -1 : value;
  }

  HeadRows head_;
  std::vector<double> sums_;  // [chunks, 2M + 1]
};

}  // namespace

void scale_(StableIValue* stack, uint64_t, uint64_t) {
  ScaleArguments arguments(stack);
  arguments.check();
  ScaleTask task(arguments);
  for_each_chunk(task.chunks(), task.elements(), [&](int64_t index) { task.run(index); });
  stack[0] = torch::stable::detail::from(task.sq_norms());
}

void scale(DirectScale& arguments) {
  ScaleTask task(arguments);
  for_each_chunk(task.chunks(), task.elements(), [&](int64_t index) { task.run(index); });
  task.add_up(static_cast<double*>(arguments.out.data));
}

void modulate_(StableIValue* stack, uint64_t, uint64_t) {
  ModulateArguments arguments(stack);
  arguments.check();
  ProductsTask head(arguments.fusion, arguments.unimodal);
  ScaleTask scaling(arguments);
  const int64_t first = head.chunks();
  for_each_chunk(first + scaling.chunks(), head.elements() + scaling.elements(), [&](int64_t index) {
    if (index < first)
      head.run(index);
    else
      scaling.run(index - first);
  });
  stack[0] = torch::stable::detail::from(std::get<0>(head.results()));
  stack[1] = torch::stable::detail::from(scaling.sq_norms());
}

std::tuple<Tensor, Tensor> batched_cosine(Tensor fusion, std::vector<Tensor> unimodal) {
  ProductsTask task(fusion, unimodal);
  for_each_chunk(task.chunks(), task.elements(), [&](int64_t index) { task.run(index); });
  return task.results();
}

// d cos_m / d fusion = (u_m / |u_m| - cos_m f / |f|) / |f|, a weighted sum of the inputs.
Tensor batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal) {
  const HeadRows head(fusion, unimodal);
  check_backward(grad, products, head);
  const int64_t modalities = head.modalities(), numel = head.numel();
  const std::vector<double> upstream = numbers(view(grad.get())), sums = numbers(view(products.get()));
  const double sq_fusion = sums[2 * modalities];
  std::vector<double> weights(modalities + 1);
  for (int64_t m = 0; m < modalities; ++m) {
    const double sq_unimodal = sums[modalities + m];
    if (sq_fusion == 0 || sq_unimodal == 0) continue;
    weights[m] = upstream[m] / std::sqrt(sq_fusion) / std::sqrt(sq_unimodal);
    weights[modalities] -= weights[m] * (sums[m] / sq_fusion);
  }
  Tensor out = torch::stable::empty_like(head.tensors[0]);
  dispatch(head.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* const* rows = reinterpret_cast<const T* const*>(head.rows.data());
    for_each_chunk(head_chunks(numel), numel * (modalities + 1), [&](int64_t index) {
      const int64_t offset = index * kHeadChunk;
      loops<T>().combine(
          rows[0], rows + 1, modalities, offset, std::min(kHeadChunk, numel - offset), weights.data(),
          static_cast<T*>(out.data_ptr()));
    });
  });
  return out;
}

}  // namespace cggm::cpu
