// The loops for the instruction set every machine of the architecture has (SSE2 on x86-64, NEON on arm64), and the choice.
#include <torch/headeronly/util/Half.h>

#include "loops.h"

#define CGGM_ISA baseline
#define CGGM_VECTOR_BYTES 16

namespace cggm::cpu::baseline {
namespace {
typedef float Quad __attribute__((vector_size(16)));
inline Quad load_half(const Half* p) {
  Quad v;
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(c10::Half(p[i].bits, c10::Half::from_bits()));
  return v;
}
inline void store_half(Half* p, Quad v) {
  for (int i = 0; i < 4; ++i) p[i].bits = c10::Half(v[i]).x;
}
}  // namespace
}  // namespace cggm::cpu::baseline

#include "loops_impl.h"

namespace cggm::cpu {

namespace {
bool has_avx2() {
#if defined(__x86_64__)
  static const bool found =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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
