/* Compile the code between TARGET_BEGIN and TARGET_END for more than the machine's baseline; dispatch.c makes sure
 * that only a CPU that can run it does. */
#define TARGET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(features) \
    TARGET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(features) _Pragma("GCC push_options") TARGET_PRAGMA(GCC target(features))
#define TARGET_END _Pragma("GCC pop_options")
#endif

/* Compilers have AVX-VNNI and AMX since gcc 11 and clang 12; an older one builds without the two. */
#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<avxvnniintrin.h>)
#define AVXVNNI_AND_AMX
#endif
#endif

/* Before version 16, clang has NEON's dot product only if the whole file is compiled for it. */
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#define NEON_DOTPROD
#endif
