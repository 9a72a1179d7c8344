/* Drawing a token from logits. Temperature, top-p and coin are the caller's. */
#include "kernels.h"

int32_t l2p_argmax(const l2p_model *model, const float *logits, int n) {
    return model && logits && n > 0 ? model->kernels->argmax(logits, n) : -1;
}

/* The first index at which the running sum exceeds the coin, or the last index */
static int32_t draw(const float *p, int n, float coin) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) {
        sum += p[i];
        if (coin < sum) return i;
    }
    return n - 1;
}

/* The order of candidates: the more probable one first; of equals, the lower index. */
static int before(const float *p, int32_t a, int32_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); }

/* heap[0..n) is a heap except for heap[at]: sink that to its place. */
static void sink(const float *p, int32_t *heap, int n, int at) {
    const int32_t moved = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(p, heap[child + 1], heap[child])) child++;
        if (!before(p, heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

enum { STRIDE = 128 }; /* tokens that are skipped together if all of them are improbable, as most are */

/* Put the tokens that can be in the set of most probable ones into heap[], and return how many they are. Terms divided
 * by their sum are probabilities; only those tokens' terms are divided. */
static int sieve(const Kernels *kernels, float *terms, int n, float sum, float top_p, int32_t *heap) {
    /* A token below the cutoff cannot be in the set: all such tokens together have less than 1 - top_p. */
    const float cutoff = (1.0f - top_p) / (float)(n - 1);
    const float surely_below = cutoff * sum * 0.999f;
    int size = 0;
    for (int32_t first = 0; first < n; first += STRIDE) {
        const int end = n - first < STRIDE ? n : first + STRIDE;
        if (!(kernels->max_from(0.0f, terms + first, end - first) >= surely_below)) continue;
        for (int32_t i = first; i < end; i++) {
            if (terms[i] < surely_below) continue;
            terms[i] /= sum;
            if (terms[i] >= cutoff) heap[size++] = i;
        }
    }
    return size;
}

/* Take the most probable of the `size` tokens in heap[] until their sum exceeds top_p, and draw one of them. A heap
 * gives them in order without sorting the rest: usually a handful of 32000 is taken. */
static int32_t draw_top_p(const float *p, int size, float top_p, float coin, int32_t *heap) {
    for (int at = size / 2 - 1; at >= 0; at--) sink(p, heap, size, at);

    /* Candidates that are taken go to the end of the array, which the shrinking heap leaves free: most probable
     * last. */
    const int last = size - 1;
    float sum = 0.0f;
    while (size > 0) {
        const int32_t taken = heap[0];
        heap[0] = heap[--size];
        sink(p, heap, size, 0);
        heap[size] = taken;
        sum += p[taken];
        if (sum > top_p) break;
    }
    const float target = coin * sum;
    float running = 0.0f;
    for (int i = last; i >= size; i--) {
        running += p[heap[i]];
        if (target < running) return heap[i];
    }
    return heap[size];
}

int32_t l2p_sample(const l2p_model *model, float *logits, int n, float temperature, float top_p, float coin,
                   int32_t *scratch) {
    if (!model || !logits || !scratch || n < 1) return -1;
    const FloatKernels *floats = model->kernels->for_the_rest;
    if (top_p <= 0.0f || top_p >= 1.0f || n == 1) {
        floats->softmax(logits, n, temperature);
        return draw(logits, n, coin);
    }
    const float sum = floats->exps(logits, n, temperature);
    const int size = sieve(model->kernels, logits, n, sum, top_p, scratch);
    if (size > 0) return draw_top_p(logits, size, top_p, coin, scratch);
    /* The logits are so flat and top_p so small that the set is empty, or all are NaN: take the most probable token. */
    for (int i = 0; i < n; i++) logits[i] /= sum;
    return model->kernels->argmax(logits, n);
}
