/* AMX: int8 weights times many vectors, in tiles of 16 vectors and 16 output rows. Each quad of a packed group is a row
 * of a tile. Integer sums are exact, so the results have the bits of every other set. All other kernels are those of
 * avx512vnni. */
#define _GNU_SOURCE
#include "target.h"
#if defined(AVXVNNI_AND_AMX)
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <string.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

/* MANY vectors fill a tile. SOME fill a smaller tile, for the remaining vectors. MAX_QUADS: a tile has 16 rows of 64
 * bytes. */
enum { MANY = 16, SOME = 8, MAX_QUADS = 16 };

/* The tile registers, as literal numbers, which the compilers' macros need. SUMS (vectors, LANES) and VECTORS, a group
 * of each vector, exist twice: for MANY and for SOME vectors. WEIGHTS: one quad per row. OFFSETS: minus the offset of
 * the stored weights. */
#define SUMS 0
#define VECTORS 1
#define SOME_SUMS 2
#define SOME_VECTORS 3
#define WEIGHTS 4
#define OFFSETS 5

TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

static void configure(int quads, int offset) {
    TileConfig config = {.palette = 1};
    const int rows[] = {MANY, MANY, SOME, SOME, quads, quads};
    const int row_quads[] = {LANES, quads, LANES, quads, LANES, LANES};
    for (int tile = SUMS; tile <= OFFSETS; tile++) {
        config.rows[tile] = (uint8_t)rows[tile];
        config.row_bytes[tile] = (uint16_t)(row_quads[tile] * 4);
    }
    int8_t minus_offset[LANES * 4];
    memset(minus_offset, -offset, sizeof minus_offset);
    __asm__ volatile("" ::: "memory"); /* compilers may not know that the intrinsics read both arrays */
    _tile_loadconfig(&config);
    _tile_loadd(OFFSETS, minus_offset, 0); /* all rows are equal */
}

/* NT vectors (MANY or SOME, a compile-time constant) from number i0 on, times a block of rows. This is pass number
 * `pass` of n_passes over the panel, each of which prefetches its share of the next panel; -1: there is no next
 * panel. */
static inline __attribute__((always_inline)) void tile(const int NT, const Matrix *w, int block, const Vectors *x,
                                                       int i0, float *out, size_t ld_out, int mode, int pass,
                                                       int n_passes) {
    const int groups = w->groups, quads = w->group_quads, rows = w->rows - block * LANES;
    const size_t ld_q = (size_t)groups * (size_t)quads * 4;
    const unsigned char *wg = w->data + (size_t)block * w->block_bytes;
    const int8_t *q = x->q + (size_t)i0 * ld_q;
    const float *scales = x->scale + (size_t)i0 * (size_t)groups;
    __m512 sum[MANY];
    for (int i = 0; i < NT; i++) sum[i] = _mm512_setzero_ps();
    for (int g = 0; g < groups; g++, wg += w->group_bytes, q += quads * 4) {
        int32_t part[MANY][LANES];
        if (g % n_passes == pass)
            for (size_t at = 0; at < w->group_bytes; at += 64)
                __builtin_prefetch(wg + PANEL_BLOCKS * w->block_bytes + at, 0, 2);
        _tile_loadd(WEIGHTS, wg, LANES * 4);
        if (NT == MANY) {
            _tile_zero(SUMS);
            _tile_loadd(VECTORS, q, ld_q);
            _tile_dpbssd(SUMS, VECTORS, OFFSETS);
            _tile_dpbsud(SUMS, VECTORS, WEIGHTS);
            _tile_stored(SUMS, part, sizeof part[0]);
        } else {
            _tile_zero(SOME_SUMS);
            _tile_loadd(SOME_VECTORS, q, ld_q);
            _tile_dpbssd(SOME_SUMS, SOME_VECTORS, OFFSETS);
            _tile_dpbsud(SOME_SUMS, SOME_VECTORS, WEIGHTS);
            _tile_stored(SOME_SUMS, part, sizeof part[0]);
        }
        const __m512 ws = _mm512_loadu_ps(wg + (size_t)quads * LANES * 4);
        for (int i = 0; i < NT; i++) { /* EXACT: each product rounded */
            const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(part[i])), ws);
            const __m512 xs = _mm512_set1_ps(scales[(size_t)i * (size_t)groups + (size_t)g]);
            sum[i] = _mm512_add_ps(sum[i], _mm512_mul_ps(scaled, xs));
        }
    }
    const __mmask16 there = rows >= LANES ? 0xffff : (__mmask16)((1u << rows) - 1);
    for (int i = 0; i < NT; i++) {
        float *o = out + (size_t)i * ld_out + (size_t)block * LANES;
        if (mode == MATMUL_ADD) sum[i] = _mm512_add_ps(_mm512_maskz_loadu_ps(there, o), sum[i]);
        _mm512_mask_storeu_ps(o, there, sum[i]);
    }
}

/* Multiply as many vectors as fill whole tiles, and return their number. */
static int multiply_tiles(const Matrix *w, int begin, int end, const Vectors *x, int n, float *out, size_t ld_out,
                          int mode) {
    const int many = n / MANY * MANY, some = n - many >= SOME, n_passes = many / MANY + some;
    configure(w->group_quads, kernels_avx512vnni.int8_offset);
    for (int p = begin; p < end; p += PANEL_BLOCKS) {
        const int panel_end = end - p < PANEL_BLOCKS ? end : p + PANEL_BLOCKS, is_last = panel_end == end;
        for (int i = 0; i < many; i += MANY)
            for (int b = p; b < panel_end; b++)
                tile(MANY, w, b, x, i, out + (size_t)i * ld_out, ld_out, mode, is_last ? -1 : i / MANY, n_passes);
        for (int b = p; some && b < panel_end; b++)
            tile(SOME, w, b, x, many, out + (size_t)many * ld_out, ld_out, mode, is_last ? -1 : n_passes - 1, n_passes);
    }
    _tile_release();
    return many + some * SOME;
}

/* As in probe.inc: rounds * PROBE_CHAINS * LANES * 4 products, here in independent tiles */
static float dot_chains(int64_t rounds, const unsigned char *weights, const int8_t *x) {
    const int64_t products = rounds * PROBE_CHAINS * LANES * 4, of_a_tile = MANY * LANES * MAX_QUADS * 4;
    TileConfig config = {.palette = 1};
    for (int t = 0; t < 6; t++) {
        config.rows[t] = MANY;
        config.row_bytes[t] = MAX_QUADS * 4;
    }
    int8_t vector[MAX_QUADS * 4];
    int32_t sums[MANY][LANES];
    for (int k = 0; k < MAX_QUADS * 4; k++) vector[k] = x[k % 4];
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&config);
    _tile_loadd(4, vector, 0);
    _tile_loadd(5, weights, 0);
    for (int64_t done = 0; done < products; done += 4 * of_a_tile) {
        _tile_dpbsud(0, 4, 5);
        _tile_dpbsud(1, 4, 5);
        _tile_dpbsud(2, 4, 5);
        _tile_dpbsud(3, 4, 5);
    }
    _tile_stored(0, sums, sizeof sums[0]);
    _tile_release();
    return (float)sums[0][0];
}

TARGET_END

static void matmul(const Matrix *w, int begin, int end, const Vectors *x, int n, float *out, size_t ld_out, int mode) {
    Vectors left = *x;
    if (begin < end && n >= SOME && w->type == L2P_INT8 && w->group_quads <= MAX_QUADS) {
        const int done = multiply_tiles(w, begin, end, x, n, out, ld_out, mode);
        const size_t groups = (size_t)done * (size_t)w->groups;
        left.q += groups * (size_t)w->group_quads * 4;
        left.scale += groups;
        left.bias += groups;
        out += (size_t)done * ld_out;
        n -= done;
    }
    if (n > 0) kernels_avx512vnni.matmul(w, begin, end, &left, n, out, ld_out, mode);
}

/* ---- does the CPU have it, and may this process use it? ---- */

Kernels kernels_amx = {.name = "amx"};

static int may_be_used;

static void detect(void) {
#if defined(__linux__)
    enum { TILE_STATE = 18, REQUEST_PERMISSION = 0x1023 }; /* ARCH_REQ_XCOMP_PERM: the state is large to save */
    const unsigned needed = 1u << 24 | 1u << 25;           /* AMX-TILE, AMX-INT8 */
    unsigned a, b, c, d = 0;
    may_be_used = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & needed) == needed &&
                  syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_STATE) == 0;
#endif
    Kernels made = kernels_avx512vnni;
    made.name = kernels_amx.name; /* the same pointer: other threads may be reading it */
    made.matmul = matmul;
    made.dot_chains = dot_chains;
    kernels_amx = made;
}

int amx_may_be_used(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, detect);
    return may_be_used;
}
#else
typedef int no_amx_here;
#endif
