/* The limits of the machine, for `bench`: how fast it reads a model's memory, how many products a second it
 * computes. */
#include "kernels.h"

typedef struct {
    const l2p_model *model;
    const Kernels *kernels;
    int kind;
    int64_t rounds;
    float sums[MAX_THREADS]; /* results, so that no work is optimized away */
} Probe;

static double timed(Work work, Probe *probe, int n_threads) {
    threads_take_turn();
    const int64_t start = nanoseconds();
    threads_run(n_threads < 1 ? 1 : n_threads < MAX_THREADS ? n_threads : MAX_THREADS, work, probe);
    const double seconds = (double)(nanoseconds() - start) * 1e-9;
    threads_end_turn();
    return seconds;
}

static void read_share(void *context, int thread, int n_threads) {
    Probe *probe = context;
    const size_t lines = probe->model->packed_bytes / 512; /* read_all takes 512 bytes at a time */
    const size_t begin = lines * (size_t)thread / (size_t)n_threads * 512;
    const size_t end = lines * ((size_t)thread + 1) / (size_t)n_threads * 512;
    probe->sums[thread] = probe->kernels->read_all(probe->model->arena + begin, end - begin);
}

double l2p_time_reading(const l2p_model *model, int n_threads) {
    if (!model) return 0.0;
    Probe probe = {.model = model, .kernels = model->kernels};
    return timed(read_share, &probe, n_threads);
}

static void products_share(void *context, int thread, int n_threads) {
    (void)n_threads;
    Probe *probe = context;
    static const unsigned char weights[LANES * 4] = {1, 2, 3};
    static const int8_t x[4] = {1, -1, 1, -1};
    const Kernels *kernels = probe->kernels;
    probe->sums[thread] = probe->kind == L2P_INT8   ? kernels->dot_chains(probe->rounds, weights, x)
                          : probe->kind == L2P_INT4 ? kernels->int4_chains(probe->rounds, weights, x)
                                                    : kernels->multiply_add_chains(probe->rounds);
}

double l2p_time_products(int isa, int weight_type, int64_t rounds, int n_threads) {
    Probe probe = {.kernels = kernels_of_isa(isa), .kind = weight_type, .rounds = rounds};
    return probe.kernels ? timed(products_share, &probe, n_threads) : 0.0;
}

int64_t l2p_products_a_round(int weight_type) {
    return (int64_t)PROBE_CHAINS * LANES * (weight_type == L2P_INT8 || weight_type == L2P_INT4 ? 4 : 1);
}
