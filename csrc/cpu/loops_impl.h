// The loops themselves, on GCC/Clang vector types of the native width. Included once per instruction set, by a file that
// defines CGGM_ISA (the namespace) and CGGM_VECTOR_BYTES, and converts halves with load_half() and store_half().
// Nothing from the standard library is used here: its inline functions must not be emitted with these instructions.

namespace cggm::cpu::CGGM_ISA {
namespace {

constexpr int kLanes = CGGM_VECTOR_BYTES / 4;  // floats in a vector
constexpr int kUnit = 16;                      // elements per loop iteration, on every instruction set

typedef float Floats __attribute__((vector_size(CGGM_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(CGGM_VECTOR_BYTES)));
typedef uint16_t Shorts __attribute__((vector_size(CGGM_VECTOR_BYTES / 2)));
typedef double Doubles __attribute__((vector_size(CGGM_VECTOR_BYTES)));
typedef float HalfFloats __attribute__((vector_size(CGGM_VECTOR_BYTES / 2)));

// A unit as doubles: the arrangement of lanes is the same on every instruction set, and so are the sums.
constexpr int kDoubles = kUnit / (kLanes / 2);
struct Unit {
  Doubles part[kDoubles];
};

template <typename V, typename T>
inline V load_bits(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

inline Floats load(const float* p) { return load_bits<Floats>(p); }
inline void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof(v)); }

inline Floats load(const BFloat16* p) {
  return (Floats)(__builtin_convertvector(load_bits<Shorts>(p), Words) << 16);
}
// Round to nearest even; a NaN stays a (quiet) NaN.
inline void store(BFloat16* p, Floats v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words is_nan = (Words)(v != v);
  const Shorts out = __builtin_convertvector((is_nan & ((bits >> 16) | 0x40)) | (~is_nan & rounded), Shorts);
  __builtin_memcpy(p, &out, sizeof(out));
}

inline Floats load(const Half* p) { return load_half(p); }
inline void store(Half* p, Floats v) { store_half(p, v); }

inline Doubles widen_low(Floats v) {
#if CGGM_VECTOR_BYTES == 32
  return __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3), Doubles);
#else
  return __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1), Doubles);
#endif
}
inline Doubles widen_high(Floats v) {
#if CGGM_VECTOR_BYTES == 32
  return __builtin_convertvector(__builtin_shufflevector(v, v, 4, 5, 6, 7), Doubles);
#else
  return __builtin_convertvector(__builtin_shufflevector(v, v, 2, 3), Doubles);
#endif
}
inline Floats narrow(Doubles low, Doubles high) {
  const HalfFloats a = __builtin_convertvector(low, HalfFloats), b = __builtin_convertvector(high, HalfFloats);
#if CGGM_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#else
  return __builtin_shufflevector(a, b, 0, 1, 2, 3);
#endif
}

template <typename T>
inline Unit load_unit(const T* p) {
  Unit unit;
  for (int k = 0; k < kDoubles / 2; ++k) {
    const Floats v = load(p + k * kLanes);
    unit.part[2 * k] = widen_low(v);
    unit.part[2 * k + 1] = widen_high(v);
  }
  return unit;
}
inline Unit load_unit(const double* p) { return load_bits<Unit>(p); }

template <typename T>
inline void store_unit(T* p, const Unit& unit) {
  for (int k = 0; k < kDoubles / 2; ++k) store(p + k * kLanes, narrow(unit.part[2 * k], unit.part[2 * k + 1]));
}
inline void store_unit(double* p, const Unit& unit) { __builtin_memcpy(p, &unit, sizeof(unit)); }

// Multiplies in float (in double for double), stores, and returns what was stored.
template <typename T>
inline Unit scale_unit(T* p, double coefficient) {
  for (int k = 0; k < kDoubles / 2; ++k) store(p + k * kLanes, load(p + k * kLanes) * (float)coefficient);
  return load_unit(p);
}
inline Unit scale_unit(float* p, double coefficient) {
  Unit unit;
  for (int k = 0; k < kDoubles / 2; ++k) {
    const Floats v = load(p + k * kLanes) * (float)coefficient;
    store(p + k * kLanes, v);
    unit.part[2 * k] = widen_low(v);
    unit.part[2 * k + 1] = widen_high(v);
  }
  return unit;
}
inline Unit scale_unit(double* p, double coefficient) {
  Unit unit = load_unit(p);
  for (Doubles& part : unit.part) part *= coefficient;
  store_unit(p, unit);
  return unit;
}

inline double total(const Unit& sums) {
  double lanes[kUnit];
  __builtin_memcpy(lanes, &sums, sizeof(lanes));
  for (int width = kUnit / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// The last, incomplete unit is processed in a copy padded with zeros.
template <typename T>
struct Tail {
  T values[kUnit] = {};
  explicit Tail(const T* p, int64_t n) { __builtin_memcpy(values, p, n * sizeof(T)); }
};

inline void add_product(Unit& sums, const Unit& a, const Unit& b) {
  for (int k = 0; k < kDoubles; ++k) sums.part[k] += a.part[k] * b.part[k];
}

template <typename T>
double sum_squares(const T* x, int64_t n) {
  Unit sums = {};
  int64_t i = 0;
  for (; i + kUnit <= n; i += kUnit) {
    const Unit unit = load_unit(x + i);
    add_product(sums, unit, unit);
  }
  if (i < n) {
    const Unit unit = load_unit(Tail<T>(x + i, n - i).values);
    add_product(sums, unit, unit);
  }
  return total(sums);
}

template <typename T>
double scale(T* x, int64_t n, double coefficient) {
  Unit sums = {};
  int64_t i = 0;
  for (; i + kUnit <= n; i += kUnit) {
    const Unit unit = scale_unit(x + i, coefficient);
    add_product(sums, unit, unit);
  }
  if (i < n) {
    // Zero padding times an infinite coefficient is NaN: the padding is cleared before it is summed.
    Tail<T> tail(x + i, n - i);
    scale_unit(tail.values, coefficient);
    __builtin_memcpy(x + i, tail.values, (n - i) * sizeof(T));
    const Unit unit = load_unit(Tail<T>(x + i, n - i).values);
    add_product(sums, unit, unit);
  }
  return total(sums);
}

// Converts n <= kBlock elements to doubles, padded with zeros to a whole number of units.
template <typename T>
void widen(const T* x, int64_t n, double* out) {
  int64_t i = 0;
  for (; i + kUnit <= n; i += kUnit) store_unit(out + i, load_unit(x + i));
  if (i < n) store_unit(out + i, load_unit(Tail<T>(x + i, n - i).values));
}

template <typename T>
void products(const T* fusion, const T* const* unimodal, int64_t modalities, int64_t offset, int64_t n, double* out) {
  for (int64_t k = 0; k < 2 * modalities + 1; ++k) out[k] = 0;
  alignas(64) double wide[kBlock];
  for (int64_t start = offset; start < offset + n; start += kBlock) {
    const int64_t count = offset + n - start < kBlock ? offset + n - start : kBlock;
    widen(fusion + start, count, wide);
    out[2 * modalities] += sum_squares<double>(wide, count);
    for (int64_t m = 0; m < modalities; ++m) {
      const T* x = unimodal[m] + start;
      Unit dots = {}, squares = {};
      int64_t i = 0;
      for (; i + kUnit <= count; i += kUnit) {
        const Unit unit = load_unit(x + i);
        add_product(dots, unit, load_unit(wide + i));
        add_product(squares, unit, unit);
      }
      if (i < count) {
        const Unit unit = load_unit(Tail<T>(x + i, count - i).values);
        add_product(dots, unit, load_unit(wide + i));
        add_product(squares, unit, unit);
      }
      out[m] += total(dots);
      out[modalities + m] += total(squares);
    }
  }
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

template <typename T>
Loops<T> make_loops() {
  return {sum_squares<T>, scale<T>, products<T>, combine<T>};
}
template Loops<float> make_loops();
template Loops<double> make_loops();
template Loops<BFloat16> make_loops();
template Loops<Half> make_loops();

}  // namespace cggm::cpu::CGGM_ISA
