/* The transformer: a batch of tokens in, logits or next tokens out. Read forward_share() from top to bottom; all else is
 * staging.
 *
 * All threads run the same function and meet at barriers. Matrix products are split by blocks of output rows, attention
 * by (tokens, key/value head), the rest by token: no split changes a result. */
#include <math.h>
#include <string.h>

#include "forward.h"

enum {
    FEW_VECTORS = 6 /* up to so many each thread normalizes all for itself: cheaper than a barrier */
};

/* ---- workspace: one for the process, used by whoever has the turn; it only grows ---- */

static struct {
    unsigned char *memory;
    size_t bytes;
} workspace;

void l2p_release(void) {
    threads_take_turn();
    threads_stop();
    pages_free(workspace.memory, workspace.bytes);
    workspace.memory = NULL;
    workspace.bytes = 0;
    threads_end_turn();
}

/* The next `bytes` of the workspace, on a cache line of their own; NULL while it is only measured. */
static void *take(size_t *used, size_t bytes) {
    void *memory = workspace.memory ? workspace.memory + *used : NULL;
    *used += (size_t)round_up((int64_t)bytes, 64);
    return memory;
}

static int max_int(int a, int b) { return a > b ? a : b; }

static size_t lay_out_workspace(Forward *f, int n_threads) {
    const l2p_config *c = &f->model->config;
    const Layer *layer = &f->model->layers[0];
    const size_t n = (size_t)f->n, most_logits = (size_t)max_int(f->n, f->n_logits), word = sizeof(float);
    const int few = f->n <= FEW_VECTORS && f->n_logits <= FEW_VECTORS;
    const size_t copies = few ? (size_t)n_threads : 1;
    const size_t score_rows = (size_t)max_int(CHUNK, c->n_heads / c->n_kv_heads);
    size_t used = 0;
    f->x = take(&used, n * (size_t)c->dim * word);
    f->qkv = take(&used, n * (size_t)layer->qkv.rows * word);
    f->att = take(&used, n * (size_t)(c->n_heads * c->head_dim) * word);
    f->gate_up = take(&used, n * (size_t)layer->w13.rows * word);
    f->hidden = take(&used, n * (size_t)(layer->w13.rows / 2) * word);
    f->rope = take(&used, n * (size_t)c->head_dim * word);
    f->chunks = take(&used, n * sizeof(Chunk));
    const size_t last = leaves_some(f) ? (size_t)f->n_logits : 0;
    f->last_chunks = take(&used, last * sizeof(Chunk));
    f->last_x = take(&used, last * (size_t)c->dim * word);

    f->normed_stride = (size_t)round_up((int64_t)most_logits * c->dim, LANES);
    f->normed = take(&used, copies * f->normed_stride * word);
    const Matrix *matrices[] = {&layer->qkv, &layer->wo, &layer->w2};
    f->q_stride = f->scale_stride = 0;
    for (int i = 0; i < 3; i++) {
        const size_t q = (size_t)matrices[i]->groups * (size_t)matrices[i]->group_quads * 4;
        if (q > f->q_stride) f->q_stride = q;
        if ((size_t)matrices[i]->groups > f->scale_stride) f->scale_stride = (size_t)matrices[i]->groups;
    }
    f->q_stride = (size_t)round_up((int64_t)(most_logits * f->q_stride), 64);
    f->scale_stride = (size_t)round_up((int64_t)(most_logits * f->scale_stride), LANES);
    f->staged.q = take(&used, copies * f->q_stride);
    f->staged.scale = take(&used, copies * f->scale_stride * word);
    f->staged.bias = take(&used, copies * f->scale_stride * word);
    if (!few) f->normed_stride = f->q_stride = f->scale_stride = 0;

    f->scores_stride = score_rows * (size_t)f->max_scores;
    f->scores = take(&used, (size_t)n_threads * f->scores_stride * word);
    f->head_out_stride = score_rows * (size_t)round_up(c->head_dim, LANES);
    f->head_out = take(&used, (size_t)n_threads * f->head_out_stride * word);
    f->sums_stride = (size_t)round_up((int64_t)score_rows, LANES);
    f->sums = take(&used, (size_t)n_threads * f->sums_stride * word);
    if (f->draws) {
        f->out = take(&used, (size_t)f->n_logits * (size_t)c->vocab_size * word);
        f->candidates = take(&used, (size_t)n_threads * (size_t)c->vocab_size * sizeof(int32_t));
    }
    return used;
}

static int prepare_workspace(Forward *f, int n_threads) {
    unsigned char *kept = workspace.memory;
    workspace.memory = NULL;
    size_t needed = lay_out_workspace(f, n_threads);
    workspace.memory = kept;
    if (needed > workspace.bytes) {
        pages_free(workspace.memory, workspace.bytes);
        workspace.bytes = 0;
        workspace.memory = pages_alloc(needed, SMALL_PAGES);
        if (!workspace.memory) return L2P_NO_MEMORY;
        workspace.bytes = needed;
    }
    lay_out_workspace(f, n_threads);
    return L2P_OK;
}

/* ---- staging ---- */

/* One row of the packed embedding, out (dim,) */
static void embed(const l2p_model *model, int token, float *out) {
    const Matrix *m = &model->embedding;
    const unsigned char *block = m->data + (size_t)(token / LANES) * m->block_bytes;
    const int lane = token % LANES;
    if (m->type == L2P_FLOAT32) {
        const float *rows = (const float *)(const void *)block;
        for (int k = 0; k < m->cols; k++) out[k] = rows[(size_t)k * LANES + (size_t)lane];
    } else if (m->type == L2P_BFLOAT16) {
        const uint16_t *rows = (const uint16_t *)(const void *)block;
        for (int k = 0; k < m->cols; k++) out[k] = bfloat16_to_float(rows[(size_t)k * LANES + (size_t)lane]);
    } else if (m->type == L2P_INT8) {
        const size_t quads_bytes = (size_t)m->group_quads * LANES * 4;
        for (int g = 0; g < m->groups; g++, block += m->group_bytes) {
            const float scale = ((const float *)(const void *)(block + quads_bytes))[lane];
            for (int k = 0; k < m->group; k++) {
                const unsigned char packed = block[(k / 4) * LANES * 4 + lane * 4 + k % 4];
                *out++ = (float)(int8_t)(unsigned char)(packed - model->kernels->int8_offset) * scale;
            }
        }
    } else {
        for (int k = 0; k < m->cols; k++) {
            const unsigned char *group = block + (size_t)(k / INT4_GROUP) * m->group_bytes;
            const int in_group = k % INT4_GROUP, quad = in_group / 4;
            const unsigned char both = group[(quad / 2) * LANES * 4 + lane * 4 + in_group % 4];
            const uint16_t scale = ((const uint16_t *)(const void *)(group + INT4_GROUP / 2 * LANES))[lane];
            out[k] = (float)((quad % 2 ? both >> 4 : both & 15) - INT4_OFFSET) * float16_to_float(scale);
        }
    }
}

/* cos and sin of position * frequency, out (head_dim / 2, 2) */
static void rope_angles(const l2p_model *model, int position, float *out) {
    const int exact = model->floats->numerics == EXACT;
    for (int i = 0; i < model->config.head_dim / 2; i++) {
        const float angle = (float)position * model->rope_freqs[i];
        /* libm's float functions give llama2.c's bits; its double ones, rounded, give the same bits everywhere. */
        out[2 * i] = exact ? cosf(angle) : (float)cos((double)angle);
        out[2 * i + 1] = exact ? sinf(angle) : (float)sin((double)angle);
    }
}

/* What `w` multiplies: rows x[rows[i]] (or x[i]), normalized where there is a norm, quantized where w is. */
static Vectors stage(const Forward *f, const Matrix *w, const float *x, size_t ld, int n, const int32_t *rows,
                     const float *norm, int thread, int n_threads) {
    const Kernels *kernels = f->model->kernels;
    Vectors v = {.f = x, .ld = ld};
    if (!norm && !is_quantized(w)) return v;

    int begin = 0, end = n;
    const int shared = f->normed_stride == 0;
    if (shared) threads_share(n, 1, thread, n_threads, &begin, &end);
    float *normed = f->normed + (size_t)thread * f->normed_stride;
    v.q = f->staged.q + (size_t)thread * f->q_stride;
    v.scale = f->staged.scale + (size_t)thread * f->scale_stride;
    v.bias = f->staged.bias + (size_t)thread * f->scale_stride;
    for (int first = begin; first < end; first += ROWS) {
        const int some = end - first < ROWS ? end - first : ROWS;
        const float *row[ROWS];
        for (int i = 0; i < some; i++) row[i] = x + (size_t)(rows ? rows[first + i] : first + i) * ld;
        if (norm) {
            float *to = normed + (size_t)first * (size_t)w->cols;
            f->model->floats->rmsnorm(to, row, some, norm, w->cols, f->model->config.norm_eps);
            for (int i = 0; i < some; i++) row[i] = to + (size_t)i * (size_t)w->cols;
        }
        for (int i = 0; i < some && is_quantized(w); i++) kernels->quantize(&v, first + i, row[i], w);
    }
    if (norm) {
        v.f = normed;
        v.ld = (size_t)w->cols;
    }
    if (shared) threads_barrier(n_threads);
    return v;
}

/* out = (or, with MATMUL_ADD, +=) w v: this thread's share of the rows, whole `unit`s of blocks at a time */
static void multiply(const Forward *f, const Matrix *w, const Vectors *v, int n, float *out, size_t ld_out, int mode,
                     int unit, int thread, int n_threads) {
    int begin, end;
    threads_share(w->blocks, unit, thread, n_threads, &begin, &end);
    f->model->kernels->matmul(w, begin, end, v, n, out, ld_out, mode);
}

/* ---- the transformer ---- */

static void forward_share(void *context, int thread, int n_threads) {
    Forward *f = context;
    const l2p_model *model = f->model;
    const l2p_config *c = &model->config;
    const size_t dim = (size_t)c->dim, q_dim = (size_t)(c->n_heads * c->head_dim);
    int n = f->n, begin, end;
    float *x = f->x; /* (n, dim) */
    Vectors in;

    threads_share(n, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        embed(model, f->tokens[i], f->x + (size_t)i * dim);
        rope_angles(model, f->positions[i], f->rope + (size_t)i * (size_t)c->head_dim);
    }
    threads_barrier(n_threads);

    for (int l = 0; l < c->n_layers; l++) {
        const Layer *layer = &model->layers[l];
        const size_t qkv_rows = (size_t)layer->qkv.rows, hidden_rows = (size_t)layer->w13.rows / 2;
        if (thread == 0 && f->cancel && __atomic_load_n(f->cancel, __ATOMIC_RELAXED)) *f->cancelled = 1;

        /* q, k, v = wq, wk, wv @ rmsnorm(x) */
        in = stage(f, &layer->qkv, x, dim, n, NULL, layer->att_norm, thread, n_threads);
        multiply(f, &layer->qkv, &in, n, f->qkv, qkv_rows, MATMUL_STORE, 1, thread, n_threads);
        threads_barrier(n_threads);
        if (*f->cancelled) return; /* all threads see the same: it is written before this barrier only */

        /* x += wo @ attention(rope(q), rope(k), v) */
        if (l == c->n_layers - 1 && leaves_some(f)) { /* the rest is for those whose logits are asked for */
            n = f->n_logits;
            x = f->last_x;
            threads_share(n, 1, thread, n_threads, &begin, &end);
            for (int i = begin; i < end; i++)
                memcpy(x + (size_t)i * dim, f->x + (size_t)f->logits_rows[i] * dim, dim * sizeof(float));
        }
        attention(f, l, thread, n_threads);
        if (n == 0) return;
        threads_barrier(n_threads);
        in = stage(f, &layer->wo, f->att, q_dim, n, NULL, NULL, thread, n_threads);
        multiply(f, &layer->wo, &in, n, x, dim, MATMUL_ADD, 1, thread, n_threads);
        threads_barrier(n_threads);

        /* hidden = silu(w1 @ rmsnorm(x)) * (w3 @ rmsnorm(x)), a block of w1 and its block of w3 by the same thread */
        in = stage(f, &layer->w13, x, dim, n, NULL, layer->ffn_norm, thread, n_threads);
        multiply(f, &layer->w13, &in, n, f->gate_up, 2 * hidden_rows, MATMUL_STORE, 2, thread, n_threads);
        threads_share(layer->w13.blocks, 2, thread, n_threads, &begin, &end);
        for (int i = 0; i < n; i++)
            model->floats->swiglu(f->hidden + (size_t)i * hidden_rows + begin / 2 * LANES,
                                   f->gate_up + (size_t)i * 2 * hidden_rows + begin * LANES, (end - begin) / 2);
        threads_barrier(n_threads);

        /* x += w2 @ hidden */
        in = stage(f, &layer->w2, f->hidden, hidden_rows, n, NULL, NULL, thread, n_threads);
        multiply(f, &layer->w2, &in, n, x, dim, MATMUL_ADD, 1, thread, n_threads);
        threads_barrier(n_threads);
    }

    /* logits = wcls @ rmsnorm(x), of the rows asked for */
    const int32_t *rows = leaves_some(f) ? NULL : f->logits_rows; /* or x holds just these */
    in = stage(f, &model->classifier, x, dim, f->n_logits, rows, model->final_norm, thread, n_threads);
    multiply(f, &model->classifier, &in, f->n_logits, f->out, (size_t)c->vocab_size, MATMUL_STORE, 1, thread,
             n_threads);
    if (!f->draws) return;
    threads_barrier(n_threads);
    threads_share(f->n_logits, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        const l2p_draw *draw = &f->draws[i];
        float *logits = f->out + (size_t)i * (size_t)c->vocab_size;
        f->drawn[i] = draw->temperature == 0.0f
                          ? l2p_argmax(model, logits, draw->n)
                          : l2p_sample(model, logits, draw->n, draw->temperature, draw->top_p, draw->coin,
                                       f->candidates + (size_t)thread * (size_t)c->vocab_size);
    }
}

static int can_draw(const l2p_config *c, const l2p_draw *draw) { return draw->n >= 1 && draw->n <= c->vocab_size; }

static int check_arguments(const Forward *f) {
    const l2p_config *c = &f->model->config;
    if (f->n < 1 || f->n > INT32_MAX / c->n_kv_heads || f->n_logits < 0) return L2P_BAD_ARGUMENT;
    for (int i = 0; i < f->n; i++) {
        if (f->tokens[i] < 0 || f->tokens[i] >= c->vocab_size) return L2P_BAD_ARGUMENT;
        if (f->positions[i] < 0 || f->positions[i] >= c->seq_len) return L2P_BAD_ARGUMENT;
        if (!f->sessions[i] || f->sessions[i]->model != f->model) return L2P_BAD_ARGUMENT;
    }
    for (int i = 0; i < f->n_logits; i++)
        if (f->logits_rows[i] < 0 || f->logits_rows[i] >= f->n) return L2P_BAD_ARGUMENT;
    for (int i = 0; f->draws && i < f->n_logits; i++)
        if (!can_draw(c, &f->draws[i])) return L2P_BAD_ARGUMENT;
    return L2P_OK;
}

/* A text: its first token's pass, and how it goes on. */
typedef struct {
    Forward first;
    int n_draws, n_ends, n_drawn;
    const int32_t *ends;
} Text;

static int is_end(const Text *text, int32_t token) {
    for (int i = 0; i < text->n_ends; i++)
        if (text->ends[i] == token) return 1;
    return 0;
}

/* Each thread moves on in a copy of its own. */
static void text_share(void *context, int thread, int n_threads) {
    Text *text = context;
    Forward f = text->first;
    int32_t position = f.positions[0];
    f.positions = &position;
    int n = 0;
    for (;;) {
        forward_share(&f, thread, n_threads);
        if (*f.cancelled || ++n == text->n_draws) break;
        threads_barrier(n_threads);
        if (is_end(text, *f.drawn)) break;
        f.tokens = f.drawn++;
        f.draws++;
        position++;
    }
    if (thread == 0) text->n_drawn = n;
}

/* Do `work`, of which f is the first pass: all threads, in this caller's turn. */
static int run(Forward *f, Work work, void *context, int n_threads) {
    atomic_int cancelled = 0;
    f->cancelled = &cancelled;
    int error = check_arguments(f);
    if (error) return error;
    for (int i = 0; i < f->n; i++) f->max_scores = max_int(f->max_scores, (int)round_up(f->positions[i] + 1, LANES));

    n_threads = threads_worth_it(f->model, f->n, n_threads);

    threads_take_turn();
    n_threads = threads_that_help(n_threads);
    error = prepare_workspace(f, n_threads);
    if (!error) {
        find_chunks(f);
        threads_run(n_threads, work, context);
        if (cancelled) error = L2P_CANCELLED;
    }
    threads_end_turn();
    return error;
}

int l2p_forward(const l2p_model *model, int n, const int32_t *tokens, l2p_session *const *sessions,
                const int32_t *positions, int n_logits, const int32_t *logits_rows, float *out, int n_threads,
                const int32_t *cancel) {
    Forward f = {.model = model,
                 .n = n,
                 .tokens = tokens,
                 .positions = positions,
                 .sessions = sessions,
                 .n_logits = n_logits,
                 .logits_rows = logits_rows,
                 .out = out,
                 .cancel = cancel};
    return run(&f, forward_share, &f, n_threads);
}

int l2p_next(const l2p_model *model, int n, const int32_t *tokens, l2p_session *const *sessions,
             const int32_t *positions, int n_draws, const int32_t *draw_rows, const l2p_draw *draws, int32_t *drawn,
             int n_threads, const int32_t *cancel) {
    Forward f = {.model = model,
                 .n = n,
                 .tokens = tokens,
                 .positions = positions,
                 .sessions = sessions,
                 .n_logits = n_draws,
                 .logits_rows = draw_rows,
                 .draws = draws,
                 .drawn = drawn,
                 .cancel = cancel};
    return run(&f, forward_share, &f, n_threads);
}

int l2p_generate(const l2p_model *model, l2p_session *session, int32_t token, int32_t position, int n_draws,
                 const l2p_draw *draws, int n_ends, const int32_t *ends, int32_t *drawn, int n_threads,
                 const int32_t *cancel) {
    const l2p_config *c = &model->config;
    if (n_draws < 1 || position < 0 || position > c->seq_len - n_draws) return -L2P_BAD_ARGUMENT;
    for (int i = 0; i < n_draws; i++)
        if (!can_draw(c, &draws[i])) return -L2P_BAD_ARGUMENT;
    const int32_t row = 0;
    Text text = {.first = {.model = model,
                           .n = 1,
                           .tokens = &token,
                           .positions = &position,
                           .sessions = &session,
                           .n_logits = 1,
                           .logits_rows = &row,
                           .draws = draws,
                           .drawn = drawn,
                           .cancel = cancel,
                           .max_scores = (int)round_up(position + n_draws, LANES)},
                 .n_draws = n_draws,
                 .n_ends = n_ends,
                 .ends = ends};
    const int error = run(&text.first, text_share, &text, n_threads);
    return error ? -error : text.n_drawn;
}
