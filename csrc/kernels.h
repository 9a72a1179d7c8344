/* What a set of kernels must offer. Every kernel is written once, in kernels.inc, on the vector primitives of one
 * instruction set; isa_*.c compiles one set each.
 *
 * Numerics: each output is one chain of operations in a fixed order (k from 0 upwards; 16 partial sums and
 * one tree where a vector is summed up), so neither the number of vectors nor the thread nor the instruction set
 * changes a bit. The portable set instead multiplies, rounds, then adds, left to right, as llama2.c does. */
#ifndef LLAMA2PY_KERNELS_H
#define LLAMA2PY_KERNELS_H
#include "engine.h"

/* What matmul does with the old content of its output. */
enum { MATMUL_STORE, MATMUL_ADD, MATMUL_CONTINUE };

typedef struct Kernels {
    const char *name;
    int portable;
    int int8_offset; /* added to packed int8 weights: 128 where the CPU multiplies unsigned by signed */

    /* out[i][row] = W x[i] for the rows of blocks [begin, end), i in [0, n); ld_out floats from one out[i] to the next.
     * MATMUL_ADD: out += W x. */
    void (*matmul)(const Matrix *w, int begin, int end, const Vectors *x, int n, float *out, size_t ld_out, int mode);

    /* Attention's products: the same on a bare float32 matrix block[cols][LANES], block_stride floats apart.
     * MATMUL_CONTINUE: the sums start from out instead of 0, so that a long sum can be computed in parts. */
    void (*matmul_f32)(const float *w, size_t block_stride, int blocks, int cols, const float *x, size_t ld_x, int n,
                       float *out, size_t ld_out, int mode);

    /* out = weight * x / sqrt(mean(x^2) + eps), all (n,) */
    void (*rmsnorm)(float *out, const float *x, const float *weight, int n, float eps);

    /* x = softmax(x / divisor), in place, x (n,) */
    void (*softmax)(float *x, int n, float divisor);

    /* out = silu(gate) * up; gate and up are blocks of LANES in turn: gate_up[blocks][2][LANES] */
    void (*swiglu)(float *out, const float *gate_up, int blocks);

    /* x (groups * group) to int8, one scale a group: element i of vector `row` of `out` */
    void (*quantize)(const Vectors *out, int row, const float *x, const Matrix *w);

    /* the first index of the largest */
    int32_t (*argmax)(const float *x, int n);
} Kernels;

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_avx512vnni, kernels_neon;

/* dispatch.c: the set l2p_isa_name(index), NULL where this CPU cannot run it */
const Kernels *kernels_of_isa(int index);

#endif
