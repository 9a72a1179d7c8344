/* AVX-512 of every CPU that has it. */
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#define INT8_OFFSET 0
#include "avx512.inc"
TARGET_END
#else
typedef int no_avx512_here;
#endif
