/* AVX2 and FMA: sixteen lanes are two registers. */
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx2,fma")
#include <immintrin.h>
#include <stdint.h>

typedef struct { __m256 lo, hi; } f32x16;
typedef struct { __m256i lo, hi; } i32x16;
typedef struct { __m256i lo, hi; } i8x64;

#define INLINE_PRIMITIVE static inline __attribute__((always_inline))

INLINE_PRIMITIVE f32x16 v_load(const float *p) { return (f32x16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE_PRIMITIVE void v_store(float *p, f32x16 v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
INLINE_PRIMITIVE f32x16 v_set1(float x) { return (f32x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }

#define BINARY(name, intrinsic) \
    INLINE_PRIMITIVE f32x16 name(f32x16 a, f32x16 b) { return (f32x16){intrinsic(a.lo, b.lo), intrinsic(a.hi, b.hi)}; }
BINARY(v_add, _mm256_add_ps)
BINARY(v_sub, _mm256_sub_ps)
BINARY(v_mul, _mm256_mul_ps)
BINARY(v_div, _mm256_div_ps)
BINARY(v_max, _mm256_max_ps)
BINARY(v_min, _mm256_min_ps)

INLINE_PRIMITIVE f32x16 v_fma(f32x16 a, f32x16 b, f32x16 c) {
    return (f32x16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
INLINE_PRIMITIVE __m256 pow2_half(__m256 z) { /* the low bits of z hold n; n + 127 is the exponent field */
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(z), _mm256_set1_epi32(127)), 23));
}
INLINE_PRIMITIVE f32x16 v_pow2(f32x16 z) { return (f32x16){pow2_half(z.lo), pow2_half(z.hi)}; }

INLINE_PRIMITIVE i32x16 i_set1(int32_t x) { return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE_PRIMITIVE i8x64 b_load(const void *p) {
    return (i8x64){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
/* It multiplies unsigned by signed, and pairs saturate at 16 bits: |w| <= 128 times x with w's sign fits. */
INLINE_PRIMITIVE __m256i dot4_half(__m256i acc, __m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE_PRIMITIVE i32x16 i_dot4(i32x16 acc, i8x64 w, const int8_t *x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    __m256i xs = _mm256_set1_epi32(four);
    return (i32x16){dot4_half(acc.lo, w.lo, xs), dot4_half(acc.hi, w.hi, xs)};
}
INLINE_PRIMITIVE f32x16 i_to_f32(i32x16 v) { return (f32x16){_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }

#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#define PORTABLE 0
#define INT8_OFFSET 0
#define TILES_F32(T) T(6, 1) T(4, 1) T(2, 2) T(1, 4)
#define TILES_INT8(T) T(4, 1) T(2, 1) T(1, 2)
#include "kernels.inc"
TARGET_END
#else
typedef int no_avx2_here;
#endif
