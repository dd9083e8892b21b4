// The loops for x86-64 with AVX2, FMA and F16C (every such machine since about 2013). The vector primitives are intrinsics:
// written as generic vectors, conversions cost three times as much.
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

namespace cggm::cpu::avx2 {
namespace {

typedef __m256 Floats;
typedef __m256d Doubles;

inline __m128i load_shorts(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load(const Half* p) { return _mm256_cvtph_ps(load_shorts(p)); }
inline Floats load(const BFloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_shorts(p)), 16));
}

// Stores return what was stored.
inline Floats store(float* p, Floats v) {
  _mm256_storeu_ps(p, v);
  return v;
}
inline Floats store(Half* p, Floats v) {
  const __m128i bits = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bits);
  return _mm256_cvtph_ps(bits);
}
// Round to nearest even; a NaN becomes the quiet NaN of its sign.
inline Floats store(BFloat16* p, Floats v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  return _mm256_castsi256_ps(_mm256_slli_epi32(high, 16));
}

inline Doubles widen_low(Floats v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline Doubles widen_high(Floats v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
inline Floats narrow(Doubles low, Doubles high) { return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low)); }

inline Doubles load_doubles(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline Doubles load_doubles(const double* p) { return _mm256_loadu_pd(p); }
inline void store_doubles(double* p, Doubles v) { _mm256_storeu_pd(p, v); }

inline Floats square_root(Floats v) { return _mm256_sqrt_ps(v); }
inline Doubles square_root(Doubles v) { return _mm256_sqrt_pd(v); }

}  // namespace
}  // namespace cggm::cpu::avx2

#define CGGM_ISA avx2
#include "loops_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
