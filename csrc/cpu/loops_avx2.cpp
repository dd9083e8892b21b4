// The loops for x86-64 with AVX2, FMA and F16C (every such machine since about 2013).
#if defined(__x86_64__)

#include <cstdint>
#include <immintrin.h>

#include "loops.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define CGGM_ISA avx2
#define CGGM_VECTOR_BYTES 32

namespace cggm::cpu::avx2 {
namespace {
inline __m256 load_half(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store_half(Half* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
}  // namespace
}  // namespace cggm::cpu::avx2

#include "loops_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
