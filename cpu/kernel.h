/* The contract between the CPU drivers (route.c, experts.c, attention.c) and the kernels of kernels.def. */
#ifndef MOI_CPU_KERNEL_H
#define MOI_CPU_KERNEL_H

#include <moiety.h>

#include "cpu/isa.h"

/* The level of cache, as __builtin_prefetch counts, that kernels fetch weights into before they come to them. On x86 the
 * second: a first-level cache has few misses under way (docs/performance.md has what that gave). */
#if defined(__x86_64__)
#define MOI_AHEAD_INTO 2
#else
#define MOI_AHEAD_INTO 3
#endif

/* One expert's W[n,k], streams as the format says. */
typedef struct moi_matrix {
  moi_format format;
  const uint8_t *data, *scales, *zeros;
  float global; /* multiplies the dot product: NVFP4's global scale, else 1 */
  uint32_t n, k;
} moi_matrix;

/* A FORM is how a kernel wants a row of activations x[k] prepared. k is padded with zeros to kp = k rounded up to 64.
 *
 * F32      float x[kp]
 * BF16     uint16 x[kp], round to nearest even: chosen only where x holds bf16 values exactly
 * I16      x ~ d * q: int16 q[kp], |q| <= 32639; then float d[kp/32], one for each 32; then float s[kp/16], s = d * (sum
 *          of the 16 q's). 16 bits keep the integer kernels as good as fp32 ones
 * I8X2     the same numbers as two signed digits, q = 256*hi + lo, -128 <= lo <= 127, |hi| <= 127: for each 64 elements
 *          64 bytes hi, then 64 bytes lo; then d, then s as above
 * I8       x = d * q, int8 q[kp], then d, then s: chosen only for MOI_ACT_QUANT_INT8_32, of which these are the values
 * *_EO     the same with the order of each 64 elements changed to match formats whose low nibbles are the even k:
 *          [even of first 32 | even of second 32 | odd of first 32 | odd of second 32] for I8X2_EO and I8_EO, and
 *          [even 16 | odd 16] of each 32 for I16_EO. d and s are as in the natural order
 *
 * d = max|x| / 32639 of the 32 elements (0 if all are 0), q = x / d rounded to nearest, ties to even. NaN and infinity in
 * x give d = NaN, so that they reach the result. I8*: d is moi_int8_group's scale, infinite for NaN. */
typedef enum moi_form {
  MOI_FORM_F32,
  MOI_FORM_BF16,
  MOI_FORM_I16,
  MOI_FORM_I16_EO,
  MOI_FORM_I8X2,
  MOI_FORM_I8X2_EO,
  MOI_FORM_I8,
  MOI_FORM_I8_EO,
  MOI_FORM_COUNT
} moi_form;

/* Bytes of a prepared row, a multiple of 64. */
size_t moi_form_bytes(moi_form form, uint32_t k);
/* Offsets of d and s in an I16* or I8X2* row, and in an I8* row. */
#define MOI_FORM_KP(k) (((size_t)(k) + 63) & ~(size_t)63)
#define MOI_FORM_D(k) (MOI_FORM_KP(k) * 2)
#define MOI_FORM_S(k) (MOI_FORM_KP(k) * 2 + MOI_FORM_KP(k) / 32 * 4)
#define MOI_FORM_I8_D(k) MOI_FORM_KP(k)
#define MOI_FORM_I8_S(k) (MOI_FORM_KP(k) + MOI_FORM_KP(k) / 32 * 4)

/* Prepares one row, for I8* of the values before they are quantised; dst is 64-byte aligned. The best of the `isa` that is
 * given; every ISA gives the same bits. */
typedef void (*moi_prepare_fn)(const float *x, uint32_t k, void *dst);
moi_prepare_fn moi_form_prepare(moi_form form, uint32_t isa);

/* c[r*ldc + (n - n0)] = global * sum_k x[rows[r]][k] * W[n][k]   for r < m, n0 <= n < n1.
 * The caller guarantees: n0 is a multiple of 16 (n1 may be anything <= w->n); x rows are 64-byte aligned; scratch is
 * 64-byte aligned and holds scratch_rows * kp floats; any m >= 1. A kernel reads nothing outside the matrix's
 * streams and the prepared rows, writes nothing outside c, and allocates nothing. */
typedef struct moi_gemm_tile {
  const moi_matrix *w;
  uint32_t n0, n1, m;
  const uint8_t *x; /* prepared row i at x + i * x_stride */
  size_t x_stride;
  const uint32_t *rows; /* [m] */
  float *c;
  size_t ldc;
  void *scratch;
  const uint8_t *ahead; /* data that this thread will probably multiply next: a hint, to fetch it early */
  size_t ahead_bytes;
  const uint8_t *ahead_scales; /* and their scales, where each row has its own */
  size_t ahead_scales_bytes;
} moi_gemm_tile;
typedef void (*moi_gemm_fn)(const moi_gemm_tile *tile);

/* ---- attention: the contract between attention.c and the kernels of its rows
 *
 * One call attends m query rows that share a KV head to the keys of one segment, or goes on with them: max, sum and acc are
 * those of these keys alone, in units of log2,
 *   s[r][j] = q[r] . k[j] * scale[r];  with softcap c: s = c * tanh(s / c) * log2(e)  (scale without log2(e) then)
 *   max[r] = largest s (-inf where r sees nothing), sum[r] = sum_j 2^(s - max), acc[r][i] = sum_j 2^(s - max) * v[j][i]
 * over begin[r] <= j < end[r]. The driver merges segments and divides.
 *
 * Keys are counted from one that is a multiple of MOI_ATTEND_TILE in the sequence: kernels go through the keys in tiles of
 * that many or a part of it, so that a row's bits do not depend on the rows and keys around it. */
enum {
  MOI_ATTEND_TILE = 128,    /* keys, at most */
  MOI_ATTEND_SEGMENT = 512, /* keys, at least */
  MOI_ATTEND_ROWS = 144,    /* query rows of a call, at most */
  MOI_ATTEND_HEADS = 16,    /* KV heads of a call, at most */
  MOI_ATTEND_PANELS = 36    /* of a kernel for few rows, at most, 1 KB each: see cpu/kernels/flash_few.h */
};

/* head_dim as prepared: floats, or bf16 in form BF16; zeros behind the last element */
#define MOI_ATTEND_PAD(dim) (((uint32_t)(dim) + 31) & ~31u)

typedef struct moi_attend {
  uint32_t m, dk, dv;
  uint32_t heads; /* KV heads: q, scale, max, sum and acc are [heads][m]. More than 1 for rows with an m_max alone, and
                     if dk and dv are multiples of 32 */
  size_t k_head_stride, v_head_stride; /* bytes from k[j], v[j] to the next head's */
  moi_format k_format, v_format;
  int v_in_k;             /* v[j] is the first dv elements of k[j] */
  const void *q;          /* [m][MOI_ATTEND_PAD(dk)] in the row's form */
  const float *scale;     /* [m] */
  float softcap;
  uint32_t key_begin, key_end; /* the keys that exist for this call; all begin/end lie inside */
  const uint32_t *begin, *end; /* [m] */
  uint32_t ahead_end;          /* up to here k and v name rows, of which those from key_end on may be fetched early */
  const uint8_t *const *k;     /* [ahead_end] rows of the cache, from key_begin on never NULL; no other memory is read */
  const uint8_t *const *v;
  int fresh;              /* 0: max, sum and acc hold the result over the keys before these, to go on from */
  /* Hints. The call that is likely to follow, of as many heads with the same strides: its first keys and their values, of
     which some may be fetched, counted from its key_begin, which is next_at. In and out: lines that the call before this
     one, and this one, fetched so. */
  const uint8_t *const *next_k, *const *next_v;
  uint32_t next_keys, next_at;
  uint32_t *fetched;
  float *max, *sum;       /* out: [m rounded up to 16] */
  float *acc;             /* out: [m][MOI_ATTEND_PAD(dv)] */
  void *scratch;          /* 64-byte aligned, moi_attend_scratch bytes */
} moi_attend;
typedef void (*moi_attend_fn)(const moi_attend *a);

/* Bytes of scratch: the rows of a tile as they are decoded, keys transposed, values, the logits, and [m] factors; or, for
 * few rows, panels with their queries, acc and logits. */
static inline size_t moi_attend_scratch(uint32_t dk, uint32_t dv) {
  const size_t tiled = (size_t)MOI_ATTEND_TILE * (2 * MOI_ATTEND_PAD(dk) + MOI_ATTEND_PAD(dv)) +
                       MOI_ATTEND_ROWS * (2 * MOI_ATTEND_TILE + 1) + 64;
  const size_t few = (size_t)MOI_ATTEND_ROWS * (MOI_ATTEND_PAD(dk) + MOI_ATTEND_PAD(dv) + MOI_ATTEND_TILE) +
                     MOI_ATTEND_PANELS * 256;
  return (tiled > few ? tiled : few) * 4;
}

typedef struct moi_cpu_kernel {
  const char *name;
  moi_op op;
  moi_format format; /* of W; MOI_FORMAT_NONE: every format */
  uint32_t needs;    /* ISA bits */
  moi_form form;
  uint32_t m_max;        /* meant for up to m_max rows of one expert or KV head (right for any m); 0: no
                            bound */
  uint32_t scratch_rows; /* see moi_gemm_tile */
  uint32_t flags;        /* MOI_DETERMINISTIC, MOI_BATCH_INVARIANT, and core's MOI_ROW_* */
  void (*fn)(void);      /* moi_gemm_fn, moi_select_fn, moi_attend_fn, or NULL for the reference */
} moi_cpu_kernel;

extern const moi_cpu_kernel moi_cpu_kernels[];
extern const uint32_t moi_cpu_kernel_count;

#endif
