/* The transformer: a batch of tokens in, logits or drawn tokens out. The model itself is forward_share(), which reads
 * from top to bottom; the rest prepares for it.
 *
 * All threads run the same function and meet at barriers. Matrix products are split by blocks of output rows, attention
 * by tokens and key/value heads, everything else by token. No split changes a result. */
#include <math.h>
#include <string.h>

#include "forward.h"

enum {
    FEW_VECTORS = 6 /* up to this many, each thread normalizes all vectors itself: that costs less than a barrier */
};

/* ---- the workspace: one per process, used by the caller that has the turn; it only grows ---- */

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

enum { MEASURE, PLACE };

/* The workspace while it is allocated from. A size that overflows stays at SIZE_MAX - 64. */
typedef struct {
    int place; /* MEASURE: pointers are NULL */
    size_t used;
} Space;

/* The next count * width * bytes of the workspace, on cache lines of their own */
static void *take(Space *space, size_t count, size_t width, size_t bytes) {
    void *memory = space->place ? workspace.memory + space->used : NULL;
    size_t size, used;
    if (__builtin_mul_overflow(count, width, &size) || __builtin_mul_overflow(size, bytes, &size) ||
        __builtin_add_overflow(space->used, size, &used) || used > SIZE_MAX - 64)
        space->used = SIZE_MAX - 64;
    else
        space->used = (used + 63) & ~(size_t)63;
    return memory;
}

/* Are products added to the residual stream as they are? */
static int adds_directly(const l2p_model *model) {
    return !(model->config.steps & (L2P_OUTPUT_BIAS | L2P_MLP_BIAS | L2P_POST_NORM)) &&
           model->config.residual_scale == 1.0f;
}

static int max_int(int a, int b) { return a > b ? a : b; }

/* Set the pointers of a pass on n_threads threads (PLACE), or compute how much memory it needs (MEASURE). Returns the
 * bytes used. */
static size_t lay_out_workspace(Forward *f, int n_threads, int place) {
    const l2p_config *c = &f->model->config;
    const Layer *layer = &f->model->layers[0];
    const size_t n = (size_t)f->n, rows = (size_t)f->n_rows, threads = (size_t)n_threads, word = sizeof(float);
    const size_t dim = (size_t)c->dim, q_dim = (size_t)c->n_heads * (size_t)c->head_dim, most = n > rows ? n : rows;
    const int few = f->n <= FEW_VECTORS && f->n_rows <= FEW_VECTORS;
    const size_t copies = few ? threads : 1;
    const size_t score_rows = (size_t)max_int(CHUNK, c->n_heads / c->n_kv_heads);
    Space space = {.place = place};
    if (draws(f)) { /* first, so that its addresses stay the same from pass to pass */
        const size_t all_rows = (size_t)f->batch->n_rows;
        f->going.tokens = take(&space, all_rows, 1, sizeof *f->going.tokens);
        f->going.positions = take(&space, all_rows, 1, sizeof *f->going.positions);
        f->going.sessions = take(&space, all_rows, 1, sizeof *f->going.sessions);
        f->going.row = take(&space, all_rows, 1, sizeof *f->going.row);
        f->going.draw = take(&space, all_rows, 1, sizeof *f->going.draw);
    }
    f->x = take(&space, n, dim, word);
    f->qkv = take(&space, n, (size_t)layer->qkv.rows, word);
    f->att = take(&space, n, q_dim, word);
    f->gate_up = take(&space, n, (size_t)layer->w13.rows, word);
    f->hidden = take(&space, n, (size_t)(layer->w13.rows / 2), word);
    f->rope = take(&space, n, (size_t)c->rotary_dim, word);
    f->window_rope = take(&space, f->model->window_rope_freqs ? n : 0, (size_t)c->rotary_dim, word);
    f->branch = take(&space, adds_directly(f->model) ? 0 : most, dim, word);
    f->chunks = take(&space, n, 1, sizeof(Chunk));
    const size_t last = leaves_some(f) ? rows : 0;
    f->last_chunks = take(&space, last, 1, sizeof(Chunk));
    f->last_x = take(&space, last, dim, word);

    f->normed_stride = (most * dim + LANES - 1) / LANES * LANES;
    f->normed = take(&space, copies, f->normed_stride, word);
    const Matrix *matrices[] = {&layer->qkv, &layer->wo, &layer->w2};
    f->q_stride = f->scale_stride = 0;
    for (int i = 0; i < 3; i++) {
        const size_t q = (size_t)matrices[i]->groups * (size_t)matrices[i]->group_quads * 4;
        if (q > f->q_stride) f->q_stride = q;
        if ((size_t)matrices[i]->groups > f->scale_stride) f->scale_stride = (size_t)matrices[i]->groups;
    }
    f->q_stride = (most * f->q_stride + 63) / 64 * 64;
    f->scale_stride = (most * f->scale_stride + LANES - 1) / LANES * LANES;
    f->staged.q = take(&space, copies, f->q_stride, 1);
    f->staged.scale = take(&space, copies, f->scale_stride, word);
    f->staged.bias = take(&space, copies, f->scale_stride, word);
    if (!few) f->normed_stride = f->q_stride = f->scale_stride = 0;

    f->scores_stride = score_rows * (size_t)f->max_scores;
    f->scores = take(&space, threads, f->scores_stride, word);
    f->head_out_stride = score_rows * (size_t)round_up(c->head_dim, LANES);
    f->head_out = take(&space, threads, f->head_out_stride, word);
    f->sums_stride = (size_t)round_up((int64_t)score_rows, LANES);
    f->sums = take(&space, threads, f->sums_stride, word);
    if (draws(f)) {
        f->logits = take(&space, rows, (size_t)c->vocab_size, word);
        f->candidates = take(&space, threads, (size_t)c->vocab_size, sizeof(int32_t));
    }
    return space.used;
}

/* Make the workspace large enough for a pass like this one, but with n tokens and n_rows rows. */
static int make_room(const Forward *like, int n, int n_rows, int n_threads) {
    Forward f = *like;
    f.n = n;
    f.n_rows = n_rows;
    const size_t needed = lay_out_workspace(&f, scheduling_threads(f.model, n, n_threads), MEASURE);
    if (needed <= workspace.bytes) return L2P_OK;
    pages_free(workspace.memory, workspace.bytes);
    workspace.bytes = 0;
    workspace.memory = pages_alloc(needed, SMALL_PAGES);
    if (!workspace.memory) return L2P_NO_MEMORY;
    workspace.bytes = needed;
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

/* cos and sin of position * frequency, times `scale`: freqs (rotary_dim / 2,), out (rotary_dim / 2, 2) */
static void rope_angles(const l2p_model *model, const float *freqs, int position, float scale, float *out) {
    const int exact = model->floats->numerics == EXACT;
    for (int i = 0; i < model->config.rotary_dim / 2; i++) {
        const float angle = (float)position * freqs[i];
        /* libm's float functions match llama2.c; its double functions, rounded, give the same bits everywhere. */
        out[2 * i] = (exact ? cosf(angle) : (float)cos((double)angle)) * scale;
        out[2 * i + 1] = (exact ? sinf(angle) : (float)sin((double)angle)) * scale;
    }
}

/* A token's embedding, x (dim,), and the angles of its position */
static void start_token(const Forward *f, int i) {
    const l2p_model *model = f->model;
    const l2p_config *c = &model->config;
    float *x = f->x + (size_t)i * (size_t)c->dim;
    const size_t at = (size_t)i * (size_t)c->rotary_dim;
    embed(model, f->tokens[i], x);
    for (int k = 0; k < c->dim && c->embedding_scale != 1.0f; k++) x[k] *= c->embedding_scale;
    rope_angles(model, model->rope_freqs, f->positions[i], c->rope_scale, f->rope + at);
    if (model->window_rope_freqs)
        rope_angles(model, model->window_rope_freqs, f->positions[i], 1.0f, f->window_rope + at);
}

/* The input of a product with w: n rows x[rows[i]] (or x[i]), normalized if there is a norm, quantized if w is. */
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

/* out = w v (MATMUL_ADD: out += w v): this thread's share of the rows, in units of `unit` blocks */
static void multiply(const Forward *f, const Matrix *w, const Vectors *v, int n, float *out, size_t ld_out, int mode,
                     int unit, int thread, int n_threads) {
    int begin, end;
    threads_share(w->blocks, unit, thread, n_threads, &begin, &end);
    f->model->kernels->matmul(w, begin, end, v, n, out, ld_out, mode);
}

/* ---- optional steps ---- */

/* x = rmsnorm(x) of each of `rows` consecutive vectors (n,), in place */
static void norm_in_place(const Forward *f, float *x, int rows, int n, const float *weight) {
    for (int first = 0; first < rows; first += ROWS, x += ROWS * n) {
        const int some = rows - first < ROWS ? rows - first : ROWS;
        const float *row[ROWS];
        for (int i = 0; i < some; i++) row[i] = x + i * n;
        f->model->floats->rmsnorm(x, row, some, weight, n, f->model->config.norm_eps);
    }
}

/* q, k, v += their biases; q, k = rmsnorm(q), rmsnorm(k) */
static void finish_qkv(const Forward *f, const Layer *layer, int thread, int n_threads) {
    const l2p_config *c = &f->model->config;
    const int all = c->steps & L2P_ALL_NORM, rows = layer->qkv.rows, head_dim = c->head_dim;
    int begin, end;
    if (!layer->qkv_bias && !layer->q_norm) return;
    threads_share(f->n, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        float *q = f->qkv + (size_t)i * (size_t)rows, *k = q + round_up(c->n_heads * head_dim, LANES);
        for (int r = 0; r < rows && layer->qkv_bias; r++) q[r] += layer->qkv_bias[r];
        if (!layer->q_norm) continue;
        norm_in_place(f, q, all ? 1 : c->n_heads, all ? c->n_heads * head_dim : head_dim, layer->q_norm);
        norm_in_place(f, k, all ? 1 : c->n_kv_heads, all ? c->n_kv_heads * head_dim : head_dim, layer->k_norm);
    }
    threads_barrier(n_threads);
}

/* x += w v; or, with these steps, x += residual_scale * rmsnorm(w v + bias) */
static void add_product(const Forward *f, const Matrix *w, const Vectors *v, int n, float *x, const float *bias,
                        const float *norm, int thread, int n_threads) {
    const l2p_config *c = &f->model->config;
    const size_t dim = (size_t)c->dim;
    int begin, end;
    if (adds_directly(f->model)) {
        multiply(f, w, v, n, x, dim, MATMUL_ADD, 1, thread, n_threads);
        threads_barrier(n_threads);
        return;
    }
    multiply(f, w, v, n, f->branch, dim, MATMUL_STORE, 1, thread, n_threads);
    threads_barrier(n_threads);
    threads_share(n, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        float *y = f->branch + (size_t)i * dim, *to = x + (size_t)i * dim;
        for (int k = 0; k < c->dim && bias; k++) y[k] += bias[k];
        if (norm) norm_in_place(f, y, 1, c->dim, norm);
        for (int k = 0; k < c->dim; k++) to[k] += y[k] * c->residual_scale;
    }
    threads_barrier(n_threads);
}

/* hidden = silu(gate) * up, or gelu(gate) * up, of the blocks [begin, end) of w13; first gate, up += their biases */
static void gate(const Forward *f, const Layer *layer, int n, int begin, int end) {
    const FloatKernels *floats = f->model->floats;
    const size_t rows = (size_t)layer->w13.rows;
    for (int i = 0; i < n; i++) {
        float *gate_up = f->gate_up + (size_t)i * rows, *out = f->hidden + (size_t)i * rows / 2 + begin / 2 * LANES;
        for (int r = begin * LANES; r < end * LANES && layer->w13_bias; r++) gate_up[r] += layer->w13_bias[r];
        if (f->model->config.steps & L2P_GELU)
            floats->geglu(out, gate_up + begin * LANES, (end - begin) / 2);
        else
            floats->swiglu(out, gate_up + begin * LANES, (end - begin) / 2);
    }
}

/* ---- the transformer; the steps that a LLaMA lacks are in the functions above ---- */

static void forward_share(void *context, int thread, int n_threads) {
    Forward *f = context;
    const l2p_model *model = f->model;
    const l2p_config *c = &model->config;
    const size_t dim = (size_t)c->dim, q_dim = (size_t)(c->n_heads * c->head_dim);
    int n = f->n, begin, end;
    float *x = f->x; /* (n, dim) */
    Vectors in;

    threads_share(n, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) start_token(f, i);
    threads_barrier(n_threads);

    for (int l = 0; l < c->n_layers; l++) {
        const Layer *layer = &model->layers[l];
        const size_t qkv_rows = (size_t)layer->qkv.rows, hidden_rows = (size_t)layer->w13.rows / 2;
        if (thread == 0 && f->cancel && __atomic_load_n(f->cancel, __ATOMIC_RELAXED)) *f->cancelled = 1;

        /* q, k, v = wq, wk, wv @ rmsnorm(x) */
        in = stage(f, &layer->qkv, x, dim, n, NULL, layer->att_norm, thread, n_threads);
        multiply(f, &layer->qkv, &in, n, f->qkv, qkv_rows, MATMUL_STORE, 1, thread, n_threads);
        threads_barrier(n_threads);
        if (*f->cancelled) return; /* written only before this barrier, so all threads see the same value */
        finish_qkv(f, layer, thread, n_threads);

        /* x += wo @ attention(rope(q), rope(k), v) */
        if (l == c->n_layers - 1 && leaves_some(f)) { /* from here on, only the rows whose logits are needed */
            n = f->n_rows;
            x = f->last_x;
            threads_share(n, 1, thread, n_threads, &begin, &end);
            for (int i = begin; i < end; i++)
                memcpy(x + (size_t)i * dim, f->x + (size_t)f->rows[i] * dim, dim * sizeof(float));
        }
        attention(f, l, thread, n_threads);
        if (n == 0) return;
        threads_barrier(n_threads);
        in = stage(f, &layer->wo, f->att, q_dim, n, NULL, NULL, thread, n_threads);
        add_product(f, &layer->wo, &in, n, x, layer->wo_bias, layer->att_post_norm, thread, n_threads);

        /* hidden = silu(w1 @ rmsnorm(x)) * (w3 @ rmsnorm(x)); one thread computes a block of w1 and its block of w3 */
        in = stage(f, &layer->w13, x, dim, n, NULL, layer->ffn_norm, thread, n_threads);
        multiply(f, &layer->w13, &in, n, f->gate_up, 2 * hidden_rows, MATMUL_STORE, 2, thread, n_threads);
        threads_share(layer->w13.blocks, 2, thread, n_threads, &begin, &end);
        gate(f, layer, n, begin, end);
        threads_barrier(n_threads);

        /* x += w2 @ hidden */
        in = stage(f, &layer->w2, f->hidden, hidden_rows, n, NULL, NULL, thread, n_threads);
        add_product(f, &layer->w2, &in, n, x, layer->w2_bias, layer->ffn_post_norm, thread, n_threads);
    }

    /* logits = wcls @ rmsnorm(x), for the requested rows */
    const int32_t *rows = leaves_some(f) ? NULL : f->rows; /* NULL: x holds these rows and no others */
    in = stage(f, &model->classifier, x, dim, f->n_rows, rows, model->final_norm, thread, n_threads);
    multiply(f, &model->classifier, &in, f->n_rows, f->logits, (size_t)c->vocab_size, MATMUL_STORE, 1, thread,
             n_threads);
    if (!draws(f)) return;
    threads_barrier(n_threads);
    threads_share(f->n_rows, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        const l2p_draw *draw = &f->batch->draws[f->going.draw[i]];
        float *logits = f->logits + (size_t)i * (size_t)c->vocab_size;
        f->batch->drawn[f->going.draw[i]] =
            draw->temperature == 0.0f ? l2p_argmax(model, logits, draw->n_tokens)
                                      : l2p_sample(model, logits, draw->n_tokens, draw->temperature, draw->top_p,
                                                   draw->coin, f->candidates + (size_t)thread * (size_t)c->vocab_size);
    }
}

/* ---- a call: a pass over the batch, then one for each further token that rows draw ---- */

/* May row `row` draw several tokens? These run at the positions after the row's own, which no other token of the batch
 * may use. (check_draws checks that the session has these positions.) */
static int can_go_on(const l2p_batch *b, int row) {
    const int token = b->rows[row];
    for (int i = token + 1; i < b->n_tokens; i++)
        if (b->sessions[i] == b->sessions[token]) return 0;
    for (int i = 0; i < b->n_rows; i++)
        if (i != row && b->rows[i] == token) return 0;
    return 1;
}

static int check_draws(const l2p_config *c, const l2p_batch *b) {
    if (!b->n_draws || !b->draws || !b->drawn || !b->n_drawn) return L2P_BAD_ARGUMENT;
    if (b->n_stop_tokens < 0 || (b->n_stop_tokens > 0 && !b->stop_tokens)) return L2P_BAD_ARGUMENT;
    int64_t n_draws = 0;
    for (int i = 0; i < b->n_rows; n_draws += b->n_draws[i++]) {
        if (b->n_draws[i] < 1 || b->n_draws[i] > c->seq_len - b->positions[b->rows[i]]) return L2P_BAD_ARGUMENT;
        if (b->n_draws[i] > 1 && !can_go_on(b, i)) return L2P_BAD_ARGUMENT;
    }
    if (n_draws > INT32_MAX) return L2P_BAD_ARGUMENT;
    for (int64_t i = 0; i < n_draws; i++)
        if (b->draws[i].n_tokens < 1 || b->draws[i].n_tokens > c->vocab_size) return L2P_BAD_ARGUMENT;
    return L2P_OK;
}

static int check_batch(const l2p_model *model, const l2p_batch *b) {
    const l2p_config *c = &model->config;
    if (b->n_tokens < 1 || b->n_tokens > INT32_MAX / c->n_kv_heads || b->n_rows < 0) return L2P_BAD_ARGUMENT;
    if (!b->tokens || !b->sessions || !b->positions || (b->n_rows > 0 && !b->rows)) return L2P_BAD_ARGUMENT;
    for (int i = 0; i < b->n_tokens; i++) {
        if (b->tokens[i] < 0 || b->tokens[i] >= c->vocab_size) return L2P_BAD_ARGUMENT;
        if (b->positions[i] < 0 || b->positions[i] >= c->seq_len) return L2P_BAD_ARGUMENT;
        if (!b->sessions[i] || b->sessions[i]->model != model) return L2P_BAD_ARGUMENT;
    }
    for (int i = 0; i < b->n_rows; i++)
        if (b->rows[i] < 0 || b->rows[i] >= b->n_tokens) return L2P_BAD_ARGUMENT;
    return b->n_rows > 0 && !b->logits ? check_draws(c, b) : L2P_OK;
}

/* Make room for all passes of a batch, and find where each row's draws begin. */
static int prepare(Forward *f, int n_threads) {
    const l2p_batch *b = f->batch;
    int most = 0; /* positions that a token sees */
    for (int i = 0; i < b->n_tokens; i++) most = max_int(most, b->positions[i] + 1);
    for (int i = 0; i < b->n_rows && draws(f); i++) most = max_int(most, b->positions[b->rows[i]] + b->n_draws[i]);
    f->max_scores = (int)round_up(most, LANES);

    int error = make_room(f, b->n_tokens, b->n_rows, n_threads);
    if (!draws(f) || b->n_rows == 0) return error;
    /* Later passes have one token per row. Few vectors are laid out differently, which may need more memory. */
    if (!error) error = make_room(f, b->n_rows, b->n_rows, n_threads);
    if (!error && b->n_rows > FEW_VECTORS) error = make_room(f, FEW_VECTORS, FEW_VECTORS, n_threads);
    if (error) return error;
    lay_out_workspace(f, 1, PLACE);
    for (int i = 0, draw = 0; i < b->n_rows; draw += b->n_draws[i++]) {
        f->going.row[i] = i;
        f->going.draw[i] = draw;
        b->n_drawn[i] = 0;
    }
    return L2P_OK;
}

static int is_stop_token(const l2p_batch *b, int32_t token) {
    for (int i = 0; i < b->n_stop_tokens; i++)
        if (b->stop_tokens[i] == token) return 1;
    return 0;
}

/* Count the tokens that a pass has drawn. The rows with draws left are the next pass. Returns whether there is one. */
static int next_pass(Forward *f) {
    const l2p_batch *b = f->batch;
    Going *going = &f->going;
    int n = 0;
    for (int i = 0; i < f->n_rows; i++) {
        const int row = going->row[i], draw = going->draw[i], from = f->rows ? f->rows[i] : i;
        const int32_t token = b->drawn[draw];
        if (++b->n_drawn[row] == b->n_draws[row] || is_stop_token(b, token)) continue;
        going->tokens[n] = token;
        going->positions[n] = f->positions[from] + 1;
        going->sessions[n] = f->sessions[from];
        going->row[n] = row;
        going->draw[n++] = draw + 1;
    }
    f->n = f->n_rows = n;
    f->rows = NULL;
    f->tokens = going->tokens;
    f->positions = going->positions;
    f->sessions = going->sessions;
    return n > 0;
}

/* Consecutive passes that run on the same threads, which are woken only once */
typedef struct {
    Forward *f;
    int threads_asked, n_threads; /* requested by the caller; suitable for these passes */
    enum { LAST_PASS, NEXT_PASS, OTHER_THREADS } then;
} Passes;

static void start_pass(Forward *f, int n_threads) {
    if (f->n != f->laid_out.n || f->n_rows != f->laid_out.n_rows || n_threads != f->laid_out.n_threads) {
        lay_out_workspace(f, n_threads, PLACE);
        f->laid_out.n = f->n;
        f->laid_out.n_rows = f->n_rows;
        f->laid_out.n_threads = n_threads;
    }
    find_chunks(f);
}

static void passes_share(void *context, int thread, int n_threads) {
    Passes *passes = context;
    Forward *f = passes->f;
    do {
        forward_share(f, thread, n_threads);
        if (!draws(f)) return;
        threads_barrier(n_threads); /* every row has its token */
        if (thread == 0) {
            if (*f->cancelled || !next_pass(f))
                passes->then = LAST_PASS;
            else if (scheduling_threads(f->model, f->n, passes->threads_asked) != passes->n_threads)
                passes->then = OTHER_THREADS;
            else
                start_pass(f, f->laid_out.n_threads);
        }
        threads_barrier(n_threads);
    } while (passes->then == NEXT_PASS);
}

int l2p_forward(const l2p_model *model, const l2p_batch *batch, int n_threads, const int32_t *cancel) {
    if (!model || !batch) return L2P_BAD_ARGUMENT;
    int error = check_batch(model, batch);
    if (error) return error;
    atomic_int cancelled = 0;
    Forward f = {.model = model,
                 .batch = batch,
                 .n = batch->n_tokens,
                 .tokens = batch->tokens,
                 .positions = batch->positions,
                 .sessions = batch->sessions,
                 .n_rows = batch->n_rows,
                 .rows = batch->rows,
                 .logits = batch->logits,
                 .cancel = cancel,
                 .cancelled = &cancelled};
    Passes passes = {.f = &f, .threads_asked = n_threads, .then = OTHER_THREADS};
    threads_take_turn();
    error = prepare(&f, n_threads);
    while (!error && passes.then == OTHER_THREADS) {
        passes.n_threads = scheduling_threads(model, f.n, n_threads);
        passes.then = draws(&f) ? NEXT_PASS : LAST_PASS;
        const int threads = scheduling_before_run(passes.n_threads);
        start_pass(&f, threads);
        threads_run(threads, passes_share, &passes);
        if (cancelled) error = L2P_CANCELLED;
    }
    threads_end_turn();
    return error;
}
