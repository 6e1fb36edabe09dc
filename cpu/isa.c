#include "cpu/isa.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

/* This architecture's levels; each has all of the ones before it. */
static const struct {
  const char *name;
  uint32_t bits;
} levels[] = {
    {"scalar", MOI_ISA_SCALAR},
#if defined(__x86_64__)
    {"avx2", MOI_ISA_AVX2},
    {"avxvnni", MOI_ISA_AVX2 | MOI_ISA_AVXVNNI},
    {"avx512", MOI_ISA_AVX2 | MOI_ISA_AVXVNNI | MOI_ISA_AVX512},
    {"avx512vnni", MOI_ISA_AVX2 | MOI_ISA_AVXVNNI | MOI_ISA_AVX512 | MOI_ISA_AVX512VNNI},
    {"avx512bf16", MOI_ISA_AVX2 | MOI_ISA_AVXVNNI | MOI_ISA_AVX512 | MOI_ISA_AVX512VNNI | MOI_ISA_AVX512BF16},
#elif defined(__aarch64__)
    {"neon", MOI_ISA_NEON},
    {"dotprod", MOI_ISA_NEON | MOI_ISA_DOTPROD},
    {"i8mm", MOI_ISA_NEON | MOI_ISA_DOTPROD | MOI_ISA_I8MM},
    {"neonbf16", MOI_ISA_NEON | MOI_ISA_DOTPROD | MOI_ISA_I8MM | MOI_ISA_NEONBF16},
#endif
};
enum { N_LEVELS = sizeof(levels) / sizeof(levels[0]) };

/* The cap of MOI_DEBUG in `bits` (all, if it sets none). Returns the text where it was not understood, else NULL. */
static const char *read_cap(uint32_t *bits) {
  *bits = levels[N_LEVELS - 1].bits;
  const char *text = getenv("MOI_DEBUG");
  if (!text || !*text) return NULL;
  if (!strcmp(text, "vulkan=sets")) return NULL; /* of no matter here */
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

#if defined(__aarch64__) && defined(__APPLE__)
static int has(const char *feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, NULL, 0) == 0 && value;
}
#endif

uint32_t moi_isa_machine(void) {
  uint32_t bits = 0;
#if defined(__aarch64__)
  /* The extensions' files are compiled for Armv8.2 with FP16, so their parts are asked for as well. The names of bits
   * are younger than some systems' headers; the bits themselves are Linux's ABI. */
  int v82 = 0, dotprod = 0, i8mm = 0, bf16 = 0;
#if defined(__linux__)
  enum {
    ATOMICS = 1 << 8,
    ASIMDHP = 1 << 10,
    ASIMDRDM = 1 << 12,
    ASIMDDP = 1 << 20,
    ALL_V82 = ATOMICS | ASIMDHP | ASIMDRDM,
    I8MM_2 = 1 << 13,
    BF16_2 = 1 << 14
  };
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  v82 = (caps & ALL_V82) == ALL_V82;
  dotprod = (caps & ASIMDDP) != 0;
  i8mm = (caps2 & I8MM_2) != 0;
  bf16 = (caps2 & BF16_2) != 0;
#elif defined(__APPLE__)
  v82 = has("hw.optional.arm.FEAT_FP16") && has("hw.optional.arm.FEAT_RDM") && has("hw.optional.arm.FEAT_LSE");
  dotprod = has("hw.optional.arm.FEAT_DotProd");
  i8mm = has("hw.optional.arm.FEAT_I8MM");
  bf16 = has("hw.optional.arm.FEAT_BF16");
#elif defined(_WIN32)
  /* Windows does not tell of FP16 and RDM everywhere; every core with DotProd that it runs on has them. */
#ifdef PF_ARM_V81_ATOMIC_INSTRUCTIONS_AVAILABLE
  v82 = IsProcessorFeaturePresent(PF_ARM_V81_ATOMIC_INSTRUCTIONS_AVAILABLE) != 0;
#endif
#ifdef PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  dotprod = IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE) != 0;
#endif
#ifdef PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
  i8mm = IsProcessorFeaturePresent(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE) != 0;
#endif
#ifdef PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE
  bf16 = IsProcessorFeaturePresent(PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE) != 0;
#endif
#endif
  bits |= MOI_ISA_NEON;
  if (!v82 || !dotprod) return bits;
  bits |= MOI_ISA_DOTPROD;
  if (i8mm) bits |= MOI_ISA_I8MM;
  if (bf16) bits |= MOI_ISA_NEONBF16;
#elif defined(__x86_64__) && defined(__GNUC__)
  unsigned a, b, c = 0, d;
  __builtin_cpu_init();
  /* clang's __builtin_cpu_supports does not know F16C, which no AVX2 machine lacks */
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !(c & (1u << 29))) return bits;
  bits |= MOI_ISA_AVX2;
#ifdef MOI_EMULATE_AVXVNNI /* the kernels do the instructions' arithmetic themselves */
  bits |= MOI_ISA_AVXVNNI;
#else
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && a & (1u << 4)) bits |= MOI_ISA_AVXVNNI;
#endif
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return bits;
  bits |= MOI_ISA_AVX512;
  if (!__builtin_cpu_supports("avx512vnni")) return bits;
  bits |= MOI_ISA_AVX512VNNI;
#ifdef MOI_EMULATE_BF16 /* the kernels do the instruction's arithmetic themselves */
  bits |= MOI_ISA_AVX512BF16;
#else
  if (__builtin_cpu_supports("avx512bf16")) bits |= MOI_ISA_AVX512BF16;
#endif
#endif
  return bits;
}

uint32_t moi_isa_detect(void) {
  uint32_t cap;
  read_cap(&cap);
  return moi_isa_machine() & cap;
}

const char *moi_isa_name(uint32_t bits) {
  if (bits == 0) return "";
  for (size_t i = 0; i < N_LEVELS; i++)
    if ((bits & ~levels[i].bits) == 0) return levels[i].name;
  return "";
}
