/* What this CPU can do, as bits that kernel rows ask for. */
#ifndef MOI_CPU_ISA_H
#define MOI_CPU_ISA_H

#include <stddef.h>
#include <stdint.h>

enum {
  MOI_ISA_SCALAR = 0,
  MOI_ISA_AVX2 = 1 << 0,       /* AVX2, FMA, F16C */
  MOI_ISA_AVX512 = 1 << 1,     /* AVX-512 F, BW, DQ, VL (and AVX2) */
  MOI_ISA_AVX512VNNI = 1 << 2, /* and VNNI */
  MOI_ISA_AVX512BF16 = 1 << 3, /* and BF16 */
  MOI_ISA_AVXVNNI = 1 << 4,    /* AVX-VNNI (and AVX2): of CPUs with AVX-512 not all have it */
  MOI_ISA_NEON = 1 << 8,       /* Advanced SIMD with FMA: every AArch64 */
  MOI_ISA_DOTPROD = 1 << 9,    /* FEAT_DotProd, and FEAT_FP16, FEAT_RDM, FEAT_LSE (and Advanced SIMD) */
  MOI_ISA_I8MM = 1 << 10,      /* and FEAT_I8MM */
  MOI_ISA_NEONBF16 = 1 << 11   /* FEAT_BF16 (and DotProd); Armv8.6 has it and I8MM, other cores perhaps one of them */
};

/* The ISA bits of this CPU and operating system, capped by MOI_DEBUG=cpu=... */
uint32_t moi_isa_detect(void);
/* The same without the cap. */
uint32_t moi_isa_machine(void);
/* "avx2", "dotprod", ...: the lowest level of this architecture that has all of `bits`; "" for none. */
const char *moi_isa_name(uint32_t bits);

/* What MOI_DEBUG says that is not understood, NULL if there is nothing. A level of another architecture is not. */
const char *moi_isa_bad_cap(void);

#endif
