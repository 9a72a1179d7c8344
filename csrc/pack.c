/* Packing: convert a tensor from the layout and type of a file to those of the model. */
#define _GNU_SOURCE /* pread */
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels.h"

typedef struct {
    Matrix *to;
    int first, step;             /* source block b becomes block first + b * step of `to` */
    int rows, cols;              /* of the source */
    int type;                    /* of the source */
    const unsigned char *values; /* (rows, cols), unaligned; with fd >= 0, the rows that this thread has read */
    int64_t first_value;         /* the index of *values in the flattened tensor */
    int fd;                      /* the file with the values, or -1 */
    int64_t fd_offset;           /* where they begin in it */
    const unsigned char *scales; /* of an int8 source: float32, one per file_group values of the flattened tensor;
                                  * of an int4 source: float16, one per INT4_GROUP values of a row */
    int file_group, offset;
} Packing;

typedef struct {
    Packing packing; /* each thread that reads a file has its own copy */
    atomic_llong non_finite;
    atomic_int error;
} Job;

/* ---- the source ---- */

static float read_float(const unsigned char *floats, int64_t index) {
    float value;
    memcpy(&value, floats + index * (int64_t)sizeof value, sizeof value);
    return value;
}

/* n values of the flattened source from `index` on, out (n,) */
static void read_values(const Packing *p, int64_t index, int n, float *out) {
    const int64_t at = index - p->first_value;
    if (p->type == L2P_FLOAT32) {
        memcpy(out, p->values + at * (int64_t)sizeof *out, (size_t)n * sizeof *out);
    } else if (p->type == L2P_INT8) {
        for (int i = 0; i < n; i++)
            out[i] = (float)(int8_t)p->values[at + i] * read_float(p->scales, (index + i) / p->file_group);
    } else {
        for (int i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, p->values + (at + i) * (int64_t)sizeof half, sizeof half);
            out[i] = p->type == L2P_FLOAT16 ? float16_to_float(half) : bfloat16_to_float(half);
        }
    }
}

static int is_non_finite(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u;
}

/* ---- one block: LANES rows, or the last `height` rows. Each function returns the number of values (or scales) that
 * are not finite ---- */

/* rows (height, cols) to block[cols][LANES] of float32 or bfloat16 */
static int64_t pack_dense(const Packing *p, unsigned char *block, int row, int height) {
    const int narrow = p->to->type == L2P_BFLOAT16;
    float *floats = (float *)(void *)block;
    uint16_t *halves = (uint16_t *)(void *)block;
    int64_t non_finite = 0;
    if (height < LANES) memset(block, 0, p->to->block_bytes);
    for (int k0 = 0; k0 < p->cols; k0 += LANES) { /* squares stay in the first-level cache */
        const int n = p->cols - k0 < LANES ? p->cols - k0 : LANES;
        for (int lane = 0; lane < height; lane++) {
            float values[LANES];
            read_values(p, (int64_t)(row + lane) * p->cols + k0, n, values);
            for (int k = 0; k < n; k++) {
                const size_t at = (size_t)(k0 + k) * LANES + (size_t)lane;
                non_finite += is_non_finite(values[k]);
                if (narrow)
                    halves[at] = float_to_bfloat16(values[k]);
                else
                    floats[at] = values[k];
            }
        }
    }
    return non_finite;
}

/* The scale of a whole group of the file, max|w| / 127: llama2.c's quantize_q80. NaN if a value is not finite. */
static float int8_scale(const Packing *p, int64_t group) {
    float max = 0.0f, values[LANES];
    for (int i = 0; i < p->file_group; i += LANES) {
        const int n = p->file_group - i < LANES ? p->file_group - i : LANES;
        read_values(p, group * p->file_group + i, n, values);
        for (int k = 0; k < n; k++) {
            if (is_non_finite(values[k])) return NAN;
            max = fabsf(values[k]) > max ? fabsf(values[k]) : max;
        }
    }
    return max / 127.0f;
}

/* Round |x| < 2^22 to the nearest integer, ties to even: the sum has no bits for a fraction. */
static inline int nearest(float x) { return (int)((x + 12582912.0f) - 12582912.0f); }

static int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

/* rows (height, cols) to block[groups] of { [group_quads][LANES][4], float32 scale[LANES] } */
static int64_t pack_int8(const Packing *p, unsigned char *block, int row, int height) {
    const Matrix *m = p->to;
    const size_t quads_bytes = (size_t)m->group_quads * LANES * 4;
    int64_t non_finite = 0;
    for (int g = 0; g < m->groups; g++, block += m->group_bytes) {
        float scales[LANES] = {0};
        memset(block, p->offset, quads_bytes);
        for (int lane = 0; lane < height; lane++) {
            const int64_t source = (int64_t)(row + lane) * p->cols + (int64_t)g * m->group;
            unsigned char *to = block + lane * 4;
            if (p->type == L2P_INT8) {
                scales[lane] = read_float(p->scales, source / p->file_group);
                for (int k = 0; k < m->group; k++)
                    to[(k / 4) * LANES * 4 + k % 4] =
                        (unsigned char)(p->values[source - p->first_value + k] + p->offset);
            } else {
                scales[lane] = int8_scale(p, source / p->file_group);
                for (int k = 0; scales[lane] > 0.0f && k < m->group; k++) { /* not NaN, and not 0 */
                    float value;
                    read_values(p, source + k, 1, &value);
                    const int whole = clamp(nearest(value / scales[lane]), -127, 127);
                    to[(k / 4) * LANES * 4 + k % 4] = (unsigned char)(whole + p->offset);
                }
            }
            non_finite += is_non_finite(scales[lane]);
        }
        memcpy(block + quads_bytes, scales, sizeof scales);
    }
    return non_finite;
}

/* Quantize n values of a group to integers from -8 to 7: whole (n,), zeros on entry. Returns the bits of their scale, a
 * float16. The value farthest from 0 becomes -8 times the scale, so that all 16 integers are used. The scale is NaN if
 * a value, or the scale itself, is not finite. */
static uint16_t quantize_int4(const float *values, int n, int8_t *whole) {
    float farthest = 0.0f;
    for (int k = 0; k < n && farthest == farthest; k++) /* a NaN counts as the farthest */
        if (!(fabsf(values[k]) <= fabsf(farthest))) farthest = values[k];
    const uint16_t bits = float_to_float16(farthest / -8.0f);
    const float scale = float16_to_float(bits);
    if (is_non_finite(scale)) return float_to_float16(NAN);
    for (int k = 0; scale != 0.0f && k < n; k++) whole[k] = (int8_t)clamp(nearest(values[k] / scale), -8, 7);
    return bits;
}

/* rows (height, cols) to block[groups] of { nibbles [group_quads / 2][LANES][4], float16 scale[LANES] } */
static int64_t pack_int4(const Packing *p, unsigned char *block, int row, int height) {
    const Matrix *m = p->to;
    const size_t nibbles = INT4_GROUP / 2 * LANES;
    int64_t non_finite = 0;
    for (int g = 0; g < m->groups; g++, block += m->group_bytes) {
        uint16_t scales[LANES] = {0};
        memset(block, INT4_OFFSET | INT4_OFFSET << 4, nibbles);
        for (int lane = 0; lane < height; lane++) {
            const int first = g * INT4_GROUP, n = p->cols - first < INT4_GROUP ? p->cols - first : INT4_GROUP;
            const int64_t source = (int64_t)(row + lane) * p->cols + first;
            int8_t whole[INT4_GROUP] = {0};
            if (p->type == L2P_INT4) {
                const int64_t group = (int64_t)(row + lane) * m->groups + g;
                memcpy(whole, p->values + source - p->first_value, (size_t)n);
                memcpy(&scales[lane], p->scales + group * (int64_t)sizeof *scales, sizeof *scales);
            } else {
                float values[INT4_GROUP];
                read_values(p, source, n, values);
                scales[lane] = quantize_int4(values, n, whole);
            }
            non_finite += is_non_finite(float16_to_float(scales[lane]));
            for (int k = 0; k < n; k++) {
                const int nibble = (whole[k] + INT4_OFFSET) & 15, quad = k / 4;
                unsigned char *both = block + (quad / 2) * LANES * 4 + lane * 4 + k % 4;
                *both = (unsigned char)(quad % 2 ? (*both & 15) | nibble << 4 : (*both & 0xf0) | nibble);
            }
        }
        memcpy(block + nibbles, scales, sizeof scales);
    }
    return non_finite;
}

/* ---- a tensor ---- */

static size_t value_bytes(int type) { return type == L2P_FLOAT32 ? 4 : type == L2P_INT8 || type == L2P_INT4 ? 1 : 2; }

/* n bytes of a file at `offset` to out (n,); 0 if the file has fewer or cannot be read */
static int read_file(int fd, int64_t offset, unsigned char *out, size_t n) {
    while (n > 0) {
        const ssize_t got = pread(fd, out, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        out += got;
        offset += got;
        n -= (size_t)got;
    }
    return 1;
}

static void pack_share(void *context, int thread, int n_threads) {
    Job *job = context;
    Packing p = job->packing;
    unsigned char *rows = NULL; /* (LANES, cols) of a file: few enough for the second-level cache */
    const size_t row_bytes = (size_t)p.cols * value_bytes(p.type);
    int begin, end;
    int64_t non_finite = 0;
    threads_share(blocks_of(p.rows), 1, thread, n_threads, &begin, &end);
    if (p.fd >= 0 && begin < end) {
        p.values = rows = malloc(LANES * row_bytes);
        if (!rows) atomic_store(&job->error, L2P_NO_MEMORY);
    }
    for (int b = begin; b < end && !atomic_load(&job->error); b++) {
        unsigned char *block = p.to->data + (size_t)(p.first + b * p.step) * p.to->block_bytes;
        const int row = b * LANES, height = p.rows - row < LANES ? p.rows - row : LANES;
        if (rows) {
            p.first_value = (int64_t)row * p.cols;
            if (!read_file(p.fd, p.fd_offset + row * (int64_t)row_bytes, rows, (size_t)height * row_bytes)) {
                atomic_store(&job->error, L2P_READ_FAILED);
                break;
            }
        }
        non_finite += p.to->type == L2P_INT8   ? pack_int8(&p, block, row, height)
                      : p.to->type == L2P_INT4 ? pack_int4(&p, block, row, height)
                                               : pack_dense(&p, block, row, height);
    }
    free(rows);
    atomic_fetch_add(&job->non_finite, non_finite);
}

/* A vector in the arena: block b of LANES values of the source becomes block first + b * step of `to`. */
typedef struct {
    float *to; /* NULL: the model has no such vector */
    int n, first, step;
    float scale; /* of each value */
} Vector;

/* Which vector a tensor is; n is 0 if it is a matrix */
static Vector vector_of(l2p_model *model, int tensor, int layer) {
    const l2p_config *c = &model->config;
    const Layer *l = &model->layers[layer];
    const int heads = c->steps & L2P_ALL_NORM ? c->n_heads : 1, kv_heads = c->steps & L2P_ALL_NORM ? c->n_kv_heads : 1;
    const int q_rows = c->n_heads * c->head_dim, kv_rows = c->n_kv_heads * c->head_dim;
    const int q_blocks = blocks_of(q_rows), kv_blocks = blocks_of(kv_rows);
    switch (tensor) {
    case L2P_RMS_ATT_WEIGHT: return (Vector){l->att_norm, c->dim, 0, 1, 1.0f};
    case L2P_RMS_FFN_WEIGHT: return (Vector){l->ffn_norm, c->dim, 0, 1, 1.0f};
    case L2P_RMS_FINAL_WEIGHT: return (Vector){model->final_norm, c->dim, 0, 1, c->logit_scale};
    case L2P_RMS_ATT_POST_WEIGHT: return (Vector){l->att_post_norm, c->dim, 0, 1, 1.0f};
    case L2P_RMS_FFN_POST_WEIGHT: return (Vector){l->ffn_post_norm, c->dim, 0, 1, 1.0f};
    case L2P_RMS_Q_WEIGHT: return (Vector){l->q_norm, heads * c->head_dim, 0, 1, 1.0f};
    case L2P_RMS_K_WEIGHT: return (Vector){l->k_norm, kv_heads * c->head_dim, 0, 1, 1.0f};
    case L2P_BQ: return (Vector){l->qkv_bias, q_rows, 0, 1, 1.0f};
    case L2P_BK: return (Vector){l->qkv_bias, kv_rows, q_blocks, 1, 1.0f};
    case L2P_BV: return (Vector){l->qkv_bias, kv_rows, q_blocks + kv_blocks, 1, 1.0f};
    case L2P_BO: return (Vector){l->wo_bias, c->dim, 0, 1, 1.0f};
    case L2P_B1: return (Vector){l->w13_bias, c->hidden_dim, 0, 2, 1.0f};
    case L2P_B3: return (Vector){l->w13_bias, c->hidden_dim, 1, 2, 1.0f};
    case L2P_B2: return (Vector){l->w2_bias, c->dim, 0, 1, 1.0f};
    default: return (Vector){0};
    }
}

static int64_t copy_vector(Vector v, const unsigned char *values) {
    int64_t non_finite = 0;
    for (int i = 0; i < v.n; i++) {
        const float value = read_float(values, i);
        v.to[(v.first + i / LANES * v.step) * LANES + i % LANES] = v.scale * value;
        non_finite += is_non_finite(value);
    }
    return non_finite;
}

/* p: the source; this function fills in its shape and where it goes */
static int pack_tensor(l2p_model *model, int tensor, int layer, Packing p, int n_threads, int64_t *non_finite) {
    const int values_type = p.type;
    const l2p_config *c = &model->config;
    const int of_layer = tensor != L2P_TOKEN_EMBEDDING_TABLE && tensor != L2P_RMS_FINAL_WEIGHT && tensor != L2P_WCLS;
    if (layer < 0 || layer >= (of_layer ? c->n_layers : 1)) return L2P_BAD_ARGUMENT;
    if (values_type < L2P_FLOAT32 || values_type > L2P_FLOAT16) return L2P_BAD_ARGUMENT;
    if (values_type == L2P_INT4 && c->weight_type != L2P_INT4) return L2P_BAD_ARGUMENT;
    if (values_type == L2P_INT8 && c->group_size < 1) return L2P_BAD_ARGUMENT; /* the file has no groups */
    Layer *l = &model->layers[layer];
    const int q_rows = c->n_heads * c->head_dim, kv_rows = c->n_kv_heads * c->head_dim;
    const int q_blocks = blocks_of(q_rows), kv_blocks = blocks_of(kv_rows);

    p.step = 1;
    p.file_group = c->group_size;
    p.offset = model->kernels->int8_offset;
    const Vector vector = vector_of(model, tensor, layer);
    if (vector.n) {
        if (p.fd >= 0 || !vector.to) return L2P_BAD_ARGUMENT; /* only matrices are read from files */
        *non_finite += copy_vector(vector, p.values);
        return L2P_OK;
    }
    switch (tensor) {
    case L2P_TOKEN_EMBEDDING_TABLE:
        p.to = &model->embedding;
        p.rows = c->vocab_size;
        break;
    case L2P_WCLS:
        if (c->shared_classifier) return L2P_BAD_ARGUMENT;
        p.to = &model->classifier;
        p.rows = c->vocab_size;
        break;
        /* clang-format off */
    case L2P_WQ: p.to = &l->qkv; p.rows = q_rows; break;
    case L2P_WK: p.to = &l->qkv; p.rows = kv_rows; p.first = q_blocks; break;
    case L2P_WV: p.to = &l->qkv; p.rows = kv_rows; p.first = q_blocks + kv_blocks; break;
    case L2P_WO: p.to = &l->wo; p.rows = c->dim; break;
    case L2P_W1: p.to = &l->w13; p.rows = c->hidden_dim; p.step = 2; break;
    case L2P_W3: p.to = &l->w13; p.rows = c->hidden_dim; p.step = 2; p.first = 1; break;
    case L2P_W2: p.to = &l->w2; p.rows = c->dim; break;
    /* clang-format on */
    default: return L2P_BAD_ARGUMENT;
    }
    if ((values_type == L2P_INT8 || values_type == L2P_INT4) && !p.scales) return L2P_BAD_ARGUMENT;
    p.cols = p.to->cols;
    if (p.fd >= 0 && p.to->type == L2P_INT8 && values_type != L2P_INT8 && p.cols % c->group_size)
        return L2P_BAD_ARGUMENT; /* a group would reach into rows that are not read yet */
    Job job = {.packing = p};
    threads_take_turn();
    threads_run(scheduling_threads(model, 1, n_threads), pack_share, &job);
    threads_end_turn();
    *non_finite += job.non_finite;
    return job.error;
}

int l2p_model_set(l2p_model *model, int tensor, int layer, int values_type, const void *values, const void *scales,
                  int n_threads, int64_t *non_finite) {
    if (!model || !values || !non_finite) return L2P_BAD_ARGUMENT;
    const Packing source = {.type = values_type, .values = values, .scales = scales, .fd = -1};
    return pack_tensor(model, tensor, layer, source, n_threads, non_finite);
}

int l2p_model_read(l2p_model *model, int tensor, int layer, int values_type, int fd, int64_t offset, const void *scales,
                   int n_threads, int64_t *non_finite) {
    if (!model || fd < 0 || offset < 0 || !non_finite) return L2P_BAD_ARGUMENT;
    const Packing source = {.type = values_type, .scales = scales, .fd = fd, .fd_offset = offset};
    return pack_tensor(model, tensor, layer, source, n_threads, non_finite);
}
