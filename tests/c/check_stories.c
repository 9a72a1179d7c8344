/* `stories`: eight threads tell stories with one model, each the same story as a thread alone. */
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "feeding.h"
#include "parts.h"

enum { TELLERS = 8, STORIES = 8, STORY = 12, BEGINNING = 12, CLOSE_CALLS = 40 };

typedef struct {
    int32_t tokens[STORY];
    uint64_t hash; /* of all its logits, if they are computed */
} Story;

typedef struct {
    const Synthetic *s;
    const l2p_model *model;
    l2p_session *trunk; /* has run the beginning that all stories share; it does not change */
    Story want[STORIES];
    atomic_int telling;
} Library;

typedef struct {
    Library *library;
    int number;
} Teller;

/* A seeded coin in [0, 1), of the story alone */
static float coin(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) * 0x1p-24f;
}

/* Story `seed`: its beginning is run at once or copied from the trunk; then it goes on token by token, each drawn from
 * the logits that a call returns, or by the call itself. There are three ways to draw. */
static Story tell(const Library *library, int seed, int n_threads, int copied, int drawing) {
    const int vocab = library->s->config.vocab_size;
    const l2p_draw greedy = {.n_tokens = vocab};
    Story story = {.hash = 0xcbf29ce484222325u};
    uint64_t state = (uint64_t)seed;
    l2p_session *session = l2p_session_new(library->model), *sessions[BEGINNING];
    float *logits = malloc((size_t)vocab * sizeof *logits);
    int32_t *scratch = malloc((size_t)vocab * sizeof *scratch), tokens[BEGINNING], positions[BEGINNING];
    if (!session || !logits || !scratch) fail("no memory for a story");

    /* what is run next; the trunk's last token is run again for its logits */
    const int from = copied ? BEGINNING - 1 : 0;
    int n = BEGINNING - from;
    for (int i = 0; i < n; i++) {
        sessions[i] = session;
        tokens[i] = library->s->tokens[0][from + i];
        positions[i] = from + i;
    }
    if (copied) l2p_session_copy(session, library->trunk, from);
    for (int i = 0; i < STORY; i++, n = 1) {
        const int32_t row = n - 1;
        l2p_draw draw = greedy;
        if (seed % 3 != 2) {
            draw.temperature = 0.5f + 0.1f * (float)(seed % 7);
            draw.top_p = seed % 3 == 1 ? 1.0f : 0.9f;
            draw.coin = coin(&state);
        }
        const int32_t one_draw = 1;
        int32_t n_drawn;
        const l2p_batch batch = {.n_tokens = n,
                                 .tokens = tokens,
                                 .sessions = sessions,
                                 .positions = positions,
                                 .n_rows = 1,
                                 .rows = &row,
                                 .logits = drawing ? NULL : logits,
                                 .n_draws = &one_draw,
                                 .draws = &draw,
                                 .drawn = &story.tokens[i],
                                 .n_drawn = &n_drawn};
        CHECK(l2p_forward(library->model, &batch, n_threads, NULL) == L2P_OK);
        if (!drawing) {
            hash(&story.hash, logits, (size_t)vocab);
            story.tokens[i] = seed % 3 == 2 ? l2p_argmax(library->model, logits, vocab)
                                            : l2p_sample(library->model, logits, vocab, draw.temperature, draw.top_p,
                                                         draw.coin, scratch);
        }
        tokens[0] = story.tokens[i];
        positions[0] = BEGINNING + i;
    }
    l2p_session_free(session);
    free(logits), free(scratch);
    return story;
}

static void *teller_main(void *argument) {
    const Teller *teller = argument;
    Library *library = teller->library;
    for (int i = 0; i < STORIES; i++) {
        const int seed = (i + teller->number * 5) % STORIES; /* the threads are at different ones */
        const int drawing = (teller->number + i / 2) % 2;
        const Story told = tell(library, seed, 1 + (teller->number + i) % 3, i % 2, drawing),
                    *want = &library->want[seed];
        if (memcmp(told.tokens, want->tokens, sizeof told.tokens) != 0 || (!drawing && told.hash != want->hash))
            fail("thread %d tells another story %d than a thread alone", teller->number, seed);
    }
    atomic_fetch_sub(&library->telling, 1);
    return NULL;
}

static void check_library(l2p_config config, int weight_type, const char *name) {
    Synthetic s = synthesize(config);
    if (weight_type != config.weight_type) s.config.weight_type = weight_type; /* made of float32 while it is packed */
    Library library = {.s = &s, .model = pack(&s, best_isa(), 2)};
    now("stories of a %s model", name);
    library.trunk = l2p_session_new(library.model);
    CHECK(library.trunk != NULL);
    const Run run = {.s = &s, .model = (l2p_model *)library.model, .n_threads = 1};
    float *out = malloc((size_t)config.vocab_size * sizeof *out);
    for (int at = 0; at < BEGINNING; at++) CHECK(forward_one(&run, library.trunk, s.tokens[0][at], at, out) == L2P_OK);
    int different = 0;
    for (int seed = 0; seed < STORIES; seed++) {
        library.want[seed] = tell(&library, seed, 1, 0, 0);
        different += seed > 0 && library.want[seed].hash != library.want[seed - 1].hash;
    }
    CHECK(different > STORIES / 2);

    pthread_t threads[TELLERS];
    Teller tellers[TELLERS];
    library.telling = TELLERS;
    for (int i = 0; i < TELLERS; i++) {
        tellers[i] = (Teller){&library, i};
        if (pthread_create(&threads[i], NULL, teller_main, &tellers[i])) fail("no thread for the check");
    }
    for (int calls = 0; calls < CLOSE_CALLS && library.telling; calls++) l2p_release(), pause_us(2000);
    for (int i = 0; i < TELLERS; i++) pthread_join(threads[i], NULL);
    free(out);
    l2p_session_free(library.trunk);
    l2p_model_free((l2p_model *)library.model);
    free_synthetic(s);
}

void check_stories(void) {
    check_library(with_weights(BIG, 0), L2P_FLOAT32, "float32");
    check_library(with_weights(SHAPES[3], 0), L2P_BFLOAT16, "bfloat16");
    check_library(with_weights(SHAPES[2], 4), L2P_INT8, "int8");
    check_library(with_weights(SHAPES[2], 0), L2P_INT4, "int4");
    printf("stories\n");
}
