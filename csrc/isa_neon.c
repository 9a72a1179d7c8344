/* NEON of every 64-bit ARM. */
#if defined(__aarch64__)
#define KERNELS kernels_neon
#define KERNELS_NAME "neon"
#define DOTPROD 0
#include "neon.inc"
#else
typedef int no_neon_here;
#endif
