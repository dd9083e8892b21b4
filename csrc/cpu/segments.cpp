// segment_gram and segment_combine_: dot products and weighted sums of several gradient sets, each in one read of everything.
#include "../check_segments.h"
#include "chunks.h"
#include "ops.h"

namespace cggm::cpu {

namespace {

// Calls f(loops, rows, chunk, index of the chunk) for every chunk.
template <typename F>
void for_each_part(const GradientSets& sets, int64_t width, const Chunks& chunks, const F& f) {
  for_each_chunk(chunks.count(), chunks.elements, [&](int64_t index) {
    const Chunk& chunk = chunks.list[index];
    dispatch(sets.dtype[chunk.tensor], [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      f(loops<T>(), reinterpret_cast<T* const*>(const_cast<void* const*>(sets.data.data())) + chunk.tensor * width, chunk, index);
    });
  });
}

// Cuts segments into chunks that hold about kChunk elements of all sets together.
Chunks cut(const GradientSets& sets, int64_t width) {
  const int64_t size = std::max<int64_t>(kBlock, kChunk / width / kBlock * kBlock);
  return {sets.numel, [](int64_t numel) { return numel; }, size, width};
}

}  // namespace

void segment_gram(StableIValue* stack, uint64_t, uint64_t) {
  GramArguments arguments(stack);
  arguments.check();
  const int64_t width = arguments.width, square = width * width;
  Tensor out = new_empty({arguments.sets.count(), width, width}, ScalarType::Double);
  double* gram = zeroed(out);
  const Chunks chunks = cut(arguments.sets, width);
  std::vector<double> sums(chunks.count() * square);
  for_each_part(arguments.sets, width, chunks, [&](const auto& loop, const auto* rows, const Chunk& chunk, int64_t index) {
    loop.gram(rows, width, chunk.offset, chunk.count, sums.data() + index * square);
  });
  for (int64_t i = 0; i < chunks.count(); ++i)
    for (int64_t j = 0; j < square; ++j) gram[chunks.list[i].tensor * square + j] += sums[i * square + j];
  stack[0] = torch::stable::detail::from(out);
}

void segment_combine_(StableIValue* stack, uint64_t, uint64_t) {
  CombineArguments arguments(stack);
  arguments.check();
  const int64_t width = arguments.width;
  const View weights = view(arguments.weights.get());
  std::vector<double> weight;  // [S, K]
  for (int64_t s = 0; s < arguments.sets.count(); ++s)
    for (int64_t k = 0; k < width; ++k) weight.push_back(number_at(weights, s * weights.strides[0] + k * weights.strides[1]));
  const Chunks chunks = cut(arguments.sets, width);
  for_each_part(arguments.sets, width, chunks, [&](const auto& loop, const auto* rows, const Chunk& chunk, int64_t) {
    loop.mix(rows[0], rows, width, chunk.offset, chunk.count, weight.data() + chunk.tensor * width);
  });
}

}  // namespace cggm::cpu
