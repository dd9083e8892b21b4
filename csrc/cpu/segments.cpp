// segment_gram and segment_combine_: dot products and weighted sums of several gradient sets, each in one read of everything.
#include "../check_sets.h"
#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

namespace {

struct SetChunk {
  int64_t segment;
  int64_t offset;
  int64_t count;
};

// Chunks that hold about kChunk elements of all sets together.
std::vector<SetChunk> cut(const Sets& sets, int64_t width, int64_t& elements) {
  const int64_t size = std::max<int64_t>(kBlock, kChunk / width / kBlock * kBlock);
  std::vector<SetChunk> chunks;
  for (size_t s = 0; s < sets.numel.size(); ++s) {
    elements += sets.numel[s] * width;
    for (int64_t offset = 0; offset < sets.numel[s]; offset += size)
      chunks.push_back({static_cast<int64_t>(s), offset, std::min(size, sets.numel[s] - offset)});
  }
  return chunks;
}

}  // namespace

void segment_gram(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList tensors(stack[0]);
  const auto width = take<int64_t>(stack[1]);
  std::vector<View> views;
  append_views(tensors, views);
  const Sets sets = order_sets(views, std::max<int64_t>(width, 0));
  const int64_t count = static_cast<int64_t>(sets.numel.size()), square = width * width;
  Tensor out = new_empty({count, width, width}, ScalarType::Double);
  double* gram = static_cast<double*>(out.data_ptr());
  std::fill(gram, gram + count * square, 0.0);
  int64_t elements = 0;
  const std::vector<SetChunk> chunks = cut(sets, width, elements);
  std::vector<double> sums(chunks.size() * square);
  for_each_chunk(chunks.size(), elements, [&](int64_t index) {
    const SetChunk& chunk = chunks[index];
    dispatch(sets.dtype[chunk.segment], [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* const* rows = reinterpret_cast<const T* const*>(sets.data.data() + chunk.segment * width);
      loops<T>().gram(rows, width, chunk.offset, chunk.count, sums.data() + index * square);
    });
  });
  for (size_t i = 0; i < chunks.size(); ++i)
    for (int64_t j = 0; j < square; ++j) gram[chunks[i].segment * square + j] += sums[i * square + j];
  stack[0] = torch::stable::detail::from(out);
}

void segment_combine_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList into(stack[0]), others(stack[1]);
  const auto weights = take<Tensor>(stack[2]);
  const Sets sets = check_combination(into, others, weights);
  const int64_t count = static_cast<int64_t>(sets.numel.size()), width = count > 0 ? weights.size(1) : 1;
  std::vector<double> weight(count * width);
  for (int64_t i = 0; i < count * width; ++i) {
    const int64_t place = i / width * weights.stride(0) + i % width * weights.stride(1);
    weight[i] = weights.scalar_type() == ScalarType::Double ? static_cast<const double*>(weights.data_ptr())[place]
                                                            : static_cast<const float*>(weights.data_ptr())[place];
  }
  int64_t elements = 0;
  const std::vector<SetChunk> chunks = cut(sets, width, elements);
  for_each_chunk(chunks.size(), elements, [&](int64_t index) {
    const SetChunk& chunk = chunks[index];
    dispatch(sets.dtype[chunk.segment], [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* const* rows = reinterpret_cast<const T* const*>(sets.data.data() + chunk.segment * width);
      T* out = const_cast<T*>(rows[0]);  // the tensor of set 0 itself, which has no gaps
      loops<T>().mix(out, rows, width, chunk.offset, chunk.count, weight.data() + chunk.segment * width);
    });
  });
}

}  // namespace cggm::cpu
