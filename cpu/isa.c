#include "cpu/isa.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

enum {
  LEVEL_AVX2 = MOI_ISA_AVX2,
  LEVEL_AVX512 = LEVEL_AVX2 | MOI_ISA_AVX512,
  LEVEL_AVX512VNNI = LEVEL_AVX512 | MOI_ISA_AVX512VNNI,
  LEVEL_AVX512BF16 = LEVEL_AVX512VNNI | MOI_ISA_AVX512BF16
};

static const struct {
  const char *name;
  uint32_t bits;
} levels[] = {
    {"scalar", MOI_ISA_SCALAR},           {"avx2", LEVEL_AVX2},
    {"avx512", LEVEL_AVX512},             {"avx512vnni", LEVEL_AVX512VNNI},
    {"avx512bf16", LEVEL_AVX512BF16},
};
enum { N_LEVELS = sizeof(levels) / sizeof(levels[0]) };

/* The cap of MOI_DEBUG in `bits` (all, if it sets none). Returns the text where it was not understood, else NULL. */
static const char *read_cap(uint32_t *bits) {
  *bits = LEVEL_AVX512BF16;
  const char *text = getenv("MOI_DEBUG");
  if (!text || !*text) return NULL;
  if (strncmp(text, "cpu=", 4) != 0) return text;
  for (size_t i = 0; i < N_LEVELS; i++) {
    if (strcmp(text + 4, levels[i].name) == 0) {
      *bits = levels[i].bits;
      return NULL;
    }
  }
  return text;
}

const char *moi_isa_bad_cap(void) {
  uint32_t bits;
  return read_cap(&bits);
}

static uint32_t machine(void) {
  uint32_t bits = 0;
#if defined(__x86_64__) && defined(__GNUC__)
  unsigned a, b, c = 0, d;
  __builtin_cpu_init();
  /* clang's __builtin_cpu_supports does not know F16C, which no AVX2 machine lacks */
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !(c & (1u << 29))) return bits;
  bits |= MOI_ISA_AVX2;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return bits;
  bits |= MOI_ISA_AVX512;
  if (!__builtin_cpu_supports("avx512vnni")) return bits;
  bits |= MOI_ISA_AVX512VNNI;
  if (__builtin_cpu_supports("avx512bf16")) bits |= MOI_ISA_AVX512BF16;
#endif
  return bits;
}

uint32_t moi_isa_detect(void) {
  uint32_t cap;
  read_cap(&cap);
  return machine() & cap;
}

const char *moi_isa_name(uint32_t bits) {
  if (bits == 0) return "";
  for (size_t i = 0; i < N_LEVELS; i++)
    if ((bits & ~levels[i].bits) == 0) return levels[i].name;
  return "";
}
