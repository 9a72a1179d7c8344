/* AVX-512 with VNNI: the integer dot product takes int8 weights as they are stored, unsigned. */
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define KERNELS kernels_avx512vnni
#define KERNELS_NAME "avx512vnni"
#define FLOATS_OF kernels_avx512
#define INT8_OFFSET 128
#include "avx512.inc"
TARGET_END
#else
typedef int no_avx512vnni_here;
#endif
