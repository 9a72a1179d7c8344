/* Plain C for any machine, with the compiler's own vectors of four floats. */
#include <stdint.h>

#include "engine.h"

typedef float f32x4 __attribute__((vector_size(16)));
typedef struct {
    f32x4 part[4];
} f32x16;
typedef struct {
    int32_t lane[16];
} i32x16;
typedef struct {
    const int8_t *bytes;
    int shift;
} i8x64; /* [16][4], in memory */

#define INLINE_PRIMITIVE static inline __attribute__((always_inline))

INLINE_PRIMITIVE f32x16 v_load(const float *p) {
    f32x16 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
INLINE_PRIMITIVE void v_store(float *p, f32x16 v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE_PRIMITIVE f32x16 v_load_bf16(const uint16_t *p) {
    float x[16];
    for (int i = 0; i < 16; i++) x[i] = bfloat16_to_float(p[i]);
    return v_load(x);
}
INLINE_PRIMITIVE f32x16 v_load_f16(const uint16_t *p) {
    float x[16];
    for (int i = 0; i < 16; i++) x[i] = float16_to_float(p[i]);
    return v_load(x);
}
INLINE_PRIMITIVE f32x16 v_set1(float x) {
    f32x4 four = {x, x, x, x};
    return (f32x16){{four, four, four, four}};
}

#define BINARY(name, operator)                                                                                     \
    INLINE_PRIMITIVE f32x16 name(f32x16 a, f32x16 b) {                                                             \
        return (f32x16){{a.part[0] operator b.part[0], a.part[1] operator b.part[1], a.part[2] operator b.part[2], \
                         a.part[3] operator b.part[3]}};                                                           \
    }
BINARY(v_add, +)
BINARY(v_sub, -)
BINARY(v_mul, *)
BINARY(v_div, /)

INLINE_PRIMITIVE f32x16 v_max(f32x16 a, f32x16 b) {
    float x[16], y[16];
    v_store(x, a);
    v_store(y, b);
    for (int i = 0; i < 16; i++) y[i] = x[i] > y[i] ? x[i] : y[i];
    return v_load(y);
}

INLINE_PRIMITIVE i32x16 i_set1(int32_t x) {
    i32x16 v;
    for (int i = 0; i < 16; i++) v.lane[i] = x;
    return v;
}
INLINE_PRIMITIVE i8x64 b_load(const void *p) { return (i8x64){(const int8_t *)p, 0}; }
INLINE_PRIMITIVE i8x64 b_low_nibbles(i8x64 v) { return v; }
INLINE_PRIMITIVE i8x64 b_high_nibbles(i8x64 v) { return (i8x64){v.bytes, 4}; }
INLINE_PRIMITIVE i32x16 i_dot4(i32x16 acc, i8x64 w, const int8_t *x) {
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++) acc.lane[i] += w.bytes[i * 4 + k] * x[k];
    return acc;
}
INLINE_PRIMITIVE i32x16 i_dot4_unsigned(i32x16 acc, i8x64 w, const int8_t *x) {
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++) acc.lane[i] += (((unsigned char)w.bytes[i * 4 + k] >> w.shift) & 15) * x[k];
    return acc;
}
INLINE_PRIMITIVE f32x16 i_to_f32(i32x16 v) {
    float x[16];
    for (int i = 0; i < 16; i++) x[i] = (float)v.lane[i];
    return v_load(x);
}

#define KERNELS kernels_portable
#define KERNELS_NAME "portable"
#define PORTABLE 1
#define INT8_OFFSET 0
#define TILES_F32(T) T(2, 1) T(1, 2)
#define TILES_BARE TILES_F32
#define TILES_INT8(T) T(2, 1) T(1, 1)
#include "kernels.inc"
