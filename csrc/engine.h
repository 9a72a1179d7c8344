/* Private to the engine: packed weights, the KV cache, memory, threads. */
#ifndef LLAMA2PY_ENGINE_H
#define LLAMA2PY_ENGINE_H
#include <stddef.h>

#include "llama2py.h"

/* Output rows of a block: a vector lane is an output row, whatever the vector's width. */
#define LANES 16

static inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline int blocks_of(int rows) { return (rows + LANES - 1) / LANES; }

/* Bytes of a value of float32 or bfloat16 */
static inline size_t bytes_of(int type) { return type == L2P_BFLOAT16 ? sizeof(uint16_t) : sizeof(float); }

/* A packed matrix W (rows, cols), its rows in blocks of LANES. The last block is filled with rows of zeros.
 *   float32, bfloat16: block[cols][LANES]
 *   int8: block[groups] of { int8 [group_quads][LANES][4], float32 scale[LANES] }
 *   int4: block[groups] of { nibbles [group_quads / 2][LANES][4], float16 scale[LANES] }. A byte's lower half holds a
 *         value of an even quad, its upper half the value of the next quad, each plus INT4_OFFSET.
 * A group is padded with zeros to whole quads: four values, the width of the CPUs' integer dot products.
 * int8: `group` divides `cols`. If the file's group size does not, `group` is the greatest common divisor, and each
 * part of a file's group has a copy of its scale, so that no value changes.
 * int4: a group is INT4_GROUP values of a row; the last one is padded. */
enum { INT4_GROUP = 32, INT4_OFFSET = 8 };

typedef struct {
    int type;
    int rows, cols, blocks;
    int group, groups, group_quads; /* of L2P_INT8 and L2P_INT4 */
    size_t group_bytes;             /* values and scales of LANES rows */
    size_t block_bytes;
    unsigned char *data; /* [blocks][block_bytes] */
} Matrix;

/* Are the values of the matrix, and the vectors that it multiplies, small integers with scales? */
static inline int is_quantized(const Matrix *m) { return m->type == L2P_INT8 || m->type == L2P_INT4; }

/* n vectors x (cols,) that a matrix multiplies, in the form that its type needs.
 *   float32, bfloat16: f[n][ld]
 *   int8, int4: q[n][groups * group_quads * 4], scale[n][groups] and bias[n][groups]: a group's integer sum starts at
 *               its bias, minus the offset of the packed weights times the sum of the group's q */
typedef struct {
    const float *f;
    size_t ld;
    int8_t *q;
    float *scale;
    int32_t *bias;
} Vectors;

typedef struct {
    float *att_norm, *ffn_norm; /* (dim,) */
    Matrix qkv;                 /* the rows of wq, wk and wv, each padded to whole blocks */
    Matrix wo;                  /* (dim, n_heads * head_dim) */
    Matrix w13;                 /* blocks of w1 and of w3 in turn */
    Matrix w2;                  /* (dim, hidden_dim) */

    /* Of the optional steps; NULL: without this step */
    float *qkv_bias, *w13_bias;           /* in the order of the matrices' rows */
    float *wo_bias, *w2_bias;             /* (dim,) */
    float *q_norm, *k_norm;               /* of one head or of all */
    float *att_post_norm, *ffn_post_norm; /* (dim,) */
    int window;                           /* positions that a token sees, its own included; INT32_MAX: all */
    const float *rope_freqs;              /* l2p_model.rope_freqs, window_rope_freqs, or NULL: not rotated */
} Layer;

struct Kernels; /* kernels.h */
struct FloatKernels;

struct l2p_model {
    l2p_config config;
    const struct Kernels *kernels;
    const struct FloatKernels *floats; /* kernels->for_int8 or for_the_rest */
    unsigned char *arena;              /* everything packed, on huge pages if the system has them */
    size_t arena_bytes, packed_bytes;  /* in whole huge pages; as used */
    Matrix embedding, classifier;
    float *final_norm;        /* (dim,), times logit_scale */
    float *rope_freqs;        /* (rotary_dim / 2,) radians per position */
    float *window_rope_freqs; /* the same, of layers with a window; NULL: as in the other layers */
    Layer *layers;            /* (n_layers,) */
};

/* A session's keys and values. Both are packed as the matrices that attention multiplies with:
 *   keys[n_layers][n_kv_heads][seq_len / LANES][head_dim][LANES]     scores = K q: a lane is a position
 *   values[n_layers][n_kv_heads][head_dim / LANES][seq_len][LANES]   output = V p: a lane is a channel */
struct l2p_session {
    const l2p_model *model;
    int seq_len;                     /* rounded up to LANES */
    size_t key_stride, value_stride; /* bytes from one head to the next */
    unsigned char *keys, *values;    /* of config.cache_type */
    size_t bytes;
};

/* number.c: the bits of 2^(i/32) as a double, minus i << 47. Entry k % 32 plus k << 47 is 2^(k/32). */
extern const uint64_t exp2_32nds[32];

/* Conversions between float32 and the 16-bit types. They round to nearest, ties to even; NaN stays NaN. */
float float16_to_float(uint16_t half);
uint16_t float_to_float16(float value);
uint16_t float_to_bfloat16(float value);
static inline float bfloat16_to_float(uint16_t upper) {
    const uint32_t bits = (uint32_t)upper << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

/* Value number `at` of a session's keys or values */
static inline void cache_put(int type, unsigned char *cache, size_t at, float value) {
    if (type == L2P_BFLOAT16)
        ((uint16_t *)(void *)cache)[at] = float_to_bfloat16(value);
    else
        ((float *)(void *)cache)[at] = value;
}
static inline float cache_get(int type, const unsigned char *cache, size_t at) {
    return type == L2P_BFLOAT16 ? bfloat16_to_float(((const uint16_t *)(const void *)cache)[at])
                                : ((const float *)(const void *)cache)[at];
}

/* Zeroed memory. HUGE_PAGES: if the system has them. SMALL_PAGES: never huge ones, for memory that is used gradually.
 * NULL: there is not enough memory. */
enum { SMALL_PAGES, HUGE_PAGES };
void *pages_alloc(size_t bytes, int pages);
void pages_free(void *memory, size_t bytes);

/* threads.c: the pool. One caller at a time has the turn: it may use the pool and the workspace, the others wait. */
typedef void (*Work)(void *context, int thread, int n_threads);
void threads_take_turn(void);
void threads_end_turn(void);
enum { MAX_THREADS = 256 };
/* Run work on n_threads threads (fewer if the system gives no more), the caller being thread 0, and wait for all. */
void threads_run(int n_threads, Work work, void *context);
/* Within work: return when all of its threads have come here. */
void threads_barrier(int n_threads);
void threads_stop(void);

int64_t nanoseconds(void); /* of a clock that only goes forward */

/* scheduling.c: how many threads, on which cores; all of it can be turned off.
 * How many to run n_tokens tokens of a model on: n_threads within 1 to MAX_THREADS, or 1 for little work. */
int scheduling_threads(const l2p_model *model, int n_tokens, int n_threads);
/* Before a run that is to be judged: n_threads, or 1 for a while after a run that one thread would have finished
 * sooner. */
int scheduling_before_run(int n_threads);
/* After any run: how long it took and how long its threads waited for each other, in nanoseconds */
void scheduling_after_run(int64_t length, int64_t waited, int n_threads);
void scheduling_forget(void);
/* Each thread calls the first function at the start of a run (runs are numbered). A thread that has to wait calls the
 * second, which moves it to a free core if a thread with a lower number is on the same core. */
void scheduling_note_core(int thread, uint32_t run);
void scheduling_leave_core(int thread, int n_threads, uint32_t run);

/* A thread's share of [0, n), in whole units of `unit`. */
static inline void threads_share(int n, int unit, int thread, int n_threads, int *begin, int *end) {
    int64_t units = (n + unit - 1) / unit;
    int64_t first = units * thread / n_threads * unit, last = units * (thread + 1) / n_threads * unit;
    *begin = (int)(first < n ? first : n);
    *end = (int)(last < n ? last : n);
}

#endif
