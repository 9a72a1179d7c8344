/* AVX2 with AVX-VNNI: int8 weights, stored unsigned, go straight into the integer dot product. */
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx2,fma,f16c,avxvnni")
#define KERNELS kernels_avxvnni
#define KERNELS_NAME "avxvnni"
#define FLOATS_OF kernels_avx2
#define INT8_OFFSET 128
#include "avx2.inc"
TARGET_END
#else
typedef int no_avxvnni_here;
#endif
