/* Sessions: the memory of one conversation's keys and values, copies of it, and whose they are. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

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

void l2p_session_copy(l2p_session *to, const l2p_session *from, int n) {
    const l2p_config *c = &from->model->config;
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    const size_t key_floats = (size_t)round_up(n, LANES) * (size_t)c->head_dim; /* whole blocks of positions */
    const size_t channels = (size_t)from->seq_len * LANES;                      /* a block of them, all positions */
    for (size_t head = 0; head < heads; head++) {
        const size_t keys = head * from->key_stride, values = head * from->value_stride;
        memcpy(to->keys + keys, from->keys + keys, key_floats * sizeof(float));
        for (size_t at = 0; at < from->value_stride; at += channels)
            memcpy(to->values + values + at, from->values + values + at, (size_t)n * LANES * sizeof(float));
    }
}

static void move_float(float *packed, float *plain, int out) {
    if (out) *plain = *packed;
    else *packed = *plain;
}

void l2p_session_move(l2p_session *session, int n, float *keys, float *values, int out) {
    const l2p_config *c = &session->model->config;
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads, width = (size_t)c->head_dim;
    for (size_t head = 0; head < heads; head++) {
        float *key = session->keys + head * session->key_stride, *value = session->values + head * session->value_stride;
        for (size_t at = 0; at < (size_t)n; at++)
            for (size_t channel = 0; channel < width; channel++) {
                /* (seq_len / LANES, head_dim, LANES) and (head_dim / LANES, seq_len, LANES), as engine.h says */
                const size_t block = channel / LANES * (size_t)session->seq_len;
                move_float(key + (at / LANES * width + channel) * LANES + at % LANES, keys++, out);
                move_float(value + (block + at) * LANES + channel % LANES, values++, out);
            }
    }
}

void l2p_model_digest(const l2p_model *model, uint64_t *out) {
    const size_t words = model->packed_bytes / sizeof(uint64_t), rest = model->packed_bytes % sizeof(uint64_t);
    uint64_t lanes[4] = {1, 2, 3, 4}; /* four chains, so that no multiplication waits for the one before */
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, model->arena + i * sizeof word, sizeof word);
        uint64_t *lane = &lanes[i & 3];
        *lane = (*lane ^ word) * 0x9E3779B97F4A7C15u;
        *lane ^= *lane >> 29; /* multiplying moves bits only upwards */
    }
    uint64_t last = 0;
    memcpy(&last, model->arena + words * sizeof last, rest);
    lanes[0] = (lanes[0] ^ last) * 0x9E3779B97F4A7C15u;
    memcpy(out, lanes, sizeof lanes);
}
