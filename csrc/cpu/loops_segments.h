// Loops over several gradient sets; a part of loops_impl.h.

namespace cggm::cpu::CGGM_ISA {
namespace {

// Calls f(part, x) for part after part of every kStep elements, where x holds one register of doubles of each row. The rows are
// read side by side: longer turns would keep the hardware from prefetching.
template <int kStep, int K, typename T, typename F>
inline void for_each_part(const T* const (&rows)[K], int64_t n, const F& f) {
  const auto step = [&f](const T* const (&at)[K]) {
    for (int p = 0; p < kStep / (kLanes / 2); ++p) {
      Doubles x[K];
      for (int k = 0; k < K; ++k) x[k] = load_doubles(at[k] + p * (kLanes / 2));
      f(p, x);
    }
  };
  const T* at[K];
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int k = 0; k < K; ++k) at[k] = rows[k] + i;
    if (kStep == kUnit || i % kUnit == 0)
      for (int k = 0; k < K; ++k) prefetch(at[k]);
    step(at);
  }
  if (i == n) return;
  T tails[K][kStep] = {};
  for (int k = 0; k < K; ++k) {
    __builtin_memcpy(tails[k], rows[k] + i, (n - i) * sizeof(T));
    at[k] = tails[k];
  }
  step(at);
}

// A sum over kElements lanes, a divisor of kUnit: as many as let all sums of a loop stay in registers.
template <int kElements>
struct Sum {
  static constexpr int kParts = kElements / (kLanes / 2);
  Doubles part[kParts] = {};
  void add(int p, Doubles product) { part[p % kParts] += product; }
  double total() const {
    Unit unit = {};
    for (int p = 0; p < kParts; ++p) unit.part[p] = part[p];
    return CGGM_ISA::total(unit);
  }
};

// Sums of all products of K rows.
template <int K, typename T>
void gram_of(const T* const* rows, int64_t offset, int64_t n, double* out) {
  constexpr int kElements = K == 2 ? 16 : 8;
  Sum<kElements> sums[K][K];
  const T* begins[K];
  for (int k = 0; k < K; ++k) begins[k] = rows[k] + offset;
  for_each_part<kElements>(begins, n, [&sums](int p, const Doubles (&x)[K]) {
    for (int j = 0; j < K; ++j)
      for (int k = j; k < K; ++k) sums[j][k].add(p, x[j] * x[k]);
  });
  for (int j = 0; j < K; ++j)
    for (int k = j; k < K; ++k) out[j * K + k] = out[k * K + j] = sums[j][k].total();
}

// out [K, K] = sums of x_j * x_k
template <typename T>
void gram(const T* const* rows, int64_t sets, int64_t offset, int64_t n, double* out) {
  if (sets == 1) out[0] = sum_squares(rows[0] + offset, n);
  if (sets == 2) gram_of<2>(rows, offset, n, out);
  if (sets == 3) gram_of<3>(rows, offset, n, out);
  if (sets <= 3) return;
  for (int64_t j = 0; j < sets; ++j)  // rare: pair by pair, from the cache after the first read
    for (int64_t k = j + 1; k < sets; ++k) {
      const T* const pair[] = {rows[j], rows[k]};
      double products[4];
      gram_of<2>(pair, offset, n, products);
      out[j * sets + j] = products[0];
      out[j * sets + k] = out[k * sets + j] = products[1];
      out[k * sets + k] = products[3];
    }
}

// Writes the products of M rows with fusion, their squares and the square of fusion.
template <int M, typename T>
void products_of(
    const T* fusion, const T* const* unimodal, int64_t offset, int64_t n, double* dots, double* squares, double* sq_fusion) {
  constexpr int kElements = M == 1 ? 16 : M == 2 ? 8 : 4;
  Sum<kElements> dot[M], square[M + 1];
  const T* begins[M + 1];
  for (int m = 0; m < M; ++m) begins[m] = unimodal[m] + offset;
  begins[M] = fusion + offset;
  for_each_part<kUnit>(begins, n, [&](int p, const Doubles (&x)[M + 1]) {
    for (int m = 0; m < M; ++m) dot[m].add(p, x[m] * x[M]);
    for (int m = 0; m <= M; ++m) square[m].add(p, x[m] * x[m]);
  });
  for (int m = 0; m < M; ++m) {
    dots[m] = dot[m].total();
    squares[m] = square[m].total();
  }
  *sq_fusion = square[M].total();
}

template <typename T>
void products(const T* fusion, const T* const* unimodal, int64_t modalities, int64_t offset, int64_t n, double* out) {
  double* const sq_fusion = out + 2 * modalities;
  if (modalities == 0) *sq_fusion = sum_squares(fusion + offset, n);
  for (int64_t m = 0; m < modalities; m += 4) {  // four at a time fill the registers
    double *dots = out + m, *squares = out + modalities + m;
    if (modalities - m >= 4) products_of<4>(fusion, unimodal + m, offset, n, dots, squares, sq_fusion);
    if (modalities - m == 3) products_of<3>(fusion, unimodal + m, offset, n, dots, squares, sq_fusion);
    if (modalities - m == 2) products_of<2>(fusion, unimodal + m, offset, n, dots, squares, sq_fusion);
    if (modalities - m == 1) products_of<1>(fusion, unimodal + m, offset, n, dots, squares, sq_fusion);
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
  if (sets == 2)  // the most frequent case needs no loop over the sets
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
