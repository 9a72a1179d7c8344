/* The instruction sets that this build has, and those that this CPU can run. */
#include "kernels.h"
#include "target.h"

static int always(void) { return 1; }

#if defined(__x86_64__)
#include <cpuid.h>

/* The compiler's own check, which also makes sure that the system saves the wide registers. */
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static int has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#if defined(AVXVNNI_AND_AMX)
static int has_avxvnni(void) { /* by CPUID: not every compiler's check knows it */
    unsigned a = 0, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) != 0;
}
static int has_amx(void) { return has_avx512vnni() && amx_may_be_used(); }
#endif
#endif

#if defined(NEON_DOTPROD)
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* HWCAP_ASIMDDP */
#else
static int has_dotprod(void) { /* Apple's chips have had it since 2018 */
#if defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}
#endif
#endif

static const struct {
    const Kernels *kernels;
    int (*supported)(void);
} sets[] = {
#if defined(__x86_64__)
#if defined(AVXVNNI_AND_AMX)
    {&kernels_amx, has_amx},
#endif
    {&kernels_avx512vnni, has_avx512vnni},
    {&kernels_avx512, has_avx512},
#if defined(AVXVNNI_AND_AMX)
    {&kernels_avxvnni, has_avxvnni},
#endif
    {&kernels_avx2, has_avx2},
#elif defined(__aarch64__)
#if defined(NEON_DOTPROD)
    {&kernels_neondot, has_dotprod},
#endif
    {&kernels_neon, always}, /* every 64-bit ARM has it */
#endif
    {&kernels_portable, always},
};
enum { N_SETS = sizeof sets / sizeof sets[0] };

const char *l2p_isa_name(int index) { return index >= 0 && index < N_SETS ? sets[index].kernels->name : 0; }

int l2p_isa_supported(int index) { return index >= 0 && index < N_SETS && sets[index].supported(); }

const Kernels *kernels_of_isa(int index) { return l2p_isa_supported(index) ? sets[index].kernels : 0; }
