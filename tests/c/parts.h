/* The parts of the program, and the checks that one file lends another. */
#ifndef LLAMA2PY_PARTS_H
#define LLAMA2PY_PARTS_H
#include "kernels.h"

void check_fork(void);
void check_errors(void);
void check_kernels(void);
void check_models(void);
void check_steps(void);
void check_draws(void);
void check_texts(void);
void check_threads(void);
void check_unscheduled(void);
void check_stories(void);

/* Of check_products.c, for check_kernels */
void check_matmul(const Kernels *kernels);
void check_matmul_bare(const FloatKernels *kernels);
void check_quantize(const Kernels *kernels);
void check_packing_int4(void);

/* Of check_models.c and check_draws.c, for check_threads */
void check_big(int isa, int group);
void draw_big(void);

#endif
