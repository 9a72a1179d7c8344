/* Checks of the C engine without Python: a stand-alone program linked with csrc's sources. Each part asks one thing:
 *
 *   fork     a child of fork() can compute, whatever the other threads of its parent were doing
 *   errors   wrong arguments come back as error codes, and leave everything usable
 *   kernels  each kernel alone against plain scalar loops, at sizes around the vector's width
 *   models   l2p_forward against a naive transformer; the same bits for any batch, thread count and instruction set
 *   threads  pool, turns, cancelling and l2p_release, several callers at once
 *
 * `kernel_check [part...]` runs some parts, or all. `models` prints a line per instruction set and weight type, with a
 * hash of all logits, so that the outputs of two machines can be compared. The first failure ends the program with
 * one line and exit code 1. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernels.h"

/* ---- failing ---- */

static char doing[256]; /* what a failure is blamed on */

static void now(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(doing, sizeof doing, format, arguments);
    va_end(arguments);
}

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "kernel_check: %s: ", doing);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1); /* other threads may be running */
}

#define CHECK(condition) ((condition) ? (void)0 : fail("line %d: expected %s", __LINE__, #condition))

static void on_signal(int number) { /* guard pages end here; only what a signal handler may call */
    const char *what = number == SIGILL ? "an illegal instruction\n" : "it touched memory outside of its arrays\n";
    if (write(2, "kernel_check: ", 14) < 0 || write(2, doing, strlen(doing)) < 0 || write(2, ": ", 2) < 0 ||
        write(2, what, strlen(what)) < 0)
        _exit(2);
    _exit(1);
}

static void pause_us(long microseconds) {
    nanosleep(&(struct timespec){0, microseconds * 1000}, NULL);
}

/* ---- numbers ---- */

static uint64_t lcg_state;

static uint32_t random_u32(void) { /* Knuth's MMIX generator; its high bits are the good ones */
    lcg_state = lcg_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(lcg_state >> 32);
}

static float random_float(void) { /* in [-1, 1), a multiple of 2^-23: the same on every machine */
    return (float)(random_u32() >> 8) * 0x1p-23f - 1.0f;
}

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = random_float();
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The same bits, or both NaN: which NaN an operation gives is the machine's affair. */
static int same(float a, float b) { return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b)); }

/* FNV-1a over the bits, low byte first */
static void hash(uint64_t *h, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (int byte = 0; byte < 4; byte++) *h = (*h ^ (bits_of(x[i]) >> (8 * byte) & 0xff)) * 0x100000001b3u;
}

static int greatest_common_divisor(int a, int b) { return b ? greatest_common_divisor(b, a % b) : a; }

/* ---- guarded arrays: flush with a page that must not be touched, canaries before ---- */

enum { CANARY = 0xfe }; /* as a float -1.7e38: no kernel gives it, and it ruins every sum it gets into */

typedef struct {
    unsigned char *pages, *array;
    size_t bytes, mapped, page;
} Guarded;

static Guarded guarded(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    Guarded g = {.bytes = bytes, .page = page, .mapped = (size_t)round_up((int64_t)bytes + 64, (int64_t)page) + page};
    g.pages = mmap(NULL, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.pages == MAP_FAILED || mprotect(g.pages + g.mapped - page, page, PROT_NONE)) fail("no memory for the check");
    memset(g.pages, CANARY, g.mapped - page);
    g.array = g.pages + g.mapped - page - bytes;
    return g;
}

static Guarded guarded_floats(size_t n) { return guarded(n * sizeof(float)); }
static float *floats(Guarded g) { return (float *)(void *)g.array; }

static int is_canary(const void *memory, size_t bytes) { /* the first byte is one, and each is like its neighbour */
    const unsigned char *at = memory;
    return bytes == 0 || (at[0] == CANARY && memcmp(at, at + 1, bytes - 1) == 0);
}

static void unguard(Guarded g) {
    if (!is_canary(g.pages, (size_t)(g.array - g.pages))) fail("wrote in front of an array");
    munmap(g.pages, g.mapped);
}

/* ---- kernels alone ---- */

static const int SIZES[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 100, 255, 256, 257};
enum { N_SIZES = sizeof SIZES / sizeof SIZES[0] };

static float multiply_add(int numerics, float a, float b, float c) {
    return numerics == FUSED ? fmaf(a, b, c) : c + a * b;
}

static void check_rmsnorm(const FloatKernels *kernels) {
    for (int s = 0; s < N_SIZES; s++) {
        const int n = SIZES[s];
        Guarded x = guarded_floats((size_t)n), weight = guarded_floats((size_t)n), out = guarded_floats((size_t)n);
        fill(floats(x), (size_t)n);
        fill(floats(weight), (size_t)n);
        now("rmsnorm of %d", n);
        /* left to right, or 16 partial sums and a tree that adds halves: the numerics contract, bit by bit */
        float partial[LANES] = {0}, sum = 0.0f;
        for (int i = 0; i < n; i++) {
            const float v = floats(x)[i];
            if (kernels->numerics == EXACT)
                sum += v * v;
            else
                partial[i % LANES] = fmaf(v, v, partial[i % LANES]);
        }
        for (int half = LANES / 2; half; half /= 2)
            for (int i = 0; i < half; i++) partial[i] += partial[i + half];
        if (kernels->numerics == FUSED) sum = partial[0];
        const float scale = 1.0f / sqrtf(sum / (float)n + 1e-5f);
        kernels->rmsnorm(floats(out), floats(x), floats(weight), n, 1e-5f);
        for (int i = 0; i < n; i++) CHECK(same(floats(out)[i], floats(weight)[i] * (scale * floats(x)[i])));
        unguard(x), unguard(weight), unguard(out);
    }
}

/* How far `got` is from `want`, in units of the last place of a float near `want` */
static double ulps(double got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs(got - want) / ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

static void check_softmax(const FloatKernels *kernels) {
    const float divisor = 2.5f;
    for (int s = 0; s < N_SIZES; s++) {
        const int n = SIZES[s];
        float in[257], want[257], max = -INFINITY, sum = 0.0f;
        double exact[257], exact_sum = 0.0;
        Guarded x = guarded_floats((size_t)n);
        fill(in, (size_t)n);
        for (int i = 0; i < n; i++) in[i] *= 20.0f;
        in[random_u32() % (uint32_t)n] = 21.0f; /* the maximum, at any place */
        memcpy(floats(x), in, (size_t)n * sizeof(float));
        for (int i = 0; i < n; i++) max = fmaxf(max, in[i] / divisor);
        for (int i = 0; i < n; i++) {
            sum += want[i] = expf(in[i] / divisor - max);
            exact_sum += exact[i] = exp((double)(in[i] / divisor - max));
        }
        now("softmax of %d", n);
        kernels->softmax(floats(x), n, divisor);
        for (int i = 0; i < n; i++)
            if (kernels->numerics == EXACT)
                CHECK(same(floats(x)[i], want[i] / sum));
            else
                CHECK(ulps(floats(x)[i], exact[i] / exact_sum) < 8.0);
        unguard(x);
    }
    now("softmax of what is not a number");
    float nan_first[] = {NAN, 1.0f, 2.0f}, nan_later[20] = {[18] = NAN}, infinite[] = {0.0f, -INFINITY};
    kernels->softmax(nan_first, 3, 1.0f);
    kernels->softmax(nan_later, 20, 1.0f);
    kernels->softmax(infinite, 2, 1.0f);
    for (int i = 0; i < 3; i++) CHECK(isnan(nan_first[i]));
    for (int i = 0; i < 20; i++) CHECK(isnan(nan_later[i]));
    CHECK(infinite[0] == 1.0f && infinite[1] == 0.0f);
}

/* exp(t) bare: beside a 0 the sum of softmax is 1 + exp(t), which is 1 below -17.4 */
static void check_exp(const FloatKernels *kernels) {
    double worst = 0.0;
    for (int i = 0; i < 200000; i += LANES) {
        float t[LANES], x[2 * LANES];
        for (int lane = 0; lane < LANES; lane++) t[lane] = -87.3f + (float)(i + lane) * (69.0f / 200000);
        for (int lane = 0; lane < LANES; lane++) { /* each alone beside its 0, at every place of a vector in turn */
            if (lane != i / LANES % LANES) continue;
            for (int k = 0; k < 2 * LANES; k++) x[k] = -INFINITY;
            x[0] = 0.0f;
            x[LANES + lane] = t[lane];
            now("exp of %.9g", (double)t[lane]);
            kernels->softmax(x, 2 * LANES, 1.0f);
            CHECK(x[0] == 1.0f);
            worst = fmax(worst, ulps(x[LANES + lane], exp((double)t[lane])));
        }
    }
    now("exp, at worst %.3f units of the last place off", worst);
    CHECK(worst < 1.5);
    now("exp near 0");
    for (float t = -17.5f; t < 0.0f; t += 0.0037f) { /* here the two divisions by the sum round, too */
        float x[] = {0.0f, t};
        kernels->softmax(x, 2, 1.0f);
        const double e = exp((double)t);
        CHECK(ulps(x[1], e / (1.0 + e)) < 3.5);
    }
    now("exp of what is far below");
    float far[] = {0.0f, -88.5f, -104.0f, -1e30f, -INFINITY};
    kernels->softmax(far, 5, 1.0f);
    CHECK(far[0] == 1.0f && far[1] < 1.2e-38f && far[2] == 0.0f && far[3] == 0.0f && far[4] == 0.0f);
}

static void check_swiglu(const FloatKernels *kernels) {
    for (int blocks = 0; blocks <= 5; blocks++) {
        const size_t n = (size_t)blocks * LANES;
        Guarded in = guarded_floats(2 * n), out = guarded_floats(n);
        fill(floats(in), 2 * n);
        for (size_t i = 0; i < 2 * n; i++) floats(in)[i] *= 12.0f;
        now("swiglu of %d blocks", blocks);
        kernels->swiglu(floats(out), floats(in), blocks);
        for (size_t i = 0; i < n; i++) {
            const size_t at = i / LANES * 2 * LANES + i % LANES;
            const float gate = floats(in)[at], up = floats(in)[at + LANES];
            if (kernels->numerics == EXACT)
                CHECK(same(floats(out)[i], gate * (1.0f / (1.0f + expf(-gate))) * up));
            else
                CHECK(ulps(floats(out)[i], gate / (1.0 + exp(-(double)gate)) * up) < 5.0);
        }
        unguard(in), unguard(out);
    }
    now("swiglu of gates that overflow exp");
    float in[2 * LANES] = {-87.0f, -88.4f, -89.0f, -200.0f, 88.0f, 200.0f, NAN, 0.0f}, out[LANES];
    for (int i = 0; i < LANES; i++) in[LANES + i] = 1.0f;
    in[LANES + 7] = NAN;
    kernels->swiglu(out, in, 1);
    CHECK(fabsf(out[0]) < 1.5e-36f && fabsf(out[1]) < 1e-36f && fabsf(out[2]) < 1e-36f && fabsf(out[3]) < 1e-36f);
    CHECK(out[4] == 88.0f && out[5] == 200.0f && isnan(out[6]) && isnan(out[7]) && out[8] == 0.0f);
}

/* A random matrix (rows, cols), row by row, and the same packed by the layout that engine.h describes */
typedef struct {
    Matrix m;
    Guarded packed;
    float *values; /* float32: (rows, cols) */
    int8_t *q;     /* int8: (rows, cols) */
    float *scales; /* int8: (rows, groups) */
} TestMatrix;

static TestMatrix test_matrix(int type, int rows, int cols, int group, int offset) {
    TestMatrix t = {.m = {.type = type, .rows = rows, .cols = cols, .blocks = (rows + LANES - 1) / LANES}};
    Matrix *m = &t.m;
    const size_t size = (size_t)rows * (size_t)cols;
    if (type == L2P_FLOAT32) {
        m->block_bytes = (size_t)cols * LANES * sizeof(float);
        t.packed = guarded(m->block_bytes * (size_t)m->blocks);
        memset(t.packed.array, 0, t.packed.bytes);
        t.values = malloc(size * sizeof(float));
        fill(t.values, size);
        float *packed = floats(t.packed);
        for (int row = 0; row < rows; row++)
            for (int k = 0; k < cols; k++)
                packed[((size_t)(row / LANES) * (size_t)cols + (size_t)k) * LANES + (size_t)(row % LANES)] =
                    t.values[(size_t)row * (size_t)cols + (size_t)k];
    } else {
        m->group = group;
        m->groups = cols / group;
        m->group_quads = (group + 3) / 4;
        const size_t quads_bytes = (size_t)m->group_quads * 4 * LANES, group_bytes = quads_bytes + 4 * LANES;
        m->block_bytes = (size_t)m->groups * group_bytes;
        t.packed = guarded(m->block_bytes * (size_t)m->blocks);
        memset(t.packed.array, 0, t.packed.bytes);
        t.q = malloc(size);
        t.scales = malloc((size_t)rows * (size_t)m->groups * sizeof(float));
        for (int row = 0; row < m->blocks * LANES; row++)
            for (int g = 0; g < m->groups; g++) {
                unsigned char *to = t.packed.array + (size_t)(row / LANES) * m->block_bytes + (size_t)g * group_bytes;
                for (int k = 0; k < m->group_quads * 4; k++) {
                    /* the extremes often: pairs of them saturate 16 bits where the arithmetic is careless */
                    const uint32_t r = random_u32() >> 8;
                    int8_t value = (int8_t)(r % 4 == 0 ? -128 : r % 4 == 1 ? 127 : (int)(r / 4 % 256) - 128);
                    if (row >= rows || k >= group) value = 0;
                    if (row < rows && k < group) t.q[(size_t)row * (size_t)cols + (size_t)(g * group + k)] = value;
                    to[k / 4 * 4 * LANES + row % LANES * 4 + k % 4] = (unsigned char)(value + offset);
                }
                const float scale = row < rows ? (random_float() + 1.5f) / 512.0f : 0.0f;
                if (row < rows) t.scales[(size_t)row * (size_t)m->groups + (size_t)g] = scale;
                memcpy(to + quads_bytes + (size_t)(row % LANES) * 4, &scale, 4);
            }
    }
    m->data = t.packed.array;
    return t;
}

static void free_test_matrix(TestMatrix t) {
    unguard(t.packed);
    free(t.values), free(t.q), free(t.scales);
}

/* One row times one vector, as the numerics contract has it */
static float dot(const TestMatrix *t, int numerics, int row, const float *x, const int8_t *q, const float *scales,
                 float start) {
    float sum = start;
    const Matrix *m = &t->m;
    if (m->type == L2P_FLOAT32) {
        const float *w = t->values + (size_t)row * (size_t)m->cols;
        for (int k = 0; k < m->cols; k++) sum = multiply_add(numerics, w[k], x[k], sum);
        return sum;
    }
    for (int g = 0; g < m->groups; g++) {
        int32_t whole = 0;
        for (int k = 0; k < m->group; k++)
            whole += t->q[(size_t)row * (size_t)m->cols + (size_t)(g * m->group + k)] * q[g * m->group_quads * 4 + k];
        sum += (float)whole * t->scales[(size_t)row * (size_t)m->groups + (size_t)g] * scales[g];
    }
    return sum;
}

/* matmul of n vectors with the blocks [begin, end) of a matrix, both modes; the gap between rows of out is canaries */
static void check_product(const Kernels *kernels, const TestMatrix *t, int begin, int end, int n, int gap) {
    const Matrix *m = &t->m;
    const int rows = m->rows < end * LANES ? m->rows : end * LANES, cols = m->cols;
    const size_t ld_x = (size_t)(cols + gap), ld_out = (size_t)(m->rows + gap);
    const size_t ld_q = (size_t)(m->groups * m->group_quads * 4), groups = (size_t)m->groups, vectors = (size_t)n;
    Guarded x = guarded_floats(ld_x * vectors - (size_t)gap), out = guarded_floats(ld_out * vectors - (size_t)gap);
    Guarded q = guarded(vectors * ld_q), scale = guarded_floats(vectors * groups);
    Guarded bias = guarded_floats(vectors * groups);
    Vectors in = {floats(x), ld_x, (int8_t *)q.array, floats(scale), (int32_t *)(void *)bias.array};
    memset(x.array, 0xff, x.bytes); /* NaN in the gaps */
    for (int i = 0; i < n; i++) {
        fill(floats(x) + (size_t)i * ld_x, (size_t)cols);
        if (m->type == L2P_INT8) {
            if (i % 2) /* the largest activations */
                for (int k = 0; k < cols; k++) floats(x)[(size_t)i * ld_x + (size_t)k] = k % 3 ? 1.0f : -1.0f;
            kernels->quantize(&in, i, floats(x) + (size_t)i * ld_x, m);
        }
    }
    const int numerics = kernels->for_float32->numerics;
    for (int mode = MATMUL_STORE; mode <= MATMUL_ADD; mode++) {
        for (int i = 0; i < n; i++)
            for (int row = begin * LANES; row < rows; row++)
                floats(out)[(size_t)i * ld_out + (size_t)row] = mode == MATMUL_ADD ? (float)(row - i) : NAN;
        now("%s matmul (%d, %d), group %d, blocks %d to %d, %d vectors, mode %d", kernels->name, m->rows, cols,
            m->group, begin, end, n, mode);
        kernels->matmul(m, begin, end, &in, n, floats(out), ld_out, mode);
        for (int i = 0; i < n; i++) {
            const float *o = floats(out) + (size_t)i * ld_out;
            for (int row = begin * LANES; row < rows; row++) {
                const float want = dot(t, numerics, row, in.f + (size_t)i * ld_x, in.q + (size_t)i * ld_q,
                                       in.scale + (size_t)i * groups, 0.0f);
                CHECK(same(o[row], mode == MATMUL_ADD ? (float)(row - i) + want : want));
            }
            CHECK(is_canary(o, (size_t)begin * LANES * sizeof(float)));
            if (i < n - 1) CHECK(is_canary(o + rows, (ld_out - (size_t)rows) * sizeof(float)));
        }
    }
    unguard(x), unguard(out), unguard(q), unguard(scale), unguard(bias);
}

static void check_matmul(const Kernels *kernels) {
    static const int rows[] = {1, 15, 16, 17, 239}; /* 239: more than a panel of 8 blocks */
    static const int counts[] = {1, 2, 3, 5, 7, 12, 23}; /* each size of tile, alone and in sums */
    static const struct {
        int type, cols, group;
    } kinds[] = {{L2P_FLOAT32, 1, 0}, {L2P_FLOAT32, 15, 0}, {L2P_FLOAT32, 16, 0}, {L2P_FLOAT32, 33, 0},
                 {L2P_INT8, 5, 1},    {L2P_INT8, 6, 3},     {L2P_INT8, 12, 4},    {L2P_INT8, 15, 5},
                 {L2P_INT8, 96, 32},  {L2P_INT8, 130, 65}};
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++)
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            TestMatrix t =
                test_matrix(kinds[kind].type, rows[r], kinds[kind].cols, kinds[kind].group, kernels->int8_offset);
            const int blocks = t.m.blocks;
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                check_product(kernels, &t, 0, blocks, counts[c], (int)c % 3);
                if (blocks > 1) check_product(kernels, &t, 1, blocks, counts[c], 1); /* a second thread's share */
                if (blocks > 9) check_product(kernels, &t, 2, 9, counts[c], 2);
            }
            check_product(kernels, &t, 0, 0, 1, 0); /* a thread without a share */
            free_test_matrix(t);
        }
}

/* The bare product of attention: blocks further apart than they are long, and sums computed in two parts */
static void check_matmul_f32(const FloatKernels *kernels) {
    static const int counts[] = {1, 2, 3, 5, 8, 13};
    for (int blocks = 1; blocks <= 9; blocks += blocks == 3 ? 5 : 1)
        for (int cols = 1; cols <= 17; cols += cols == 1 ? 14 : 1)
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                const int n = counts[c], rows = blocks * LANES;
                const size_t stride = (size_t)(cols + 1) * LANES, ld_x = (size_t)cols + 2, ld_out = (size_t)rows + 1;
                Guarded w = guarded_floats(stride * (size_t)blocks - LANES), x = guarded_floats(ld_x * (size_t)n - 2);
                Guarded out = guarded_floats(ld_out * (size_t)n - 1);
                memset(w.array, 0xff, w.bytes);
                memset(x.array, 0xff, x.bytes);
                for (int b = 0; b < blocks; b++) fill(floats(w) + (size_t)b * stride, (size_t)cols * LANES);
                for (int i = 0; i < n; i++) fill(floats(x) + (size_t)i * ld_x, (size_t)cols);
                for (int mode = MATMUL_STORE; mode <= MATMUL_CONTINUE; mode++) {
                    now("matmul_f32 of %d blocks, %d columns, %d vectors, mode %d", blocks, cols, n, mode);
                    for (int i = 0; i < n; i++)
                        for (int row = 0; row < rows; row++)
                            floats(out)[(size_t)i * ld_out + (size_t)row] = mode == MATMUL_STORE ? NAN : 0.75f;
                    kernels->matmul_f32(floats(w), stride, blocks, cols, floats(x), ld_x, n, floats(out), ld_out, mode);
                    for (int i = 0; i < n; i++) {
                        for (int row = 0; row < rows; row++) {
                            const float *wr = floats(w) + (size_t)(row / LANES) * stride + row % LANES;
                            const float *xi = floats(x) + (size_t)i * ld_x;
                            float sum = mode == MATMUL_CONTINUE ? 0.75f : 0.0f;
                            for (int k = 0; k < cols; k++)
                                sum = multiply_add(kernels->numerics, wr[k * LANES], xi[k], sum);
                            if (mode == MATMUL_ADD) sum = 0.75f + sum;
                            CHECK(same(floats(out)[(size_t)i * ld_out + (size_t)row], sum));
                        }
                        if (i < n - 1) CHECK(is_canary(floats(out) + (size_t)i * ld_out + rows, sizeof(float)));
                    }
                }
                unguard(w), unguard(x), unguard(out);
            }
}

/* Quantize as the second of three vectors; q, scale and bias must be these, padding 0, the neighbours untouched */
static void check_group(const Kernels *kernels, const float *values, int group, int groups) {
    const Matrix m = {.type = L2P_INT8, .cols = group * groups, .group = group, .groups = groups,
                      .group_quads = (group + 3) / 4};
    const size_t padded = (size_t)m.group_quads * 4, ld_q = padded * (size_t)groups, count = (size_t)groups;
    Guarded x = guarded_floats((size_t)m.cols), q = guarded(2 * ld_q), scale = guarded_floats(2 * count);
    Guarded bias = guarded_floats(2 * count);
    memcpy(x.array, values, x.bytes);
    const Vectors out = {NULL, 0, (int8_t *)q.array, floats(scale), (int32_t *)(void *)bias.array};
    kernels->quantize(&out, 1, floats(x), &m);
    for (int g = 0; g < groups; g++) {
        const float *group_of = values + g * group;
        float max = 0.0f;
        int finite = 1;
        for (int i = 0; i < group; i++) {
            max = fmaxf(max, fabsf(group_of[i]));
            finite &= isfinite(group_of[i]) != 0;
        }
        const float want_scale = finite ? max / 127.0f : NAN;
        int32_t sum = 0;
        for (int i = 0; i < (int)padded; i++) {
            /* roundf rounds halves away from zero; a scale below the normal numbers cannot be divided by */
            const int want = i < group && want_scale >= 0x1p-126f ? (int)roundf(group_of[i] / want_scale) : 0;
            CHECK(out.q[ld_q + (size_t)g * padded + (size_t)i] == want);
            sum += want;
        }
        CHECK(same(out.scale[count + (size_t)g], want_scale));
        CHECK(out.bias[count + (size_t)g] == -kernels->int8_offset * sum);
    }
    CHECK(is_canary(q.array, ld_q) && is_canary(scale.array, count * 4) && is_canary(bias.array, count * 4));
    unguard(x), unguard(q), unguard(scale), unguard(bias);
}

static void check_quantize(const Kernels *kernels) {
    float x[260];
    static const int groups[] = {1, 2, 3, 4, 5, 15, 16, 17, 32, 33, 64, 65};
    for (size_t s = 0; s < sizeof groups / sizeof groups[0]; s++) {
        now("%s quantize in groups of %d", kernels->name, groups[s]);
        fill(x, sizeof x / sizeof x[0]);
        for (int count = 1; count <= 4; count++) check_group(kernels, x, groups[s], count);
        memset(x, 0, sizeof x);
        check_group(kernels, x, groups[s], 3);
        x[0] = -0.0f;
        check_group(kernels, x, groups[s], 1);
        static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 1e-45f, -1e-40f, 1.1754944e-38f, 1.4e-36f,
                                    1.5e-36f, 3.4028235e38f, -3.4028235e38f};
        for (size_t k = 0; k < sizeof odd / sizeof odd[0]; k++) /* at the last place of the second of three groups */
            for (int rest = 0; rest < 2; rest++) {
                for (int i = 0; i < 260; i++) x[i] = rest ? random_float() * fminf(fabsf(odd[k]), 1.0f) : 0.0f;
                if (isnan(odd[k]))
                    for (int i = 0; i < 260; i++) x[i] = rest ? random_float() : 0.0f;
                x[2 * groups[s] - 1] = odd[k];
                check_group(kernels, x, groups[s], 3);
            }
    }
    for (int power = -100; power <= 100; power += 25) { /* the scale is this power of two, so that halves are exact */
        now("%s quantize ties at 2^%d", kernels->name, power);
        x[0] = ldexpf(127.0f, power);
        for (int i = 1; i < 260; i++) x[i] = ldexpf((float)(i % 254 - 127) + 0.5f, power);
        check_group(kernels, x, 260, 1);
        for (int i = 1; i < 260; i++) x[i] = nextafterf(x[i], i % 2 ? 0.0f : x[i] * 2); /* just below, just above */
        for (int i = 0; i < 260; i++) x[i] = fabsf(x[i]) > x[0] ? 0.0f : x[i];
        check_group(kernels, x, 260, 1);
    }
}

static void check_argmax(const Kernels *kernels) {
    for (int s = 0; s < N_SIZES; s++) {
        const int n = SIZES[s];
        Guarded g = guarded_floats((size_t)n);
        float *x = floats(g);
        now("%s argmax of %d", kernels->name, n);
        for (int at = 0; at < n; at++) {
            for (int i = 0; i < n; i++) x[i] = -1.0f - (float)(random_u32() >> 8);
            x[at] = -0.5f;
            CHECK(kernels->argmax(x, n) == at);
            for (int i = at; i < n; i += 1 + n / 5) x[i] = -0.5f; /* the first of equals */
            CHECK(kernels->argmax(x, n) == at);
            if (at > 0) x[at - 1] = NAN; /* counts as nothing, */
            if (at + LANES < n) x[at + LANES] = NAN; /* in the lane of the largest, too */
            CHECK(kernels->argmax(x, n) == (at == 1 ? 0 : at)); /* but in front, as in llama2.c */
        }
        for (int i = 0; i < n; i++) x[i] = -INFINITY;
        CHECK(kernels->argmax(x, n) == 0);
        x[n - 1] = INFINITY;
        CHECK(kernels->argmax(x, n) == n - 1);
        x[0] = -0.0f;
        for (int i = 1; i < n; i++) x[i] = 0.0f; /* equals, too */
        CHECK(kernels->argmax(x, n) == 0);
        unguard(g);
    }
}

static void check_kernels(void) {
    const char *name;
    for (int isa = 0; (name = l2p_isa_name(isa)); isa++) {
        const Kernels *kernels = kernels_of_isa(isa);
        if (!kernels) continue;
        lcg_state = 1;
        now("%s", name);
        CHECK(kernels->for_int8->numerics == EXACT);
        CHECK(kernels->for_float32->numerics == (strcmp(name, "portable") ? FUSED : EXACT));
        const FloatKernels *sets[] = {kernels->for_float32, kernels->for_int8};
        for (int i = 0; i < 2; i++) {
            if (i && sets[1] == sets[0]) break;
            check_rmsnorm(sets[i]);
            check_softmax(sets[i]);
            check_exp(sets[i]);
            check_swiglu(sets[i]);
            check_matmul_f32(sets[i]);
        }
        check_matmul(kernels);
        check_quantize(kernels);
        check_argmax(kernels);
        printf("%s kernels\n", name);
    }
}

/* ---- synthetic models, and a naive transformer over the same numbers ---- */

enum { N_TENSORS = L2P_WCLS + 1, N_SESSIONS = 3, TOKENS = 64 };
static const int LENGTHS[N_SESSIONS] = {37, 9, 18}; /* across blocks of positions, and attention's chunks of 8 */

typedef struct {
    l2p_config config;
    float *values[N_TENSORS];  /* float32, and norms: (layers, rows, cols) */
    int8_t *q[N_TENSORS];      /* int8, the same shape */
    float *scales[N_TENSORS];  /* int8: (layers, rows * cols / group_size rounded up) */
    int32_t tokens[N_SESSIONS][TOKENS];
} Synthetic;

static void shape_of(const l2p_config *c, int tensor, int *rows, int *cols) {
    const int q_rows = c->n_heads * c->head_dim, kv_rows = c->n_kv_heads * c->head_dim;
    const int shapes[N_TENSORS][2] = {
        {c->vocab_size, c->dim}, {1, c->dim},      {q_rows, c->dim},     {kv_rows, c->dim},
        {kv_rows, c->dim},       {c->dim, q_rows}, {1, c->dim},          {c->hidden_dim, c->dim},
        {c->dim, c->hidden_dim}, {c->hidden_dim, c->dim}, {1, c->dim},   {c->vocab_size, c->dim}};
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

static Synthetic synthesize(l2p_config config) {
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

static void free_synthetic(Synthetic s) {
    for (int tensor = 0; tensor < N_TENSORS; tensor++) {
        free(s.values[tensor]);
        free(s.q[tensor]);
        free(s.scales[tensor]);
    }
}

/* Into the engine, from odd addresses: a file aligns nothing */
static l2p_model *pack(const Synthetic *s, int isa, int n_threads) {
    l2p_model *model = l2p_model_new(&s->config, isa);
    if (!model) fail("no memory for a model");
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
            CHECK(l2p_model_set(model, tensor, layer, values.array, scales.array, n_threads, &non_finite) == L2P_OK);
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
    int8_t *q = malloc((size_t)cols);
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

/* All of a session's tokens, one after the other, as llama2.c does it: out (n, vocab_size) */
static void naive_forward(const Synthetic *s, const int32_t *tokens, int n, float *out) {
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

/* ---- one model, fed in many ways ---- */

typedef struct {
    const Synthetic *s;
    l2p_model *model;
    l2p_session *sessions[N_SESSIONS];
    float *want[N_SESSIONS]; /* (LENGTHS[i], vocab_size) */
    int n_threads;
} Run;

typedef struct { /* a batch: which session's token at which position */
    int n, session[TOKENS], position[TOKENS];
} Batch;

static void add(Batch *batch, int session, int begin, int end) {
    for (int position = begin; position < end; position++) {
        batch->session[batch->n] = session;
        batch->position[batch->n++] = position;
    }
}

static void fresh_sessions(Run *run) {
    for (int i = 0; i < N_SESSIONS; i++) {
        l2p_session_free(run->sessions[i]);
        run->sessions[i] = l2p_session_new(run->model);
        CHECK(run->sessions[i] != NULL);
    }
}

/* Run a batch; its logits, of the rows from `first` on backwards and of one row twice, must be run->want */
static void feed(Run *run, const Batch *batch, int first, const char *how) {
    const int vocab = run->s->config.vocab_size, n = batch->n, n_logits = first < n ? n - first + 1 : 0;
    int32_t tokens[TOKENS], positions[TOKENS], rows[TOKENS + 1];
    l2p_session *sessions[TOKENS];
    for (int i = 0; i < n; i++) {
        tokens[i] = run->s->tokens[batch->session[i]][batch->position[i]];
        positions[i] = batch->position[i];
        sessions[i] = run->sessions[batch->session[i]];
    }
    for (int i = 0; i < n_logits; i++) rows[i] = i ? n - i : n - 1;
    Guarded out = guarded_floats((size_t)n_logits * (size_t)vocab);
    CHECK(l2p_forward(run->model, n, tokens, sessions, positions, n_logits, rows, floats(out), run->n_threads, NULL) ==
          L2P_OK);
    for (int i = 0; i < n_logits; i++) {
        const int row = rows[i];
        const float *want = run->want[batch->session[row]] + (size_t)batch->position[row] * (size_t)vocab;
        for (int k = 0; k < vocab; k++)
            if (!same(floats(out)[(size_t)i * (size_t)vocab + (size_t)k], want[k]))
                fail("%s, %d threads: token %d of a batch of %d has other logits (%.9g, not %.9g)", how, run->n_threads,
                     row, n, (double)floats(out)[(size_t)i * (size_t)vocab + (size_t)k], (double)want[k]);
    }
    unguard(out);
}

static void feed_token_by_token(Run *run) {
    fresh_sessions(run);
    for (int i = 0; i < N_SESSIONS; i++)
        for (int t = 0; t < LENGTHS[i]; t++) {
            Batch one = {0};
            add(&one, i, t, t + 1);
            feed(run, &one, 0, "token by token");
        }
}

static void feed_prompts(Run *run) {
    fresh_sessions(run);
    for (int i = 0; i < N_SESSIONS; i++) {
        Batch all = {0};
        add(&all, i, 0, LENGTHS[i]);
        feed(run, &all, 0, "a prompt at once");
    }
}

static void feed_pieces(Run *run) {
    fresh_sessions(run);
    static const int cuts[] = {0, 5, 6, 16, 33, 37}; /* 33: a piece of 17, in chunks of 8, 8 and 1 */
    for (int cut = 0; cut < 5; cut++) {
        Batch piece = {0};
        add(&piece, 0, cuts[cut], cuts[cut + 1]);
        feed(run, &piece, cut == 2 ? piece.n : piece.n - 1, "a prompt in pieces"); /* the third without logits */
    }
}

static void feed_mixed(Run *run) { /* continuous batching: prompts beside single tokens, then all token by token */
    fresh_sessions(run);
    Batch first = {0}, second = {0};
    add(&first, 0, 0, 13), add(&first, 1, 0, 3);
    add(&second, 0, 13, 14), add(&second, 2, 0, 10), add(&second, 1, 3, 4);
    feed(run, &first, 12, "a mixed batch");
    feed(run, &second, 0, "a mixed batch");
    int at[N_SESSIONS] = {14, 4, 10};
    for (;;) {
        Batch step = {0};
        for (int i = N_SESSIONS - 1; i >= 0; i--)
            if (at[i] < LENGTHS[i]) add(&step, i, at[i], at[i] + 1), at[i]++;
        if (!step.n) return;
        feed(run, &step, 0, "one token of each session");
    }
}

static void feed_interleaved(Run *run) { /* no two neighbours of one session, until the others have ended */
    fresh_sessions(run);
    Batch all = {0};
    for (int t = 0; t < LENGTHS[0]; t++)
        for (int i = 0; i < N_SESSIONS; i++)
            if (t < LENGTHS[i]) add(&all, i, t, t + 1);
    feed(run, &all, 0, "all sessions interleaved");
}

static void feed_rewound(Run *run) { /* what an earlier use of the session left behind must not matter */
    fresh_sessions(run);
    Synthetic other = *run->s;
    memcpy(other.tokens[0], run->s->tokens[2], sizeof other.tokens[0]);
    Batch all = {0};
    add(&all, 0, 0, LENGTHS[0]);
    Run garbage = *run;
    garbage.s = &other;
    feed(&garbage, &all, all.n, "another text");
    feed(run, &all, 0, "a rewound session");
    Batch some = {0}; /* any positions whose predecessors are there */
    add(&some, 0, 3, 4), add(&some, 0, 20, 22), add(&some, 0, 36, 37);
    feed(run, &some, 0, "positions with gaps");
}

/* run->want, by the plainest way there is: one thread, one token a call */
static void record(Run *run) {
    const size_t vocab = (size_t)run->s->config.vocab_size;
    fresh_sessions(run);
    for (int i = 0; i < N_SESSIONS; i++) {
        run->want[i] = malloc((size_t)LENGTHS[i] * vocab * sizeof(float));
        for (int32_t t = 0, row = 0; t < LENGTHS[i]; t++)
            CHECK(l2p_forward(run->model, 1, &run->s->tokens[i][t], &run->sessions[i], &t, 1, &row,
                              run->want[i] + (size_t)t * vocab, 1, NULL) == L2P_OK);
    }
}

static void end_run(Run *run) {
    for (int i = 0; i < N_SESSIONS; i++) l2p_session_free(run->sessions[i]), free(run->want[i]);
    l2p_model_free(run->model);
}

/* The engine's logits are the naive transformer's: to the bit where numerics are EXACT, else nearly */
static void compare_naive(const Run *run, float *const *naive) {
    const int exact = run->model->floats->numerics == EXACT, vocab = run->s->config.vocab_size;
    for (int i = 0; i < N_SESSIONS; i++)
        for (int k = 0; k < LENGTHS[i] * vocab; k++) {
            const float got = run->want[i][k], want = naive[i][k];
            if (exact ? !same(got, want) : !(fabsf(got - want) <= 2e-4f * (1.0f + fabsf(want))))
                fail("session %d, token %d, logit %d: %.9g, but the naive transformer says %.9g", i, k / vocab,
                     k % vocab, (double)got, (double)want);
        }
}

/* dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, seq_len, shared_classifier */
static const l2p_config SHAPES[] = {
    {.dim = 10, .hidden_dim = 1201, .n_layers = 1, .n_heads = 5, .n_kv_heads = 5, .head_dim = 2, .vocab_size = 1,
     .seq_len = 37, .shared_classifier = 1, .norm_eps = 1e-5f, .rope_theta = 10000.0f},
    {.dim = 36, .hidden_dim = 301, .n_layers = 2, .n_heads = 6, .n_kv_heads = 2, .head_dim = 6, .vocab_size = 17,
     .seq_len = 48, .shared_classifier = 0, .norm_eps = 1e-5f, .rope_theta = 10000.0f},
    {.dim = 64, .hidden_dim = 172, .n_layers = 2, .n_heads = 8, .n_kv_heads = 4, .head_dim = 8, .vocab_size = 500,
     .seq_len = 50, .shared_classifier = 1, .norm_eps = 1e-5f, .rope_theta = 10000.0f},
    {.dim = 96, .hidden_dim = 130, .n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim = 48, .vocab_size = 500,
     .seq_len = 64, .shared_classifier = 0, .norm_eps = 1e-6f, .rope_theta = 500000.0f},
    /* heads wider than dim / n_heads */
    {.dim = 100, .hidden_dim = 65, .n_layers = 1, .n_heads = 3, .n_kv_heads = 1, .head_dim = 100, .vocab_size = 17,
     .seq_len = 1024, .shared_classifier = 1, .norm_eps = 1e-5f, .rope_theta = 10000.0f},
};
enum { N_SHAPES = sizeof SHAPES / sizeof SHAPES[0] };

/* Big enough that the engine splits even a single token over threads */
static const l2p_config BIG = {
    .dim = 72, .hidden_dim = 250, .n_layers = 2, .n_heads = 12, .n_kv_heads = 3, .head_dim = 6, .vocab_size = 15001,
    .seq_len = 40, .shared_classifier = 0, .norm_eps = 1e-5f, .rope_theta = 10000.0f};

static l2p_config with_weights(l2p_config config, int group) { /* 0: float32 */
    config.weight_type = group ? L2P_INT8 : L2P_FLOAT32;
    config.group_size = group;
    return config;
}

static Run start_run(const Synthetic *s, int isa, int pack_threads) {
    Run run = {.s = s, .model = pack(s, isa, pack_threads), .n_threads = 1};
    now("%s %s, dim %d, group %d", l2p_isa_name(isa), s->config.weight_type == L2P_INT8 ? "int8" : "float32",
        s->config.dim, s->config.group_size);
    record(&run);
    return run;
}

static void check_shape(const Synthetic *s, int isa, float *const *naive, uint64_t *h) {
    Run run = start_run(s, isa, 1 + s->config.dim % 3);
    for (int i = 0; i < N_SESSIONS; i++) hash(h, run.want[i], (size_t)(LENGTHS[i] * s->config.vocab_size));
    compare_naive(&run, naive);
    feed_interleaved(&run);
    run.n_threads = 2;
    feed_pieces(&run);
    feed_mixed(&run);
    run.n_threads = 3;
    feed_prompts(&run);
    feed_rewound(&run);
    end_run(&run);
}

/* The big one, in each thread count: token by token too */
static void check_big(int isa, int group) {
    const Synthetic s = synthesize(with_weights(BIG, group));
    Run run = start_run(&s, isa, 2);
    for (run.n_threads = 2; run.n_threads <= 3; run.n_threads++) {
        feed_token_by_token(&run);
        feed_prompts(&run);
        feed_pieces(&run);
        feed_mixed(&run);
    }
    end_run(&run);
    free_synthetic(s);
}

static void check_models(void) {
    static const int groups[] = {0, 1, 4, 32, 64}; /* 64 divides dim 64 but not its hidden_dim 172 */
    enum { MAX_ISAS = 16 };
    uint64_t hashes[MAX_ISAS][2], simd = 0;
    for (int isa = 0; isa < MAX_ISAS; isa++) hashes[isa][0] = hashes[isa][1] = 0xcbf29ce484222325u;
    for (int g = 0; g < 5; g++)
        for (int shape = 0; shape < N_SHAPES; shape++) {
            if (g > 0 && (g + shape) % 2) continue; /* enough, and half the time */
            const Synthetic s = synthesize(with_weights(SHAPES[shape], groups[g]));
            float *naive[N_SESSIONS];
            for (int i = 0; i < N_SESSIONS; i++) {
                naive[i] = malloc((size_t)(LENGTHS[i] * s.config.vocab_size) * sizeof(float));
                naive_forward(&s, s.tokens[i], LENGTHS[i], naive[i]);
            }
            for (int isa = 0; l2p_isa_name(isa); isa++)
                if (l2p_isa_supported(isa)) check_shape(&s, isa, naive, &hashes[isa][g > 0]);
            for (int i = 0; i < N_SESSIONS; i++) free(naive[i]);
            free_synthetic(s);
        }
    for (int isa = 0; l2p_isa_name(isa); isa++) {
        if (!l2p_isa_supported(isa)) continue;
        now("%s", l2p_isa_name(isa));
        printf("%s float32 %016llx\n", doing, (unsigned long long)hashes[isa][0]);
        printf("%s int8 %016llx\n", doing, (unsigned long long)hashes[isa][1]);
        if (strcmp(doing, "portable") != 0) {
            if (!simd) simd = hashes[isa][0];
            if (hashes[isa][0] != simd) fail("other float32 logits than another SIMD set's");
        }
        for (int other = 0; other < isa; other++)
            if (l2p_isa_supported(other) && hashes[other][1] != hashes[isa][1])
                fail("other int8 logits than %s", l2p_isa_name(other));
    }
}

/* ---- argument errors ---- */

static int best_isa(void) {
    int isa = 0;
    while (!l2p_isa_supported(isa)) isa++;
    return isa;
}

static void check_errors(void) {
    now("the list of instruction sets");
    int count = 0;
    while (l2p_isa_name(count)) count++;
    CHECK(count >= 1 && strcmp(l2p_isa_name(count - 1), "portable") == 0 && l2p_isa_supported(count - 1));
    CHECK(l2p_isa_name(-1) == NULL && l2p_isa_name(count + 5) == NULL);
    CHECK(!l2p_isa_supported(-1) && !l2p_isa_supported(count));
    CHECK(l2p_model_new(&SHAPES[1], -1) == NULL && l2p_model_new(&SHAPES[1], count) == NULL);

    for (int group = 0; group <= 4; group += 4) {
        const Synthetic s = synthesize(with_weights(SHAPES[1], group));
        Run run = start_run(&s, best_isa(), 1), other = start_run(&s, best_isa(), 1);
        const l2p_config *c = &s.config;
        now("l2p_model_set");
        const float values[301 * 36] = {[1] = NAN, [5] = INFINITY, [7] = -INFINITY};
        int64_t bad = 10;
        CHECK(l2p_model_bytes(other.model) > 0);
        CHECK(l2p_model_set(other.model, L2P_WQ, -1, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, L2P_WQ, c->n_layers, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, -1, 0, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(l2p_model_set(other.model, N_TENSORS, 0, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        CHECK(bad == 10);
        CHECK(l2p_model_set(other.model, L2P_RMS_FINAL_WEIGHT, 0, values, NULL, 1, &bad) == L2P_OK && bad == 13);
        CHECK(l2p_model_set(other.model, L2P_W1, 1, values, values, 3, &bad) == L2P_OK);
        /* of int8, the scales are what can be non-finite; group 4: each of the first 8 stands for one group */
        CHECK(bad == 16);
        l2p_config shared = *c;
        shared.shared_classifier = 1;
        l2p_model *small = l2p_model_new(&shared, best_isa());
        CHECK(small && l2p_model_set(small, L2P_WCLS, 0, values, values, 1, &bad) == L2P_BAD_ARGUMENT);
        l2p_model_free(small);

        now("l2p_forward's arguments");
        const int32_t token = 0, position = 0, row = 0, beyond = 1, minus = -1;
        const int32_t vocab = c->vocab_size, seq_len = c->seq_len;
        l2p_session *const mine = run.sessions[0], *const foreign = other.sessions[0], *const none = NULL;
        float out[17];
#define REFUSED(n, token, session, position, n_logits, row) \
    CHECK(l2p_forward(run.model, n, token, session, position, n_logits, row, out, 1, NULL) == L2P_BAD_ARGUMENT)
        REFUSED(0, &token, &mine, &position, 0, &row);
        REFUSED(-1, &token, &mine, &position, 0, &row);
        REFUSED(1, &minus, &mine, &position, 1, &row);
        REFUSED(1, &vocab, &mine, &position, 1, &row);
        REFUSED(1, &token, &none, &position, 1, &row);
        REFUSED(1, &token, &foreign, &position, 1, &row);
        REFUSED(1, &token, &mine, &minus, 1, &row);
        REFUSED(1, &token, &mine, &seq_len, 1, &row);
        REFUSED(1, &token, &mine, &position, -1, &row);
        REFUSED(1, &token, &mine, &position, 1, &minus);
        REFUSED(1, &token, &mine, &position, 1, &beyond);
#undef REFUSED
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

/* ---- threads ---- */

typedef struct {
    int reached[16]; /* not atomic on purpose: the barriers alone must order these */
    int wrong, n_threads;
    atomic_int started;
} PoolTest;

static void pool_work(void *context, int thread, int n_threads) {
    PoolTest *p = context;
    atomic_fetch_add(&p->started, 1);
    for (int round = 1; round <= 200; round++) {
        p->reached[thread] = round;
        threads_barrier(n_threads);
        for (int i = 0; i < n_threads; i++)
            if (p->reached[i] != round) p->wrong = 1;
        threads_barrier(n_threads);
    }
    if (thread == n_threads - 1) p->n_threads = n_threads;
}

static void check_pool(void) {
    for (int repeat = 0; repeat < 4; repeat++) {
        for (int n_threads = 1; n_threads <= 6; n_threads++) {
            now("the pool with %d threads", n_threads);
            PoolTest p = {0};
            threads_take_turn();
            threads_run(n_threads, pool_work, &p);
            threads_end_turn();
            CHECK(!p.wrong && p.n_threads == n_threads && p.started == n_threads);
        }
        if (repeat == 1) l2p_release();
        if (repeat == 2) pause_us(20000); /* the workers fall asleep */
    }
    now("threads_share"); /* each unit to exactly one thread */
    for (int n = 0; n < 70; n += 3)
        for (int unit = 1; unit <= 2; unit++)
            for (int n_threads = 1, begin, end; n_threads <= 5; n_threads++)
                for (int thread = 0, last = 0; thread < n_threads; thread++, last = end) {
                    threads_share(n, unit, thread, n_threads, &begin, &end);
                    CHECK(begin == last && end >= begin && (begin % unit == 0 || begin == n));
                    CHECK(thread < n_threads - 1 || end == n);
                }
}

typedef struct {
    Run run;
    int repeats;
    atomic_int *ended;
} Caller;

static void *caller_main(void *argument) {
    Caller *caller = argument;
    for (int i = 0; i < caller->repeats; i++) {
        feed_prompts(&caller->run);
        feed_mixed(&caller->run);
        Batch one = {0}; /* a single token, past the batches: position 13 once more */
        add(&one, 0, 13, 14);
        feed(&caller->run, &one, 0, "a token again");
    }
    atomic_fetch_add(caller->ended, 1);
    return NULL;
}

/* Several callers on one model, while another thread keeps taking pool and workspace away */
static void check_callers(void) {
    for (int group = 0; group <= 32; group += 32) {
        const Synthetic s = synthesize(with_weights(SHAPES[2], group));
        Run run = start_run(&s, best_isa(), 2);
        now("several callers at once, group %d", group);
        enum { CALLERS = 4 };
        Caller callers[CALLERS];
        pthread_t threads[CALLERS];
        atomic_int ended = 0;
        for (int i = 0; i < CALLERS; i++) {
            callers[i] = (Caller){run, 3, &ended};
            memset(callers[i].run.sessions, 0, sizeof run.sessions);
            callers[i].run.n_threads = 1 + i;
            if (pthread_create(&threads[i], NULL, caller_main, &callers[i])) fail("no thread for the check");
        }
        while (ended < CALLERS) l2p_release(), pause_us(2000);
        for (int i = 0; i < CALLERS; i++) {
            pthread_join(threads[i], NULL);
            for (int k = 0; k < N_SESSIONS; k++) l2p_session_free(callers[i].run.sessions[k]);
        }
        end_run(&run);
        free_synthetic(s);
    }
}

/* Kernels with an rmsnorm that counts, so that cancelling can be placed and looked at to the very call */
static const FloatKernels *counted_kernels;
static atomic_int norms, cancel_at;
static atomic_uint threads_seen;
static int32_t cancel_flag;
static pthread_t main_thread;

static void counting_rmsnorm(float *out, const float *x, const float *weight, int n, float eps) {
    if (atomic_fetch_add(&norms, 1) + 1 == cancel_at) __atomic_store_n(&cancel_flag, 1, __ATOMIC_RELAXED);
    atomic_fetch_or(&threads_seen, pthread_equal(pthread_self(), main_thread) ? 1u : 2u);
    counted_kernels->rmsnorm(out, x, weight, n, eps);
}

static void *cancel_soon(void *argument) {
    pause_us(5000);
    __atomic_store_n((int32_t *)argument, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void check_cancel(void) {
    l2p_config config = BIG;
    config.n_layers = 6;
    const Synthetic s = synthesize(config);
    Run run = start_run(&s, best_isa(), 2);
    FloatKernels counting = *run.model->floats;
    counted_kernels = run.model->floats;
    counting.rmsnorm = counting_rmsnorm;
    run.model->floats = &counting;
    main_thread = pthread_self();
    const int32_t row = 0;
    float *out = malloc((size_t)config.vocab_size * sizeof(float));
    fresh_sessions(&run);
    for (int n_threads = 1; n_threads <= 2; n_threads++)
        for (int layer = -1; layer < config.n_layers; layer++) {
            now("cancelled in layer %d, %d threads", layer, n_threads); /* -1: before the call */
            norms = cancel_flag = 0;
            threads_seen = 0;
            cancel_at = 1 + 2 * layer; /* the first norm of a layer: noticed where the next one begins */
            if (layer < 0) cancel_flag = 1;
            if (n_threads == 2) cancel_at = 0; /* the threads' norms come in any order: just count them */
            const int cancelled = cancel_flag || (cancel_at > 0 && layer < config.n_layers - 1);
            const int error = l2p_forward(run.model, 1, &s.tokens[0][0], run.sessions, &row, 1, &row, out, n_threads,
                                          &cancel_flag);
            CHECK(error == (cancelled ? L2P_CANCELLED : L2P_OK));
            /* each thread norms for itself; a cancelled call ends after the first products of its layer */
            const int want = !cancelled ? 2 * config.n_layers + 1 : 2 * (layer + 1) + 1;
            CHECK(norms == n_threads * want);
            CHECK(threads_seen == (n_threads == 1 ? 1u : 3u)); /* a second thread does take part */
        }
    cancel_at = cancel_flag = 0;
    run.model->floats = counted_kernels;
    now("after cancelling");
    run.n_threads = 2;
    Batch all = {0};
    add(&all, 0, 0, LENGTHS[0]);
    feed(&run, &all, 0, "a cancelled session, from its start");

    now("cancelled by another thread");
    pthread_t thread;
    int32_t flag = 0, positions[TOKENS];
    l2p_session *sessions[TOKENS];
    for (int i = 0; i < LENGTHS[0]; i++) positions[i] = i, sessions[i] = run.sessions[0];
    if (pthread_create(&thread, NULL, cancel_soon, &flag)) fail("no thread for the check");
    int error = L2P_OK;
    for (time_t end = time(NULL) + 60; !error && time(NULL) < end;)
        error = l2p_forward(run.model, LENGTHS[0], s.tokens[0], sessions, positions, 1, &row, out, 2, &flag);
    CHECK(error == L2P_CANCELLED);
    pthread_join(thread, NULL);
    free(out);
    end_run(&run);
    free_synthetic(s);
}

static void check_threads(void) {
    check_pool();
    check_cancel();
    check_callers();
    check_big(best_isa(), 0);
    check_big(best_isa(), 8);
    printf("threads\n");
}

/* ---- fork ---- */

static atomic_int calls_beside;

static void *call_forever(void *argument) {
    Run *run = argument;
    for (;;) { /* ends with the process */
        Batch batch = {0};
        add(&batch, 0, 0, LENGTHS[0]);
        feed(run, &batch, LENGTHS[0], "beside forks"); /* no logits: most of the time is the engine's */
        atomic_fetch_add(&calls_beside, 1);
        pause_us(50); /* or fork() would hardly ever get its turn */
    }
    return NULL;
}

static int exit_code_of(pid_t child) { /* or minus the signal that ended it */
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child) fail("no child process for the check");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* fork() while another thread is in l2p_forward, with n_threads of its own */
static void fork_beside(int n_threads) {
    const Synthetic s = synthesize(with_weights(SHAPES[2], 0));
    int isa = 0;
    while (l2p_isa_name(isa + 1)) isa++; /* portable: the longest calls */
    Run run = start_run(&s, isa, 1);
    now("fork() beside l2p_forward with %d threads", n_threads);
    fresh_sessions(&run);
    Run beside = run, child_run = run;
    memset(child_run.sessions, 0, sizeof child_run.sessions);
    beside.n_threads = n_threads;
    pthread_t thread;
    if (pthread_create(&thread, NULL, call_forever, &beside)) fail("no thread for the check");
    while (!calls_beside) pause_us(1000); /* a thread that only starts may hold locks of the sanitizers */
    for (int i = 0; i < 20; i++) {
        for (uint32_t spin = random_u32() >> 14; spin; spin--) __asm__ __volatile__("");
        const pid_t child = fork();
        if (child == 0) {
            alarm(10); /* ends a child that waits forever */
            for (child_run.n_threads = 1; child_run.n_threads <= 3; child_run.n_threads++) feed_prompts(&child_run);
            l2p_release();
            _exit(0);
        }
        const int code = exit_code_of(child);
        if (code == -SIGALRM) fail("the child hangs");
        if (code) fail("the child ended with %d", code);
    }
}

/* Each in a process of its own, which has not used the engine before: a pool that was made earlier could hide
 * what goes wrong without one. */
static void check_fork(void) {
    for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            fork_beside(n_threads);
            _exit(0);
        }
        now("fork() beside %d threads", n_threads);
        if (exit_code_of(child)) fail("see above");
    }
    printf("fork\n");
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*check)(void);
    } parts[] = {{"fork", check_fork}, /* first: see there */
                 {"errors", check_errors},
                 {"kernels", check_kernels},
                 {"models", check_models},
                 {"threads", check_threads}};
    enum { N_PARTS = sizeof parts / sizeof parts[0] };
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL};
    for (int i = 0; i < 3; i++) signal(signals[i], on_signal);

    for (int i = 1; i < argc; i++) {
        int known = 0;
        for (int p = 0; p < N_PARTS; p++) known |= strcmp(argv[i], parts[p].name) == 0;
        now("arguments");
        if (!known) fail("no part %s", argv[i]);
    }
    for (int p = 0; p < N_PARTS; p++) {
        int wanted = argc == 1;
        for (int i = 1; i < argc; i++) wanted |= strcmp(argv[i], parts[p].name) == 0;
        if (wanted) parts[p].check();
    }
    l2p_release();
    return 0;
}
