/* NEON with the integer dot product (ARMv8.2 and later, as a rule). */
#include "target.h"
#if defined(NEON_DOTPROD)
#if defined(__clang__)
TARGET_BEGIN("dotprod")
#else
TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif
#define KERNELS kernels_neondot
#define KERNELS_NAME "neondot"
#define FLOATS_OF kernels_neon
#define DOTPROD 1
#include "neon.inc"
TARGET_END
#else
typedef int no_neondot_here;
#endif
