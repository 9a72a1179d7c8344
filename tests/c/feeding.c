/* One model, fed in many ways. */
#include "feeding.h"

#include "check.h"

void add(Batch *batch, int session, int begin, int end) {
    for (int position = begin; position < end; position++) {
        batch->session[batch->n] = session;
        batch->position[batch->n++] = position;
    }
}

void fresh_sessions(Run *run) {
    for (int i = 0; i < N_SESSIONS; i++) {
        l2p_session_free(run->sessions[i]);
        run->sessions[i] = l2p_session_new(run->model);
        CHECK(run->sessions[i] != NULL);
    }
}

Inputs inputs_of(const Run *run, const Batch *batch) {
    Inputs in = {0};
    for (int i = 0; i < batch->n; i++) {
        in.tokens[i] = run->s->tokens[batch->session[i]][batch->position[i]];
        in.positions[i] = batch->position[i];
        in.sessions[i] = run->sessions[batch->session[i]];
    }
    return in;
}

l2p_batch batch_of(const Inputs *in, int n, int n_rows, const int32_t *rows) {
    return (l2p_batch){.n_tokens = n,
                       .tokens = in->tokens,
                       .sessions = in->sessions,
                       .positions = in->positions,
                       .n_rows = n_rows,
                       .rows = rows};
}

int forward_one(const Run *run, l2p_session *session, int32_t token, int position, float *logits) {
    const int32_t row = 0;
    Inputs in = {.tokens = {token}, .positions = {position}, .sessions = {session}};
    l2p_batch one = batch_of(&in, 1, 1, &row);
    one.logits = logits;
    return l2p_forward(run->model, &one, run->n_threads, NULL);
}

int32_t draw_apart(const Run *run, const float *logits, const l2p_draw *draw) {
    const size_t n = (size_t)draw->n_tokens;
    Guarded copy = guarded_floats(n), scratch = guarded(n * sizeof(int32_t));
    memcpy(floats(copy), logits, n * sizeof(float));
    const int32_t token = draw->temperature == 0.0f
                              ? l2p_argmax(run->model, floats(copy), draw->n_tokens)
                              : l2p_sample(run->model, floats(copy), draw->n_tokens, draw->temperature, draw->top_p,
                                           draw->coin, (int32_t *)(void *)scratch.array);
    unguard(copy), unguard(scratch);
    return token;
}

void feed(Run *run, const Batch *batch, int first, const char *how) {
    Inputs in = inputs_of(run, batch);
    const int vocab = run->s->config.vocab_size, n = batch->n, n_logits = first < n ? n - first + 1 : 0;
    int32_t rows[TOKENS + 1];
    for (int i = 0; i < n_logits; i++) rows[i] = i ? n - i : n - 1;
    Guarded out = guarded_floats((size_t)n_logits * (size_t)vocab);
    l2p_batch all = batch_of(&in, n, n_logits, rows);
    all.logits = floats(out);
    CHECK(l2p_forward(run->model, &all, run->n_threads, NULL) == L2P_OK);
    for (int i = 0; i < n_logits; i++) {
        const int row = rows[i];
        const float *want = run->want[batch->session[row]] + (size_t)batch->position[row] * (size_t)vocab;
        for (int k = 0; k < vocab; k++)
            if (!same(floats(out)[(size_t)i * (size_t)vocab + (size_t)k], want[k]))
                fail("%s, %d threads: token %d of a batch of %d has other logits (%.9g, not %.9g)", how, run->n_threads,
                     row, n, (double)floats(out)[(size_t)i * (size_t)vocab + (size_t)k], (double)want[k]);
    }
    unguard(out);
}

void feed_token_by_token(Run *run) {
    fresh_sessions(run);
    for (int i = 0; i < N_SESSIONS; i++)
        for (int t = 0; t < LENGTHS[i]; t++) {
            Batch one = {0};
            add(&one, i, t, t + 1);
            feed(run, &one, 0, "token by token");
        }
}

void feed_prompts(Run *run) {
    fresh_sessions(run);
    for (int i = 0; i < N_SESSIONS; i++) {
        Batch all = {0};
        add(&all, i, 0, LENGTHS[i]);
        feed(run, &all, 0, "a prompt at once");
    }
    fresh_sessions(run);
    Batch all = {0};
    for (int i = 0; i < N_SESSIONS; i++) add(&all, i, 0, LENGTHS[i]);
    feed(run, &all, all.n / 3, "prompts at once, some logits");
}

void feed_pieces(Run *run) {
    fresh_sessions(run);
    static const int cuts[] = {0, 5, 6, 16, 33, 37}; /* 33: a piece of 17, in chunks of 8, 8 and 1 */
    for (int cut = 0; cut < 5; cut++) {
        Batch piece = {0};
        add(&piece, 0, cuts[cut], cuts[cut + 1]);
        feed(run, &piece, cut == 2 ? piece.n : piece.n - 1, "a prompt in pieces"); /* the third without logits */
    }
}

void feed_mixed(Run *run) { /* continuous batching: prompts beside single tokens, then all token by token */
    fresh_sessions(run);
    Batch first = {0}, second = {0};
    add(&first, 0, 0, 13), add(&first, 1, 0, 3);
    add(&second, 0, 13, 14), add(&second, 2, 0, 10), add(&second, 1, 3, 4);
    feed(run, &first, 12, "a mixed batch");
    feed(run, &second, 0, "a mixed batch");
    int at[N_SESSIONS] = {14, 4, 10};
    for (;;) {
        Batch step = {0};
        for (int i = N_SESSIONS - 1; i >= 0; i--)
            if (at[i] < LENGTHS[i]) add(&step, i, at[i], at[i] + 1), at[i]++;
        if (!step.n) return;
        feed(run, &step, 0, "one token of each session");
    }
}

void feed_interleaved(Run *run) { /* no two neighbours of one session, until the others have ended */
    fresh_sessions(run);
    Batch all = {0};
    for (int t = 0; t < LENGTHS[0]; t++)
        for (int i = 0; i < N_SESSIONS; i++)
            if (t < LENGTHS[i]) add(&all, i, t, t + 1);
    feed(run, &all, 0, "all sessions interleaved");
}

void feed_rewound(Run *run) { /* what an earlier use left in the session must not matter */
    fresh_sessions(run);
    Synthetic other = *run->s;
    memcpy(other.tokens[0], run->s->tokens[2], sizeof other.tokens[0]);
    Batch all = {0};
    add(&all, 0, 0, LENGTHS[0]);
    Run garbage = *run;
    garbage.s = &other;
    feed(&garbage, &all, all.n, "another text");
    feed(run, &all, 0, "a rewound session");
    Batch some = {0}; /* any positions whose predecessors are there */
    add(&some, 0, 3, 4), add(&some, 0, 20, 22), add(&some, 0, 36, 37);
    feed(run, &some, 0, "positions with gaps");
}

/* run->want, by the plainest way there is: one thread, one token a call */
static void record(Run *run) {
    const size_t vocab = (size_t)run->s->config.vocab_size;
    fresh_sessions(run);
    for (int i = 0; i < N_SESSIONS; i++) {
        run->want[i] = malloc((size_t)LENGTHS[i] * vocab * sizeof(float));
        for (int t = 0; t < LENGTHS[i]; t++)
            CHECK(forward_one(run, run->sessions[i], run->s->tokens[i][t], t, run->want[i] + (size_t)t * vocab) ==
                  L2P_OK);
    }
}

void end_run(Run *run) {
    for (int i = 0; i < N_SESSIONS; i++) l2p_session_free(run->sessions[i]), free(run->want[i]);
    l2p_model_free(run->model);
}

Run start_run(const Synthetic *s, int isa, int pack_threads) {
    Run run = {.s = s, .model = pack(s, isa, pack_threads), .n_threads = 1};
    now("%s %s, dim %d, group %d, %s keys", l2p_isa_name(isa), s->config.weight_type == L2P_INT8 ? "int8" : "float32",
        s->config.dim, s->config.group_size, s->config.cache_type == L2P_BFLOAT16 ? "bfloat16" : "float32");
    record(&run);
    return run;
}

int best_isa(void) {
    int isa = 0;
    while (!l2p_isa_supported(isa)) isa++;
    return isa;
}

#ifdef __SANITIZE_THREAD__
int draws_in(int isa) {
    int last = 0;
    while (l2p_isa_name(last + 1)) last++; /* portable; before it AVX2 or NEON */
    return isa == (last > 0 && l2p_isa_supported(last - 1) ? last - 1 : last);
}
#else
int draws_in(int isa) { return l2p_isa_supported(isa); }
#endif
