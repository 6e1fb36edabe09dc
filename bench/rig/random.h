/* Random numbers by counter: number i of a seed is the same on every machine, in any order, on any thread. */
#ifndef MOI_BENCH_RIG_RANDOM_H
#define MOI_BENCH_RIG_RANDOM_H

#include <moiety.h>

static inline uint64_t moi_random_bits(uint64_t seed, uint64_t i) {
  uint64_t z = (seed ^ 0x6a09e667f3bcc909u) * 0xd1342543de82ef95u + (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* 0 .. n-1 */
static inline uint32_t moi_random_below(uint64_t seed, uint64_t i, uint32_t n) {
  return (uint32_t)(((moi_random_bits(seed, i) >> 32) * n) >> 32);
}

/* [0, 1) */
static inline float moi_random_uniform(uint64_t seed, uint64_t i) {
  return (float)(moi_random_bits(seed, i) >> 40) * 0x1p-24f;
}

/* Mean 0, variance 1, |x| < 3.5: the sum of four uniform 16-bit numbers. */
static inline float moi_random_normal(uint64_t seed, uint64_t i) {
  uint64_t z = moi_random_bits(seed, i);
  int32_t sum = (int32_t)((z & 0xffff) + ((z >> 16) & 0xffff) + ((z >> 32) & 0xffff) + (z >> 48));
  return (float)(sum - 131070) * (1.7320508f / 65535.0f);
}

/* n elements of F32, F16 or BF16: scale * normal. */
void moi_random_dense(moi_format type, void *out, size_t n, float scale, uint64_t seed);
/* Rows of activations: normal, with now and then an element several times larger, as models have them. */
void moi_random_activations(moi_format type, void *out, size_t n, uint64_t seed);

#endif
