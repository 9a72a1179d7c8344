/* AVX2 with AVX-VNNI: the integer dot product takes int8 weights as they are stored, unsigned. */
#include "target.h"
#if defined(AVXVNNI_AND_AMX)
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
