// scale_: one pass that multiplies every gradient by its modality's coefficient and takes the squared norms.
#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

ScaleTask::ScaleTask(const std::vector<Segment>& segments, const Tensor& coefficients) : coefficients_(coefficients) {
  const int64_t modalities = coefficients.numel();
  const int64_t stride = modalities > 1 ? coefficients.stride(0) : 1;
  coefficient_.reserve(modalities);
  for (int64_t m = 0; m < modalities; ++m)
    coefficient_.push_back(
        coefficients.scalar_type() == ScalarType::Double
            ? static_cast<const double*>(coefficients.data_ptr())[m * stride]
            : static_cast<const float*>(coefficients.data_ptr())[m * stride]);
  for (const Segment& segment : segments) {
    elements_ += segment.numel;
    for (int64_t offset = 0; offset < segment.numel; offset += kChunk)
      chunks_.push_back({&segment, offset, std::min(kChunk, segment.numel - offset)});
  }
  sums_.resize(chunks_.size());
}

void ScaleTask::run(int64_t index) {
  const Chunk& chunk = chunks_[index];
  const int64_t modality = chunk.segment->modality;
  sums_[index] = dispatch(chunk.segment->dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* data = static_cast<T*>(chunk.segment->data) + chunk.offset;
    const Loops<T>& loop = loops<T>();
    // Multiplying by one would change nothing but the payload of a NaN: such a segment is only read.
    if (modality < 0 || coefficient_[modality] == 1.0) return loop.sum_squares(data, chunk.count);
    return loop.scale(data, chunk.count, coefficient_[modality]);
  });
}

Tensor ScaleTask::sq_norms() const {
  const int64_t modalities = static_cast<int64_t>(coefficient_.size());
  Tensor out = new_empty({modalities + 1}, ScalarType::Double);
  double* sums = static_cast<double*>(out.data_ptr());
  std::fill(sums, sums + modalities + 1, 0.0);
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const int64_t modality = chunks_[i].segment->modality;
    sums[modality < 0 ? modalities : modality] += sums_[i];
  }
  return out;
}

void scale_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList grads(stack[0]);
  const auto owner = take<std::vector<int64_t>>(stack[1]);
  const auto coefficients = take<Tensor>(stack[2]);
  const std::vector<Segment> segments = check_segments(grads, owner, coefficients);
  check_disjoint(segments);
  ScaleTask task(segments, coefficients);
  for_each_chunk(task.chunks(), task.elements(), [&](int64_t index) { task.run(index); });
  stack[0] = torch::stable::detail::from(task.sq_norms());
}

}  // namespace cggm::cpu
