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
    unsigned char *memory = mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!huge) {
#if defined(MADV_NOHUGEPAGE)
        /* A system that uses huge pages by itself would give a whole one to a few positions. */
        madvise(memory, bytes, MADV_NOHUGEPAGE);
#endif
        return memory;
    }
    /* A huge page starts at a multiple of its size: give back what stands before the first one and after the last. */
    size_t head = (size_t)(-(uintptr_t)memory) & (HUGE_PAGE - 1);
    if (head) munmap(memory, head);
    if (slack - head) munmap(memory + head + bytes, slack - head);
#if defined(MADV_HUGEPAGE)
    madvise(memory + head, bytes, MADV_HUGEPAGE); /* if the system refuses, small pages do */
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

/* The arena as it is handed out */
typedef struct {
    unsigned char *arena; /* NULL: nothing is there yet, just count */
    size_t used;
} Arena;

static void *place(Arena *arena, size_t bytes) {
    void *memory = arena->arena ? arena->arena + arena->used : NULL;
    arena->used += bytes;
    return memory;
}

/* Describe a matrix, and give it a place. */
static void lay_out(const l2p_config *c, Matrix *m, int blocks, int rows, int cols, Arena *arena) {
    m->type = c->weight_type;
    m->rows = rows;
    m->cols = cols;
    m->blocks = blocks;
    if (m->type == L2P_INT8) {
        m->group = greatest_common_divisor(c->group_size, cols);
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
        m->block_bytes = (size_t)cols * LANES * bytes_of(m->type);
    }
    m->data = place(arena, m->block_bytes * (size_t)blocks);
}

/* Vectors are padded, so that what follows stands on cache lines. */
static float *place_vector(Arena *arena, int n) { return place(arena, (size_t)round_up(n, LANES) * sizeof(float)); }

static float *place_if(int wanted, Arena *arena, int n) { return wanted ? place_vector(arena, n) : NULL; }

static void lay_out_layer(const l2p_config *c, Layer *layer, Arena *arena) {
    const int q_blocks = blocks_of(c->n_heads * c->head_dim), kv_blocks = blocks_of(c->n_kv_heads * c->head_dim);
    const int qkv_blocks = q_blocks + 2 * kv_blocks, hidden_blocks = blocks_of(c->hidden_dim);
    const int per_head = c->steps & L2P_HEAD_NORM, normed = c->steps & (L2P_HEAD_NORM | L2P_ALL_NORM);
    const int has_norm = !(c->steps & L2P_NO_PRE_NORM), has_post_norm = c->steps & L2P_POST_NORM;
    layer->att_norm = place_if(has_norm, arena, c->dim);
    lay_out(c, &layer->qkv, qkv_blocks, qkv_blocks * LANES, c->dim, arena);
    layer->qkv_bias = place_if(c->steps & L2P_QKV_BIAS, arena, qkv_blocks * LANES);
    layer->q_norm = place_if(normed, arena, c->head_dim * (per_head ? 1 : c->n_heads));
    layer->k_norm = place_if(normed, arena, c->head_dim * (per_head ? 1 : c->n_kv_heads));
    lay_out(c, &layer->wo, blocks_of(c->dim), c->dim, c->n_heads * c->head_dim, arena);
    layer->wo_bias = place_if(c->steps & L2P_OUTPUT_BIAS, arena, c->dim);
    layer->att_post_norm = place_if(has_post_norm, arena, c->dim);
    layer->ffn_norm = place_if(has_norm, arena, c->dim);
    lay_out(c, &layer->w13, 2 * hidden_blocks, 2 * hidden_blocks * LANES, c->dim, arena);
    layer->w13_bias = place_if(c->steps & L2P_MLP_BIAS, arena, 2 * hidden_blocks * LANES);
    lay_out(c, &layer->w2, blocks_of(c->dim), c->dim, c->hidden_dim, arena);
    layer->w2_bias = place_if(c->steps & L2P_MLP_BIAS, arena, c->dim);
    layer->ffn_post_norm = place_if(has_post_norm, arena, c->dim);
}

/* In the order in which a forward pass reads them. Returns the bytes in all. */
static size_t lay_out_model(l2p_model *model, unsigned char *memory) {
    const l2p_config *c = &model->config;
    Arena arena = {.arena = memory};
    model->rope_freqs = place_vector(&arena, c->rotary_dim / 2);
    model->window_rope_freqs = place_if(c->window_rope_theta != 0.0f, &arena, c->rotary_dim / 2);
    if (memory) {
        for (int l = 0; l < c->n_layers; l++) lay_out_layer(c, &model->layers[l], &arena);
    } else { /* just count: all layers are alike */
        Layer any;
        Arena one = {0};
        lay_out_layer(c, &any, &one);
        arena.used += (size_t)c->n_layers * one.used;
    }
    model->final_norm = place_vector(&arena, c->dim);
    lay_out(c, &model->embedding, blocks_of(c->vocab_size), c->vocab_size, c->dim, &arena);
    if (c->shared_classifier)
        model->classifier = model->embedding;
    else
        lay_out(c, &model->classifier, blocks_of(c->vocab_size), c->vocab_size, c->dim, &arena);
    return arena.used;
}

/* How many channels of a head are rotated */
static int rotary_dim(const l2p_config *c) { return c->rotary_dim ? c->rotary_dim : c->head_dim; }

/* The config with its values instead of the zeros that stand for them */
static l2p_config filled_in(const l2p_config *config) {
    l2p_config c = *config;
    c.rotary_dim = rotary_dim(config);
    if (c.rope_scale == 0.0f) c.rope_scale = 1.0f;
    if (c.embedding_scale == 0.0f) c.embedding_scale = 1.0f;
    if (c.residual_scale == 0.0f) c.residual_scale = 1.0f;
    if (c.logit_scale == 0.0f) c.logit_scale = 1.0f;
    return c;
}

/* Is this a model, and so small that no number of rows overflows an int, and no number of bytes an int64_t? */
static int is_model(const l2p_config *c) {
    const int64_t most = 1 << 28, most_values = 1LL << 56; /* of 8 bytes at most each, with their scales */
    const int64_t sizes[] = {c->dim,        c->hidden_dim, c->n_layers,   c->n_heads,
                             c->n_kv_heads, c->head_dim,   c->vocab_size, c->seq_len};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i] < 1 || sizes[i] > most) return 0;
    if ((int64_t)c->n_heads * c->head_dim > most || c->n_heads % c->n_kv_heads != 0) return 0;
    if (rotary_dim(c) < 2 || rotary_dim(c) > c->head_dim || rotary_dim(c) % 2 != 0) return 0;
    if (c->steps & ~L2P_ALL_STEPS || ((c->steps & L2P_HEAD_NORM) && (c->steps & L2P_ALL_NORM))) return 0;
    if ((c->steps & L2P_NO_PRE_NORM) && !(c->steps & L2P_POST_NORM)) return 0;
    for (int l = 0; l < c->n_layers && c->windows; l++)
        if (c->windows[l] < 0) return 0;
    if (c->weight_type < L2P_FLOAT32 || c->weight_type > L2P_INT4) return 0;
    if (c->cache_type != L2P_FLOAT32 && c->cache_type != L2P_BFLOAT16) return 0;
    if (c->group_size < (c->weight_type == L2P_INT8 ? 1 : 0)) return 0;

    const int64_t dim = round_up(c->dim, LANES), q_rows = round_up(c->n_heads * c->head_dim, LANES);
    const int64_t kv_rows = round_up(c->n_kv_heads * c->head_dim, LANES), hidden = round_up(c->hidden_dim, LANES);
    const int64_t of_layer = dim * (2 * q_rows + 2 * kv_rows + 3 * hidden);
    const int64_t of_tables = dim * 2 * round_up(c->vocab_size, LANES);
    const int64_t of_head = round_up(c->seq_len, LANES) * round_up(c->head_dim, LANES);
    return of_layer <= most_values / c->n_layers && of_tables <= most_values &&
           of_head <= most_values / c->n_layers / c->n_kv_heads;
}

int64_t l2p_packed_bytes(const l2p_config *config) {
    if (!config || !is_model(config)) return -1;
    l2p_model model = {.config = filled_in(config)};
    return (int64_t)lay_out_model(&model, NULL);
}

/* freqs (rotary_dim / 2,) */
static void compute_rope_freqs(const l2p_model *model, float theta, const float *divisors, float *freqs) {
    const int n = model->config.rotary_dim;
    for (int i = 0; i < n; i += 2) {
        const float exponent = (float)i / (float)n;
        /* libm's float functions give llama2.c's bits; its double ones, rounded, give the same bits everywhere. */
        const float power =
            model->floats->numerics == EXACT ? powf(theta, exponent) : (float)pow((double)theta, (double)exponent);
        freqs[i / 2] = 1.0f / power;
        if (divisors) freqs[i / 2] /= divisors[i / 2];
    }
}

/* What the config's arrays say about layers and frequencies */
static void read_arrays(l2p_model *model) {
    l2p_config *c = &model->config;
    compute_rope_freqs(model, c->rope_theta, c->rope_divisors, model->rope_freqs);
    if (model->window_rope_freqs) compute_rope_freqs(model, c->window_rope_theta, NULL, model->window_rope_freqs);
    for (int l = 0; l < c->n_layers; l++) {
        const int window = c->windows ? c->windows[l] : 0;
        model->layers[l].window = window ? window : INT32_MAX;
        model->layers[l].rope_freqs = window && model->window_rope_freqs ? model->window_rope_freqs : model->rope_freqs;
        if (c->unrotated && c->unrotated[l]) model->layers[l].rope_freqs = NULL;
    }
    c->rope_divisors = NULL; /* the caller's */
    c->windows = c->unrotated = NULL;
}

int l2p_model_new(const l2p_config *config, int isa, l2p_model **out) {
    if (!out) return L2P_BAD_ARGUMENT;
    *out = NULL;
    if (!config || !is_model(config) || !l2p_isa_name(isa)) return L2P_BAD_ARGUMENT;
    const Kernels *kernels = kernels_of_isa(isa);
    if (!kernels) return L2P_UNSUPPORTED;
    l2p_model *model = calloc(1, sizeof *model);
    if (!model) return L2P_NO_MEMORY;
    model->config = filled_in(config);
    model->kernels = kernels;
    model->floats = config->weight_type == L2P_INT8 ? kernels->for_int8 : kernels->for_the_rest;
    model->layers = calloc((size_t)config->n_layers, sizeof *model->layers);
    model->packed_bytes = lay_out_model(model, NULL);
    model->arena_bytes = (size_t)round_up((int64_t)model->packed_bytes, HUGE_PAGE);
    model->arena = pages_alloc(model->arena_bytes, HUGE_PAGES);
    if (!model->arena || !model->layers) {
        l2p_model_free(model);
        return L2P_NO_MEMORY;
    }
    lay_out_model(model, model->arena);
    read_arrays(model);
    *out = model;
    return L2P_OK;
}

void l2p_model_free(l2p_model *model) {
    if (!model) return;
    pages_free(model->arena, model->arena_bytes);
    free(model->layers);
    free(model);
}
