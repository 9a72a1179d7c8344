/* llama2py's engine: the one public header. cffi reads it as its cdef, so it is plain C declarations.
 *
 * Every function checks its arguments: sizes, indices and positions that are out of bounds come back as error codes.
 * It cannot check that a pointer points to as much memory as is documented here. Nothing here prints or exits. */
#ifndef LLAMA2PY_H
#define LLAMA2PY_H
#include <stdint.h>

/* The version of this header. Increment it with every change to a declaration, here and in
 * llama2py/engine/extension.py: Python refuses an extension that was compiled from another version. */
enum { L2P_API_VERSION = 4 };

/* Error codes of the functions that return int: 0 is success. */
enum {
    L2P_OK = 0,
    L2P_NO_MEMORY = 1,
    L2P_BAD_ARGUMENT = 2,
    L2P_CANCELLED = 3,
    L2P_UNSUPPORTED = 4, /* this CPU lacks the instruction set */
    L2P_READ_FAILED = 5  /* a file is shorter than its tensor, or cannot be read */
};

/* The types of matrices, in a file and packed. */
enum {
    L2P_FLOAT32 = 0,
    L2P_INT8 = 1,     /* groups of int8 values, each group with a float32 scale */
    L2P_BFLOAT16 = 2, /* the upper half of a float32 */
    L2P_INT4 = 3,     /* groups of 32 values from -8 to 7 of a row, each group with a float16 scale */
    L2P_FLOAT16 = 4   /* in files only */
};

/* The tensors of a checkpoint, by llama2.c's names. */
enum {
    L2P_TOKEN_EMBEDDING_TABLE, /* (vocab_size, dim) */
    L2P_RMS_ATT_WEIGHT,        /* (dim,), a layer */
    L2P_WQ,                    /* (n_heads * head_dim, dim), a layer */
    L2P_WK,                    /* (n_kv_heads * head_dim, dim), a layer */
    L2P_WV,                    /* (n_kv_heads * head_dim, dim), a layer */
    L2P_WO,                    /* (dim, n_heads * head_dim), a layer */
    L2P_RMS_FFN_WEIGHT,        /* (dim,), a layer */
    L2P_W1,                    /* (hidden_dim, dim), a layer */
    L2P_W2,                    /* (dim, hidden_dim), a layer */
    L2P_W3,                    /* (hidden_dim, dim), a layer */
    L2P_RMS_FINAL_WEIGHT,      /* (dim,) */
    L2P_WCLS,                  /* (vocab_size, dim), unless the classifier is the token embedding */

    /* Of the optional steps, float32 vectors of a layer */
    L2P_RMS_ATT_POST_WEIGHT, /* (dim,) */
    L2P_RMS_FFN_POST_WEIGHT, /* (dim,) */
    L2P_RMS_Q_WEIGHT,        /* (head_dim,), or (n_heads * head_dim,) for L2P_ALL_NORM */
    L2P_RMS_K_WEIGHT,        /* (head_dim,), or (n_kv_heads * head_dim,) for L2P_ALL_NORM */
    L2P_BQ,                  /* the bias of each matrix: as long as it has rows */
    L2P_BK,
    L2P_BV,
    L2P_BO,
    L2P_B1,
    L2P_B2,
    L2P_B3,
    L2P_N_TENSORS
};

/* Optional steps of the forward pass, bits of l2p_config.steps. None of them: a LLaMA. */
enum {
    L2P_QKV_BIAS = 1,
    L2P_OUTPUT_BIAS = 2,
    L2P_MLP_BIAS = 4,
    L2P_HEAD_NORM = 8,    /* RMSNorm of each head's queries and keys, before they are rotated */
    L2P_ALL_NORM = 16,    /* RMSNorm of all heads' queries together, and of all keys; not with L2P_HEAD_NORM */
    L2P_NO_PRE_NORM = 32, /* no norm before attention and before the feed-forward layer; only with L2P_POST_NORM */
    L2P_POST_NORM = 64,   /* RMSNorm of what attention and the feed-forward layer return */
    L2P_GELU = 128,       /* the gate's function is GELU, approximated with tanh, and not SiLU */
    L2P_ALL_STEPS = 255
};

typedef struct {
    int32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, seq_len;
    int32_t shared_classifier; /* 1: the output matrix is the token embedding */
    int32_t weight_type;       /* of the packed matrices: any but L2P_FLOAT16 */
    int32_t cache_type;        /* of the sessions' keys and values: L2P_FLOAT32 or L2P_BFLOAT16 */
    int32_t group_size;        /* of int8: values of the flattened tensor that share a scale. 0: the file has no int8 */
    float norm_eps, rope_theta;
    const float *rope_divisors; /* (rotary_dim / 2,) divide the rotary frequencies. NULL: all 1 */

    /* Optional steps. Where everything is 0 and NULL, the model is a LLaMA. */
    int32_t steps;            /* L2P_QKV_BIAS | ... */
    int32_t rotary_dim;       /* channels of a head that are rotated, the first ones. 0: all */
    const int32_t *windows;   /* (n_layers,) positions that a token sees, its own included. 0: all. NULL: all 0 */
    const int32_t *unrotated; /* (n_layers,) 1: queries and keys are not rotated in this layer. NULL: all 0 */
    float window_rope_theta;  /* of layers with a window, where nothing divides the frequencies. 0: as elsewhere */
    float rope_scale;         /* multiplies the rotated channels of queries and keys. 0: 1; as all of these: */
    float embedding_scale;    /* multiplies the token embedding */
    float residual_scale;     /* multiplies what is added to the residual stream */
    float logit_scale;        /* multiplies the logits */
    float attention_scale;    /* multiplies the products of queries and keys. 0: 1 / sqrt(head_dim) */
} l2p_config;                 /* l2p_model_new reads the arrays, and keeps none of their addresses */

typedef struct l2p_model l2p_model;     /* packed weights; read-only once filled, shared by threads */
typedef struct l2p_session l2p_session; /* one conversation's keys and values */

/* The instruction sets that are compiled in, best first; NULL for an index after the last one. */
const char *l2p_isa_name(int index);
/* Does this CPU have it? 1 or 0. */
int l2p_isa_supported(int index);

/* Bytes of a model's packed weights; -1 if the config is invalid. */
int64_t l2p_packed_bytes(const l2p_config *config);

/* Make an empty model, *model, for the instruction set l2p_isa_name(isa). On an error *model is NULL. */
int l2p_model_new(const l2p_config *config, int isa, l2p_model **model);
void l2p_model_free(l2p_model *model);
/* out (4,): a checksum of the packed weights. It does not detect forgery. */
void l2p_model_digest(const l2p_model *model, uint64_t *out);

/* Pack one tensor of one layer (0 if the tensor is not a layer's), and convert or quantize it if the model's weight
 * type is another. values: row by row, of values_type. For L2P_INT8, scales are float32, one for each group of the
 * flattened tensor. L2P_INT4 is only for a model of L2P_INT4: values are int8, one a byte, and scales float16, one for
 * each group of a row. Norms are always float32. Nothing need be aligned. *non_finite grows by the number of values
 * that are NaN or infinite; in a quantized model, of scales. */
int l2p_model_set(l2p_model *model, int tensor, int layer, int values_type, const void *values, const void *scales,
                  int n_threads, int64_t *non_finite);
/* Like l2p_model_set, for a matrix whose values are at byte `offset` of the open file fd. Each thread reads a few rows
 * at a time. A file that is too short is an error. If the values are quantized to int8, the group size must divide the
 * number of columns. */
int l2p_model_read(l2p_model *model, int tensor, int layer, int values_type, int fd, int64_t offset, const void *scales,
                   int n_threads, int64_t *non_finite);

/* A KV cache of seq_len positions. The system commits its memory page by page, as positions are used. NULL: there is
 * not enough memory. */
l2p_session *l2p_session_new(const l2p_model *model);
void l2p_session_free(l2p_session *session);
/* Give `to`, another session of the same model, the first n positions of `from`. */
int l2p_session_copy(l2p_session *to, const l2p_session *from, int n);
/* Copy the first n positions out of a session, or into it. keys and values: (n_layers, n_kv_heads, n, head_dim) */
int l2p_session_read(const l2p_session *session, int n, float *keys, float *values);
int l2p_session_write(l2p_session *session, int n, const float *keys, const float *values);

/* How one token is drawn from the first n_tokens logits: l2p_argmax if temperature is 0, else l2p_sample. */
typedef struct {
    float temperature, top_p, coin;
    int32_t n_tokens;
} l2p_draw;

/* A batch of tokens, of one session or of many: token i is tokens[i] at positions[i] of sessions[i]. The tokens of a
 * session must be in order of position, and every earlier position of that session must have been computed, in this
 * call or before. `rows` are the tokens whose logits are needed: these are returned, or tokens are drawn from them. */
typedef struct {
    int32_t n_tokens;
    const int32_t *tokens;        /* (n_tokens,) */
    l2p_session *const *sessions; /* (n_tokens,) */
    const int32_t *positions;     /* (n_tokens,) */
    int32_t n_rows;               /* may be 0 */
    const int32_t *rows;          /* (n_rows,) indices of tokens */
    float *logits;                /* (n_rows, vocab_size) out, or NULL: draw tokens */

    /* Drawing. Row i draws up to n_draws[i] tokens. With more than one draw, each drawn token is run at the next
     * position of the row's session, the next token is drawn from the logits, and so on, until the draws are used up or
     * a stop token is drawn. Such a row must be the last token of its session, and appear in `rows` only once. The last
     * token drawn has not been run. */
    const int32_t *n_draws; /* (n_rows,) at least 1 each */
    const l2p_draw *draws;  /* (sum of n_draws,), row by row */
    int32_t n_stop_tokens;
    const int32_t *stop_tokens; /* (n_stop_tokens,) */
    int32_t *drawn;             /* (sum of n_draws,) out: each token at the index of its draw in `draws` */
    int32_t *n_drawn;           /* (n_rows,) out: how many tokens each row has drawn, also after L2P_CANCELLED */
} l2p_batch;

/* Run the transformer over a batch. `cancel`, if not NULL, is read once per layer; if it is not 0, the call returns
 * L2P_CANCELLED. Results do not depend on n_threads or on how tokens are grouped into calls. Calls from several threads
 * take turns. */
int l2p_forward(const l2p_model *model, const l2p_batch *batch, int n_threads, const int32_t *cancel);

/* The first index of the largest of n logits; -1 if there are none. */
int32_t l2p_argmax(const l2p_model *model, const float *logits, int n);

/* Draw an index from softmax(logits / temperature), limited to the smallest set whose probability exceeds top_p (0 or
 * 1: no limit), with a coin in [0, 1); n >= 1. Overwrites logits (n,), with the probabilities if there is no limit, and
 * scratch (n,). */
int32_t l2p_sample(const l2p_model *model, float *logits, int n, float temperature, float top_p, float coin,
                   int32_t *scratch);

/* For benchmarks, in seconds: how long it takes to read all of a model's memory once, and to do l2p_products_a_round
 * multiply-adds (float32 or int8) `rounds` times in each thread. */
double l2p_time_reading(const l2p_model *model, int n_threads);
double l2p_time_products(int isa, int weight_type, int64_t rounds, int n_threads);
int64_t l2p_products_a_round(int weight_type);

/* A flag that one thread waits for and another one sets, without locks that a signal handler could need.
 * l2p_wait_flag returns *flag as soon as it is not 0, or 0 after that many milliseconds. */
int32_t l2p_wait_flag(const int32_t *flag, int milliseconds);
void l2p_set_flag(int32_t *flag); /* to 1 */

/* End the pool's threads and free the workspace. The next call that needs them creates new ones. */
void l2p_release(void);

#endif
