/* The emulated tensor cores and copies against plain loops, on fragments that are made here from the layouts as the PTX ISA
 * draws them. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/device/copy.h"
#include "cuda/device/mma.h"
#include "machine.h"

enum { M = 16, N = 8, K = 16 };

typedef struct mma_args {
  const uint16_t *a, *b; /* [M][K], [K][N] */
  float *d;              /* [M][N] */
  unsigned kind;         /* 0 bf16 k16, 1 f16 k16, 2 f16 k8, 3 bf16 k16 without what d was, 4 f16 k16 of two k8 */
} mma_args;

typedef struct mma8_args {
  const uint8_t *a, *b; /* [M][32], [32][N] */
  float *d;             /* [M][N] */
} mma8_args;

static unsigned pair(uint16_t low, uint16_t high) { return low | (unsigned)high << 16; }

MOI_KERNEL(test_mma, 32, mma_args) {
  unsigned g = moi_lane() / 4, q = moi_lane() % 4, k = a->kind == 2 ? 8 : 16, n = 0, fa[4], fb[2];
  for (unsigned k0 = 0; k0 < k; k0 += 8)
    for (unsigned row = g; row < M; row += 8, n++)
      fa[n] = pair(a->a[row * K + k0 + 2 * q], a->a[row * K + k0 + 2 * q + 1]);
  for (unsigned k0 = 0; k0 < k; k0 += 8) fb[k0 / 8] = pair(a->b[(k0 + 2 * q) * N + g], a->b[(k0 + 2 * q + 1) * N + g]);
  float d[4];
  for (unsigned i = 0; i < 4; i++) d[i] = a->d[(g + i / 2 * 8) * N + 2 * q + i % 2];
  if (a->kind == 0) moi_mma_bf16_16816(d, fa, fb);
  else if (a->kind == 1) moi_mma_f16_16816(d, fa, fb);
  else if (a->kind == 2) moi_mma_f16_1688(d, fa, fb);
  else if (a->kind == 4) moi_mma_f16_k16(d, fa, fb);
  else moi_mma_bf16_16816_first(d, fa, fb);
  for (unsigned i = 0; i < 4; i++) a->d[(g + i / 2 * 8) * N + 2 * q + i % 2] = d[i];
}

MOI_KERNEL(test_mma8, 32, mma8_args) {
  unsigned g = moi_lane() / 4, q = moi_lane() % 4, n = 0, fa[4], fb[2];
  for (unsigned k0 = 0; k0 < 32; k0 += 16)
    for (unsigned row = g; row < M; row += 8, n++) memcpy(&fa[n], a->a + row * 32 + k0 + 4 * q, 4);
  for (unsigned k0 = 0; k0 < 32; k0 += 16) {
    uint8_t four[4];
    for (unsigned i = 0; i < 4; i++) four[i] = a->b[(k0 + 4 * q + i) * N + g];
    memcpy(&fb[k0 / 16], four, 4);
  }
  float d[4];
  for (unsigned i = 0; i < 4; i++) d[i] = a->d[(g + i / 2 * 8) * N + 2 * q + i % 2];
  moi_mma_e4m3_16832(d, fa, fb);
  for (unsigned i = 0; i < 4; i++) a->d[(g + i / 2 * 8) * N + 2 * q + i % 2] = d[i];
}

typedef struct mx_args {
  const uint8_t *a, *b;       /* [M][32] of E4M3, [32][N] of E2M1 in the low nibbles */
  const uint8_t *of_a, *of_b; /* [M], [N] */
  float *d;                   /* [M][N] */
} mx_args;

MOI_KERNEL(test_mma_mx, 32, mx_args) {
  unsigned lane = moi_lane(), g = lane / 4, q = lane % 4, fa[4], fb[2] = {0, 0}, of_a = ~0u, of_b = ~0u;
  float d[4];
  for (unsigned i = 0; i < 4; i++) memcpy(&fa[i], a->a + (g + i % 2 * 8) * 32 + 4 * q + i / 2 * 16, 4);
  for (unsigned i = 0; i < 8; i++) fb[i / 4] |= (unsigned)a->b[(4 * q + i % 4 + i / 4 * 16) * N + g] << (8 * (i % 4) + 2);
  if (q < 2) of_a = 0xabcdef00u | a->of_a[g + 8 * q];
  if (q == 0) of_b = 0x12345600u | a->of_b[g];
  for (unsigned i = 0; i < 4; i++) d[i] = a->d[(g + i / 2 * 8) * N + 2 * q + i % 2];
  moi_mma_mx_e4m3_e2m1_16832(d, fa, fb, of_a, of_b);
  for (unsigned i = 0; i < 4; i++) a->d[(g + i / 2 * 8) * N + 2 * q + i % 2] = d[i];
}

typedef struct bytes_args {
  const int8_t *a, *b; /* [M][32], [32][N] */
  int *d;              /* [M][N] */
  unsigned kind;       /* 0 m16n8k32, 1 m16n8k16, 2 and 3 the same made of m8n8k16 */
  int c;
} bytes_args;

static unsigned four(const int8_t *p, unsigned step) {
  unsigned r = 0;
  for (unsigned i = 0; i < 4; i++) r |= (unsigned)(uint8_t)p[i * step] << (8 * i);
  return r;
}

MOI_KERNEL(test_mma_bytes, 32, bytes_args) {
  unsigned g = moi_lane() / 4, q = moi_lane() % 4, fa[4], fb[2];
  int d[4];
  for (unsigned i = 0; i < 4; i++) fa[i] = four(a->a + (g + i % 2 * 8) * 32 + 4 * q + i / 2 * 16, 1);
  for (unsigned i = 0; i < 2; i++) fb[i] = four(a->b + (4 * q + i * 16) * N + g, N);
  if (a->kind == 0) moi_mma_s8_16832(d, fa, fb, a->c);
  else if (a->kind == 1) moi_mma_s8_16816(d, fa, fb, a->c);
  else if (a->kind == 2) moi_mma_s8_16832_of_8816(d, fa, fb, a->c);
  else moi_mma_s8_16816_of_8816(d, fa, fb, a->c);
  for (unsigned i = 0; i < 4; i++) a->d[(g + i / 2 * 8) * N + 2 * q + i % 2] = d[i];
}

typedef struct move_args {
  const uint16_t *from; /* [32][8] */
  unsigned *to;         /* [32][4], then as much transposed */
  unsigned *late;       /* [32]: what was in shared memory before the wait */
} move_args;

MOI_KERNEL(test_move, 32, move_args) {
  MOI_SHARED_ASKED(rows);
  unsigned lane = moi_lane(), r[4];
  moi_copy16_async(rows + 16 * lane, a->from + 8 * lane, lane == 31 ? 6 : 16);
  moi_copy_commit();
  moi_copy_commit();
  moi_copy_wait(2);
  a->late[lane] = moi_u32(rows, 16 * lane);
  moi_copy_wait(1);
  moi_sync_warp();
  moi_ldmatrix_x4(r, rows + 16 * lane);
  memcpy(a->to + 4 * lane, r, sizeof r);
  moi_ldmatrix_x4_trans(r, rows + 16 * lane);
  memcpy(a->to + 128 + 4 * lane, r, sizeof r);
  moi_copy_wait(0);
}

MOI_KERNEL(test_misaligned, 32, move_args) {
  MOI_SHARED_ASKED(rows);
  moi_copy16_async(rows, a->from + 1, 16);
}
MOI_KERNEL(test_nobody_waits, 32, move_args) {
  MOI_SHARED_ASKED(rows);
  moi_copy16_async(rows + 16 * moi_lane(), a->from, 16);
}
MOI_KERNEL(test_misaligned_row, 32, move_args) {
  MOI_SHARED_ASKED(rows);
  unsigned r[4];
  (void)a;
  moi_ldmatrix_x4(r, rows + 2);
}

static int failures;
#define CHECK(condition, ...)                                                                                          \
  do {                                                                                                                 \
    if (!(condition)) failures++, printf("line %d: ", __LINE__), printf(__VA_ARGS__), printf("\n");                    \
  } while (0)

static void run(const char *name, const void *args) {
  moi_emulated_launch(moi_emulated_find(name), args, 1, 1, 32, 512);
}

static void test_products(void) {
  for (unsigned kind = 0; kind < 5; kind++) {
    uint16_t a[M * K], b[K * N];
    float fa[M * K], fb[K * N], d[M * N], wanted[M * N];
    unsigned bf16 = kind == 0 || kind == 3, k = kind == 2 ? 8 : 16;
    for (int i = 0; i < M * K; i++) fa[i] = (float)(i * 37 % 101 - 50) / 16; /* exact in both types */
    for (int i = 0; i < K * N; i++) fb[i] = (float)(i * 53 % 97 - 48) / 8;
    for (int i = 0; i < M * K; i++) a[i] = (uint16_t)(bf16 ? moi_bf16_code(fa[i]) : moi_f16_code(fa[i]));
    for (int i = 0; i < K * N; i++) b[i] = (uint16_t)(bf16 ? moi_bf16_code(fb[i]) : moi_f16_code(fb[i]));
    for (int i = 0; i < M * N; i++) d[i] = (float)i, wanted[i] = kind == 3 ? 0 : d[i];
    for (unsigned i = 0; i < M; i++)
      for (unsigned j = 0; j < N; j++)
        for (unsigned l = 0; l < k; l++) wanted[i * N + j] += fa[i * K + l] * fb[l * N + j];
    mma_args args = {a, b, d, kind};
    run("test_mma", &args);
    for (unsigned i = 0; i < M * N; i++)
      CHECK(d[i] == wanted[i], "kind %u, row %u, column %u: %g, wanted %g", kind, i / N, i % N, (double)d[i],
            (double)wanted[i]);
  }
}

static void test_products_of_bytes(void) {
  uint8_t a[M * 32], b[32 * N];
  float d[M * N], wanted[M * N];
  for (int i = 0; i < M * 32; i++) a[i] = (uint8_t)moi_e4m3_code((float)(i * 37 % 17 - 8)); /* sums below 2^13 */
  for (int i = 0; i < 32 * N; i++) b[i] = (uint8_t)moi_e4m3_code((float)(i * 53 % 15 - 7));
  for (int i = 0; i < M * N; i++) d[i] = wanted[i] = (float)i;
  for (unsigned i = 0; i < M; i++)
    for (unsigned j = 0; j < N; j++)
      for (unsigned l = 0; l < 32; l++) wanted[i * N + j] += moi_e4m3_value(a[i * 32 + l]) * moi_e4m3_value(b[l * N + j]);
  mma8_args args = {a, b, d};
  run("test_mma8", &args);
  for (unsigned i = 0; i < M * N; i++)
    CHECK(d[i] == wanted[i], "row %u, column %u: %g, wanted %g", i / N, i % N, (double)d[i], (double)wanted[i]);
  /* 4 + 2^-11 + 2^-12: the largest is 2^2, and 2^-11 the last bit that is kept */
  memset(a, 0, sizeof a);
  memset(b, 0, sizeof b);
  a[0] = (uint8_t)moi_e4m3_code(4), b[0] = (uint8_t)moi_e4m3_code(1);
  a[1] = (uint8_t)moi_e4m3_code(0x1p-9f), b[1 * N] = (uint8_t)moi_e4m3_code(0x1p-2f);
  a[31] = (uint8_t)moi_e4m3_code(-0x1p-9f), b[31 * N] = (uint8_t)moi_e4m3_code(0x1p-3f);
  memset(d, 0, sizeof d);
  run("test_mma8", &args);
  CHECK(d[0] == 4 + 0x1p-11f, "%.9g", (double)d[0]);
  a[1] = 0x7f;
  run("test_mma8", &args);
  CHECK(d[0] != d[0], "NaN: %g", (double)d[0]);
}

static void test_products_with_scales(void) {
  uint8_t a[M * 32], b[32 * N], of_a[M], of_b[N];
  float d[M * N], wanted[M * N];
  for (int i = 0; i < M * 32; i++) a[i] = (uint8_t)moi_e4m3_code((float)(i * 37 % 17 - 8));
  for (int i = 0; i < 32 * N; i++) b[i] = (uint8_t)(i * 53 % 16);
  for (int i = 0; i < M; i++) of_a[i] = (uint8_t)(120 + i);
  for (int i = 0; i < N; i++) of_b[i] = (uint8_t)(130 - 2 * i);
  for (unsigned i = 0; i < M; i++)
    for (unsigned j = 0; j < N; j++) { /* multiples of half the scale, below 2^11 of it */
      float sum = 0;
      for (unsigned l = 0; l < 32; l++) sum += moi_e4m3_value(a[i * 32 + l]) * moi_e2m1_f32(b[l * N + j]);
      d[i * N + j] = ldexpf((float)(i * N + j), of_a[i] + of_b[j] - 254);
      wanted[i * N + j] = d[i * N + j] + ldexpf(sum, of_a[i] + of_b[j] - 254);
    }
  mx_args args = {a, b, of_a, of_b, d};
  run("test_mma_mx", &args);
  for (unsigned i = 0; i < M * N; i++)
    CHECK(d[i] == wanted[i], "row %u, column %u: %g, wanted %g", i / N, i % N, (double)d[i], (double)wanted[i]);
  of_a[9] = 255;
  run("test_mma_mx", &args);
  for (unsigned i = 0; i < M * N; i++) CHECK((d[i] != d[i]) == (i / N == 9), "row %u: %g", i / N, (double)d[i]);
}

static void test_bytes(void) {
  int8_t a[M * 32], b[32 * N];
  for (int i = 0; i < M * 32; i++) a[i] = (int8_t)(i * 37 % 256 - 128);
  for (int i = 0; i < 32 * N; i++) b[i] = (int8_t)(i * 53 % 251 - 128);
  for (unsigned kind = 0; kind < 4; kind++) {
    int d[M * N], c = 0x4b400000;
    bytes_args args = {a, b, d, kind, c};
    run("test_mma_bytes", &args);
    for (unsigned i = 0; i < M; i++)
      for (unsigned j = 0; j < N; j++) {
        int wanted = c;
        for (unsigned l = 0; l < (kind % 2 ? 16 : 32); l++) wanted += a[i * 32 + l] * b[l * N + j];
        CHECK(d[i * N + j] == wanted, "kind %u, row %u, column %u: %d, wanted %d", kind, i, j, d[i * N + j], wanted);
      }
  }
}

static void test_copies(void) {
  _Alignas(16) uint16_t from[32 * 8];
  unsigned to[256], late[32];
  for (unsigned i = 0; i < 32 * 8; i++) from[i] = (uint16_t)(i * 257 + 1);
  move_args args = {from, to, late};
  run("test_move", &args);
  for (unsigned i = 3; i < 8; i++) from[31 * 8 + i] = 0; /* 6 bytes were valid */
  for (unsigned lane = 0; lane < 32; lane++) {
    CHECK(late[lane] == 0xffffffffu, "lane %u: %x could be read before it was waited for", lane, late[lane]);
    for (unsigned i = 0; i < 4; i++) {
      const uint16_t *m = from + 64 * i;
      unsigned g = lane / 4, q = lane % 4, straight = pair(m[g * 8 + 2 * q], m[g * 8 + 2 * q + 1]),
               turned = pair(m[2 * q * 8 + g], m[(2 * q + 1) * 8 + g]);
      CHECK(to[4 * lane + i] == straight, "lane %u, matrix %u: %x, wanted %x", lane, i, to[4 * lane + i], straight);
      CHECK(to[128 + 4 * lane + i] == turned, "lane %u, matrix %u, transposed: %x, wanted %x", lane, i,
            to[128 + 4 * lane + i], turned);
    }
  }
}

static float half_of(unsigned word, unsigned i) { return moi_bf16_value((word >> 16 * i) & 65535u); }

static void test_pairs(void) {
  /* 257 lies between 256 and 258, 259 between 258 and 260: to the even one; 3 * 2^-133 is a subnormal */
  unsigned one = pair(0x3f80, 0x3f80), r = moi_bf16x2_fma(pair(0x4380, 0x4381), one, one);
  CHECK(half_of(r, 0) == 256 && half_of(r, 1) == 260, "%g %g", (double)half_of(r, 0), (double)half_of(r, 1));
  r = moi_bf16x2_fma(pair(0x0003, 0x7fc0), pair(0x7e80, 0x3f80), pair(0x8000, 0x8000));
  CHECK(half_of(r, 0) == 3 * 0x1p-7f && half_of(r, 1) != half_of(r, 1), "%g %g", (double)half_of(r, 0),
        (double)half_of(r, 1));
  /* 387 is the middle of 386 and 388, the even one; less 2^-30, one rounding gives 386, two by way of a float 388 */
  r = moi_bf16x2_fma(pair(0x4301, 0xc301), pair(0x4040, 0x4040), pair(0xb080, 0x3080));
  CHECK(half_of(r, 0) == 386 && half_of(r, 1) == -386, "%g %g", (double)half_of(r, 0), (double)half_of(r, 1));
  r = moi_bf16x2_fma(pair(0x4301, 0xc301), pair(0x4040, 0x4040), pair(0x3080, 0x8000));
  CHECK(half_of(r, 0) == 388 && half_of(r, 1) == -388, "%g %g", (double)half_of(r, 0), (double)half_of(r, 1));
  /* of f16: 2049 lies between 2048 and 2050, 2051 between 2050 and 2052; 3 * 2^-24 is a subnormal; 65520 is too much */
  one = pair(0x3c00, 0x3c00);
  r = moi_f16x2_fma(pair(0x6800, 0x6801), one, one);
  CHECK(r == pair(0x6800, 0x6802), "%x", r);
  r = moi_f16x2_fma(pair(0x0003, 0x7bff), pair(0x7400, 0x3c00), pair(0x8000, 0x4c00));
  CHECK(r == pair(0x1a00, 0x7c00), "%x", r);
  r = moi_f16x2_fma(pair(0x6408, 0x3c00), one, pair(0xe408, 0xbc01));
  CHECK(r == pair(0x0000, 0x9400), "%x", r);
  CHECK(moi_f16x2(-1.5f, 65504.0f) == pair(0xbe00, 0x7bff), "%x", moi_f16x2(-1.5f, 65504.0f));
  CHECK(moi_bytes(0x03020100u, 0x07060504u, 0x6315u) == 0x06030105u, "%x",
        moi_bytes(0x03020100u, 0x07060504u, 0x6315u));
}

/* That a kernel ends the program. */
static void test_death(const char *kernel) {
  pid_t child = fork();
  if (!child) {
    _Alignas(16) uint16_t from[32 * 8] = {0};
    move_args args = {from, NULL, NULL};
    if (!freopen("/dev/null", "w", stderr)) _exit(2);
    run(kernel, &args);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT,
        "%s: was not ended: status %x", kernel, (unsigned)status);
}

int main(void) {
  test_products();
  test_products_of_bytes();
  test_products_with_scales();
  test_bytes();
  test_copies();
  test_pairs();
  test_death("test_misaligned");
  test_death("test_nobody_waits");
  test_death("test_misaligned_row");
  if (failures) printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
