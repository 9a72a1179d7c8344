/* NEON of every 64-bit ARM: sixteen lanes are four registers. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stdint.h>

typedef struct { float32x4_t a, b, c, d; } f32x16;
typedef struct { int32x4_t a, b, c, d; } i32x16;
typedef struct { int8x16_t a, b, c, d; } i8x64;

#define INLINE_PRIMITIVE static inline __attribute__((always_inline))

INLINE_PRIMITIVE f32x16 v_load(const float *p) {
    return (f32x16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
INLINE_PRIMITIVE void v_store(float *p, f32x16 v) {
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
}
INLINE_PRIMITIVE f32x16 v_set1(float x) {
    float32x4_t four = vdupq_n_f32(x);
    return (f32x16){four, four, four, four};
}

#define BINARY(name, intrinsic)                                                                                \
    INLINE_PRIMITIVE f32x16 name(f32x16 x, f32x16 y) {                                                         \
        return (f32x16){intrinsic(x.a, y.a), intrinsic(x.b, y.b), intrinsic(x.c, y.c), intrinsic(x.d, y.d)};   \
    }
/* x86's rule: the second operand where the comparison is false, so where either is NaN */
#define MAX_OR_SECOND(x, y) vbslq_f32(vcgtq_f32(x, y), x, y)
#define MIN_OR_SECOND(x, y) vbslq_f32(vcltq_f32(x, y), x, y)
BINARY(v_add, vaddq_f32)
BINARY(v_sub, vsubq_f32)
BINARY(v_mul, vmulq_f32)
BINARY(v_div, vdivq_f32)
BINARY(v_max, MAX_OR_SECOND)
BINARY(v_min, MIN_OR_SECOND)

INLINE_PRIMITIVE f32x16 v_fma(f32x16 x, f32x16 y, f32x16 z) {
    return (f32x16){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
                    vfmaq_f32(z.d, x.d, y.d)};
}
INLINE_PRIMITIVE float32x4_t pow2_part(float32x4_t z) { /* the low bits of z hold n; n + 127 is the exponent field */
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vreinterpretq_s32_f32(z), vdupq_n_s32(127)), 23));
}
INLINE_PRIMITIVE f32x16 v_pow2(f32x16 z) {
    return (f32x16){pow2_part(z.a), pow2_part(z.b), pow2_part(z.c), pow2_part(z.d)};
}

INLINE_PRIMITIVE i32x16 i_set1(int32_t x) {
    int32x4_t four = vdupq_n_s32(x);
    return (i32x16){four, four, four, four};
}
INLINE_PRIMITIVE i8x64 b_load(const void *p) {
    const int8_t *bytes = p;
    return (i8x64){vld1q_s8(bytes), vld1q_s8(bytes + 16), vld1q_s8(bytes + 32), vld1q_s8(bytes + 48)};
}
INLINE_PRIMITIVE int32x4_t dot4_part(int32x4_t acc, int8x16_t w, int8x16_t x) { /* 4 rows of 4 */
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
INLINE_PRIMITIVE i32x16 i_dot4(i32x16 acc, i8x64 w, const int8_t *x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(four));
    return (i32x16){dot4_part(acc.a, w.a, xs), dot4_part(acc.b, w.b, xs), dot4_part(acc.c, w.c, xs),
                    dot4_part(acc.d, w.d, xs)};
}
INLINE_PRIMITIVE f32x16 i_to_f32(i32x16 v) {
    return (f32x16){vcvtq_f32_s32(v.a), vcvtq_f32_s32(v.b), vcvtq_f32_s32(v.c), vcvtq_f32_s32(v.d)};
}

#define KERNELS kernels_neon
#define KERNELS_NAME "neon"
#define PORTABLE 0
#define INT8_OFFSET 0
#define TILES_F32(T) T(6, 1) T(4, 1) T(2, 2) T(1, 4)
#define TILES_INT8(T) T(4, 1) T(2, 1) T(1, 2)
#include "kernels.inc"
#else
typedef int no_neon_here;
#endif
