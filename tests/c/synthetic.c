/* Synthetic models, and a naive transformer over the same numbers. */
#include "synthetic.h"

#include "check.h"

const int LENGTHS[N_SESSIONS] = {37, 9, 18};

/* dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, seq_len, shared_classifier */
const l2p_config SHAPES[N_SHAPES] = {
    {.dim = 10,
     .hidden_dim = 1201,
     .n_layers = 1,
     .n_heads = 5,
     .n_kv_heads = 5,
     .head_dim = 2,
     .vocab_size = 1,
     .seq_len = 37,
     .shared_classifier = 1,
     .norm_eps = 1e-5f,
     .rope_theta = 10000.0f},
    {.dim = 36,
     .hidden_dim = 301,
     .n_layers = 2,
     .n_heads = 6,
     .n_kv_heads = 2,
     .head_dim = 6,
     .vocab_size = 17,
     .seq_len = 48,
     .shared_classifier = 0,
     .norm_eps = 1e-5f,
     .rope_theta = 10000.0f},
    {.dim = 64,
     .hidden_dim = 172,
     .n_layers = 2,
     .n_heads = 8,
     .n_kv_heads = 4,
     .head_dim = 8,
     .vocab_size = 500,
     .seq_len = 50,
     .shared_classifier = 1,
     .norm_eps = 1e-5f,
     .rope_theta = 10000.0f},
    {.dim = 96,
     .hidden_dim = 130,
     .n_layers = 2,
     .n_heads = 2,
     .n_kv_heads = 1,
     .head_dim = 48,
     .vocab_size = 500,
     .seq_len = 64,
     .shared_classifier = 0,
     .norm_eps = 1e-6f,
     .rope_theta = 500000.0f},
    /* heads wider than dim / n_heads */
    {.dim = 100,
     .hidden_dim = 65,
     .n_layers = 1,
     .n_heads = 3,
     .n_kv_heads = 1,
     .head_dim = 100,
     .vocab_size = 17,
     .seq_len = 1024,
     .shared_classifier = 1,
     .norm_eps = 1e-5f,
     .rope_theta = 10000.0f},
};

const l2p_config BIG = {.dim = 72,
                        .hidden_dim = 250,
                        .n_layers = 2,
                        .n_heads = 12,
                        .n_kv_heads = 3,
                        .head_dim = 6,
                        .vocab_size = 15001,
                        .seq_len = 40,
                        .shared_classifier = 0,
                        .norm_eps = 1e-5f,
                        .rope_theta = 10000.0f};

l2p_config with_weights(l2p_config config, int group) { /* 0: float32 */
    config.weight_type = group ? L2P_INT8 : L2P_FLOAT32;
    config.group_size = group;
    return config;
}

static void shape_of(const l2p_config *c, int tensor, int *rows, int *cols) {
    const int q_rows = c->n_heads * c->head_dim, kv_rows = c->n_kv_heads * c->head_dim;
    const int shapes[N_TENSORS][2] = {{c->vocab_size, c->dim},
                                      {1, c->dim},
                                      {q_rows, c->dim},
                                      {kv_rows, c->dim},
                                      {kv_rows, c->dim},
                                      {c->dim, q_rows},
                                      {1, c->dim},
                                      {c->hidden_dim, c->dim},
                                      {c->dim, c->hidden_dim},
                                      {c->hidden_dim, c->dim},
                                      {1, c->dim},
                                      {c->vocab_size, c->dim}};
    *rows = shapes[tensor][0];
    *cols = shapes[tensor][1];
}

static int is_norm(int tensor) {
    return tensor == L2P_RMS_ATT_WEIGHT || tensor == L2P_RMS_FFN_WEIGHT || tensor == L2P_RMS_FINAL_WEIGHT;
}

static int layers_of(const l2p_config *c, int tensor) {
    if (tensor == L2P_WCLS && c->shared_classifier) return 0;
    return tensor == L2P_TOKEN_EMBEDDING_TABLE || tensor == L2P_WCLS || tensor == L2P_RMS_FINAL_WEIGHT ? 1
                                                                                                       : c->n_layers;
}

/* One for each group_size values, the last may be short */
static size_t scales_of(const l2p_config *c, size_t values) {
    return (values + (size_t)c->group_size - 1) / (size_t)c->group_size;
}

Synthetic synthesize(l2p_config config) {
    Synthetic s = {.config = config};
    lcg_state = (uint64_t)config.dim * 1000003u + (uint64_t)config.vocab_size;
    for (int tensor = 0; tensor < N_TENSORS; tensor++) {
        int rows, cols;
        shape_of(&config, tensor, &rows, &cols);
        const size_t layers = (size_t)layers_of(&config, tensor), size = (size_t)rows * (size_t)cols;
        /* each product keeps the size of what goes in, so that attention is sharp and nothing fades */
        const float scale = tensor == L2P_TOKEN_EMBEDDING_TABLE ? 1.0f : 3.0f / sqrtf((float)cols);
        if (config.weight_type == L2P_FLOAT32 || is_norm(tensor)) {
            s.values[tensor] = malloc((layers * size + 1) * sizeof(float));
            for (size_t i = 0; i < layers * size; i++)
                s.values[tensor][i] = is_norm(tensor) ? 1.0f + 0.5f * random_float() : scale * random_float();
        } else {
            const size_t n_scales = scales_of(&config, size);
            s.q[tensor] = malloc(layers * size + 1);
            s.scales[tensor] = malloc((layers * n_scales + 1) * sizeof(float));
            for (size_t i = 0; i < layers * size; i++) s.q[tensor][i] = (int8_t)((int)(random_u32() >> 24) - 128);
            for (size_t i = 0; i < layers * n_scales; i++)
                s.scales[tensor][i] = scale / 127.0f * (1.0f + 0.5f * random_float());
        }
    }
    for (int i = 0; i < N_SESSIONS; i++)
        for (int t = 0; t < TOKENS; t++) s.tokens[i][t] = (int32_t)((random_u32() >> 8) % (uint32_t)config.vocab_size);
    return s;
}

void free_synthetic(Synthetic s) {
    for (int tensor = 0; tensor < N_TENSORS; tensor++) {
        free(s.values[tensor]);
        free(s.q[tensor]);
        free(s.scales[tensor]);
    }
}

l2p_model *pack(const Synthetic *s, int isa, int n_threads) {
    l2p_model *model;
    if (l2p_model_new(&s->config, isa, &model) != L2P_OK) fail("no model for the check");
    CHECK(model->packed_bytes == (size_t)l2p_packed_bytes(&s->config));
    for (int tensor = 0; tensor < N_TENSORS; tensor++) {
        int rows, cols;
        shape_of(&s->config, tensor, &rows, &cols);
        const size_t size = (size_t)rows * (size_t)cols, width = s->q[tensor] ? 1 : sizeof(float);
        const size_t n_scales = s->q[tensor] ? scales_of(&s->config, size) : 0;
        Guarded values = guarded(size * width + width / 4), scales = guarded(n_scales * sizeof(float) + 1);
        for (int layer = 0; layer < layers_of(&s->config, tensor); layer++) {
            const size_t at = (size_t)layer * size * width;
            const char *from = s->q[tensor] ? (const char *)s->q[tensor] : (const char *)s->values[tensor];
            memcpy(values.array, from + at, size * width);
            if (n_scales) memcpy(scales.array, s->scales[tensor] + (size_t)layer * n_scales, n_scales * sizeof(float));
            int64_t non_finite = 0;
            CHECK(l2p_model_set(model, tensor, layer, s->q[tensor] ? L2P_INT8 : L2P_FLOAT32, values.array, scales.array,
                                n_threads, &non_finite) == L2P_OK);
            CHECK(non_finite == 0);
        }
        unguard(values), unguard(scales);
    }
    return model;
}

/* W[row] of a layer times x; int8 activations quantized by `group` */
static float naive_row(const Synthetic *s, int tensor, int layer, int row, int cols, const float *x, const int8_t *q,
                       const float *x_scales, int group) {
    int rows, same_cols;
    shape_of(&s->config, tensor, &rows, &same_cols);
    const size_t size = (size_t)rows * (size_t)cols, begin = (size_t)row * (size_t)cols;
    float sum = 0.0f;
    if (!s->q[tensor]) {
        const float *w = s->values[tensor] + (size_t)layer * size + begin;
        for (int k = 0; k < cols; k++) sum += w[k] * x[k];
        return sum;
    }
    const int8_t *w = s->q[tensor] + (size_t)layer * size + begin;
    const float *scales = s->scales[tensor] + (size_t)layer * scales_of(&s->config, size);
    for (int k0 = 0; k0 < cols; k0 += group) {
        int32_t whole = 0;
        for (int k = k0; k < k0 + group; k++) whole += w[k] * q[k];
        sum += (float)whole * scales[(begin + (size_t)k0) / (size_t)s->config.group_size] * x_scales[k0 / group];
    }
    return sum;
}

/* out (rows,) = W x */
static void naive_product(const Synthetic *s, int tensor, int layer, const float *x, float *out) {
    int rows, cols;
    shape_of(&s->config, tensor, &rows, &cols);
    const int group = s->q[tensor] ? greatest_common_divisor(s->config.group_size, cols) : 0;
    int8_t *q = malloc((uint32_t)cols); /* not size_t: gcc would warn of negative numbers of columns */
    float *scales = malloc((size_t)cols * sizeof(float));
    for (int k0 = 0; group && k0 < cols; k0 += group) {
        float max = 0.0f;
        for (int k = k0; k < k0 + group; k++) max = fmaxf(max, fabsf(x[k]));
        scales[k0 / group] = max / 127.0f;
        for (int k = k0; k < k0 + group; k++) q[k] = max > 0.0f ? (int8_t)roundf(x[k] / (max / 127.0f)) : 0;
    }
    for (int row = 0; row < rows; row++) out[row] = naive_row(s, tensor, layer, row, cols, x, q, scales, group);
    free(q), free(scales);
}

static void naive_rmsnorm(float *out, const float *x, const float *weight, int n, float eps) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (int i = 0; i < n; i++) out[i] = weight[i] * (scale * x[i]);
}

static void naive_rotate(const l2p_config *c, float *x, int heads, int position) {
    for (int i = 0; i < heads * c->head_dim; i += 2) {
        const float freq = 1.0f / powf(c->rope_theta, (float)(i % c->head_dim) / (float)c->head_dim);
        const float angle = (float)position * freq, a = x[i], b = x[i + 1];
        x[i] = a * cosf(angle) - b * sinf(angle);
        x[i + 1] = a * sinf(angle) + b * cosf(angle);
    }
}

/* What a cache of keys or values keeps of them */
static void naive_keep(const l2p_config *c, float *x, int n) {
    for (int i = 0; i < n && c->cache_type == L2P_BFLOAT16; i++) { /* to 8 significant bits, ties to even */
        int exponent;
        const double fraction = frexp((double)x[i], &exponent);
        x[i] = (float)ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8);
    }
}

void naive_forward(const Synthetic *s, const int32_t *tokens, int n, float *out) {
    const l2p_config *c = &s->config;
    const int q_rows = c->n_heads * c->head_dim, kv_rows = c->n_kv_heads * c->head_dim, hd = c->head_dim;
    const int widest = c->dim + q_rows + c->hidden_dim + n;
    float *memory = calloc((size_t)widest * 8 + (size_t)(2 * c->n_layers * n * kv_rows), sizeof(float));
    float *x = memory, *normed = x + widest, *q = normed + widest, *att = q + widest, *more = att + widest;
    float *gate = more + widest, *up = gate + widest, *scores = up + widest;
    float *keys = scores + widest, *values = keys + c->n_layers * n * kv_rows; /* (n_layers, n, kv_rows) */
    for (int t = 0; t < n; t++) {
        for (int k = 0; k < c->dim; k++) {
            const size_t at = (size_t)tokens[t] * (size_t)c->dim + (size_t)k;
            x[k] = s->q[0] ? (float)s->q[0][at] * s->scales[0][at / (size_t)c->group_size] : s->values[0][at];
        }
        for (int l = 0; l < c->n_layers; l++) {
            float *layer_keys = keys + l * n * kv_rows, *layer_values = values + l * n * kv_rows;
            naive_rmsnorm(normed, x, s->values[L2P_RMS_ATT_WEIGHT] + l * c->dim, c->dim, c->norm_eps);
            naive_product(s, L2P_WQ, l, normed, q);
            naive_product(s, L2P_WK, l, normed, layer_keys + t * kv_rows);
            naive_product(s, L2P_WV, l, normed, layer_values + t * kv_rows);
            naive_rotate(c, q, c->n_heads, t);
            naive_rotate(c, layer_keys + t * kv_rows, c->n_kv_heads, t);
            naive_keep(c, layer_keys + t * kv_rows, kv_rows);
            naive_keep(c, layer_values + t * kv_rows, kv_rows);
            for (int h = 0; h < c->n_heads; h++) {
                const int kv = h / (c->n_heads / c->n_kv_heads) * hd;
                float max = -INFINITY, sum = 0.0f;
                for (int p = 0; p <= t; p++) {
                    scores[p] = 0.0f;
                    for (int d = 0; d < hd; d++) scores[p] += q[h * hd + d] * layer_keys[p * kv_rows + kv + d];
                    scores[p] /= sqrtf((float)hd);
                    max = scores[p] > max ? scores[p] : max;
                }
                for (int p = 0; p <= t; p++) sum += scores[p] = expf(scores[p] - max);
                for (int p = 0; p <= t; p++) scores[p] /= sum;
                for (int d = 0; d < hd; d++) {
                    att[h * hd + d] = 0.0f;
                    for (int p = 0; p <= t; p++) att[h * hd + d] += scores[p] * layer_values[p * kv_rows + kv + d];
                }
            }
            naive_product(s, L2P_WO, l, att, more);
            for (int k = 0; k < c->dim; k++) x[k] += more[k];
            naive_rmsnorm(normed, x, s->values[L2P_RMS_FFN_WEIGHT] + l * c->dim, c->dim, c->norm_eps);
            naive_product(s, L2P_W1, l, normed, gate);
            naive_product(s, L2P_W3, l, normed, up);
            for (int k = 0; k < c->hidden_dim; k++) gate[k] = gate[k] * (1.0f / (1.0f + expf(-gate[k]))) * up[k];
            naive_product(s, L2P_W2, l, gate, more);
            for (int k = 0; k < c->dim; k++) x[k] += more[k];
        }
        naive_rmsnorm(normed, x, s->values[L2P_RMS_FINAL_WEIGHT], c->dim, c->norm_eps);
        naive_product(s, c->shared_classifier ? L2P_TOKEN_EMBEDDING_TABLE : L2P_WCLS, 0, normed,
                      out + (size_t)t * (size_t)c->vocab_size);
    }
    free(memory);
}
