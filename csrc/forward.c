/* The transformer: a batch of tokens in, logits out. Read forward_share() from top to bottom; all else is staging.
 *
 * All threads run the same function and meet at barriers. Matrix products are split by blocks of output rows, attention by
 * (tokens, key/value head), the rest by token: no split changes a result. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "kernels.h"

enum {
    CHUNK = 8,         /* consecutive tokens of one session that attention takes together */
    FEW_VECTORS = 4,   /* up to so many each thread normalizes all for itself: cheaper than a barrier */
    SMALL_WORK = 1 << 20 /* multiplications below which waking a second thread costs more than it saves */
};

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
        workspace.memory = pages_alloc(needed, 0);
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
        return;
    }
    const size_t quads_bytes = (size_t)m->group_quads * LANES * 4;
    for (int g = 0; g < m->groups; g++, block += quads_bytes + LANES * sizeof(float)) {
        const float scale = ((const float *)(const void *)(block + quads_bytes))[lane];
        for (int k = 0; k < m->group; k++) {
            const unsigned char packed = block[(k / 4) * LANES * 4 + lane * 4 + k % 4];
            *out++ = (float)(int8_t)(unsigned char)(packed - model->kernels->int8_offset) * scale;
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

/* turn the pairs of one head, x (head_dim,) */
static void rotate(float *x, const float *rope, int head_dim) {
    for (int i = 0; i < head_dim; i += 2) {
        const float a = x[i], b = x[i + 1];
        x[i] = a * rope[i] - b * rope[i + 1];
        x[i + 1] = a * rope[i + 1] + b * rope[i];
    }
}

/* What `w` multiplies: rows x[rows[i]] (or x[i]), normalized where there is a norm, quantized where w is. */
static Vectors stage(const Forward *f, const Matrix *w, const float *x, size_t ld, int n, const int32_t *rows,
                     const float *norm, int thread, int n_threads) {
    const Kernels *kernels = f->model->kernels;
    Vectors v = {.f = x, .ld = ld};
    if (!norm && w->type == L2P_FLOAT32) return v;

    int begin = 0, end = n;
    const int shared = f->normed_stride == 0;
    if (shared) threads_share(n, 1, thread, n_threads, &begin, &end);
    float *normed = f->normed + (size_t)thread * f->normed_stride;
    v.q = f->staged.q + (size_t)thread * f->q_stride;
    v.scale = f->staged.scale + (size_t)thread * f->scale_stride;
    v.bias = f->staged.bias + (size_t)thread * f->scale_stride;
    for (int i = begin; i < end; i++) {
        const float *row = x + (size_t)(rows ? rows[i] : i) * ld;
        if (norm) {
            f->model->floats->rmsnorm(normed + (size_t)i * (size_t)w->cols, row, norm, w->cols, f->model->config.norm_eps);
            row = normed + (size_t)i * (size_t)w->cols;
        }
        if (w->type == L2P_INT8) kernels->quantize(&v, i, row, w);
    }
    if (norm) v = (Vectors){normed, (size_t)w->cols, v.q, v.scale, v.bias};
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

/* ---- attention ---- */

/* Rotate one token's queries and key of one key/value head, and put key and value where attention reads them. */
static void store_kv(const Forward *f, int layer, int i, int kv_head) {
    const l2p_config *c = &f->model->config;
    const l2p_session *s = f->sessions[i];
    const int head_dim = c->head_dim, group = c->n_heads / c->n_kv_heads, position = f->positions[i];
    const size_t q_rows = (size_t)round_up(c->n_heads * head_dim, LANES);
    const size_t kv_rows = (size_t)round_up(c->n_kv_heads * head_dim, LANES);
    float *q = f->qkv + (size_t)i * (size_t)f->model->layers[layer].qkv.rows;
    float *k = q + q_rows + (size_t)(kv_head * head_dim);
    const float *v = q + q_rows + kv_rows + (size_t)(kv_head * head_dim);
    const float *rope = f->rope + (size_t)i * (size_t)head_dim;

    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) rotate(q + (size_t)(h * head_dim), rope, head_dim);
    rotate(k, rope, head_dim);

    const size_t head = (size_t)layer * (size_t)c->n_kv_heads + (size_t)kv_head;
    float *keys = s->keys + head * s->key_stride + (size_t)(position / LANES) * (size_t)head_dim * LANES +
                  (size_t)(position % LANES);
    for (int d = 0; d < head_dim; d++) keys[(size_t)d * LANES] = k[d];
    float *values = s->values + head * s->value_stride + (size_t)position * LANES;
    for (int d = 0; d < head_dim; d++)
        values[(size_t)(d / LANES) * (size_t)s->seq_len * LANES + (size_t)(d % LANES)] = v[d];
}

/* `n` queries against one head's cache: query j (head_dim,) at q + j * ld_q sees the positions up to last + j * step.
 * out + j * ld_out (head_dim,) */
static void attend(const Forward *f, int layer, const l2p_session *s, int kv_head, const float *q, size_t ld_q, int n,
                   int last, int step, float *out, size_t ld_out, int thread) {
    const FloatKernels *kernels = f->model->floats;
    const int head_dim = f->model->config.head_dim, padded_dim = (int)round_up(head_dim, LANES);
    const size_t head = (size_t)layer * (size_t)f->model->config.n_kv_heads + (size_t)kv_head;
    const size_t ld = (size_t)f->max_scores, block_stride = (size_t)s->seq_len * LANES;
    const float *keys = s->keys + head * s->key_stride, *values = s->values + head * s->value_stride;
    float *scores = f->scores + (size_t)thread * f->scores_stride;         /* (n, max_scores) */
    float *head_out = f->head_out + (size_t)thread * f->head_out_stride;   /* (n, padded_dim) */

    /* Scores of all positions that the last query sees; an earlier query leaves those after it unread. */
    kernels->matmul_f32(keys, (size_t)head_dim * LANES, (last + (n - 1) * step) / LANES + 1, head_dim, q, ld_q, n,
                        scores, ld, MATMUL_STORE);
    for (int j = 0; j < n; j++)
        kernels->softmax(scores + (size_t)j * ld, last + j * step + 1, sqrtf((float)head_dim));
    /* Weighted values: the positions that all queries see together, then what each sees beyond. */
    kernels->matmul_f32(values, block_stride, padded_dim / LANES, last + 1, scores, ld, n, head_out,
                        (size_t)padded_dim, MATMUL_STORE);
    for (int j = 1; j < n && step > 0; j++)
        kernels->matmul_f32(values + (size_t)(last + 1) * LANES, block_stride, padded_dim / LANES, j * step,
                            scores + (size_t)j * ld + last + 1, ld, 1, head_out + (size_t)(j * padded_dim),
                            (size_t)padded_dim, MATMUL_CONTINUE);
    for (int j = 0; j < n; j++)
        memcpy(out + (size_t)j * ld_out, head_out + (size_t)(j * padded_dim), (size_t)head_dim * sizeof(float));
}

static void attend_chunk(const Forward *f, int layer, Chunk chunk, int kv_head, int thread) {
    const l2p_config *c = &f->model->config;
    const l2p_session *s = f->sessions[chunk.first];
    const int group = c->n_heads / c->n_kv_heads, first_head = kv_head * group, position = f->positions[chunk.first];
    const size_t ld_qkv = (size_t)f->model->layers[layer].qkv.rows, ld_att = (size_t)(c->n_heads * c->head_dim);
    const float *q = f->qkv + (size_t)chunk.first * ld_qkv + (size_t)(first_head * c->head_dim);
    float *out = f->att + (size_t)chunk.first * ld_att + (size_t)(first_head * c->head_dim);
    const size_t head_dim = (size_t)c->head_dim;

    if (chunk.n == 1) /* the heads that share this key/value head, together */
        attend(f, layer, s, kv_head, q, head_dim, group, position, 0, out, head_dim, thread);
    else /* the tokens of the chunk, head by head */
        for (int h = 0; h < group; h++)
            attend(f, layer, s, kv_head, q + (size_t)h * head_dim, ld_qkv, chunk.n, position, 1,
                   out + (size_t)h * head_dim, ld_att, thread);
}

static void attention(const Forward *f, int layer, int thread, int n_threads) {
    const int kv_heads = f->model->config.n_kv_heads;
    int begin, end;
    threads_share(f->n * kv_heads, 1, thread, n_threads, &begin, &end);
    for (int unit = begin; unit < end; unit++) store_kv(f, layer, unit / kv_heads, unit % kv_heads);
    if (f->n > 1) threads_barrier(n_threads); /* with one token, each thread reads just the heads it has stored */
    threads_share(f->n_chunks * kv_heads, 1, thread, n_threads, &begin, &end);
    for (int unit = begin; unit < end; unit++)
        attend_chunk(f, layer, f->chunks[unit / kv_heads], unit % kv_heads, thread);
}

/* ---- the transformer ---- */

static void forward_share(void *context, int thread, int n_threads) {
    Forward *f = context;
    const l2p_model *model = f->model;
    const l2p_config *c = &model->config;
    const size_t dim = (size_t)c->dim, q_dim = (size_t)(c->n_heads * c->head_dim);
    const int n = f->n;
    int begin, end;
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
        if (thread == 0 && f->cancel && __atomic_load_n(f->cancel, __ATOMIC_RELAXED)) f->cancelled = 1;

        /* q, k, v = wq, wk, wv @ rmsnorm(x) */
        in = stage(f, &layer->qkv, f->x, dim, n, NULL, layer->att_norm, thread, n_threads);
        multiply(f, &layer->qkv, &in, n, f->qkv, qkv_rows, MATMUL_STORE, 1, thread, n_threads);
        threads_barrier(n_threads);
        if (f->cancelled) return; /* all threads see the same: it is written before this barrier only */

        /* x += wo @ attention(rope(q), rope(k), v) */
        attention(f, l, thread, n_threads);
        threads_barrier(n_threads);
        in = stage(f, &layer->wo, f->att, q_dim, n, NULL, NULL, thread, n_threads);
        multiply(f, &layer->wo, &in, n, f->x, dim, MATMUL_ADD, 1, thread, n_threads);
        threads_barrier(n_threads);

        /* hidden = silu(w1 @ rmsnorm(x)) * (w3 @ rmsnorm(x)), a block of w1 and its block of w3 by the same thread */
        in = stage(f, &layer->w13, f->x, dim, n, NULL, layer->ffn_norm, thread, n_threads);
        multiply(f, &layer->w13, &in, n, f->gate_up, 2 * hidden_rows, MATMUL_STORE, 2, thread, n_threads);
        threads_share(layer->w13.blocks, 2, thread, n_threads, &begin, &end);
        for (int i = 0; i < n; i++)
            model->floats->swiglu(f->hidden + (size_t)i * hidden_rows + begin / 2 * LANES,
                                   f->gate_up + (size_t)i * 2 * hidden_rows + begin * LANES, (end - begin) / 2);
        threads_barrier(n_threads);

        /* x += w2 @ hidden */
        in = stage(f, &layer->w2, f->hidden, hidden_rows, n, NULL, NULL, thread, n_threads);
        multiply(f, &layer->w2, &in, n, f->x, dim, MATMUL_ADD, 1, thread, n_threads);
        threads_barrier(n_threads);
    }

    /* logits = wcls @ rmsnorm(x), of the rows asked for */
    if (f->n_logits == 0) return;
    in = stage(f, &model->classifier, f->x, dim, f->n_logits, f->logits_rows, model->final_norm, thread, n_threads);
    multiply(f, &model->classifier, &in, f->n_logits, f->out, (size_t)c->vocab_size, MATMUL_STORE, 1, thread,
             n_threads);
}

static int check_arguments(const Forward *f) {
    const l2p_config *c = &f->model->config;
    if (f->n < 1 || f->n_logits < 0) return L2P_BAD_ARGUMENT;
    for (int i = 0; i < f->n; i++) {
        if (f->tokens[i] < 0 || f->tokens[i] >= c->vocab_size) return L2P_BAD_ARGUMENT;
        if (f->positions[i] < 0 || f->positions[i] >= c->seq_len) return L2P_BAD_ARGUMENT;
        if (!f->sessions[i] || f->sessions[i]->model != f->model) return L2P_BAD_ARGUMENT;
    }
    for (int i = 0; i < f->n_logits; i++)
        if (f->logits_rows[i] < 0 || f->logits_rows[i] >= f->n) return L2P_BAD_ARGUMENT;
    return L2P_OK;
}

/* Cut the batch into chunks: up to CHUNK tokens of one session at consecutive positions. */
static void find_chunks(Forward *f) {
    f->n_chunks = 0;
    for (int i = 0; i < f->n; i++) {
        Chunk *last = f->n_chunks ? &f->chunks[f->n_chunks - 1] : NULL;
        if (last && last->n < CHUNK && f->sessions[i] == f->sessions[i - 1] &&
            f->positions[i] == f->positions[i - 1] + 1)
            last->n++;
        else
            f->chunks[f->n_chunks++] = (Chunk){i, 1};
    }
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
    int error = check_arguments(&f);
    if (error) return error;
    for (int i = 0; i < n; i++) f.max_scores = max_int(f.max_scores, (int)round_up(positions[i] + 1, LANES));

    const int64_t values_per_byte = model->config.weight_type == L2P_INT8 ? 1 : 4;
    if ((int64_t)model->arena_bytes / values_per_byte * n < SMALL_WORK) n_threads = 1;

    threads_take_turn();
    error = prepare_workspace(&f, max_int(n_threads, 1));
    if (!error) {
        find_chunks(&f);
        threads_run(n_threads, forward_share, &f);
        if (f.cancelled) error = L2P_CANCELLED;
    }
    threads_end_turn();
    return error;
}
