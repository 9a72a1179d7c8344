/* AVX2 of every CPU that has it. */
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx2,fma,f16c")
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#define INT8_OFFSET 0
#include "avx2.inc"
TARGET_END
#else
typedef int no_avx2_here;
#endif
