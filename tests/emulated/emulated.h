/* The words of cuda/device/thread.h on a CPU: a block's threads are fibers of one thread, that meet at barriers and where
 * the lanes of a warp exchange values. Shared memory is allocated for each block, so that AddressSanitizer sees its ends,
 * and begins as NaN. What CUDA leaves undefined ends the program with a text: threads that wait at different things, lanes
 * missing from an exchange. */
#ifndef MOI_TESTS_EMULATED_H
#define MOI_TESTS_EMULATED_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct moi_emulated_thread {
  unsigned thread, block_x, block_y, grid_x, grid_y;
} moi_emulated_thread;
extern _Thread_local moi_emulated_thread moi_emulated_now;

/* name: of the kernel; entry takes its arguments */
void moi_emulated_register(const char *name, void (*entry)(const void *args), size_t args_size, unsigned threads);
void *moi_emulated_shared(const char *name, size_t bytes); /* known by the address of its name */
void *moi_emulated_asked(void); /* the launch's */
void moi_emulated_sync(void);
void moi_emulated_sync_warp(void);
void moi_emulated_sync_grid(void);
unsigned moi_emulated_atomic_add(unsigned *p, unsigned v);
/* A thread's copies: made when they are waited for; until then shared memory is NaN there. */
void moi_emulated_copy16(void *to, const void *from, int valid);
void moi_emulated_copy_commit(void);
void moi_emulated_copy_wait(unsigned groups);
void moi_emulated_read(const void *p, size_t size); /* this thread reads it: for races.h */
void moi_emulated_aligned(const char *what, const void *p, size_t alignment); /* or the program ends */
/* The lanes of a warp meet, each with `size` bytes (at most 64); returns what they brought, `size` bytes a lane, until the
 * next meeting. what: the kind of exchange, the same for all lanes. */
const unsigned char *moi_emulated_meet(const char *what, const void *value, size_t size);

#define MOI_DEVICE static inline __attribute__((unused))
/* A word whose memory is not the kernel's, but for what it says with moi_emulated_read: races.h does not look at it. */
#define MOI_WORD MOI_DEVICE __attribute__((no_sanitize_thread))
#define MOI_KERNEL(name, threads, type) MOI_KERNEL_OF(name, threads, type)
#define MOI_KERNEL_OF(name, threads, type)                                                                             \
  static void name##_body(const type *a);                                                                              \
  static void name##_entry(const void *args) { name##_body((const type *)args); }                                     \
  __attribute__((constructor)) static void name##_register(void) {                                                     \
    moi_emulated_register(#name, name##_entry, sizeof(type), threads);                                                 \
  }                                                                                                                    \
  static void name##_body(const type *a)
#define MOI_SHARED(type, name, n)                                                                                      \
  static const char name##_name[] = #name;                                                                             \
  type *const name = (type *)moi_emulated_shared(name##_name, (n) * sizeof(type))
#define MOI_SHARED_ASKED(name) unsigned char *const name = (unsigned char *)moi_emulated_asked()
#define MOI_UNROLL
#define MOI_ROLLED

typedef struct moi_u4 { unsigned x, y, z, w; } __attribute__((aligned(16))) moi_u4;
typedef struct moi_f4 { float x, y, z, w; } __attribute__((aligned(16))) moi_f4;
typedef struct moi_u2 { unsigned x, y; } __attribute__((aligned(8))) moi_u2;
typedef struct moi_f2 { float x, y; } __attribute__((aligned(8))) moi_f2;

MOI_DEVICE unsigned moi_fresh(unsigned v) { return v; }
MOI_DEVICE const void *moi_fresh_address(const void *p) { return p; }
MOI_DEVICE unsigned moi_thread(void) { return moi_emulated_now.thread; }
MOI_DEVICE unsigned moi_warp(void) { return moi_emulated_now.thread >> 5; }
MOI_DEVICE unsigned moi_lane(void) { return moi_emulated_now.thread & 31u; }
MOI_DEVICE unsigned moi_block_x(void) { return moi_emulated_now.block_x; }
MOI_DEVICE unsigned moi_block_y(void) { return moi_emulated_now.block_y; }
MOI_DEVICE unsigned moi_grid_x(void) { return moi_emulated_now.grid_x; }
MOI_DEVICE unsigned moi_grid_y(void) { return moi_emulated_now.grid_y; }
MOI_DEVICE unsigned moi_fresh_grid_x(void) { return moi_grid_x(); }
MOI_DEVICE unsigned moi_fresh_grid_y(void) { return moi_grid_y(); }
MOI_DEVICE void moi_sync(void) { moi_emulated_sync(); }
MOI_DEVICE void moi_sync_warp(void) { moi_emulated_sync_warp(); }
MOI_WORD unsigned moi_from_u32(unsigned v, unsigned lane) {
  unsigned r;
  memcpy(&r, moi_emulated_meet("shuffle", &v, 4) + 4 * (lane & 31u), 4);
  return r;
}
MOI_WORD float moi_from_f32(float v, unsigned lane) {
  float r;
  memcpy(&r, moi_emulated_meet("shuffle", &v, 4) + 4 * (lane & 31u), 4);
  return r;
}
MOI_DEVICE unsigned moi_xor_u32(unsigned v, unsigned mask) { return moi_from_u32(v, moi_lane() ^ mask); }
MOI_DEVICE float moi_xor_f32(float v, unsigned mask) { return moi_from_f32(v, moi_lane() ^ mask); }
MOI_WORD unsigned moi_ballot(int condition) {
  unsigned char c = condition != 0;
  const unsigned char *all = moi_emulated_meet("ballot", &c, 1);
  unsigned r = 0;
  for (unsigned i = 0; i < 32; i++) r |= (unsigned)all[i] << i;
  return r;
}
MOI_DEVICE void moi_keep_order(void) {}
MOI_DEVICE const void *moi_global(const void *p) { return p; }
MOI_WORD unsigned moi_max_u32(unsigned v) {
  const unsigned char *all = moi_emulated_meet("reduction", &v, 4);
  for (unsigned i = 0, other; i < 32; i++) {
    memcpy(&other, all + 4 * i, 4);
    if (other > v) v = other;
  }
  return v;
}
MOI_DEVICE unsigned moi_min_u32(unsigned v) { return ~moi_max_u32(~v); }
MOI_WORD unsigned moi_match(unsigned v) {
  const unsigned char *all = moi_emulated_meet("match", &v, 4);
  unsigned r = 0;
  for (unsigned i = 0; i < 32; i++) r |= (unsigned)!memcmp(all + 4 * i, &v, 4) << i;
  return r;
}
MOI_DEVICE unsigned moi_bits(unsigned v) { return (unsigned)__builtin_popcount(v); }
MOI_DEVICE unsigned moi_atomic_add(unsigned *p, unsigned v) { return moi_emulated_atomic_add(p, v); }

/* ---- cuda/device/grid.h */

MOI_DEVICE void moi_sync_grid(void) { moi_emulated_sync_grid(); }

/* ---- cuda/device/copy.h */

MOI_DEVICE void moi_copy16_async(void *to, const void *from, int valid) { moi_emulated_copy16(to, from, valid); }
MOI_DEVICE void moi_copy_commit(void) { moi_emulated_copy_commit(); }
MOI_DEVICE void moi_copy_wait(unsigned groups) { moi_emulated_copy_wait(groups); }

/* ---- cuda/device/mma.h: the lanes of a warp bring their fragments, and each computes what it gets */

/* bf16: 1, or f16: 0 */
MOI_WORD float moi_emulated_half(unsigned word, unsigned high, int bf16) {
  unsigned h = high ? word >> 16 : word & 0xffffu, e = (h >> 10) & 31u, sign = (h & 0x8000u) << 16, bits = h << 16;
  float f;
  if (!bf16) {
    if (!e) return (sign ? -0x1p-24f : 0x1p-24f) * (float)(h & 1023u);
    bits = sign | (e == 31u ? 255u : e + 112u) << 23 | (h & 1023u) << 13;
  }
  memcpy(&f, &bits, 4);
  return f;
}
/* D = A B + D of m16n8k<k>: element A[i][j] is in register a[i / 8 + 2 (j / 8)] of lane 4 (i % 8) + (j % 8) / 2, element
 * B[j][i] in b[j / 8] of lane 4 i + (j % 8) / 2. */
MOI_WORD void moi_emulated_mma(const char *what, float *d, const unsigned *a, const unsigned *b, unsigned k, int bf16) {
  unsigned mine[6], n_a = k / 4u, n_b = k / 8u, size = 4 * (n_a + n_b), lane = moi_lane();
  memcpy(mine, a, 4 * n_a);
  memcpy(mine + n_a, b, 4 * n_b);
  const unsigned char *all = moi_emulated_meet(what, mine, size);
  for (unsigned i = 0; i < 4; i++) {
    unsigned row = lane / 4u + 8u * (i / 2u), column = 2u * (lane % 4u) + i % 2u;
    float sum = d[i];
    for (unsigned j = 0; j < k; j++) {
      unsigned pair = (j % 8u) / 2u, wa, wb;
      memcpy(&wa, all + size * (4u * (row % 8u) + pair) + 4 * (row / 8u + 2u * (j / 8u)), 4);
      memcpy(&wb, all + size * (4u * column + pair) + 4 * (n_a + j / 8u), 4);
      sum += moi_emulated_half(wa, j % 2u, bf16) * moi_emulated_half(wb, j % 2u, bf16);
    }
    d[i] = sum;
  }
}
MOI_DEVICE void moi_mma_bf16_16816(float *d, const unsigned *a, const unsigned *b) {
  moi_emulated_mma("mma bf16 m16n8k16", d, a, b, 16, 1);
}
MOI_DEVICE void moi_mma_bf16_16816_first(float *d, const unsigned *a, const unsigned *b) {
  d[0] = d[1] = d[2] = d[3] = 0.0f;
  moi_emulated_mma("mma bf16 m16n8k16", d, a, b, 16, 1);
}
MOI_DEVICE void moi_mma_f16_16816(float *d, const unsigned *a, const unsigned *b) {
  moi_emulated_mma("mma f16 m16n8k16", d, a, b, 16, 0);
}
MOI_DEVICE void moi_mma_f16_1688(float *d, const unsigned *a, const unsigned *b) {
  moi_emulated_mma("mma f16 m16n8k8", d, a, b, 8, 0);
}
MOI_WORD void moi_mma_f16_k16(float *d, const unsigned *a, const unsigned *b) {
  moi_mma_f16_1688(d, a, b);
  moi_mma_f16_1688(d, a + 2, b + 1);
}
/* E4M3 */
MOI_WORD double moi_emulated_e4m3(unsigned b) {
  int e = (int)((b >> 3) & 15u), m = (int)(b & 7u);
  double v = (b & 127u) == 127u ? (double)NAN : ldexp(e ? m + 8 : m, (e ? e : 1) - 10);
  return b & 128u ? -v : v;
}
/* E2M1 in bits 2 to 5 of a byte; other bits are to be 0. */
MOI_WORD double moi_emulated_e2m1(unsigned b) {
  static const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  if (b & ~0x3cu) return (double)NAN;
  return b & 0x20u ? -values[(b >> 2) & 7u] : values[(b >> 2) & 7u];
}
MOI_WORD double moi_emulated_e8m0(unsigned e) { return e == 255u ? (double)NAN : ldexp(1.0, (int)e - 127); }
/* Element A[i][j] is in byte j % 4 of register a[i / 8 + 2 (j / 16)] of lane 4 (i % 8) + (j % 16) / 4, element B[j][i] in
 * that of b[j / 16] of lane 4 i + (j % 16) / 4. mx: B is E2M1, and of_a of lane 4 (i % 8) + i / 8 is the exponent of row i of
 * A, of_b of lane 4 i that of column i of B. As measured of hardware, if not of mx: of every product, and of what they are added
 * to, the bits behind 2^-13 of the largest of them are dropped. */
MOI_WORD void moi_emulated_mma_e4m3(const char *what, float *d, const unsigned *a, const unsigned *b, int mx, unsigned of_a,
                                    unsigned of_b) {
  unsigned mine[8], lane = moi_lane();
  memcpy(mine, a, 16);
  memcpy(mine + 4, b, 8);
  mine[6] = of_a, mine[7] = of_b;
  const unsigned char *all = moi_emulated_meet(what, mine, sizeof mine);
  for (unsigned i = 0; i < 4; i++) {
    unsigned row = lane / 4u + 8u * (i / 2u), column = 2u * (lane % 4u) + i % 2u;
    double terms[33], largest = fabs((double)d[i]), sum = 0;
    double scale = 1;
    if (mx)
      scale = moi_emulated_e8m0(all[sizeof mine * (4u * (row % 8u) + row / 8u) + 24]) *
              moi_emulated_e8m0(all[sizeof mine * 4u * column + 28]);
    terms[32] = d[i];
    for (unsigned j = 0; j < 32; j++) {
      unsigned lanes = (j % 16u) / 4u;
      unsigned char wa = all[sizeof mine * (4u * (row % 8u) + lanes) + 4 * (row / 8u + 2u * (j / 16u)) + j % 4u];
      unsigned char wb = all[sizeof mine * (4u * column + lanes) + 4 * (4u + j / 16u) + j % 4u];
      terms[j] = moi_emulated_e4m3(wa) * (mx ? moi_emulated_e2m1(wb) : moi_emulated_e4m3(wb)) * scale;
      largest = fmax(largest, fabs(terms[j]));
    }
    int e = 0;
    frexp(largest, &e); /* largest < 2^e */
    for (unsigned j = 0; j < 33; j++)
      sum += isfinite(terms[j]) && isfinite(largest) ? ldexp(trunc(ldexp(terms[j], 14 - e)), e - 14) : terms[j];
    d[i] = (float)sum;
  }
}
MOI_DEVICE void moi_mma_e4m3_16832(float *d, const unsigned *a, const unsigned *b) {
  moi_emulated_mma_e4m3("mma e4m3 m16n8k32", d, a, b, 0, 0, 0);
}
MOI_DEVICE void moi_mma_mx_e4m3_e2m1_16832(float *d, const unsigned *a, const unsigned *b, unsigned of_a, unsigned of_b) {
  moi_emulated_mma_e4m3("mma mx e4m3 e2m1 m16n8k32", d, a, b, 1, of_a, of_b);
}
/* D = A B + D of bytes: element A[i][j] is in byte j % 4 of register a[i / 8 + (rows / 8) (j / 16)] of lane
 * 4 (i % 8) + (j % 16) / 4, element B[j][i] in that of b[j / 16] of lane 4 i + (j % 16) / 4. */
MOI_WORD void moi_emulated_mma_s8(const char *what, int *d, const unsigned *a, const unsigned *b, unsigned rows,
                                    unsigned k) {
  unsigned mine[6], n_a = rows / 8u * (k / 16u), n_b = k / 16u, size = 4 * (n_a + n_b), lane = moi_lane();
  memcpy(mine, a, 4 * n_a);
  memcpy(mine + n_a, b, 4 * n_b);
  const unsigned char *all = moi_emulated_meet(what, mine, size);
  for (unsigned i = 0; i < rows / 4u; i++) {
    unsigned row = lane / 4u + 8u * (i / 2u), column = 2u * (lane % 4u) + i % 2u, sum = (unsigned)d[i];
    for (unsigned j = 0; j < k; j++) {
      unsigned word = (j % 16u) / 4u;
      int8_t va = (int8_t)all[size * (4u * (row % 8u) + word) + 4 * (row / 8u + rows / 8u * (j / 16u)) + j % 4u];
      int8_t vb = (int8_t)all[size * (4u * column + word) + 4 * (n_a + j / 16u) + j % 4u];
      sum += (unsigned)(va * vb);
    }
    d[i] = (int)sum;
  }
}
MOI_WORD void moi_mma_s8_8816(int *d, unsigned a, unsigned b) {
  moi_emulated_mma_s8("mma s8 m8n8k16", d, &a, &b, 8, 16);
}
MOI_WORD void moi_mma_s8_16816(int *d, const unsigned *a, const unsigned *b, int c) {
  d[0] = d[1] = d[2] = d[3] = c;
  moi_emulated_mma_s8("mma s8 m16n8k16", d, a, b, 16, 16);
}
MOI_WORD void moi_mma_s8_16832(int *d, const unsigned *a, const unsigned *b, int c) {
  d[0] = d[1] = d[2] = d[3] = c;
  moi_emulated_mma_s8("mma s8 m16n8k32", d, a, b, 16, 32);
}
MOI_WORD void moi_emulated_ldmatrix(const char *what, unsigned *r, const void *row, int transposed) {
  const unsigned char *all = moi_emulated_meet(what, &row, sizeof row);
  unsigned g = moi_lane() / 4u, q = moi_lane() % 4u;
  for (unsigned i = 0; i < 4; i++) {
    uint16_t half[2];
    for (unsigned j = 0; j < 2; j++) {
      const unsigned char *from;
      unsigned line = transposed ? 2u * q + j : g, element = transposed ? g : 2u * q + j;
      memcpy(&from, all + sizeof from * (8u * i + line), sizeof from);
      memcpy(&half[j], from + 2u * element, 2);
    }
    r[i] = half[0] | (unsigned)half[1] << 16;
  }
}
MOI_DEVICE void moi_ldmatrix_x4(unsigned *r, const void *row) {
  moi_emulated_aligned("ldmatrix", row, 16);
  moi_emulated_read(row, 16);
  moi_emulated_ldmatrix("ldmatrix x4", r, row, 0);
}
MOI_DEVICE void moi_ldmatrix_x4_trans(unsigned *r, const void *row) {
  moi_emulated_aligned("ldmatrix", row, 16);
  moi_emulated_read(row, 16);
  moi_emulated_ldmatrix("ldmatrix x4 trans", r, row, 1);
}
MOI_DEVICE unsigned moi_bytes(unsigned a, unsigned b, unsigned selector) {
  uint64_t both = (uint64_t)b << 32 | a;
  unsigned r = 0;
  for (unsigned i = 0; i < 4; i++) r |= (unsigned)(both >> (8u * ((selector >> (4u * i)) & 7u)) & 255u) << (8u * i);
  return r;
}
/* The f16 nearest to v, the even one of two. */
MOI_WORD unsigned moi_emulated_f16(double v) {
  unsigned sign = signbit(v) ? 0x8000u : 0u;
  double m = fabs(v);
  int e;
  if (v != v) return 0x7e00u;
  if (m >= 65520.0) return sign | 0x7c00u;
  frexp(m, &e);
  if (m == 0 || e < -13) e = -13; /* subnormals: 2^-24 apart, as the least of the others */
  return sign | ((unsigned)rint(ldexp(m, 11 - e)) + ((unsigned)(e + 13) << 10));
}
MOI_WORD unsigned moi_f16x2_fma(unsigned a, unsigned b, unsigned c) {
  unsigned r = 0;
  for (unsigned i = 0; i < 2; i++) {
    double v = (double)moi_emulated_half(a, i, 0) * moi_emulated_half(b, i, 0) + moi_emulated_half(c, i, 0);
    r |= moi_emulated_f16(v) << (16u * i);
  }
  return r;
}
MOI_WORD unsigned moi_bf16x2_fma(unsigned a, unsigned b, unsigned c) {
  unsigned r = 0;
  for (unsigned i = 0; i < 2; i++) {
    double v = (double)moi_emulated_half(a, i, 1) * moi_emulated_half(b, i, 1) + moi_emulated_half(c, i, 1);
    float f = (float)v;
    unsigned u;
    memcpy(&u, &f, 4);
    if ((double)f != v && v == v) { /* to odd, so that the second rounding is the only one */
      double away = fabs((double)f) > fabs(v);
      u = (away ? u - 1u : u) | 1u;
    }
    u = v != v ? 0x7fff0000u : u + 0x7fffu + ((u >> 16) & 1u);
    r |= (u >> 16) << (16u * i);
  }
  return r;
}

#endif
