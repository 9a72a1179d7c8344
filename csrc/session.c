/* Sessions: the memory of one conversation's keys and values, and copying it; and the checksum that says whose they
 * are. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

l2p_session *l2p_session_new(const l2p_model *model) {
    if (!model) return NULL;
    const l2p_config *c = &model->config;
    l2p_session *session = calloc(1, sizeof *session);
    if (!session) return NULL;
    session->model = model;
    session->seq_len = (int)round_up(c->seq_len, LANES);
    session->key_stride = (size_t)session->seq_len * (size_t)c->head_dim * bytes_of(c->cache_type);
    session->value_stride = (size_t)session->seq_len * (size_t)round_up(c->head_dim, LANES) * bytes_of(c->cache_type);
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    session->bytes = heads * (session->key_stride + session->value_stride);
    session->keys = pages_alloc(session->bytes, SMALL_PAGES);
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

static int is_within(const l2p_session *session, int n) { return n >= 0 && n <= session->model->config.seq_len; }

int l2p_session_copy(l2p_session *to, const l2p_session *from, int n) {
    if (!to || !from || to == from || to->model != from->model || !is_within(from, n)) return L2P_BAD_ARGUMENT;
    const l2p_config *c = &from->model->config;
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    const size_t position = LANES * bytes_of(c->cache_type);                        /* of a block of channels */
    const size_t key_bytes = (size_t)blocks_of(n) * (size_t)c->head_dim * position; /* whole blocks of positions */
    const size_t channels = (size_t)from->seq_len * position;                       /* a block of them, all positions */
    for (size_t head = 0; head < heads; head++) {
        const size_t keys = head * from->key_stride, values = head * from->value_stride;
        memcpy(to->keys + keys, from->keys + keys, key_bytes);
        for (size_t at = 0; at < from->value_stride; at += channels)
            memcpy(to->values + values + at, from->values + values + at, (size_t)n * position);
    }
    return L2P_OK;
}

/* Where a head's keys and values have channel `channel` of position `at`, as engine.h lays them out */
static size_t key_index(const l2p_session *s, int at, int channel) {
    return ((size_t)(at / LANES) * (size_t)s->model->config.head_dim + (size_t)channel) * LANES + (size_t)(at % LANES);
}
static size_t value_index(const l2p_session *s, int at, int channel) {
    return ((size_t)(channel / LANES) * (size_t)s->seq_len + (size_t)at) * LANES + (size_t)(channel % LANES);
}

int l2p_session_read(const l2p_session *session, int n, float *keys, float *values) {
    if (!session || !is_within(session, n) || !keys || !values) return L2P_BAD_ARGUMENT;
    const l2p_config *c = &session->model->config;
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    for (size_t head = 0; head < heads; head++) {
        const unsigned char *own_keys = session->keys + head * session->key_stride;
        const unsigned char *own_values = session->values + head * session->value_stride;
        for (int at = 0; at < n; at++)
            for (int channel = 0; channel < c->head_dim; channel++) {
                *keys++ = cache_get(c->cache_type, own_keys, key_index(session, at, channel));
                *values++ = cache_get(c->cache_type, own_values, value_index(session, at, channel));
            }
    }
    return L2P_OK;
}

int l2p_session_write(l2p_session *session, int n, const float *keys, const float *values) {
    if (!session || !is_within(session, n) || !keys || !values) return L2P_BAD_ARGUMENT;
    const l2p_config *c = &session->model->config;
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    for (size_t head = 0; head < heads; head++) {
        unsigned char *own_keys = session->keys + head * session->key_stride;
        unsigned char *own_values = session->values + head * session->value_stride;
        for (int at = 0; at < n; at++)
            for (int channel = 0; channel < c->head_dim; channel++) {
                cache_put(c->cache_type, own_keys, key_index(session, at, channel), *keys++);
                cache_put(c->cache_type, own_values, value_index(session, at, channel), *values++);
            }
    }
    return L2P_OK;
}

void l2p_model_digest(const l2p_model *model, uint64_t *out) {
    if (!model || !out) return;
    const size_t words = model->packed_bytes / sizeof(uint64_t), rest = model->packed_bytes % sizeof(uint64_t);
    uint64_t lanes[4] = {1, 2, 3, 4}; /* four independent chains hide the latency of the multiplications */
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, model->arena + i * sizeof word, sizeof word);
        uint64_t *lane = &lanes[i & 3];
        *lane = (*lane ^ word) * 0x9E3779B97F4A7C15u;
        *lane ^= *lane >> 29; /* a multiplication moves bits only upwards */
    }
    uint64_t last = 0;
    memcpy(&last, model->arena + words * sizeof last, rest);
    lanes[0] = (lanes[0] ^ last) * 0x9E3779B97F4A7C15u;
    memcpy(out, lanes, sizeof lanes);
}
