/* The reference: what every kernel of every backend is measured against. Plain C, no cleverness. */
#ifndef MOI_CPU_REF_REF_H
#define MOI_CPU_REF_REF_H

#include "cpu/cpu.h"

/* Row n of W into out[k]. */
void moi_ref_decode_row(const moi_matrix *w, uint32_t n, float *out);
/* global * (row n of W) . x, summed in double in ascending order of k; row is scratch of k floats. */
double moi_ref_dot(const moi_matrix *w, uint32_t n, const float *x, float *row);

#endif
