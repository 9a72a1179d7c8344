/* The kernels of an instruction set. Every kernel is written once, in kernels.inc, on vector primitives that each
 * instruction set defines; each isa_*.c compiles one set. */
#ifndef LLAMA2PY_KERNELS_H
#define LLAMA2PY_KERNELS_H
#include "engine.h"

/* Each output is one chain of operations in a fixed order. It is bit-identical whatever the number of vectors, the
 * number of threads and the width of the registers.
 *
 * EXACT: bit-identical to llama2.c. Products are rounded before they are added, sums run from left to right, exp is
 *   libm's or has its bits. Used by the portable set, and for int8 models by every set: their activations are rounded
 *   to int8 at every product, which would amplify a different last bit.
 * FUSED: faster; used for all other models by the SIMD sets. Fused multiply-add, k from 0 upwards; 16 partial sums and
 *   a fixed tree for the sum along a vector; a polynomial for exp. Bit-identical in all of these sets. */
enum { EXACT, FUSED };

/* Vectors that are summed at the same time: a sum from left to right is serial, and independent sums hide its
 * latency. */
enum { ROWS = 8 };

/* Row blocks that are multiplied with all vectors before the next blocks: few enough for the second-level cache (9 * 64
 * bytes * cols), and a multiple of the large tiles' blocks. */
enum { PANEL_BLOCKS = 9 };

/* What matmul does with its output's old content: replace it, add to it, or continue its sums. */
enum { MATMUL_STORE, MATMUL_ADD, MATMUL_CONTINUE };

/* A bare matrix, float32 or bfloat16, as a session holds keys and values: whole blocks [cols][LANES], block_stride
 * bytes apart */
typedef struct {
    int type;
    const unsigned char *data;
    size_t block_stride;
    int blocks, cols;
} Blocks;

/* The kernels that exist with both numerics */
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

    /* Attention's weights: x[j] = sums[j] * softmax(x[j] / divisor), in place, for `rows` rows, ld floats apart. Row j
     * has n + j * step scores, and may be written up to the next multiple of LANES. EXACT: the sums are 1. FUSED: the
     * caller divides by them later, when there is less to divide. */
    void (*weigh)(float *x, size_t ld, int rows, int n, int step, float divisor, float *sums);

    /* out = silu(gate) * up, with blocks of LANES of gate and of up in turn: gate_up[blocks][2][LANES] */
    void (*swiglu)(float *out, const float *gate_up, int blocks);
    /* The same with gelu(gate), approximated with tanh */
    void (*geglu)(float *out, const float *gate_up, int blocks);
} FloatKernels;

typedef struct Kernels {
    const char *name;
    int int8_offset; /* added to packed int8 weights: 128 if the CPU multiplies unsigned by signed numbers */
    const FloatKernels *for_int8, *for_the_rest;

    /* out[i][row] = W x[i] for the rows of blocks [begin, end), i in [0, n); ld_out floats from one out[i] to the next.
     * MATMUL_ADD: out += W x. */
    void (*matmul)(const Matrix *w, int begin, int end, const Vectors *x, int n, float *out, size_t ld_out, int mode);

    /* Quantize x (cols,) to int8, a scale for each group of w, as vector `row` of `out`. */
    void (*quantize)(const Vectors *out, int row, const float *x, const Matrix *w);

    /* The first index of the largest of x (n,) */
    int32_t (*argmax)(const float *x, int n);

    /* The largest of `first` and x (n,). A NaN in x is ignored, `first` is not. */
    float (*max_from)(float first, const float *x, int n);

    /* probe.inc, for benchmarks: nothing but reads, and nothing but products */
    float (*read_all)(const unsigned char *memory, size_t bytes);
    float (*multiply_add_chains)(int64_t rounds);
    float (*dot_chains)(int64_t rounds, const unsigned char *weights, const int8_t *x);
    float (*int4_chains)(int64_t rounds, const unsigned char *weights, const int8_t *x);
} Kernels;

enum { PROBE_CHAINS = 12 };

/* isa_amx.c: does the CPU have AMX, and does the system let this process use it? Call this before using kernels_amx,
 * which it fills in. */
int amx_may_be_used(void);
extern Kernels kernels_amx;

extern const Kernels kernels_portable, kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_avx512vnni, kernels_neon,
    kernels_neondot;

/* dispatch.c: the set of l2p_isa_name(index); NULL if this CPU cannot run it */
const Kernels *kernels_of_isa(int index);

#endif
