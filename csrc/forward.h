/* One forward pass as all of its threads see it: its tokens, and the workspace that it runs in. */
#ifndef LLAMA2PY_FORWARD_H
#define LLAMA2PY_FORWARD_H
#include <stdatomic.h>

#include "kernels.h"

enum { CHUNK = 8 /* consecutive tokens of one session that attention takes together */ };

/* Tokens [first, first + n) of a pass: one session, consecutive positions. Their attention goes to rows out, out + 1,
 * ... */
typedef struct {
    int first, n, out;
} Chunk;

_Static_assert((int)CHUNK >= (int)ROWS, "each row that is summed together has a row of scores");

/* The rows of a batch that draw another token, in the workspace. They are the tokens of the next pass. */
typedef struct {
    int32_t *tokens, *positions;
    l2p_session **sessions;
    int32_t *row;  /* of the batch's rows */
    int32_t *draw; /* index of the next draw in the batch's draws */
} Going;

/* One pass over the layers. A call of l2p_forward is one pass, plus one for each further token that its rows draw. */
typedef struct {
    const l2p_model *model;
    const l2p_batch *batch;
    int n; /* tokens */
    const int32_t *tokens, *positions;
    l2p_session *const *sessions;
    int n_rows;          /* whose logits are needed */
    const int32_t *rows; /* (n_rows,), or NULL: all tokens in order */
    float *logits;       /* (n_rows, vocab_size); in the workspace if tokens are drawn */
    const int32_t *cancel;
    atomic_int *cancelled; /* of all threads */
    Going going;
    struct {
        int n, n_rows, n_threads;
    } laid_out; /* what the pointers below are for */

    /* the workspace, rows being tokens */
    float *x;                    /* (n, dim) the residual stream */
    float *qkv;                  /* (n, qkv rows) */
    float *att;                  /* (n, n_heads * head_dim) */
    float *gate_up;              /* (n, w13 rows): blocks of w1 x and w3 x in turn */
    float *hidden;               /* (n, hidden_dim, rounded up) */
    float *rope;                 /* (n, rotary_dim / 2, 2) cos and sin of each token's angles */
    float *window_rope;          /* the same, if layers with a window have other frequencies */
    float *branch;               /* (n, dim) what attention or the feed-forward layer adds to x, if it has steps left */
    Chunk *chunks, *last_chunks; /* of all layers but the last; of the last */
    int n_chunks, n_last_chunks;
    float *last_x;  /* (n_rows, dim) rows of x that the last layer continues with, if not all */
    int max_scores; /* length of the longest row of attention scores, rounded up */

    /* The normalized or quantized input of the next product: shared by all threads, or one each if the vectors are
     * few */
    float *normed;
    Vectors staged;
    size_t normed_stride, q_stride, scale_stride; /* from one thread's to the next thread's; 0: shared */
    float *scores;                                /* (n_threads, score rows, max_scores) */
    float *head_out;                              /* (n_threads, score rows, head_dim rounded up) */
    float *sums;                                  /* (n_threads, score rows) */
    size_t scores_stride, head_out_stride, sums_stride;
    int32_t *candidates; /* (n_threads, vocab_size) scratch of l2p_sample */
} Forward;

/* Are there tokens whose logits are not needed? The last layer computes only keys and values for those. */
static inline int leaves_some(const Forward *f) { return f->n_rows < f->n; }

/* Are tokens drawn from the logits? */
static inline int draws(const Forward *f) { return f->batch->logits == NULL; }

/* attention.c: divide a pass into chunks, f->chunks and f->last_chunks. */
void find_chunks(Forward *f);

/* att = attention(rope(q), rope(k), v) of one layer, this thread's share. Other threads may still be computing
 * theirs. */
void attention(const Forward *f, int layer, int thread, int n_threads);

#endif
