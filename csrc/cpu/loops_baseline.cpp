// The loops for the instruction set that every machine of the architecture has (SSE2 on x86-64, NEON on arm64), and the
// choice between them and others.
#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "loops.h"

namespace cggm::cpu::baseline {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef float FloatPair __attribute__((vector_size(8)));
typedef double Doubles __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint32_t WordPair __attribute__((vector_size(8)));
typedef uint16_t ShortPair __attribute__((vector_size(4)));
typedef uint16_t Shorts __attribute__((vector_size(8)));

template <typename V, typename T>
inline V load_bits(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

inline Floats load(const float* p) { return load_bits<Floats>(p); }
inline Floats load(const BFloat16* p) { return (Floats)(__builtin_convertvector(load_bits<Shorts>(p), Words) << 16); }
inline Floats load(const Half* p) {
  Floats v;
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(c10::Half(p[i].bits, c10::Half::from_bits()));
  return v;
}

inline void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof(v)); }
// Rounds to nearest even; a NaN becomes the quiet NaN of the same sign.
inline void store(BFloat16* p, Floats v) {
  const Words bits = (Words)v;
  const Words rounded = bits + (((bits >> 16) & 1) + 0x7fff);
  const Words is_nan = (Words)(v != v);
  const Words high = ((is_nan & (bits | 0x00400000)) | (~is_nan & rounded)) >> 16;
  const Shorts out = __builtin_convertvector(high, Shorts);
  __builtin_memcpy(p, &out, sizeof(out));
}
inline void store(Half* p, Floats v) {
  for (int i = 0; i < 4; ++i) p[i].bits = c10::Half(v[i]).x;
}

inline Floats narrow(Doubles low, Doubles high) {
  const FloatPair halves[] = {__builtin_convertvector(low, FloatPair), __builtin_convertvector(high, FloatPair)};
  return load_bits<Floats>(halves);
}

inline Doubles load_doubles(const Half* p) {
  return Doubles{c10::Half(p[0].bits, c10::Half::from_bits()), c10::Half(p[1].bits, c10::Half::from_bits())};
}
inline Doubles load_doubles(const BFloat16* p) {
  const WordPair words = __builtin_convertvector(load_bits<ShortPair>(p), WordPair) << 16;
  return __builtin_convertvector((FloatPair)words, Doubles);
}
inline Doubles load_doubles(const float* p) { return __builtin_convertvector(load_bits<FloatPair>(p), Doubles); }
inline Doubles load_doubles(const double* p) { return load_bits<Doubles>(p); }
inline void store_doubles(double* p, Doubles v) { __builtin_memcpy(p, &v, sizeof(v)); }

inline Floats square_root(Floats v) {
  for (int i = 0; i < 4; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
inline Doubles square_root(Doubles v) {
  for (int i = 0; i < 2; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}

}  // namespace
}  // namespace cggm::cpu::baseline

#define CGGM_ISA baseline
#include "loops_impl.h"

namespace cggm::cpu {

namespace {
#if defined(__x86_64__)
// Clang before 19 has no name for this feature in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif
bool has_avx2() {
#if defined(__x86_64__)
  static const bool found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  return found;
#else
  return false;
#endif
}
}  // namespace

template <typename T>
const Loops<T>& loops() {
#if defined(__x86_64__)
  static const Loops<T> chosen = has_avx2() ? avx2::make_loops<T>() : baseline::make_loops<T>();
#else
  static const Loops<T> chosen = baseline::make_loops<T>();
#endif
  return chosen;
}
template const Loops<float>& loops();
template const Loops<double>& loops();
template const Loops<BFloat16>& loops();
template const Loops<Half>& loops();

const char* isa() {
#if defined(__x86_64__)
  return has_avx2() ? "avx2" : "sse2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "generic";
#endif
}

}  // namespace cggm::cpu
