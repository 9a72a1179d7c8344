/* What every check uses: failing, numbers, guarded arrays. */
#ifndef LLAMA2PY_CHECK_H
#define LLAMA2PY_CHECK_H
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* ---- failing ---- */

extern char doing[256]; /* what a failure is blamed on */

void now(const char *format, ...);
_Noreturn void fail(const char *format, ...);

#define CHECK(condition) ((condition) ? (void)0 : fail("line %d: expected %s", __LINE__, #condition))

void on_signal(int number);
void pause_us(long microseconds);
void *cancel_soon(void *flag); /* a thread that sets an int32_t after some milliseconds */

/* ---- numbers ---- */

extern uint64_t lcg_state;

static inline uint32_t random_u32(void) { /* Knuth's MMIX generator; its high bits are the good ones */
    lcg_state = lcg_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(lcg_state >> 32);
}

static inline float random_float(void) { /* in [-1, 1), a multiple of 2^-23: the same on every machine */
    return (float)(random_u32() >> 8) * 0x1p-23f - 1.0f;
}

void fill(float *x, size_t n);

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The same bits, or both NaN: which NaN an operation gives is the machine's affair. */
static inline int same(float a, float b) { return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b)); }

/* FNV-1a over the bits, low byte first */
void hash(uint64_t *h, const float *x, size_t n);

int greatest_common_divisor(int a, int b);

/* ---- guarded arrays: flush with a page that must not be touched, canaries before ---- */

enum { CANARY = 0xfe }; /* as a float -1.7e38: no kernel gives it, and it ruins every sum it gets into */

typedef struct {
    unsigned char *pages, *array;
    size_t bytes, mapped, page;
} Guarded;

Guarded guarded(size_t bytes);

static inline Guarded guarded_floats(size_t n) { return guarded(n * sizeof(float)); }
static inline float *floats(Guarded g) { return (float *)(void *)g.array; }

int is_canary(const void *memory, size_t bytes);
void unguard(Guarded g);

#endif
