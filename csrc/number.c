/* Float32 and its halves. */
#include <math.h>
#include <string.h>

#include "engine.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40); /* quiet: what is cut off may be all that made it a NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float float16_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) return float_of(sign | bits_of((float)fraction * 0x1p-24f)); /* exact */
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t float_to_float16(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000;
    const float size = float_of(bits & 0x7fffffff);
    if (size != size) return (uint16_t)(sign | 0x7e00);
    if (size >= 65520.0f) return (uint16_t)(sign | 0x7c00); /* half way to what would be the next number */
    if (size < 0x1p-14f) return (uint16_t)(sign | (uint32_t)rintf(size * 0x1p24f));
    const uint32_t rounded = bits_of(size) + 0xfff + (bits_of(size) >> 13 & 1);
    return (uint16_t)(sign | ((rounded >> 13) - (112u << 10)));
}
