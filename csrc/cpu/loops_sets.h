// Loops over several gradient sets; a part of loops_impl.h.

namespace cggm::cpu::CGGM_ISA {
namespace {

// Sums of all products of K rows, with as many lanes as leave the sums in registers.
template <int K, typename T>
void gram_of(const T* const* rows, int64_t offset, int64_t n, double* out) {
  constexpr int kElements = K == 2 ? 16 : 8;
  constexpr int kParts = kElements / (kLanes / 2);
  Doubles sums[K][K][kParts] = {};
  const auto add = [&sums](const T* const (&x)[K]) {
    for (int p = 0; p < kParts; ++p) {
      Doubles part[K];
      for (int k = 0; k < K; ++k) part[k] = load_doubles(x[k] + p * (kLanes / 2));
      for (int j = 0; j < K; ++j)
        for (int k = j; k < K; ++k) sums[j][k][p] += part[j] * part[k];
    }
  };
  const T* x[K];
  int64_t i = 0;
  for (; i + kElements <= n; i += kElements) {
    for (int k = 0; k < K; ++k) x[k] = rows[k] + offset + i;
    if (kElements == kUnit || i % kUnit == 0)
      for (int k = 0; k < K; ++k) prefetch(x[k]);
    add(x);
  }
  if (i < n) {
    T tails[K][kElements] = {};
    for (int k = 0; k < K; ++k) {
      __builtin_memcpy(tails[k], rows[k] + offset + i, (n - i) * sizeof(T));
      x[k] = tails[k];
    }
    add(x);
  }
  for (int j = 0; j < K; ++j)
    for (int k = j; k < K; ++k) {
      Unit unit = {};
      for (int p = 0; p < kParts; ++p) unit.part[p] = sums[j][k][p];
      out[j * K + k] = out[k * K + j] = total(unit);
    }
}

// out [K, K] = sums of x_j * x_k
template <typename T>
void gram(const T* const* rows, int64_t sets, int64_t offset, int64_t n, double* out) {
  if (sets == 1) out[0] = sum_squares(rows[0] + offset, n);
  if (sets == 2) gram_of<2>(rows, offset, n, out);
  if (sets == 3) gram_of<3>(rows, offset, n, out);
  if (sets <= 3) return;
  for (int64_t j = 0; j < sets; ++j)  // rare: pair by pair, from the second-level cache after the first time
    for (int64_t k = j + 1; k < sets; ++k) {
      const T* const pair[] = {rows[j], rows[k]};
      double products[4];
      gram_of<2>(pair, offset, n, products);
      out[j * sets + j] = products[0];
      out[j * sets + k] = out[k * sets + j] = products[1];
      out[k * sets + k] = products[3];
    }
}

// One vector of sum_k weights[k] * x_k.
template <typename T>
inline auto mix_vector(const T* const* rows, int64_t sets, int64_t place, const double* weights) {
  using Scalar = ScalarOf<T>;
  auto sum = load(rows[0] + place) * static_cast<Scalar>(weights[0]);
  for (int64_t k = 1; k < sets; ++k) sum += load(rows[k] + place) * static_cast<Scalar>(weights[k]);
  return sum;
}

// out[i] = sum_k weights[k] * x_k[i]; out may be a row
template <typename T>
void mix(T* out, const T* const* rows, int64_t sets, int64_t offset, int64_t n, const double* weights) {
  constexpr int kStep = kVector<T>;
  int64_t i = offset;
  if (sets == 2)  // the most frequent case, without the loop over the sets
    for (; i + kStep <= offset + n; i += kStep) store(out + i, mix_vector(rows, 2, i, weights));
  for (; i + kStep <= offset + n; i += kStep) store(out + i, mix_vector(rows, sets, i, weights));
  for (; i < offset + n; i += kStep) {  // the last, incomplete vector: row by row in a copy
    const int64_t rest = offset + n - i;
    T tail[kStep] = {};
    __builtin_memcpy(tail, rows[0] + i, rest * sizeof(T));
    auto sum = load(tail) * static_cast<ScalarOf<T>>(weights[0]);
    for (int64_t k = 1; k < sets; ++k) {
      __builtin_memcpy(tail, rows[k] + i, rest * sizeof(T));
      sum += load(tail) * static_cast<ScalarOf<T>>(weights[k]);
    }
    store(tail, sum);
    __builtin_memcpy(out + i, tail, rest * sizeof(T));
  }
}

}  // namespace
}  // namespace cggm::cpu::CGGM_ISA
