/* Packed weights: lay out the arena, pack row-major tensors into it, free it. And the memory of sessions. */
#define _GNU_SOURCE
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels.h"

/* ---- memory ---- */

enum { HUGE_PAGE = 2 << 20 };

void *pages_alloc(size_t bytes, int huge) {
    size_t slack = huge ? HUGE_PAGE : 0;
    unsigned char *memory =
        mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!huge) return memory;
    /* A huge page starts at a multiple of its size: give back what stands before and behind. */
    size_t head = (size_t)(-(uintptr_t)memory) & (HUGE_PAGE - 1);
    if (head) munmap(memory, head);
    if (slack - head) munmap(memory + head + bytes, slack - head);
#if defined(MADV_HUGEPAGE)
    madvise(memory + head, bytes, MADV_HUGEPAGE); /* where the system refuses, small pages do */
#endif
    return memory + head;
}

void pages_free(void *memory, size_t bytes) {
    if (memory) munmap(memory, bytes);
}

/* ---- layout ---- */

static int greatest_common_divisor(int a, int b) {
    while (b) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Describe a matrix and take its place in the arena: called once to count (arena NULL) and once to set the pointers. */
static void lay_out(l2p_model *model, Matrix *m, int blocks, int rows, int cols, size_t *used) {
    m->type = model->config.weight_type;
    m->rows = rows;
    m->cols = cols;
    m->blocks = blocks;
    if (m->type == L2P_INT8) {
        m->group = greatest_common_divisor(model->config.group_size, cols);
        m->groups = cols / m->group;
        m->group_quads = (m->group + 3) / 4;
        m->block_bytes = (size_t)m->groups * ((size_t)m->group_quads * LANES * 4 + LANES * sizeof(float));
    } else {
        m->block_bytes = (size_t)cols * LANES * sizeof(float);
    }
    m->data = model->arena ? model->arena + *used : NULL;
    *used += m->block_bytes * (size_t)blocks;
}

static void lay_out_vector(l2p_model *model, float **vector, int n, size_t *used) {
    *vector = model->arena ? (float *)(void *)(model->arena + *used) : NULL;
    *used += (size_t)round_up(n, LANES) * sizeof(float); /* keeps what follows on cache lines */
}

static int blocks_of(int rows) { return (rows + LANES - 1) / LANES; }

/* In the order a forward pass reads them. */
static size_t lay_out_model(l2p_model *model) {
    const l2p_config *c = &model->config;
    const int q_blocks = blocks_of(c->n_heads * c->head_dim), kv_blocks = blocks_of(c->n_kv_heads * c->head_dim);
    const int qkv_blocks = q_blocks + 2 * kv_blocks, hidden_blocks = blocks_of(c->hidden_dim);
    size_t used = 0;
    lay_out_vector(model, &model->rope_freqs, c->head_dim / 2, &used);
    for (int l = 0; l < c->n_layers; l++) {
        Layer *layer = &model->layers[l];
        lay_out_vector(model, &layer->att_norm, c->dim, &used);
        lay_out(model, &layer->qkv, qkv_blocks, qkv_blocks * LANES, c->dim, &used);
        lay_out(model, &layer->wo, blocks_of(c->dim), c->dim, c->n_heads * c->head_dim, &used);
        lay_out_vector(model, &layer->ffn_norm, c->dim, &used);
        lay_out(model, &layer->w13, 2 * hidden_blocks, 2 * hidden_blocks * LANES, c->dim, &used);
        lay_out(model, &layer->w2, blocks_of(c->dim), c->dim, c->hidden_dim, &used);
    }
    lay_out_vector(model, &model->final_norm, c->dim, &used);
    lay_out(model, &model->embedding, blocks_of(c->vocab_size), c->vocab_size, c->dim, &used);
    if (c->shared_classifier)
        model->classifier = model->embedding;
    else
        lay_out(model, &model->classifier, blocks_of(c->vocab_size), c->vocab_size, c->dim, &used);
    return used;
}

static void compute_rope_freqs(l2p_model *model) {
    const l2p_config *c = &model->config;
    for (int i = 0; i < c->head_dim; i += 2) {
        const float exponent = (float)i / (float)c->head_dim;
        /* libm's float functions give llama2.c's bits; its double ones, rounded, give the same bits everywhere. */
        const float power = model->floats->numerics == EXACT
                                ? powf(c->rope_theta, exponent)
                                : (float)pow((double)c->rope_theta, (double)exponent);
        model->rope_freqs[i / 2] = 1.0f / power;
        if (c->rope_divisors) model->rope_freqs[i / 2] /= c->rope_divisors[i / 2];
    }
}

l2p_model *l2p_model_new(const l2p_config *config, int isa) {
    const Kernels *kernels = kernels_of_isa(isa);
    l2p_model *model = kernels ? calloc(1, sizeof *model) : NULL;
    if (!model) return NULL;
    model->config = *config;
    model->kernels = kernels;
    model->floats = config->weight_type == L2P_INT8 ? kernels->for_int8 : kernels->for_float32;
    model->layers = calloc((size_t)config->n_layers, sizeof *model->layers);
    if (model->layers) {
        model->arena_bytes = (size_t)round_up((int64_t)lay_out_model(model), HUGE_PAGE);
        model->arena = pages_alloc(model->arena_bytes, 1);
    }
    if (!model->arena) {
        l2p_model_free(model);
        return NULL;
    }
    lay_out_model(model);
    compute_rope_freqs(model);
    model->config.rope_divisors = NULL; /* the caller's */
    return model;
}

void l2p_model_free(l2p_model *model) {
    if (!model) return;
    pages_free(model->arena, model->arena_bytes);
    free(model->layers);
    free(model);
}

int64_t l2p_model_bytes(const l2p_model *model) { return (int64_t)model->arena_bytes; }

enum { SMALL_MODEL = 1 << 20 /* weights of the matrices; the smallest story model has 260K */ };

int threads_worth_it(const l2p_model *model, int n_threads) {
    const l2p_config *c = &model->config;
    const int64_t q_dim = (int64_t)c->n_heads * c->head_dim, kv_dim = (int64_t)c->n_kv_heads * c->head_dim;
    const int64_t layer = c->dim * (2 * q_dim + 2 * kv_dim + 3 * (int64_t)c->hidden_dim);
    if (c->n_layers * layer + (int64_t)c->vocab_size * c->dim < SMALL_MODEL || n_threads < 1) return 1;
    return n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
}

/* ---- packing ---- */

typedef struct {
    Matrix *to;
    int first, step;             /* source block b becomes block first + b * step of `to` */
    int rows, cols;              /* of the source */
    const unsigned char *values; /* float32 or int8 (rows, cols), of any alignment */
    const unsigned char *scales; /* of int8: float32, one per file_group values of the flattened tensor */
    int file_group, offset;
    atomic_llong non_finite;
} Packing;

static float read_float(const unsigned char *floats, int64_t index) {
    float value;
    memcpy(&value, floats + index * (int64_t)sizeof value, sizeof value);
    return value;
}

static int is_non_finite(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u;
}

/* rows (height, cols) to block[cols][LANES]; returns how many values are not finite */
static int64_t pack_block_f32(const Packing *p, float *block, int row, int height) {
    int64_t non_finite = 0;
    if (height < LANES) memset(block, 0, (size_t)p->cols * LANES * sizeof(float));
    for (int k0 = 0; k0 < p->cols; k0 += LANES) { /* a square at a time stays in the first-level cache */
        const int k1 = k0 + LANES < p->cols ? k0 + LANES : p->cols;
        for (int lane = 0; lane < height; lane++) {
            const int64_t source = (int64_t)(row + lane) * p->cols;
            for (int k = k0; k < k1; k++) {
                const float value = read_float(p->values, source + k);
                non_finite += is_non_finite(value);
                block[(size_t)k * LANES + (size_t)lane] = value;
            }
        }
    }
    return non_finite;
}

/* rows (height, cols) to block[groups] of { [group_quads][LANES][4], scale[LANES] } */
static int64_t pack_block_int8(const Packing *p, unsigned char *block, int row, int height) {
    const Matrix *m = p->to;
    const size_t quads_bytes = (size_t)m->group_quads * LANES * 4;
    int64_t non_finite = 0;
    for (int g = 0; g < m->groups; g++, block += quads_bytes + LANES * sizeof(float)) {
        float scales[LANES] = {0};
        memset(block, p->offset, quads_bytes);
        for (int lane = 0; lane < height; lane++) {
            const int64_t source = (int64_t)(row + lane) * p->cols + (int64_t)g * m->group;
            scales[lane] = read_float(p->scales, source / p->file_group);
            non_finite += is_non_finite(scales[lane]);
            for (int k = 0; k < m->group; k++)
                block[(k / 4) * LANES * 4 + lane * 4 + k % 4] = (unsigned char)(p->values[source + k] + p->offset);
        }
        memcpy(block + quads_bytes, scales, sizeof scales);
    }
    return non_finite;
}

static void pack_share(void *context, int thread, int n_threads) {
    Packing *p = context;
    int begin, end;
    int64_t non_finite = 0;
    threads_share(blocks_of(p->rows), 1, thread, n_threads, &begin, &end);
    for (int b = begin; b < end; b++) {
        unsigned char *block = p->to->data + (size_t)(p->first + b * p->step) * p->to->block_bytes;
        const int height = p->rows - b * LANES < LANES ? p->rows - b * LANES : LANES;
        non_finite += p->to->type == L2P_INT8 ? pack_block_int8(p, block, b * LANES, height)
                                              : pack_block_f32(p, (float *)(void *)block, b * LANES, height);
    }
    atomic_fetch_add(&p->non_finite, non_finite);
}

static int64_t copy_vector(float *to, const unsigned char *values, int n) {
    int64_t non_finite = 0;
    for (int i = 0; i < n; i++) {
        to[i] = read_float(values, i);
        non_finite += is_non_finite(to[i]);
    }
    return non_finite;
}

int l2p_model_set(l2p_model *model, int tensor, int layer, const void *values, const void *scales, int n_threads,
                  int64_t *non_finite) {
    const l2p_config *c = &model->config;
    const int of_layer = tensor != L2P_TOKEN_EMBEDDING_TABLE && tensor != L2P_RMS_FINAL_WEIGHT && tensor != L2P_WCLS;
    if (layer < 0 || layer >= (of_layer ? c->n_layers : 1)) return L2P_BAD_ARGUMENT;
    Layer *l = &model->layers[layer];
    const int q_rows = c->n_heads * c->head_dim, kv_rows = c->n_kv_heads * c->head_dim;
    const int q_blocks = blocks_of(q_rows), kv_blocks = blocks_of(kv_rows);

    Packing p = {.step = 1, .values = values, .scales = scales, .file_group = c->group_size};
    p.offset = model->kernels->int8_offset;
    switch (tensor) {
    case L2P_RMS_ATT_WEIGHT: *non_finite += copy_vector(l->att_norm, values, c->dim); return L2P_OK;
    case L2P_RMS_FFN_WEIGHT: *non_finite += copy_vector(l->ffn_norm, values, c->dim); return L2P_OK;
    case L2P_RMS_FINAL_WEIGHT: *non_finite += copy_vector(model->final_norm, values, c->dim); return L2P_OK;
    case L2P_TOKEN_EMBEDDING_TABLE: p.to = &model->embedding; p.rows = c->vocab_size; break;
    case L2P_WCLS:
        if (c->shared_classifier) return L2P_BAD_ARGUMENT;
        p.to = &model->classifier;
        p.rows = c->vocab_size;
        break;
    case L2P_WQ: p.to = &l->qkv; p.rows = q_rows; break;
    case L2P_WK: p.to = &l->qkv; p.rows = kv_rows; p.first = q_blocks; break;
    case L2P_WV: p.to = &l->qkv; p.rows = kv_rows; p.first = q_blocks + kv_blocks; break;
    case L2P_WO: p.to = &l->wo; p.rows = c->dim; break;
    case L2P_W1: p.to = &l->w13; p.rows = c->hidden_dim; p.step = 2; break;
    case L2P_W3: p.to = &l->w13; p.rows = c->hidden_dim; p.step = 2; p.first = 1; break;
    case L2P_W2: p.to = &l->w2; p.rows = c->dim; break;
    default: return L2P_BAD_ARGUMENT;
    }
    if (p.to->type == L2P_INT8 && !scales) return L2P_BAD_ARGUMENT;
    p.cols = p.to->cols;
    threads_take_turn();
    threads_run(threads_worth_it(model, n_threads), pack_share, &p);
    threads_end_turn();
    *non_finite += p.non_finite;
    return L2P_OK;
}

/* ---- sessions ---- */

l2p_session *l2p_session_new(const l2p_model *model) {
    const l2p_config *c = &model->config;
    l2p_session *session = calloc(1, sizeof *session);
    if (!session) return NULL;
    session->model = model;
    session->seq_len = (int)round_up(c->seq_len, LANES);
    session->key_stride = (size_t)session->seq_len * (size_t)c->head_dim;
    session->value_stride = (size_t)session->seq_len * (size_t)round_up(c->head_dim, LANES);
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    session->bytes = heads * (session->key_stride + session->value_stride) * sizeof(float);
    session->keys = pages_alloc(session->bytes, 0);
    if (!session->keys) {
        free(session);
        return NULL;
    }
    session->values = session->keys + heads * session->key_stride;
    return session;
}

void l2p_session_free(l2p_session *session) {
    if (!session) return;
    pages_free(session->keys, session->bytes);
    free(session);
}
