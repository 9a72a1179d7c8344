/* `errors`: wrong arguments come back as error codes, and leave everything usable. */
#define _GNU_SOURCE /* fileno */
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "feeding.h"
#include "parts.h"

/* A batch of two tokens of one session that gives logits of one, and draws two tokens after the other: fine, for checks
 * to spoil one thing of it each. */
typedef struct {
    int32_t tokens[2], positions[2], rows[3], n_draws[2], stop_tokens[1], drawn[4], n_drawn[2];
    l2p_session *sessions[2];
    l2p_draw draws[4];
    float logits[3 * 17];
    l2p_batch batch;
} Asked;

static Asked *asked_of(const Run *run, int drawing) {
    static Asked a;
    const l2p_draw fine = {.temperature = 1.0f, .top_p = 0.9f, .coin = 0.5f, .n_tokens = 3};
    a = (Asked){.tokens = {1, 2},
                .positions = {0, 1},
                .rows = {0, 1},
                .n_draws = {1, 2},
                .stop_tokens = {-1},
                .drawn = {-7, -7, -7, -7},
                .n_drawn = {-7, -7},
                .sessions = {run->sessions[0], run->sessions[0]},
                .draws = {fine, fine, fine, fine}};
    a.batch = (l2p_batch){.n_tokens = 2,
                          .tokens = a.tokens,
                          .sessions = a.sessions,
                          .positions = a.positions,
                          .n_rows = 2,
                          .rows = a.rows,
                          .logits = drawing ? NULL : a.logits,
                          .n_draws = drawing ? a.n_draws : NULL,
                          .draws = drawing ? a.draws : NULL,
                          .n_stop_tokens = drawing,
                          .stop_tokens = drawing ? a.stop_tokens : NULL,
                          .drawn = drawing ? a.drawn : NULL,
                          .n_drawn = drawing ? a.n_drawn : NULL};
    return &a;
}

/* Spoil one thing of a batch: it is refused, and nothing is written or run. */
#define REFUSED(drawing, SPOIL)                                                 \
    do {                                                                        \
        Asked *a = asked_of(run, drawing);                                      \
        SPOIL;                                                                  \
        CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_BAD_ARGUMENT); \
        for (int at = 0; at < 4; at++) CHECK(a->drawn[at] == -7);               \
        for (int at = 0; at < 2; at++) CHECK(a->n_drawn[at] == -7);             \
        for (int at = 0; at < 3 * 17; at++) CHECK(a->logits[at] == 0.0f);       \
    } while (0)

static void check_batches(Run *run, l2p_session *foreign) {
    const l2p_config *c = &run->s->config;
    now("l2p_forward's arguments");
    Batch ran = {0};
    add(&ran, 0, 0, LENGTHS[0]);
    feed(run, &ran, ran.n, "before what is refused");
    for (int drawing = 0; drawing <= 1; drawing++) {
        REFUSED(drawing, a->batch.n_tokens = 0);
        REFUSED(drawing, a->batch.n_tokens = -1);
        REFUSED(drawing, a->batch.n_tokens = INT32_MAX);
        REFUSED(drawing, a->batch.tokens = NULL);
        REFUSED(drawing, a->batch.sessions = NULL);
        REFUSED(drawing, a->batch.positions = NULL);
        REFUSED(drawing, a->batch.rows = NULL);
        REFUSED(drawing, a->batch.n_rows = -1);
        for (int i = 0; i < 2; i++) {
            REFUSED(drawing, a->tokens[i] = -1);
            REFUSED(drawing, a->tokens[i] = c->vocab_size);
            REFUSED(drawing, a->sessions[i] = NULL);
            REFUSED(drawing, a->sessions[i] = foreign);
            REFUSED(drawing, a->positions[i] = -1);
            REFUSED(drawing, a->positions[i] = INT32_MIN);
            REFUSED(drawing, a->positions[i] = c->seq_len);
            REFUSED(drawing, a->positions[i] = INT32_MAX);
            REFUSED(drawing, a->rows[i] = -1);
            REFUSED(drawing, a->rows[i] = 2);
        }
    }
    static const int32_t below[] = {0, -1, INT32_MIN};
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 3; k++) REFUSED(1, a->n_draws[i] = below[k]);
        REFUSED(1, a->n_draws[i] = INT32_MAX);
        REFUSED(1, a->n_draws[i] = c->seq_len - i + 1);
    }
    REFUSED(1, a->positions[1] = c->seq_len - 1);    /* the second draw's token is past the end */
    REFUSED(1, a->n_draws[0] = 2);                   /* of a token that is not the last of its session */
    REFUSED(1, (a->rows[0] = 1, a->n_draws[0] = 1)); /* is in the rows twice, and draws more than one token */
    REFUSED(1, (a->rows[0] = 1, a->n_draws[0] = 2, a->n_draws[1] = 1));
    REFUSED(1, a->batch.n_draws = NULL);
    REFUSED(1, a->batch.draws = NULL);
    REFUSED(1, a->batch.drawn = NULL);
    REFUSED(1, a->batch.n_drawn = NULL);
    REFUSED(1, a->batch.stop_tokens = NULL);
    REFUSED(1, a->batch.n_stop_tokens = -1);
    const int32_t bad_counts[] = {0, -1, INT32_MIN, c->vocab_size + 1, INT32_MAX};
    for (size_t i = 0; i < sizeof bad_counts / sizeof bad_counts[0]; i++)
        for (int draw = 0; draw < 3; draw++)
            for (int greedy = 0; greedy <= 1; greedy++)
                REFUSED(1,
                        (a->draws[draw].n_tokens = bad_counts[i], a->draws[draw].temperature = greedy ? 0.0f : 1.0f));
    Batch end = {0};
    add(&end, 0, LENGTHS[0] - 1, LENGTHS[0]);
    feed(run, &end, 0, "after what was refused");

    now("the bounds themselves");
    Asked *a = asked_of(run, 1);
    a->draws[0].n_tokens = 1;
    a->draws[1].n_tokens = c->vocab_size;
    a->positions[1] = c->seq_len - 2;
    CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_OK);
    CHECK(a->drawn[0] == 0 && a->drawn[1] >= 0 && a->drawn[1] < c->vocab_size && a->drawn[2] >= 0 && a->drawn[3] == -7);
    CHECK(a->n_drawn[0] == 1 && a->n_drawn[1] == 2);
    a = asked_of(run, 1); /* the same row twice, one draw each */
    a->rows[0] = 1;
    a->n_draws[1] = 1;
    CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_OK && a->drawn[0] == a->drawn[1] && a->drawn[2] == -7);
    a = asked_of(run, 1); /* no rows: neither logits nor draws */
    a->batch.n_rows = 0;
    a->batch.rows = NULL;
    CHECK(l2p_forward(run->model, &a->batch, 1, NULL) == L2P_OK && a->drawn[0] == -7 && a->n_drawn[0] == -7);
}
#undef REFUSED

static l2p_model *new_model(const l2p_config *config) {
    l2p_model *model = NULL;
    CHECK(l2p_model_new(config, best_isa(), &model) == L2P_OK && model);
    return model;
}

static void check_configs(int n_isas) {
    now("l2p_model_new's arguments");
    l2p_model *model = (l2p_model *)&model; /* not NULL */
    const l2p_config good = with_weights(SHAPES[1], 4);
#define REFUSED(config, isa, error)                                     \
    do {                                                                \
        CHECK(l2p_model_new(config, isa, &model) == (error) && !model); \
        model = (l2p_model *)&model;                                    \
    } while (0)
    REFUSED(&good, -1, L2P_BAD_ARGUMENT);
    REFUSED(&good, n_isas, L2P_BAD_ARGUMENT);
    REFUSED(NULL, best_isa(), L2P_BAD_ARGUMENT);
    CHECK(l2p_model_new(&good, best_isa(), NULL) == L2P_BAD_ARGUMENT);
    for (int isa = 0; isa < n_isas; isa++)
        if (!l2p_isa_supported(isa)) REFUSED(&good, isa, L2P_UNSUPPORTED);
    CHECK(l2p_packed_bytes(&good) > 0 && l2p_packed_bytes(NULL) == -1);
    static const int32_t bad_sizes[] = {0, -1, INT32_MIN, INT32_MAX};
    for (size_t size = 0; size < 8; size++) /* dim to seq_len */
        for (size_t i = 0; i < sizeof bad_sizes / sizeof bad_sizes[0]; i++) {
            l2p_config bad = good;
            (&bad.dim)[size] = bad_sizes[i];
            now("number %zu of a config is %d", size, bad_sizes[i]);
            CHECK(l2p_packed_bytes(&bad) == -1);
            REFUSED(&bad, best_isa(), L2P_BAD_ARGUMENT);
        }
    enum { N_BAD = 16 };
    const int32_t windows[] = {0, -1};
    l2p_config bad[N_BAD];
    for (int i = 0; i < N_BAD; i++) bad[i] = good;
    bad[0].n_kv_heads = 4; /* of 6 heads */
    bad[1].head_dim = 5;
    bad[2].weight_type = -1;
    bad[3].weight_type = L2P_FLOAT16;
    bad[4].cache_type = L2P_INT8;
    bad[5].group_size = 0;
    bad[6].group_size = -1, bad[6].weight_type = L2P_FLOAT32;
    bad[7].n_heads = bad[7].n_kv_heads = 1 << 27, bad[7].head_dim = 32;                  /* 2^32 rows */
    bad[8].dim = bad[8].hidden_dim = bad[8].n_layers = 1 << 28;                          /* 2^86 bytes of weights */
    bad[9].seq_len = bad[9].n_layers = 1 << 28, bad[9].n_heads = bad[9].n_kv_heads = 64; /* or of keys */
    bad[10].steps = L2P_ALL_STEPS + 1;
    bad[11].steps = L2P_HEAD_NORM | L2P_ALL_NORM;
    bad[12].steps = L2P_NO_PRE_NORM; /* and no other norm */
    bad[13].windows = windows;
    bad[14].rotary_dim = 5;
    bad[15].rotary_dim = good.head_dim + 2;
    for (int i = 0; i < N_BAD; i++) {
        now("config %d that is no model's", i);
        CHECK(l2p_packed_bytes(&bad[i]) == -1);
        REFUSED(&bad[i], best_isa(), L2P_BAD_ARGUMENT);
    }
    now("a model that no memory could hold");
    l2p_config huge = with_weights(SHAPES[1], 0);
    huge.dim = huge.hidden_dim = 1 << 24;
    CHECK(l2p_packed_bytes(&huge) > (1LL << 50));
    REFUSED(&huge, best_isa(), L2P_NO_MEMORY);
#undef REFUSED
}

static void check_sessions(Run *run, l2p_session *foreign) {
    now("the sessions' arguments");
    const l2p_config *c = &run->s->config;
    l2p_session *const own = run->sessions[0];
    l2p_session *other = l2p_session_new(run->model);
    const size_t all = (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)c->seq_len * (size_t)c->head_dim;
    Guarded keys = guarded_floats(all), values = guarded_floats(all), more = guarded_floats(all);
    CHECK(other && l2p_session_new(NULL) == NULL);
    static const int bad_counts[] = {-1, INT32_MIN, INT32_MAX};
    for (int i = 0; i <= 3; i++) {
        const int n = i < 3 ? bad_counts[i] : c->seq_len + 1;
        CHECK(l2p_session_copy(other, own, n) == L2P_BAD_ARGUMENT);
        CHECK(l2p_session_read(own, n, floats(keys), floats(values)) == L2P_BAD_ARGUMENT);
        CHECK(l2p_session_write(other, n, floats(keys), floats(values)) == L2P_BAD_ARGUMENT);
    }
    CHECK(l2p_session_copy(NULL, own, 1) == L2P_BAD_ARGUMENT && l2p_session_copy(other, NULL, 1) == L2P_BAD_ARGUMENT);
    CHECK(l2p_session_copy(own, own, 1) == L2P_BAD_ARGUMENT && l2p_session_copy(foreign, own, 1) == L2P_BAD_ARGUMENT);
    CHECK(l2p_session_read(NULL, 1, floats(keys), floats(values)) == L2P_BAD_ARGUMENT);
    CHECK(l2p_session_read(own, 1, NULL, floats(values)) == L2P_BAD_ARGUMENT);
    CHECK(l2p_session_read(own, 1, floats(keys), NULL) == L2P_BAD_ARGUMENT);
    CHECK(l2p_session_write(NULL, 1, floats(keys), floats(values)) == L2P_BAD_ARGUMENT);
    CHECK(l2p_session_write(other, 1, NULL, floats(values)) == L2P_BAD_ARGUMENT);
    CHECK(l2p_session_write(other, 1, floats(keys), NULL) == L2P_BAD_ARGUMENT);
    CHECK(is_canary(keys.array, keys.bytes) && is_canary(values.array, values.bytes));

    now("all of a session's positions"); /* the bound itself is fine */
    CHECK(l2p_session_copy(other, own, 0) == L2P_OK && l2p_session_copy(other, own, c->seq_len) == L2P_OK);
    CHECK(l2p_session_read(own, c->seq_len, floats(keys), floats(values)) == L2P_OK);
    CHECK(l2p_session_read(other, c->seq_len, floats(more), floats(values)) == L2P_OK);
    CHECK(memcmp(keys.array, more.array, keys.bytes) == 0);
    for (size_t i = 0; i < all; i++) floats(more)[i] = (float)i;
    CHECK(l2p_session_write(other, c->seq_len, floats(more), floats(more)) == L2P_OK);
    CHECK(l2p_session_read(other, c->seq_len, floats(keys), floats(values)) == L2P_OK);
    CHECK(memcmp(keys.array, more.array, keys.bytes) == 0 && memcmp(values.array, more.array, keys.bytes) == 0);
    unguard(keys), unguard(values), unguard(more);
    l2p_session_free(other);
}

void check_errors(void) {
    now("the list of instruction sets");
    int count = 0;
    while (l2p_isa_name(count)) count++;
    CHECK(count >= 1 && strcmp(l2p_isa_name(count - 1), "portable") == 0 && l2p_isa_supported(count - 1));
    CHECK(l2p_isa_name(-1) == NULL && l2p_isa_name(count + 5) == NULL);
    CHECK(!l2p_isa_supported(-1) && !l2p_isa_supported(count));
    check_configs(count);

    for (int group = 0; group <= 4; group += 4) {
        const Synthetic s = synthesize(with_weights(SHAPES[1], group));
        Run run = start_run(&s, best_isa(), 1), other = start_run(&s, best_isa(), 1);
        const l2p_config *c = &s.config;
        now("l2p_model_set");
        const int type = group ? L2P_INT8 : L2P_FLOAT32;
        const float values[301 * 36] = {[1] = NAN, [5] = INFINITY, [7] = -INFINITY};
        int64_t bad = 10;
        CHECK(l2p_model_set(other.model, L2P_WQ, -1, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, c->n_layers, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, -1, 0, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, N_TENSORS, 0, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, -1, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, L2P_INT4, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, L2P_FLOAT16 + 1, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, 0, L2P_INT8, values, NULL, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_BQ, 0, L2P_FLOAT32, values, NULL, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_RMS_Q_WEIGHT, 0, L2P_FLOAT32, values, NULL, 1, &bad) == L2P_BAD_ARGUMENT);
        l2p_config narrow = *c;
        narrow.weight_type = L2P_INT4;
        l2p_model *int4 = new_model(&narrow);
        CHECK(l2p_model_set(int4, L2P_WQ, 0, L2P_INT4, values, NULL, 1, &bad) == L2P_BAD_ARGUMENT);
        l2p_model_free(int4);
        CHECK(bad == 10);
        CHECK(l2p_model_set(other.model, L2P_RMS_FINAL_WEIGHT, 0, L2P_FLOAT32, values, NULL, 1, &bad) == L2P_OK &&
              bad == 13);
        CHECK(l2p_model_set(other.model, L2P_W1, 1, type, values, values, 3, &bad) == L2P_OK);
        /* of int8, the scales are what can be non-finite; group 4: each of the first 8 stands for one group */
        CHECK(bad == 16);
        now("l2p_model_read");
        FILE *file = tmpfile();
        CHECK(file && fwrite(values, sizeof values, 1, file) == 1 && fflush(file) == 0);
        const int fd = fileno(file);
        uint64_t from_memory[4], from_file[4];
        l2p_model_digest(other.model, from_memory);
        CHECK(l2p_model_read(other.model, L2P_W1, 1, type, fd, 0, values, 3, &bad) == L2P_OK && bad == 19);
        l2p_model_digest(other.model, from_file);
        CHECK(memcmp(from_memory, from_file, sizeof from_file) == 0);
        CHECK(l2p_model_read(other.model, L2P_W1, 1, type, fd, sizeof values - 9, values, 3, &bad) == L2P_READ_FAILED);
        CHECK(l2p_model_read(other.model, L2P_W1, 1, type, -1, 0, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_read(other.model, L2P_W1, 1, type, fd, -1, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_read(other.model, L2P_W1, 1, L2P_INT8, fd, 0, NULL, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_read(other.model, L2P_RMS_FINAL_WEIGHT, 0, L2P_FLOAT32, fd, 0, NULL, 1, &bad) ==
              L2P_BAD_ARGUMENT);
        fclose(file);
        l2p_config shared = *c;
        shared.shared_classifier = 1;
        l2p_model *small = new_model(&shared);
        CHECK(l2p_model_set(small, L2P_WCLS, 0, type, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        l2p_model_free(small);

        check_batches(&run, other.sessions[0]);
        check_sessions(&run, other.sessions[0]);
        static const int odd_threads[] = {0, -1, INT32_MIN, 300, INT32_MAX};
        for (size_t i = 0; i < sizeof odd_threads / sizeof odd_threads[0]; i++) {
            now("l2p_forward with n_threads = %d", odd_threads[i]);
            run.n_threads = odd_threads[i];
            Batch batch = {0};
            add(&batch, 0, 0, LENGTHS[0]);
            feed(&run, &batch, 30, "an odd number of threads");
        }
        l2p_release(); /* 255 threads would slow down all that follows */
        run.n_threads = 2;
        feed_prompts(&run);
        end_run(&run), end_run(&other);
        free_synthetic(s);
    }
    now("freeing nothing");
    l2p_model_free(NULL);
    l2p_session_free(NULL);
    printf("errors\n");
}
