/* Attention: rotate queries and keys, store keys and values, weigh the values. Work is split by key/value head, so that
 * with one token no thread waits for another. The caches are laid out as matrices that the products read (engine.h). */
#include <math.h>
#include <string.h>

#include "forward.h"

void find_chunks(Forward *f) {
    f->n_chunks = 0;
    for (int i = 0; i < f->n; i++) {
        Chunk *last = f->n_chunks ? &f->chunks[f->n_chunks - 1] : NULL;
        if (last && last->n < CHUNK && f->sessions[i] == f->sessions[i - 1] &&
            f->positions[i] == f->positions[i - 1] + 1)
            last->n++;
        else
            f->chunks[f->n_chunks++] = (Chunk){i, 1, i};
    }
    if (leaves_some(f)) {
        f->n_last_chunks = f->n_rows;
        for (int i = 0; i < f->n_rows; i++) f->last_chunks[i] = (Chunk){f->rows[i], 1, i};
    } else {
        f->n_last_chunks = f->n_chunks;
        f->last_chunks = f->chunks;
    }
}

/* Rotate the first n / 2 pairs of one head, x (head_dim,), by a token's angles, rope (n / 2, 2). */
static void rotate(float *restrict x, const float *restrict rope, int n) {
    for (int i = 0; i < n; i += 2) {
        const float a = x[i], b = x[i + 1];
        x[i] = a * rope[i] - b * rope[i + 1];
        x[i + 1] = a * rope[i + 1] + b * rope[i];
    }
}

/* Store one position's key and value (head_dim,) where attention reads them: a column of the keys' block, and a row of
 * each block of the values, `channels` numbers apart. The type is a compile-time constant. */
static inline __attribute__((always_inline)) void put(const int type, unsigned char *keys, unsigned char *values,
                                                      size_t channels, const float *restrict k, const float *restrict v,
                                                      int head_dim) {
    for (int d = 0; d < head_dim; d++) cache_put(type, keys, (size_t)d * LANES, k[d]);
    for (int first = 0; first < head_dim; first += LANES, values += channels * bytes_of(type))
        for (int d = first; d < head_dim && d < first + LANES; d++) cache_put(type, values, (size_t)(d - first), v[d]);
}

/* Rotate one token's queries and key of one key/value head, and store key and value. */
static void store_kv(const Forward *f, int layer, int i, int kv_head) {
    const l2p_config *c = &f->model->config;
    const l2p_session *s = f->sessions[i];
    const int head_dim = c->head_dim, group = c->n_heads / c->n_kv_heads, position = f->positions[i];
    const size_t q_rows = (size_t)round_up(c->n_heads * head_dim, LANES);
    const size_t kv_rows = (size_t)round_up(c->n_kv_heads * head_dim, LANES);
    const float *freqs = f->model->layers[layer].rope_freqs;
    float *q = f->qkv + (size_t)i * (size_t)f->model->layers[layer].qkv.rows;
    float *k = q + q_rows + (size_t)(kv_head * head_dim);
    const float *v = q + q_rows + kv_rows + (size_t)(kv_head * head_dim);
    const float *rope = (freqs == f->model->rope_freqs ? f->rope : f->window_rope) + (size_t)i * (size_t)c->rotary_dim;

    for (int h = kv_head * group; h < (kv_head + 1) * group && freqs; h++)
        rotate(q + (size_t)(h * head_dim), rope, c->rotary_dim);
    if (freqs) rotate(k, rope, c->rotary_dim);

    const size_t head = (size_t)layer * (size_t)c->n_kv_heads + (size_t)kv_head;
    const size_t key = (size_t)(position / LANES) * (size_t)head_dim * LANES + (size_t)(position % LANES);
    const size_t value = (size_t)position * LANES, channels = (size_t)s->seq_len * LANES,
                 width = bytes_of(c->cache_type);
    unsigned char *keys = s->keys + head * s->key_stride + key * width;
    unsigned char *values = s->values + head * s->value_stride + value * width;
    if (c->cache_type == L2P_BFLOAT16)
        put(L2P_BFLOAT16, keys, values, channels, k, v, head_dim);
    else
        put(L2P_FLOAT32, keys, values, channels, k, v, head_dim);
}

/* Some queries against the caches of one or more key/value heads of a layer. Those of a head stand after those of the
 * head before: query j (head_dim,) of all of them is at q + j * ld_q, and what it gets goes to out + j * ld_out. */
typedef struct {
    const l2p_session *session;
    int layer, kv_head, heads;
    int n;          /* queries of a head */
    int last, step; /* query j of a head sees the positions up to last + j * step */
    const float *q;
    size_t ld_q;
    float *out;
    size_t ld_out;
} Queries;

/* The first position that a window of the token at `position` shows */
static int first_seen(const Layer *layer, int position) {
    return position < layer->window ? 0 : position - layer->window + 1;
}

/* The values of positions [from, to), of those from 0 on */
static Blocks values_of(Blocks values, int from, int to) {
    values.data += (size_t)from * LANES * bytes_of(values.type);
    values.cols = to - from;
    return values;
}

static void attend(const Forward *f, const Queries *all, int thread) {
    const FloatKernels *kernels = f->model->floats;
    const l2p_session *s = all->session;
    const Layer *layer = &f->model->layers[all->layer];
    const int head_dim = f->model->config.head_dim, padded_dim = (int)round_up(head_dim, LANES);
    const int n = all->n, last = all->last, step = all->step;
    const int first = first_seen(layer, last), base = first / LANES * LANES; /* of the scores: whole blocks */
    const float scale = f->model->config.attention_scale,
                divisor = scale != 0.0f ? 1.0f / scale : sqrtf((float)head_dim);
    const size_t head = (size_t)all->layer * (size_t)f->model->config.n_kv_heads + (size_t)all->kv_head;
    const size_t column = LANES * bytes_of(f->model->config.cache_type), ld = (size_t)f->max_scores;
    float *scores = f->scores + (size_t)thread * f->scores_stride;       /* (heads * n, max_scores) */
    float *head_out = f->head_out + (size_t)thread * f->head_out_stride; /* (n, padded_dim) */
    float *sums = f->sums + (size_t)thread * f->sums_stride;             /* (heads * n,) */

    /* Scores of all positions from `base` on that any query sees; an earlier query ignores those after its own, and a
     * window hides those before it. */
    Blocks keys = {.type = f->model->config.cache_type,
                   .data = s->keys + head * s->key_stride + (size_t)(base / LANES) * (size_t)head_dim * column,
                   .block_stride = (size_t)head_dim * column,
                   .blocks = (last + (n - 1) * step - base) / LANES + 1,
                   .cols = head_dim};
    for (int h = 0; h < all->heads; h++, keys.data += s->key_stride)
        kernels->matmul_bare(&keys, all->q + (size_t)(h * n) * all->ld_q, all->ld_q, n, scores + (size_t)(h * n) * ld,
                             ld, MATMUL_STORE);
    for (int row = 0; row < all->heads * n; row++)
        for (int i = base, from = first_seen(layer, last + row * step); i < from; i++)
            scores[(size_t)row * ld + (size_t)(i - base)] = -INFINITY; /* whose weight is 0 */
    kernels->weigh(scores, ld, all->heads * n, last + 1 - base, step, divisor, sums);
    /* Weighted values, in the order of the positions: those that only earlier queries still see; those that all queries
     * see, together; those that only later queries see. */
    const int from_all = first_seen(layer, last + (n - 1) * step), common = from_all < last + 1 ? from_all : last + 1;
    Blocks values = {.type = keys.type,
                     .data = s->values + head * s->value_stride,
                     .block_stride = (size_t)s->seq_len * column,
                     .blocks = padded_dim / LANES};
    float *out = all->out;
    for (int h = 0; h < all->heads; h++, values.data += s->value_stride, scores += (size_t)n * ld, sums += n) {
        for (int j = 0; j < n && common > first; j++) {
            const int from = first_seen(layer, last + j * step);
            const Blocks before = values_of(values, from < common ? from : common, common);
            kernels->matmul_bare(&before, scores + (size_t)j * ld + common - before.cols - base, ld, 1,
                                 head_out + (size_t)(j * padded_dim), (size_t)padded_dim, MATMUL_STORE);
        }
        const Blocks together = values_of(values, common, last + 1);
        kernels->matmul_bare(&together, scores + common - base, ld, n, head_out, (size_t)padded_dim,
                             common > first ? MATMUL_CONTINUE : MATMUL_STORE);
        for (int j = 1; j < n && step > 0; j++) {
            const int from = first_seen(layer, last + j * step), after = from > last + 1 ? from : last + 1;
            const Blocks beyond = values_of(values, after, last + j * step + 1);
            kernels->matmul_bare(&beyond, scores + (size_t)j * ld + after - base, ld, 1,
                                 head_out + (size_t)(j * padded_dim), (size_t)padded_dim, MATMUL_CONTINUE);
        }
        for (int j = 0; j < n; j++, out += all->ld_out) {
            const float by = 1.0f / sums[j], *from = head_out + (size_t)(j * padded_dim);
            for (int d = 0; d < head_dim; d++) out[d] = from[d] * by;
        }
    }
}

/* A chunk's attention in `heads` key/value heads from kv_head on; just one if the chunk has several tokens. */
static void attend_chunk(const Forward *f, int layer, Chunk chunk, int kv_head, int heads, int thread) {
    const l2p_config *c = &f->model->config;
    const int group = c->n_heads / c->n_kv_heads, first_head = kv_head * group;
    const size_t ld_qkv = (size_t)f->model->layers[layer].qkv.rows, ld_att = (size_t)(c->n_heads * c->head_dim);
    const size_t head_dim = (size_t)c->head_dim;
    Queries queries = {.session = f->sessions[chunk.first],
                       .layer = layer,
                       .kv_head = kv_head,
                       .heads = heads,
                       .n = group,
                       .last = f->positions[chunk.first],
                       .step = 0,
                       .q = f->qkv + (size_t)chunk.first * ld_qkv + (size_t)(first_head * c->head_dim),
                       .ld_q = head_dim,
                       .out = f->att + (size_t)chunk.out * ld_att + (size_t)(first_head * c->head_dim),
                       .ld_out = head_dim};
    if (chunk.n == 1) { /* all heads that share a key/value head together */
        attend(f, &queries, thread);
        return;
    }
    queries.n = chunk.n; /* the tokens of the chunk, head by head */
    queries.step = 1;
    queries.ld_q = ld_qkv;
    queries.ld_out = ld_att;
    for (int h = 0; h < group; h++, queries.q += head_dim, queries.out += head_dim) attend(f, &queries, thread);
}

/* How many key/value heads of one token are computed together. EXACT sums are serial, and ROWS independent rows hide
 * their latency. FUSED: one head at a time, whose scores stay in the first-level cache. */
static int heads_together(const Forward *f) {
    const l2p_config *c = &f->model->config;
    const int group = c->n_heads / c->n_kv_heads;
    return f->model->floats->numerics == EXACT && group < ROWS ? ROWS / group : 1;
}

void attention(const Forward *f, int layer, int thread, int n_threads) {
    const int kv_heads = f->model->config.n_kv_heads, last = layer == f->model->config.n_layers - 1;
    const int most_heads = heads_together(f);
    const Chunk *chunks = last ? f->last_chunks : f->chunks;
    int begin, end;
    threads_share(f->n * kv_heads, 1, thread, n_threads, &begin, &end);
    for (int unit = begin; unit < end; unit++) store_kv(f, layer, unit / kv_heads, unit % kv_heads);
    if (f->n > 1) threads_barrier(n_threads); /* with one token, each thread reads just the heads it has stored */
    threads_share((last ? f->n_last_chunks : f->n_chunks) * kv_heads, 1, thread, n_threads, &begin, &end);
    for (int unit = begin, heads; unit < end; unit += heads) {
        const Chunk chunk = chunks[unit / kv_heads];
        const int kv_head = unit % kv_heads, most = chunk.n == 1 ? most_heads : 1;
        heads = kv_heads - kv_head < end - unit ? kv_heads - kv_head : end - unit;
        if (heads > most) heads = most;
        attend_chunk(f, layer, chunk, kv_head, heads, thread);
    }
}
