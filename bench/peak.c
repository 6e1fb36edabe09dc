#include "bench/peak.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/rig/arena.h"
#include "bench/rig/random.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define HAS_X86 1
#else
#define HAS_X86 0
#endif
#if defined(__aarch64__)
#include <arm_neon.h>

#include "cpu/isa.h"
#define HAS_ARM 1
#else
#define HAS_ARM 0
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- loops: reads return a value that the caller keeps, so that nothing is optimised away */

/* bytes is a multiple of 1024: four streams, a quarter each */
static uint64_t read_plain(const uint8_t *p, size_t bytes) {
  const uint64_t *a = (const uint64_t *)p;
  size_t quarter = bytes / 32;
  uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (size_t i = 0; i < quarter; i++) {
    s0 ^= a[i];
    s1 ^= a[quarter + i];
    s2 ^= a[2 * quarter + i];
    s3 ^= a[3 * quarter + i];
  }
  return s0 ^ s1 ^ s2 ^ s3;
}

/* rounds of 16 x 8 independent multiply-adds; returns the operations done */
static double fma_plain(uint64_t rounds, float *sink) {
  float a[128];
  for (int i = 0; i < 128; i++) a[i] = (float)i;
  for (uint64_t r = 0; r < rounds; r++)
    for (int i = 0; i < 128; i++) a[i] = a[i] * 0.999f + 0.001f;
  for (int i = 0; i < 128; i++) *sink += a[i];
  return (double)rounds * 256;
}

#if HAS_X86
#define READ_LOOP(name, isa, vector, load, combine, zero, width)                                                       \
  __attribute__((target(isa))) static uint64_t name(const uint8_t *p, size_t bytes) {                                  \
    size_t quarter = bytes / 4;                                                                                        \
    vector s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();                                                         \
    for (size_t i = 0; i < quarter; i += width) {                                                                      \
      s0 = combine(s0, load((const void *)(p + i)));                                                                   \
      s1 = combine(s1, load((const void *)(p + quarter + i)));                                                         \
      s2 = combine(s2, load((const void *)(p + 2 * quarter + i)));                                                     \
      s3 = combine(s3, load((const void *)(p + 3 * quarter + i)));                                                     \
    }                                                                                                                  \
    uint64_t out[width / 8];                                                                                           \
    s0 = combine(combine(s0, s1), combine(s2, s3));                                                                    \
    memcpy(out, &s0, sizeof out);                                                                                      \
    return out[0] ^ out[1];                                                                                            \
  }
READ_LOOP(read_avx2, "avx2", __m256i, _mm256_loadu_si256, _mm256_xor_si256, _mm256_setzero_si256, 32)
READ_LOOP(read_avx512, "avx512f", __m512i, _mm512_loadu_si512, _mm512_xor_si512, _mm512_setzero_si512, 64)

/* 12 accumulators hide the latency of two units of up to six cycles; the barrier keeps them in registers and apart */
#define FMA_LOOP(name, isa, vector, start, step, per_step)                                                             \
  __attribute__((target(isa))) static double name(uint64_t rounds, float *sink) {                                      \
    vector a[12], x = start, y = start;                                                                                \
    for (int i = 0; i < 12; i++) a[i] = start;                                                                         \
    __asm__ volatile("" : "+v"(x), "+v"(y));                                                                           \
    for (uint64_t r = 0; r < rounds; r++) {                                                                            \
      a[0] = step(a[0], x, y), a[1] = step(a[1], x, y), a[2] = step(a[2], x, y), a[3] = step(a[3], x, y);              \
      a[4] = step(a[4], x, y), a[5] = step(a[5], x, y), a[6] = step(a[6], x, y), a[7] = step(a[7], x, y);              \
      a[8] = step(a[8], x, y), a[9] = step(a[9], x, y), a[10] = step(a[10], x, y), a[11] = step(a[11], x, y);          \
      __asm__ volatile("" : "+v"(x), "+v"(y));                                                                         \
    }                                                                                                                  \
    for (int i = 0; i < 12; i++) {                                                                                     \
      float out;                                                                                                       \
      memcpy(&out, &a[i], sizeof out);                                                                                 \
      *sink += out;                                                                                                    \
    }                                                                                                                  \
    return (double)rounds * 12 * per_step;                                                                             \
  }
#define F32_256(a, x, y) _mm256_fmadd_ps(x, y, a)
#define F32_512(a, x, y) _mm512_fmadd_ps(x, y, a)
#define INT8_256(a, x, y) _mm256_dpbusd_avx_epi32(a, x, y)
#define INT8_512(a, x, y) _mm512_dpbusd_epi32(a, x, y)
#define BF16_512(a, x, y) _mm512_dpbf16_ps(a, (__m512bh)(x), (__m512bh)(y))
FMA_LOOP(fma_avx2, "avx2,fma", __m256, _mm256_set1_ps(1e-9f), F32_256, 16)
/* by hand: one product would do for all sums */
#define MADD(name, multiply, add)                                                                                      \
  __attribute__((target("avx2"))) static inline __m256i name(__m256i a, __m256i x, __m256i y) {                        \
    __m256i product;                                                                                                   \
    __asm__(multiply " %3, %2, %1\n\t" add " %1, %0, %0" : "+x"(a), "=&x"(product) : "x"(x), "x"(y));                  \
    return a;                                                                                                          \
  }
MADD(maddwd, "vpmaddwd", "vpaddd")
MADD(maddubsw, "vpmaddubsw", "vpaddw")
FMA_LOOP(fma_maddwd, "avx2", __m256i, _mm256_set1_epi16(1), maddwd, 32)
FMA_LOOP(fma_maddubsw, "avx2", __m256i, _mm256_set1_epi8(1), maddubsw, 64)
FMA_LOOP(fma_avxvnni, "avx2,avxvnni", __m256i, _mm256_set1_epi8(1), INT8_256, 64)
FMA_LOOP(fma_avx512, "avx512f", __m512, _mm512_set1_ps(1e-9f), F32_512, 32)
FMA_LOOP(fma_vnni, "avx512f,avx512vnni", __m512i, _mm512_set1_epi8(1), INT8_512, 128)
FMA_LOOP(fma_bf16, "avx512f,avx512bf16", __m512, _mm512_set1_ps(1e-9f), BF16_512, 64)
#endif

#if HAS_ARM
static uint64_t read_neon(const uint8_t *p, size_t bytes) {
  size_t quarter = bytes / 4;
  uint8x16_t s[8];
  for (int i = 0; i < 8; i++) s[i] = vdupq_n_u8(0);
  for (size_t i = 0; i < quarter; i += 32)
    for (size_t j = 0; j < 4; j++) {
      s[2 * j] = veorq_u8(s[2 * j], vld1q_u8(p + j * quarter + i));
      s[2 * j + 1] = veorq_u8(s[2 * j + 1], vld1q_u8(p + j * quarter + i + 16));
    }
  for (int i = 1; i < 8; i++) s[0] = veorq_u8(s[0], s[i]);
  return vgetq_lane_u64(vreinterpretq_u64_u8(s[0]), 0) ^ vgetq_lane_u64(vreinterpretq_u64_u8(s[0]), 1);
}

/* 24 accumulators: six units of four cycles. The instructions are written out because arm_neon.h gives those beyond the
 * baseline only to files that are compiled for them. */
#define ARM_STEP(i, code) __asm__ volatile(code : "+w"(a[i]) : "w"(x), "w"(y))
#define ARM_STEP4(i, code) ARM_STEP(i, code); ARM_STEP(i + 1, code); ARM_STEP(i + 2, code); ARM_STEP(i + 3, code);
#define ARM_LOOP(name, start, code, per_step)                                                                          \
  static double name(uint64_t rounds, float *sink) {                                                                   \
    float32x4_t a[24], x = start, y = start;                                                                           \
    for (int i = 0; i < 24; i++) a[i] = start;                                                                         \
    for (uint64_t r = 0; r < rounds; r++) {                                                                            \
      ARM_STEP4(0, code) ARM_STEP4(4, code) ARM_STEP4(8, code)                                                         \
      ARM_STEP4(12, code) ARM_STEP4(16, code) ARM_STEP4(20, code)                                                      \
    }                                                                                                                  \
    for (int i = 0; i < 24; i++) *sink += vgetq_lane_f32(a[i], 0);                                                     \
    return (double)rounds * 24 * per_step;                                                                             \
  }
#ifdef __clang__
#define EXTENDED __attribute__((target("dotprod,i8mm,bf16")))
#else
#define EXTENDED __attribute__((target("arch=armv8.2-a+dotprod+i8mm+bf16")))
#endif
#define ARM_FLOATS vdupq_n_f32(1e-9f)
#define ARM_BYTES vreinterpretq_f32_u8(vdupq_n_u8(1))
ARM_LOOP(fma_neon, ARM_FLOATS, "fmla %0.4s, %1.4s, %2.4s", 8)
EXTENDED ARM_LOOP(fma_sdot, ARM_BYTES, "sdot %0.4s, %1.16b, %2.16b", 32)
EXTENDED ARM_LOOP(fma_smmla, ARM_BYTES, "smmla %0.4s, %1.16b, %2.16b", 64)
EXTENDED ARM_LOOP(fma_bfdot, ARM_FLOATS, "bfdot %0.4s, %1.8h, %2.8h", 16)
EXTENDED ARM_LOOP(fma_bfmmla, ARM_FLOATS, "bfmmla %0.4s, %1.8h, %2.8h", 32)
#endif

/* ---- threads */

typedef uint64_t (*read_fn)(const uint8_t *p, size_t bytes);
typedef double (*fma_fn)(uint64_t rounds, float *sink);

typedef struct job {
  read_fn read;
  fma_fn fma;
  const uint8_t *buffer;
  size_t begin, end, block; /* block > 0: random blocks of the whole buffer, end - begin bytes in all */
  size_t size;
  uint64_t seed, rounds;
  double work, seconds;
  volatile uint64_t sink;
  volatile float sink_f;
} job;

static void *work(void *arg) {
  job *j = arg;
  const double start = now();
  if (j->fma) {
    float sink = 0;
    j->work = j->fma(j->rounds, &sink);
    j->sink_f = sink;
  } else if (!j->block) {
    j->sink = j->read(j->buffer + j->begin, j->end - j->begin);
    j->work = (double)(j->end - j->begin);
  } else {
    uint64_t sum = 0, n = (j->end - j->begin) / j->block, places = j->size / j->block;
    for (uint64_t i = 0; i < n; i++)
      sum ^= j->read(j->buffer + moi_random_below(j->seed, i, (uint32_t)places) * j->block, j->block);
    j->sink = sum;
    j->work = (double)(n * j->block);
  }
  j->seconds = now() - start;
  return NULL;
}

/* Runs the jobs on a thread each; work done a second, all threads together. Each counts over its own time: a thread that
 * began late or was kept from its core for a while makes the others no slower, as with work that is shared out in pieces. */
static double race(job *jobs, uint32_t n) {
  pthread_t threads[1024];
  uint32_t started = 0;
  double rate = 0;
  for (; started + 1 < n && started < 1023; started++)
    if (pthread_create(&threads[started], NULL, work, &jobs[started + 1])) break;
  work(&jobs[0]);
  for (uint32_t i = started + 1; i < n; i++) work(&jobs[i]);
  for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
  /* threads that could not be had: their jobs were done one after another */
  double alone = jobs[0].seconds;
  for (uint32_t i = started + 1; i < n; i++) alone += jobs[i].seconds, jobs[0].work += jobs[i].work;
  jobs[0].seconds = alone;
  for (uint32_t i = 0; i <= started; i++)
    if (jobs[i].seconds > 0) rate += jobs[i].work / jobs[i].seconds;
  return rate;
}

/* ---- what this CPU has */

typedef struct loops {
  read_fn read;
  fma_fn fma[MOI_PEAK_KINDS][2]; /* of two the better one counts; NULL: absent */
  const char *isa;
} loops;

static loops find_loops(void) {
  loops l = {.read = read_plain, .fma[MOI_PEAK_F32] = {fma_plain}, .isa = "plain C"};
#if HAS_X86
  if (__builtin_cpu_supports("avx512f")) {
    l = (loops){.read = read_avx512, .fma[MOI_PEAK_F32] = {fma_avx512}, .isa = "avx512"};
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    l = (loops){.read = read_avx2, .fma[MOI_PEAK_F32] = {fma_avx2}, .isa = "avx2"};
  }
  unsigned a = 0, b, c, d;
  if (__builtin_cpu_supports("avx2")) {
    l.fma[MOI_PEAK_MADDWD][0] = fma_maddwd;
    l.fma[MOI_PEAK_MADDUBSW][0] = fma_maddubsw;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && a & (1u << 4)) l.fma[MOI_PEAK_INT8][0] = fma_avxvnni;
  }
  if (__builtin_cpu_supports("avx512vnni")) l.fma[MOI_PEAK_INT8][0] = fma_vnni;
  if (__builtin_cpu_supports("avx512bf16")) l.fma[MOI_PEAK_BF16][0] = fma_bf16;
#endif
#if HAS_ARM
  const uint32_t isa = moi_isa_machine();
  l = (loops){.read = read_neon, .fma[MOI_PEAK_F32] = {fma_neon}, .isa = "neon"};
  if (isa & MOI_ISA_DOTPROD) l.fma[MOI_PEAK_INT8][0] = fma_sdot;
  if (isa & MOI_ISA_I8MM) l.fma[MOI_PEAK_I8MM][0] = fma_smmla;
  if (isa & MOI_ISA_NEONBF16) {
    l.fma[MOI_PEAK_BF16][0] = fma_bfdot;
    l.fma[MOI_PEAK_BF16][1] = fma_bfmmla;
  }
#endif
  return l;
}

static double rate_of_fma(fma_fn fma, uint64_t rounds, job *jobs, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    memset(&jobs[i], 0, sizeof jobs[i]);
    jobs[i].fma = fma;
    jobs[i].rounds = rounds;
  }
  return race(jobs, n);
}

/* block 0: in order, all of the buffer; else random blocks of it, as many bytes */
static double rate_of_read(read_fn read, const uint8_t *buffer, size_t size, size_t block, uint64_t seed, job *jobs,
                           uint32_t n) {
  size_t share = size / n / 1024 * 1024;
  for (uint32_t i = 0; i < n; i++) {
    memset(&jobs[i], 0, sizeof jobs[i]);
    jobs[i].read = read;
    jobs[i].buffer = buffer;
    jobs[i].begin = i * share;
    jobs[i].end = (i + 1) * share;
    jobs[i].size = size;
    jobs[i].block = block;
    jobs[i].seed = seed * 1024 + i;
  }
  return race(jobs, n);
}

static double larger(double a, double b) { return a > b ? a : b; }

static double best_of_fma(fma_fn fma, job *jobs, uint32_t n) {
  double best = 0;
  for (int pass = 0; fma && pass < 4; pass++)
    best = larger(best, rate_of_fma(fma, fma == fma_plain ? 400000 : 12000000, jobs, n));
  return best;
}

static double best_of_read(read_fn read, const uint8_t *buffer, size_t size, size_t block, job *jobs, uint32_t n) {
  double best = 0;
  for (uint64_t pass = 0; pass < 4; pass++)
    best = larger(best, rate_of_read(read, buffer, size, block, pass, jobs, n));
  return best;
}

static uint8_t *take_buffer(moi_arena *arena, size_t size) {
  arena->flags = MOI_ARENA_HUGE;
  uint8_t *buffer = moi_arena_take(arena, size, 4096, "the bandwidth buffer");
  for (size_t i = 0; i < size; i += 8) {
    uint64_t word = i * 0x9e3779b97f4a7c15u;
    memcpy(buffer + i, &word, 8);
  }
  return buffer;
}

static job *take_jobs(uint32_t threads) {
  job *jobs = calloc(threads, sizeof *jobs);
  if (!jobs) exit(3);
  return jobs;
}

static size_t buffer_size(size_t wanted, uint64_t memory) {
  return wanted > memory ? (size_t)memory & ~(size_t)0xfffff : wanted;
}

void moi_peak_measure(uint32_t threads, uint64_t memory, uint64_t block, moi_peak *out) {
  const loops l = find_loops();
  memset(out, 0, sizeof *out);
  out->isa = l.isa;
  job *jobs = take_jobs(threads);
  for (int kind = 0; kind < MOI_PEAK_KINDS; kind++)
    out->ops[kind] = larger(best_of_fma(l.fma[kind][0], jobs, threads), best_of_fma(l.fma[kind][1], jobs, threads));
  const size_t size = buffer_size((size_t)3 << 29, memory); /* beyond every cache */
  moi_arena arena = {0};
  const uint8_t *buffer = take_buffer(&arena, size);
  block = block / 1024 * 1024;
  if (block < 65536) block = 65536;
  if (block > size / 8) block = size / 8 / 1024 * 1024;
  out->read_bytes = best_of_read(l.read, buffer, size, 0, jobs, threads);
  out->block_bytes = best_of_read(l.read, buffer, size, (size_t)block, jobs, threads);
  moi_arena_free(&arena);
  free(jobs);
}

/* ---- moments */

struct moi_probe {
  loops loops;
  uint32_t threads;
  job *jobs;
  moi_arena arena;
  const uint8_t *buffer;
  size_t size, part, parts; /* a probe reads one part after another, so that none is in a cache */
  uint64_t turn, rounds[MOI_PEAK_KINDS];
};

#define PROBE_SECONDS 0.015

moi_probe *moi_probe_open(uint32_t threads, uint64_t memory, const moi_peak *peak) {
  moi_probe *p = calloc(1, sizeof *p);
  if (!p) exit(3);
  p->loops = find_loops();
  p->threads = threads;
  p->jobs = take_jobs(threads);
  p->size = buffer_size((size_t)1 << 28, memory);
  p->buffer = take_buffer(&p->arena, p->size);
  const double bytes = peak->read_bytes * PROBE_SECONDS;
  p->parts = bytes > 0 && bytes < (double)p->size ? (size_t)((double)p->size / bytes) : 1;
  p->part = p->size / p->parts / 4096 * 4096;
  for (int kind = 0; kind < MOI_PEAK_KINDS; kind++) {
    const fma_fn fma = p->loops.fma[kind][1] ? p->loops.fma[kind][1] : p->loops.fma[kind][0];
    float sink = 0;
    if (!fma) continue;
    const double per_round = fma(16, &sink) / 16 * threads;
    p->rounds[kind] = (uint64_t)(peak->ops[kind] * PROBE_SECONDS / per_round) + 1;
    p->jobs[0].sink_f = sink;
  }
  return p;
}

void moi_probe_close(moi_probe *p) {
  if (!p) return;
  moi_arena_free(&p->arena);
  free(p->jobs);
  free(p);
}

double moi_probe_read(moi_probe *p) {
  const uint8_t *part = p->buffer + p->turn++ % p->parts * p->part;
  return rate_of_read(p->loops.read, part, p->part, 0, 0, p->jobs, p->threads);
}

double moi_probe_ops(moi_probe *p, moi_peak_kind kind) {
  const fma_fn fma = p->loops.fma[kind][1] ? p->loops.fma[kind][1] : p->loops.fma[kind][0];
  return fma ? rate_of_fma(fma, p->rounds[kind], p->jobs, p->threads) : 0;
}
