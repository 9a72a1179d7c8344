/* A model in memory: the arena of its packed weights, in the order a forward pass reads them. pack.c fills it. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels.h"

/* ---- memory ---- */

enum { HUGE_PAGE = 2 << 20 };

void *pages_alloc(size_t bytes, int pages) {
    const int huge = pages == HUGE_PAGES;
    size_t slack = huge ? HUGE_PAGE : 0;
    unsigned char *memory =
        mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!huge) {
#if defined(MADV_NOHUGEPAGE)
        madvise(memory, bytes, MADV_NOHUGEPAGE); /* a system that uses them by itself would fill each with one number */
#endif
        return memory;
    }
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
        m->group_bytes = (size_t)m->group_quads * LANES * 4 + LANES * sizeof(float);
        m->block_bytes = (size_t)m->groups * m->group_bytes;
    } else if (m->type == L2P_INT4) {
        m->group = INT4_GROUP;
        m->groups = (cols + INT4_GROUP - 1) / INT4_GROUP;
        m->group_quads = INT4_GROUP / 4;
        m->group_bytes = INT4_GROUP / 2 * LANES + LANES * sizeof(uint16_t);
        m->block_bytes = (size_t)round_up((int64_t)m->groups * (int64_t)m->group_bytes, 64);
    } else {
        m->block_bytes = (size_t)cols * LANES * (m->type == L2P_FLOAT32 ? sizeof(float) : sizeof(uint16_t));
    }
    m->data = model->arena ? model->arena + *used : NULL;
    *used += m->block_bytes * (size_t)blocks;
}

static void lay_out_vector(l2p_model *model, float **vector, int n, size_t *used) {
    *vector = model->arena ? (float *)(void *)(model->arena + *used) : NULL;
    *used += (size_t)round_up(n, LANES) * sizeof(float); /* keeps what follows on cache lines */
}

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
    model->floats = config->weight_type == L2P_INT8 ? kernels->for_int8 : kernels->for_the_rest;
    model->layers = calloc((size_t)config->n_layers, sizeof *model->layers);
    if (model->layers) {
        model->packed_bytes = lay_out_model(model);
        model->arena_bytes = (size_t)round_up((int64_t)model->packed_bytes, HUGE_PAGE);
        model->arena = pages_alloc(model->arena_bytes, HUGE_PAGES);
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

int64_t l2p_model_bytes(const l2p_model *model) { return (int64_t)model->packed_bytes; }

/* Bytes of weights that a thread reads in some 40 microseconds. Below that much work waking a second one costs more
 * than it saves: the smallest story model has 260K weights. */
enum { SMALL_WORK = 5 << 18, MANY_TOKENS = 16 };

int threads_worth_it(const l2p_model *model, int n_tokens, int n_threads) {
    const int64_t work = (int64_t)model->packed_bytes * (n_tokens < MANY_TOKENS ? n_tokens : MANY_TOKENS);
    if (work < SMALL_WORK || n_threads < 1) return 1;
    return n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
}
