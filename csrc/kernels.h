/* What a set of kernels must offer. Every kernel is written once, in kernels.inc, on the vector primitives of one
 * instruction set; isa_*.c compiles one set each. */
#ifndef LLAMA2PY_KERNELS_H
#define LLAMA2PY_KERNELS_H
#include "engine.h"

/* Each output is one chain of operations in a fixed order, so neither the number of vectors nor the thread nor the
 * width of the registers changes a bit.
 *
 * EXACT: llama2.c's very bits. Products are rounded before they are added, sums run from left to right, exp is libm's, or has
 *   its bits.
 *   All of the portable set, and int8 models in every set: their activations are rounded to whole numbers at every
 *   product, so that a last bit which differs would soon be another story.
 * FUSED: for speed, all other models in the SIMD sets. Fused multiply-add, k from 0 upwards; where a vector is summed up,
 *   16 partial sums and one tree; one polynomial for exp. The same bits in all of these sets. */
enum { EXACT, FUSED };

/* So many vectors are summed up at once: a sum from left to right waits for itself at each addition, not for the others. */
enum { ROWS = 8 };

/* Row blocks that all vectors pass over before the next ones: few enough to stay in the second-level cache (9 * 64 bytes *
 * cols), a multiple of the large tiles'. */
enum { PANEL_BLOCKS = 9 };

/* What matmul does with the old content of its output. */
enum { MATMUL_STORE, MATMUL_ADD, MATMUL_CONTINUE };

/* A bare matrix, float32 or bfloat16, as a session holds keys and values: whole blocks [cols][LANES], block_stride bytes
 * apart */
typedef struct {
    int type;
    const unsigned char *data;
    size_t block_stride;
    int blocks, cols;
} Blocks;

/* What exists in both numerics. */
typedef struct FloatKernels {
    int numerics;

    /* Attention's products: out[i] = W x[i], i in [0, n); ld: floats from one vector to the next. MATMUL_CONTINUE: the
     * sums start from out instead of 0, so that a long sum can be computed in parts. */
    void (*matmul_bare)(const Blocks *w, const float *x, size_t ld_x, int n, float *out, size_t ld_out, int mode);

    /* out[i] = weight * x[i] / sqrt(mean(x[i]^2) + eps), all (n,), i in [0, rows), rows <= ROWS */
    void (*rmsnorm)(float *out, const float *const *x, int rows, const float *weight, int n, float eps);

    /* x = exp(x / divisor - max(x / divisor)), in place, x (n,); returns their sum */
    float (*exps)(float *x, int n, float divisor);

    /* x = softmax(x / divisor), in place, x (n,) */
    void (*softmax)(float *x, int n, float divisor);

    /* Attention's weights, sums[j] x[j] = sums[j] softmax(x[j] / divisor), in place, of `rows` rows, ld floats from one to
     * the next: row j is of n + j * step, and may be written to up to a multiple of LANES. EXACT: the sums are 1. FUSED:
     * they are what is to be divided by later, where there is less to divide. */
    void (*weigh)(float *x, size_t ld, int rows, int n, int step, float divisor, float *sums);

    /* out = silu(gate) * up; gate and up are blocks of LANES in turn: gate_up[blocks][2][LANES] */
    void (*swiglu)(float *out, const float *gate_up, int blocks);
} FloatKernels;

typedef struct Kernels {
    const char *name;
    int int8_offset; /* added to packed int8 weights: 128 where the CPU multiplies unsigned by signed */
    const FloatKernels *for_int8, *for_the_rest;

    /* out[i][row] = W x[i] for the rows of blocks [begin, end), i in [0, n); ld_out floats from one out[i] to the next.
     * MATMUL_ADD: out += W x. */
    void (*matmul)(const Matrix *w, int begin, int end, const Vectors *x, int n, float *out, size_t ld_out, int mode);

    /* x (groups * group) to int8, one scale a group, as vector `row` of `out` */
    void (*quantize)(const Vectors *out, int row, const float *x, const Matrix *w);

    /* the first index of the largest */
    int32_t (*argmax)(const float *x, int n);

    /* the largest of `first` and x (n,); a NaN is passed over, but for `first` */
    float (*max_from)(float first, const float *x, int n);

    /* probe.inc: nothing but reading, and nothing but products */
    float (*read_all)(const unsigned char *memory, size_t bytes);
    float (*multiply_add_chains)(int64_t rounds);
    float (*dot_chains)(int64_t rounds, const unsigned char *weights, const int8_t *x);
    float (*int4_chains)(int64_t rounds, const unsigned char *weights, const int8_t *x);
} Kernels;

enum { PROBE_CHAINS = 12 };

/* isa_amx.c: has the CPU its tiles, and does the system save them? Asked before kernels_amx, which then has its kernels. */
int amx_may_be_used(void);
extern Kernels kernels_amx;

extern const Kernels kernels_portable, kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_avx512vnni, kernels_neon,
    kernels_neondot;

/* dispatch.c: the set l2p_isa_name(index), NULL where this CPU cannot run it */
const Kernels *kernels_of_isa(int index);

#endif
