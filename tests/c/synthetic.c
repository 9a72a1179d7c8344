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

static const int32_t some_windows[] = {5, 0, 17}, short_windows[] = {3, 1}, unrotated[] = {0, 1, 0};
static const float divisors[] = {1.0f, 2.5f, 4.0f, 4.0f};

const l2p_config STEPS[N_STEPS] = {
    /* Qwen2, with biases everywhere; a few long windows */
    {.dim = 36,
     .hidden_dim = 301,
     .n_layers = 3,
     .n_heads = 6,
     .n_kv_heads = 2,
     .head_dim = 6,
     .vocab_size = 17,
     .seq_len = 48,
     .shared_classifier = 0,
     .norm_eps = 1e-5f,
     .rope_theta = 10000.0f,
     .steps = L2P_QKV_BIAS | L2P_OUTPUT_BIAS | L2P_MLP_BIAS,
     .windows = some_windows,
     .unrotated = unrotated},
    /* Gemma 3: norms around the branches, GELU, its own frequencies in layers with a window */
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
     .rope_theta = 100000.0f,
     .steps = L2P_HEAD_NORM | L2P_POST_NORM | L2P_GELU,
     .windows = short_windows,
     .window_rope_theta = 1000.0f,
     .embedding_scale = 8.0f,
     .attention_scale = 0.3f},
    /* OLMo 2: no norms before the branches, norms of all queries and all keys; an odd size */
    {.dim = 40,
     .hidden_dim = 65,
     .n_layers = 3,
     .n_heads = 5,
     .n_kv_heads = 1,
     .head_dim = 10,
     .vocab_size = 33,
     .seq_len = 64,
     .shared_classifier = 0,
     .norm_eps = 1e-6f,
     .rope_theta = 500000.0f,
     .steps = L2P_ALL_NORM | L2P_POST_NORM | L2P_NO_PRE_NORM,
     .windows = some_windows},
    /* Granite: everything scaled */
    {.dim = 48,
     .hidden_dim = 130,
     .n_layers = 2,
     .n_heads = 3,
     .n_kv_heads = 3,
     .head_dim = 16,
     .vocab_size = 100,
     .seq_len = 64,
     .shared_classifier = 1,
     .norm_eps = 1e-5f,
     .rope_theta = 10000.0f,
     .embedding_scale = 12.0f,
     .residual_scale = 0.22f,
     .logit_scale = 0.125f,
     .attention_scale = 0.4f},
    /* Phi-3: some channels rotated, with divisors, and scaled */
    {.dim = 60,
     .hidden_dim = 97,
     .n_layers = 2,
     .n_heads = 5,
     .n_kv_heads = 5,
     .head_dim = 12,
     .vocab_size = 17,
     .seq_len = 64,
     .shared_classifier = 0,
     .norm_eps = 1e-5f,
     .rope_theta = 10000.0f,
     .steps = L2P_HEAD_NORM | L2P_QKV_BIAS,
     .rotary_dim = 8,
     .rope_divisors = divisors,
     .rope_scale = 1.19f},
};

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
                                      {c->vocab_size, c->dim},
                                      {1, c->dim},
                                      {1, c->dim},
                                      {1, c->steps & L2P_ALL_NORM ? q_rows : c->head_dim},
                                      {1, c->steps & L2P_ALL_NORM ? kv_rows : c->head_dim},
                                      {1, q_rows},
                                      {1, kv_rows},
                                      {1, kv_rows},
                                      {1, c->dim},
                                      {1, c->hidden_dim},
                                      {1, c->dim},
                                      {1, c->hidden_dim}};
    *rows = shapes[tensor][0];
    *cols = shapes[tensor][1];
}

static int is_norm(int tensor) {
    return tensor == L2P_RMS_ATT_WEIGHT || tensor == L2P_RMS_FFN_WEIGHT || tensor == L2P_RMS_FINAL_WEIGHT ||
           (tensor >= L2P_RMS_ATT_POST_WEIGHT && tensor <= L2P_RMS_K_WEIGHT);
}

static int is_vector(int tensor) { return is_norm(tensor) || tensor >= L2P_BQ; }

/* Does the model have a tensor that a LLaMA may lack, or lack one that it has? */
static int has(const l2p_config *c, int tensor) {
    switch (tensor) {
    case L2P_WCLS: return !c->shared_classifier;
    case L2P_RMS_ATT_WEIGHT:
    case L2P_RMS_FFN_WEIGHT: return !(c->steps & L2P_NO_PRE_NORM);
    case L2P_RMS_ATT_POST_WEIGHT:
    case L2P_RMS_FFN_POST_WEIGHT: return c->steps & L2P_POST_NORM;
    case L2P_RMS_Q_WEIGHT:
    case L2P_RMS_K_WEIGHT: return c->steps & (L2P_HEAD_NORM | L2P_ALL_NORM);
    case L2P_BQ:
    case L2P_BK:
    case L2P_BV: return c->steps & L2P_QKV_BIAS;
    case L2P_BO: return c->steps & L2P_OUTPUT_BIAS;
    case L2P_B1:
    case L2P_B2:
    case L2P_B3: return c->steps & L2P_MLP_BIAS;
    default: return 1;
    }
}

static int layers_of(const l2p_config *c, int tensor) {
    if (!has(c, tensor)) return 0;
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
        if (config.weight_type == L2P_FLOAT32 || is_vector(tensor)) {
            s.values[tensor] = malloc((layers * size + 1) * sizeof(float));
            for (size_t i = 0; i < layers * size; i++)
                s.values[tensor][i] = is_norm(tensor)     ? 1.0f + 0.5f * random_float()
                                      : is_vector(tensor) ? 0.5f * random_float()
                                                          : scale * random_float();
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

static void naive_rotate(const l2p_config *c, int layer, float *x, int heads, int position) {
    const int n = c->rotary_dim ? c->rotary_dim : c->head_dim;
    const int local = c->windows && c->windows[layer] && c->window_rope_theta != 0.0f;
    const float theta = local ? c->window_rope_theta : c->rope_theta;
    const float scale = !local && c->rope_scale != 0.0f ? c->rope_scale : 1.0f;
    if (c->unrotated && c->unrotated[layer]) return;
    for (int i = 0; i < heads * c->head_dim; i += 2) {
        const int channel = i % c->head_dim;
        if (channel >= n) continue;
        float freq = 1.0f / powf(theta, (float)channel / (float)n);
        if (!local && c->rope_divisors) freq /= c->rope_divisors[channel / 2];
        const float angle = (float)position * freq, a = x[i], b = x[i + 1];
        const float cosine = cosf(angle) * scale, sine = sinf(angle) * scale;
        x[i] = a * cosine - b * sine;
        x[i + 1] = a * sine + b * cosine;
    }
}

/* The vector of a layer, or NULL if the model has none */
static const float *naive_vector(const Synthetic *s, int tensor, int layer) {
    int rows, n;
    shape_of(&s->config, tensor, &rows, &n);
    return has(&s->config, tensor) ? s->values[tensor] + layer * n : NULL;
}

/* x (n,) += the vector, if there is one */
static void naive_bias(const Synthetic *s, int tensor, int layer, float *x, int n) {
    const float *bias = naive_vector(s, tensor, layer);
    for (int i = 0; i < n && bias; i++) x[i] += bias[i];
}

/* x = rmsnorm(x) of each head or all together, if the model does that */
static void naive_norm_heads(const Synthetic *s, int tensor, int layer, float *x, int heads) {
    const l2p_config *c = &s->config;
    const float *weight = naive_vector(s, tensor, layer);
    const int n = c->steps & L2P_ALL_NORM ? heads * c->head_dim : c->head_dim;
    for (int i = 0; i < heads * c->head_dim && weight; i += n) naive_rmsnorm(x + i, x + i, weight, n, c->norm_eps);
}

/* x += scale * norm(more + bias) */
static void naive_add(const Synthetic *s, int bias, int norm, int layer, float *x, float *more) {
    const l2p_config *c = &s->config;
    const float scale = c->residual_scale != 0.0f ? c->residual_scale : 1.0f, *weight = naive_vector(s, norm, layer);
    naive_bias(s, bias, layer, more, c->dim);
    if (weight) naive_rmsnorm(more, more, weight, c->dim, c->norm_eps);
    for (int k = 0; k < c->dim; k++) x[k] += more[k] * scale;
}

/* out = rmsnorm(x), or x if the model has no such norm */
static void naive_pre_norm(const Synthetic *s, int tensor, int layer, float *out, const float *x) {
    const float *weight = naive_vector(s, tensor, layer);
    if (weight)
        naive_rmsnorm(out, x, weight, s->config.dim, s->config.norm_eps);
    else
        memcpy(out, x, (size_t)s->config.dim * sizeof *x);
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
    float *memory = calloc((size_t)widest * 9 + (size_t)(2 * c->n_layers * n * kv_rows), sizeof(float));
    float *x = memory, *normed = x + widest, *q = normed + widest, *att = q + widest, *more = att + widest;
    float *gate = more + widest, *up = gate + widest, *scores = up + widest;
    float *final_norm = scores + widest, *keys = final_norm + widest,
          *values = keys + c->n_layers * n * kv_rows; /* (n_layers, n, kv_rows) */
    for (int t = 0; t < n; t++) {
        for (int k = 0; k < c->dim; k++) {
            const size_t at = (size_t)tokens[t] * (size_t)c->dim + (size_t)k;
            x[k] = s->q[0] ? (float)s->q[0][at] * s->scales[0][at / (size_t)c->group_size] : s->values[0][at];
            if (c->embedding_scale != 0.0f) x[k] *= c->embedding_scale;
        }
        for (int l = 0; l < c->n_layers; l++) {
            float *layer_keys = keys + l * n * kv_rows, *layer_values = values + l * n * kv_rows;
            float *key = layer_keys + t * kv_rows, *value = layer_values + t * kv_rows;
            const int window = c->windows && c->windows[l] ? c->windows[l] : t + 1;
            const int first = t + 1 > window ? t + 1 - window : 0;
            naive_pre_norm(s, L2P_RMS_ATT_WEIGHT, l, normed, x);
            naive_product(s, L2P_WQ, l, normed, q);
            naive_product(s, L2P_WK, l, normed, key);
            naive_product(s, L2P_WV, l, normed, value);
            naive_bias(s, L2P_BQ, l, q, q_rows);
            naive_bias(s, L2P_BK, l, key, kv_rows);
            naive_bias(s, L2P_BV, l, value, kv_rows);
            naive_norm_heads(s, L2P_RMS_Q_WEIGHT, l, q, c->n_heads);
            naive_norm_heads(s, L2P_RMS_K_WEIGHT, l, key, c->n_kv_heads);
            naive_rotate(c, l, q, c->n_heads, t);
            naive_rotate(c, l, key, c->n_kv_heads, t);
            naive_keep(c, layer_keys + t * kv_rows, kv_rows);
            naive_keep(c, layer_values + t * kv_rows, kv_rows);
            for (int h = 0; h < c->n_heads; h++) {
                const int kv = h / (c->n_heads / c->n_kv_heads) * hd;
                float max = -INFINITY, sum = 0.0f;
                for (int p = first; p <= t; p++) {
                    scores[p] = 0.0f;
                    for (int d = 0; d < hd; d++) scores[p] += q[h * hd + d] * layer_keys[p * kv_rows + kv + d];
                    scores[p] /= c->attention_scale != 0.0f ? 1.0f / c->attention_scale : sqrtf((float)hd);
                    max = scores[p] > max ? scores[p] : max;
                }
                for (int p = first; p <= t; p++) sum += scores[p] = expf(scores[p] - max);
                for (int p = first; p <= t; p++) scores[p] /= sum;
                for (int d = 0; d < hd; d++) {
                    att[h * hd + d] = 0.0f;
                    for (int p = first; p <= t; p++) att[h * hd + d] += scores[p] * layer_values[p * kv_rows + kv + d];
                }
            }
            naive_product(s, L2P_WO, l, att, more);
            naive_add(s, L2P_BO, L2P_RMS_ATT_POST_WEIGHT, l, x, more);
            naive_pre_norm(s, L2P_RMS_FFN_WEIGHT, l, normed, x);
            naive_product(s, L2P_W1, l, normed, gate);
            naive_product(s, L2P_W3, l, normed, up);
            naive_bias(s, L2P_B1, l, gate, c->hidden_dim);
            naive_bias(s, L2P_B3, l, up, c->hidden_dim);
            for (int k = 0; k < c->hidden_dim; k++) {
                const float z =
                    c->steps & L2P_GELU ? 1.59576912f * (gate[k] + 0.044715f * (gate[k] * gate[k] * gate[k])) : gate[k];
                gate[k] = gate[k] * (1.0f / (1.0f + expf(-z))) * up[k];
            }
            naive_product(s, L2P_W2, l, gate, more);
            naive_add(s, L2P_B2, L2P_RMS_FFN_POST_WEIGHT, l, x, more);
        }
        memcpy(final_norm, s->values[L2P_RMS_FINAL_WEIGHT], (size_t)c->dim * sizeof *final_norm);
        for (int k = 0; k < c->dim && c->logit_scale != 0.0f; k++) final_norm[k] *= c->logit_scale;
        naive_rmsnorm(normed, x, final_norm, c->dim, c->norm_eps);
        naive_product(s, c->shared_classifier ? L2P_TOKEN_EMBEDDING_TABLE : L2P_WCLS, 0, normed,
                      out + (size_t)t * (size_t)c->vocab_size);
    }
    free(memory);
}
