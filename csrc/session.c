/* Sessions: the memory of one conversation's keys and values, and a copy of it. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

l2p_session *l2p_session_new(const l2p_model *model) {
    const l2p_config *c = &model->config;
    l2p_session *session = calloc(1, sizeof *session);
    if (!session) return NULL;
    session->model = model;
    session->seq_len = (int)round_up(c->seq_len, LANES);
    session->key_stride = (size_t)session->seq_len * (size_t)c->head_dim * bytes_of(c->cache_type);
    session->value_stride = (size_t)session->seq_len * (size_t)round_up(c->head_dim, LANES) * bytes_of(c->cache_type);
    const size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    session->bytes = heads * (session->key_stride + session->value_stride);
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
    const size_t position = LANES * bytes_of(c->cache_type);                      /* of a block of channels */
    const size_t key_bytes = (size_t)blocks_of(n) * (size_t)c->head_dim * position; /* whole blocks of positions */
    const size_t channels = (size_t)from->seq_len * position;                       /* a block of them, all positions */
    for (size_t head = 0; head < heads; head++) {
        const size_t keys = head * from->key_stride, values = head * from->value_stride;
        memcpy(to->keys + keys, from->keys + keys, key_bytes);
        for (size_t at = 0; at < from->value_stride; at += channels)
            memcpy(to->values + values + at, from->values + values + at, (size_t)n * position);
    }
}
