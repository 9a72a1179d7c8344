/* Synthetic models, and a naive transformer over the same numbers. */
#ifndef LLAMA2PY_SYNTHETIC_H
#define LLAMA2PY_SYNTHETIC_H
#include "kernels.h"

enum { N_TENSORS = L2P_N_TENSORS, N_SESSIONS = 3, TOKENS = 64 };
extern const int LENGTHS[N_SESSIONS]; /* across blocks of positions, and attention's chunks of 8 */

typedef struct {
    l2p_config config;
    float *values[N_TENSORS]; /* float32, norms and biases: (layers, rows, cols) */
    int8_t *q[N_TENSORS];     /* int8, the same shape */
    float *scales[N_TENSORS]; /* int8: (layers, rows * cols / group_size rounded up) */
    int32_t tokens[N_SESSIONS][TOKENS];
} Synthetic;

enum { N_SHAPES = 5 };
extern const l2p_config SHAPES[N_SHAPES];

/* Models with optional steps: together, these have all of them */
enum { N_STEPS = 5 };
extern const l2p_config STEPS[N_STEPS];

/* Big enough that the engine splits even a single token over threads */
extern const l2p_config BIG;

l2p_config with_weights(l2p_config config, int group); /* 0: float32 */

Synthetic synthesize(l2p_config config);
void free_synthetic(Synthetic s);

/* Into the engine, from odd addresses: a file aligns nothing */
l2p_model *pack(const Synthetic *s, int isa, int n_threads);

/* All of a session's tokens, one after the other, as llama2.c does it: out (n, vocab_size) */
void naive_forward(const Synthetic *s, const int32_t *tokens, int n, float *out);

#endif
