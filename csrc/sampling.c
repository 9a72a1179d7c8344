/* Choosing the next token. The policy (which temperature, whose coin) is Python's. */
#include "kernels.h"

int32_t l2p_argmax(const l2p_model *model, const float *logits, int n) { return model->kernels->argmax(logits, n); }

/* the first index whose running sum exceeds the coin, else the last */
static int32_t draw(const float *p, int n, float coin) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) {
        sum += p[i];
        if (coin < sum) return i;
    }
    return n - 1;
}

/* Order of the candidates: the more probable first, of equals the lower index. */
static int before(const float *p, int32_t a, int32_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); }

/* heap[0..n) is a heap but for heap[at]: let it sink to its place */
static void sink(const float *p, int32_t *heap, int n, int at) {
    const int32_t moved = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(p, heap[child + 1], heap[child])) child++;
        if (!before(p, heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

enum { STRIDE = 128 }; /* tokens that are passed over together where all of them are improbable, as most are */

/* Those of n tokens that can be among the most probable ones whose sum exceeds top_p, into heap[]: how many. Of the
 * terms, which divided by their sum are the probabilities, only theirs are divided. */
static int sieve(const Kernels *kernels, float *terms, int n, float sum, float top_p, int32_t *heap) {
    /* What is below this cannot be among them: it and all below would sum up to less than 1 - top_p. */
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

/* The smallest set of most probable tokens whose sum exceeds top_p, then one of them, of the `size` in heap[]. A heap
 * gives them in order without sorting the rest: most often a handful of 32000 is taken. */
static int32_t draw_top_p(const float *p, int size, float top_p, float coin, int32_t *heap) {
    for (int at = size / 2 - 1; at >= 0; at--) sink(p, heap, size, at);

    /* Taken candidates go to the end of the array, where the shrinking heap leaves room: most probable last. */
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
    const FloatKernels *floats = model->kernels->for_the_rest;
    if (top_p <= 0.0f || top_p >= 1.0f || n == 1) {
        floats->softmax(logits, n, temperature);
        return draw(logits, n, coin);
    }
    const float sum = floats->exps(logits, n, temperature);
    const int size = sieve(model->kernels, logits, n, sum, top_p, scratch);
    if (size > 0) return draw_top_p(logits, size, top_p, coin, scratch);
    /* So flat, and top_p so small, that nothing is left (or all is NaN): a set of one. */
    for (int i = 0; i < n; i++) logits[i] /= sum;
    return model->kernels->argmax(logits, n);
}
