// The loops themselves. Each instruction set has a file that includes this one. It defines CGGM_ISA (the namespace) and, in that
// namespace, the vector types Floats and Doubles and the primitives load, store, narrow, load_doubles and store_doubles for one
// register. The standard library is not used: its inline functions must not be compiled with these instructions.

namespace cggm::cpu::CGGM_ISA {
namespace {

constexpr int kLanes = sizeof(Floats) / sizeof(float);

// A unit as doubles. The order of lanes is the same on every instruction set, and so are the sums.
constexpr int kDoubles = kUnit / (kLanes / 2);
struct Unit {
  Doubles part[kDoubles];
};

// The type of arithmetic on T: float, or double for double.
template <typename T>
struct Arithmetic {
  using Scalar = float;
};
template <>
struct Arithmetic<double> {
  using Scalar = double;
};
template <typename T>
using ScalarOf = typename Arithmetic<T>::Scalar;
template <typename T>
constexpr int kVector = sizeof(Floats) / sizeof(ScalarOf<T>);

// Converts a factor to the type of arithmetic. Every NaN becomes one whose lower half is zero: store_pair relies on it.
template <typename T>
inline ScalarOf<T> scalar(double x) {
  return x == x ? static_cast<ScalarOf<T>>(x) : static_cast<ScalarOf<T>>(__builtin_nan(""));
}

inline Doubles load(const double* p) { return load_doubles(p); }
inline void store(double* p, Doubles v) { store_doubles(p, v); }
template <typename T>
using VectorOf = decltype(load(static_cast<const T*>(nullptr)));

// Two registers at a time, in memory order unless an instruction set defines a better order for T.
template <typename T>
inline void load_pair(const T* p, VectorOf<T>& first, VectorOf<T>& second) {
  first = load(p);
  second = load(p + kVector<T>);
}
template <typename T>
inline void store_pair(T* p, VectorOf<T> first, VectorOf<T> second) {
  store(p, first);
  store(p + kVector<T>, second);
}

template <typename T>
inline Unit load_unit(const T* p) {
  Unit unit;
  for (int k = 0; k < kDoubles; ++k) unit.part[k] = load_doubles(p + k * (kLanes / 2));
  return unit;
}

template <typename T>
inline void store_unit(T* p, const Unit& unit) {
  if constexpr (sizeof(T) == 8) {
    for (int k = 0; k < kDoubles; ++k) store_doubles(p + k * (kLanes / 2), unit.part[k]);
  } else {
    for (int k = 0; k < kDoubles; k += 2) store(p + k / 2 * kLanes, narrow(unit.part[k], unit.part[k + 1]));
  }
}

// Multiplies a unit in the type of arithmetic.
template <typename T>
inline void scale_unit(T* p, ScalarOf<T> coefficient) {
  for (int k = 0; k < kUnit; k += 2 * kVector<T>) {
    VectorOf<T> first, second;
    load_pair(p + k, first, second);
    store_pair(p + k, first * coefficient, second * coefficient);
  }
}

// Adds the lanes up by halves (0..7 + 8..15 and so on), the same on every instruction set.
inline double total(Unit sums) {
  for (int width = kDoubles / 2; width > 0; width /= 2)
    for (int k = 0; k < width; ++k) sums.part[k] += sums.part[k + width];
  Doubles lanes = sums.part[0];
  for (int width = kLanes / 4; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// Prefetches the cache lines of one unit two pages ahead: the hardware's prefetching stops at the end of a page.
constexpr int64_t kAhead = 8192;  // bytes
template <typename T>
inline void prefetch(const T* p) {
  for (int line = 0; line * 64 < kUnit * (int)sizeof(T); ++line)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead + line * 64);
}

// A copy of the last, incomplete unit, padded with zeros.
template <typename T>
struct Tail {
  T values[kUnit] = {};
  explicit Tail(const T* p, int64_t n) { __builtin_memcpy(values, p, n * sizeof(T)); }
};

inline void add_product(Unit& sums, const Unit& a, const Unit& b) {
  for (int k = 0; k < kDoubles; ++k) sums.part[k] += a.part[k] * b.part[k];
}

template <typename T>
inline void add_squares(const T* x, int64_t n, Unit& squares) {
  Unit sums = squares;  // in registers
  int64_t i = 0;
  for (; i + kUnit <= n; i += kUnit) {
    prefetch(x + i);
    const Unit unit = load_unit(x + i);
    add_product(sums, unit, unit);
  }
  if (i < n) {
    const Unit unit = load_unit(Tail<T>(x + i, n - i).values);
    add_product(sums, unit, unit);
  }
  squares = sums;
}

template <typename T>
double sum_squares(const T* x, int64_t n) {
  Unit sums = {};
  add_squares(x, n, sums);
  return total(sums);
}

// Sums what was stored, after storing it: half precision is cheaper to widen from memory than from registers. Pieces are long
// where arithmetic is the bottleneck, and short where memory is, which must not wait for sums.
template <typename T>
double scale(T* x, int64_t n, double coefficient) {
  constexpr int64_t kPiece = sizeof(T) == 2 ? 512 : kUnit;
  const ScalarOf<T> factor = scalar<T>(coefficient);
  Unit sums = {};
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t count = n - start < kPiece ? n - start : kPiece;
    T* piece = x + start;
    int64_t i = 0;
    for (; i + kUnit <= count; i += kUnit) scale_unit(piece + i, factor);
    if (i < count) {
      Tail<T> tail(piece + i, count - i);
      scale_unit(tail.values, factor);
      __builtin_memcpy(piece + i, tail.values, (count - i) * sizeof(T));
    }
    add_squares(piece, count, sums);
  }
  return total(sums);
}

template <typename T>
void add_weighted(double* sums, const T* x, int64_t n, double weight) {
  int64_t i = 0;
  for (; i < n; i += kUnit) {
    const Unit unit = i + kUnit <= n ? load_unit(x + i) : load_unit(Tail<T>(x + i, n - i).values);
    Unit sum = load_unit(sums + i);
    for (int k = 0; k < kDoubles; ++k) sum.part[k] += unit.part[k] * weight;
    store_unit(sums + i, sum);
  }
}

template <typename T>
void combine(
    const T* fusion, const T* const* unimodal, int64_t modalities, int64_t offset, int64_t n, const double* weights, T* out) {
  alignas(64) double sums[kBlock];
  for (int64_t start = offset; start < offset + n; start += kBlock) {
    const int64_t count = offset + n - start < kBlock ? offset + n - start : kBlock;
    for (double& sum : sums) sum = 0;
    add_weighted(sums, fusion + start, count, weights[modalities]);
    for (int64_t m = 0; m < modalities; ++m) add_weighted(sums, unimodal[m] + start, count, weights[m]);
    int64_t i = 0;
    for (; i + kUnit <= count; i += kUnit) store_unit(out + start + i, load_unit(sums + i));
    if (i < count) {
      T tail[kUnit];
      store_unit(tail, load_unit(sums + i));
      __builtin_memcpy(out + start + i, tail, (count - i) * sizeof(T));
    }
  }
}

}  // namespace
}  // namespace cggm::cpu::CGGM_ISA

#include "loops_optimizers.h"
#include "loops_segments.h"

namespace cggm::cpu::CGGM_ISA {

template <typename T>
Loops<T> make_loops() {
  return {sum_squares<T>, scale<T>, products<T>, combine<T>, gram<T>, mix<T>, adamw<T>, sgd<T>, sgd_momentum<T>};
}

template Loops<float> make_loops();
template Loops<double> make_loops();
template Loops<BFloat16> make_loops();
template Loops<Half> make_loops();

}  // namespace cggm::cpu::CGGM_ISA
