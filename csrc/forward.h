/* One forward pass, as all of its threads see it: the batch, and the workspace it runs in. */
#ifndef LLAMA2PY_FORWARD_H
#define LLAMA2PY_FORWARD_H
#include <stdatomic.h>

#include "kernels.h"

enum { CHUNK = 8 /* consecutive tokens of one session that attention takes together */ };

/* tokens [first, first + n) of the batch: one session, consecutive positions */
typedef struct {
    int first, n;
} Chunk;

typedef struct {
    const l2p_model *model;
    int n; /* tokens */
    const int32_t *tokens, *positions;
    l2p_session *const *sessions;
    int n_logits;
    const int32_t *logits_rows;
    float *out; /* (n_logits, vocab_size) */
    const int32_t *cancel;
    atomic_int cancelled;

    /* the workspace, rows being tokens */
    float *x;       /* (n, dim) the residual stream */
    float *qkv;     /* (n, qkv rows) */
    float *att;     /* (n, n_heads * head_dim) */
    float *gate_up; /* (n, w13 rows): blocks of w1 x and w3 x in turn */
    float *hidden;  /* (n, hidden_dim, rounded up) */
    float *rope;    /* (n, head_dim / 2, 2) cos and sin of each token's angles */
    Chunk *chunks;
    int n_chunks;
    int max_scores; /* longest row of attention scores, rounded up */

    /* normalized or quantized input of the next product: one for all threads, or one for each when vectors are few */
    float *normed;
    Vectors staged;
    size_t normed_stride, q_stride, scale_stride; /* from one thread's to the next; 0: shared */
    float *scores;                                /* (n_threads, score rows, max_scores) */
    float *head_out;                              /* (n_threads, score rows, head_dim rounded up) */
    size_t scores_stride, head_out_stride;
} Forward;

/* attention.c: cut the batch into chunks, into f->chunks */
void find_chunks(Forward *f);

/* att = attention(rope(q), rope(k), v) of one layer, this thread's share; other threads may still be at theirs. */
void attention(const Forward *f, int layer, int thread, int n_threads);

#endif
