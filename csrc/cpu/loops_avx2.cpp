// The loops for x86-64 with AVX2, FMA and F16C, which nearly all machines have had since 2013. The vector primitives are
// intrinsics: as generic vectors, conversions would cost three times as much.
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

inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline void store(Half* p, Floats v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
// Rounds to nearest even; a NaN becomes the quiet NaN of the same sign.
inline void store(BFloat16* p, Floats v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 quiet = _mm256_or_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x00400000)));
  const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, is_nan);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

// One register holds the elements of even index, the other those of odd index, which avoids moves between lanes.
inline void load_pair(const BFloat16* p, Floats& even, Floats& odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
}
// Rounds to nearest even: up if the lower half is above 0x8000, or equal to it beside an odd upper half. NaN needs no test: a NaN
// that arithmetic on bfloat16 and `scalar`s yields is quiet and has zeros in its lower half, which rounding keeps.
inline void store_pair(BFloat16* p, Floats even, Floats odd) {
  const __m256i first = _mm256_castps_si256(even), second = _mm256_castps_si256(odd);
  const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(first, 16), second, 0xaa);
  const __m256i lower = _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xaa);
  const __m256i is_even = _mm256_andnot_si256(upper, _mm256_set1_epi16(1));
  const __m256i carry = _mm256_srli_epi16(_mm256_subs_epu16(lower, is_even), 15);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_add_epi16(upper, carry));
}

inline Floats narrow(Doubles low, Doubles high) { return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low)); }

// Half precision is loaded in half registers: extracting a half from a whole register costs more than a second load.
inline Doubles load_doubles(const Half* p) {
  return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Doubles load_doubles(const BFloat16* p) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), bits)));
}
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
