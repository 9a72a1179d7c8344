/* NEON with the integer dot product (ARMv8.2 and later, as a rule). */
#if defined(__aarch64__)
#include "target.h"
TARGET_BEGIN("+dotprod")
#define KERNELS kernels_neondot
#define KERNELS_NAME "neondot"
#define DOTPROD 1
#include "neon.inc"
TARGET_END
#else
typedef int no_neondot_here;
#endif
