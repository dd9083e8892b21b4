// batched_cosine: all dot products and norms of the head gradients in one read; its backward in one more.
#include <cmath>

#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

namespace {

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// 0 where a norm is 0; rounding can't take it out of [-1, 1]; NaN stays NaN.
double cosine(double dot, double sq_fusion, double sq_unimodal) {
  if (sq_fusion == 0 || sq_unimodal == 0) return 0;
  const double value = dot / std::sqrt(sq_fusion) / std::sqrt(sq_unimodal);
  return value > 1 ? 1 : value < -1 ? -1 : value;
}

}  // namespace

ProductsTask::ProductsTask(const Tensor& fusion, const std::vector<Tensor>& unimodal)
    : fusion_(as_contiguous(fusion)), modalities_(static_cast<int64_t>(unimodal.size())), numel_(fusion.numel()) {
  check_head(fusion, unimodal);
  for (const Tensor& tensor : unimodal) {
    unimodal_.push_back(as_contiguous(tensor));
    rows_.push_back(unimodal_.back().data_ptr());
  }
  sums_.resize(chunks() * (2 * modalities_ + 1));
}

void ProductsTask::run(int64_t index) {
  const int64_t offset = index * kHeadChunk;
  const int64_t count = std::min(kHeadChunk, numel_ - offset);
  dispatch(fusion_.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    loops<T>().products(
        static_cast<const T*>(fusion_.data_ptr()),
        reinterpret_cast<const T* const*>(rows_.data()),
        modalities_, offset, count, sums_.data() + index * (2 * modalities_ + 1));
  });
}

Tensor ProductsTask::products() const {
  const int64_t width = 2 * modalities_ + 1;
  Tensor out = new_empty({width}, ScalarType::Double);
  double* sums = static_cast<double*>(out.data_ptr());
  std::fill(sums, sums + width, 0.0);
  for (size_t i = 0; i < sums_.size(); ++i) sums[i % width] += sums_[i];
  return out;
}

Tensor ProductsTask::cosines(const Tensor& products) const {
  const bool is_double = fusion_.scalar_type() == ScalarType::Double;
  Tensor out = new_empty({modalities_}, is_double ? ScalarType::Double : ScalarType::Float);
  const double* sums = static_cast<const double*>(products.data_ptr());
  for (int64_t m = 0; m < modalities_; ++m) {
    const double value = cosine(sums[m], sums[2 * modalities_], sums[modalities_ + m]);
    if (is_double)
      static_cast<double*>(out.data_ptr())[m] = value;
    else
      static_cast<float*>(out.data_ptr())[m] = static_cast<float>(value);
  }
  return out;
}

std::tuple<Tensor, Tensor> batched_cosine(Tensor fusion, std::vector<Tensor> unimodal) {
  ProductsTask task(fusion, unimodal);
  for_each_chunk(task.chunks(), task.elements(), [&](int64_t index) { task.run(index); });
  Tensor products = task.products();
  return {task.cosines(products), products};
}

// d cos_m / d fusion = (u_m / |u_m| - cos_m f / |f|) / |f|, a weighted sum of the inputs.
Tensor batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, std::vector<Tensor> unimodal) {
  check_head(fusion, unimodal);
  const int64_t modalities = static_cast<int64_t>(unimodal.size());
  const bool is_double = fusion.scalar_type() == ScalarType::Double;
  const Tensor grad_ = as_contiguous(grad);
  const double* sums = static_cast<const double*>(products.data_ptr());
  const double sq_fusion = sums[2 * modalities];
  std::vector<double> weights(modalities + 1);
  std::vector<Tensor> kept;
  std::vector<const void*> rows;
  for (int64_t m = 0; m < modalities; ++m) {
    kept.push_back(as_contiguous(unimodal[m]));
    rows.push_back(kept.back().data_ptr());
    const double sq_unimodal = sums[modalities + m];
    if (sq_fusion == 0 || sq_unimodal == 0) continue;
    const double upstream = is_double ? static_cast<const double*>(grad_.data_ptr())[m]
                                      : static_cast<const float*>(grad_.data_ptr())[m];
    weights[m] = upstream / std::sqrt(sq_fusion) / std::sqrt(sq_unimodal);
    weights[modalities] -= weights[m] * (sums[m] / sq_fusion);
  }
  const Tensor source = as_contiguous(fusion);
  Tensor out = torch::stable::empty_like(source);
  const int64_t numel = source.numel();
  const int64_t chunks = (numel + kHeadChunk - 1) / kHeadChunk;
  dispatch(source.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_chunk(chunks, numel * (modalities + 1), [&](int64_t index) {
      const int64_t offset = index * kHeadChunk;
      loops<T>().combine(
          static_cast<const T*>(source.data_ptr()),
          reinterpret_cast<const T* const*>(rows.data()),
          modalities, offset, std::min(kHeadChunk, numel - offset), weights.data(), static_cast<T*>(out.data_ptr()));
    });
  });
  return out;
}

}  // namespace cggm::cpu
