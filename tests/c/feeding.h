/* One model, fed in many ways. */
#ifndef LLAMA2PY_FEEDING_H
#define LLAMA2PY_FEEDING_H
#include "synthetic.h"

typedef struct {
    const Synthetic *s;
    l2p_model *model;
    l2p_session *sessions[N_SESSIONS];
    float *want[N_SESSIONS]; /* (LENGTHS[i], vocab_size) */
    int n_threads;
} Run;

typedef struct { /* a batch: which session's token at which position */
    int n, session[TOKENS], position[TOKENS];
} Batch;

void add(Batch *batch, int session, int begin, int end);

int best_isa(void);
/* Should texts be drawn in this instruction set? In each one that this CPU has. The thread sanitizer would take
 * minutes, and threads share the same memory in all sets: it gets one, the plainest with vectors, as it does not see
 * AMX's loads. */
int draws_in(int isa);
Run start_run(const Synthetic *s, int isa, int pack_threads);
void end_run(Run *run);
void fresh_sessions(Run *run);

typedef struct { /* a batch as the engine takes it */
    int32_t tokens[TOKENS], positions[TOKENS];
    l2p_session *sessions[TOKENS];
} Inputs;

Inputs inputs_of(const Run *run, const Batch *batch);
/* Its first n tokens as l2p_forward takes them; where logits go, or how tokens are drawn, is for the caller to add. */
l2p_batch batch_of(const Inputs *in, int n, int n_rows, const int32_t *rows);
/* The logits (vocab_size,) after one token */
int forward_one(const Run *run, l2p_session *session, int32_t token, int position, float *logits);

/* Draw from logits (vocab_size,), which stay as they are, by l2p_argmax or l2p_sample */
int32_t draw_apart(const Run *run, const float *logits, const l2p_draw *draw);

/* Run a batch. Its logits must be run->want: those of all rows back to `first`, with one row twice. */
void feed(Run *run, const Batch *batch, int first, const char *how);

void feed_token_by_token(Run *run);
void feed_prompts(Run *run);
void feed_pieces(Run *run);
void feed_mixed(Run *run);
void feed_interleaved(Run *run);
void feed_rewound(Run *run);

#endif
