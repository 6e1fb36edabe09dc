/* Tiled attention with an online softmax, the loops that every instruction set shares. A tile of keys is decoded,
 * transposed and multiplied by all rows of the block, made probabilities, and multiplied by the tile's values; both
 * products are one register-tiled loop (`product`). An including file defines
 *
 *   VEC             32-bit lanes of a vector          vec, vec_zero(), vec_load, vec_store, vec_splat, vec_add, vec_mul,
 *   MR, NV          rows and vectors of a register    vec_fma(a, b, c) = a*b + c, vec_sub, vec_div
 *                   tile; NV * VEC divides 64         vec_max(a, b): b if a is NaN
 *   unit, UNIT      what stands beside one lane: a float (UNIT 1), or two bf16 of neighbouring k (UNIT 2)
 *   operand         vector of units: operand_load(const unit *), operand_splat(const unit *), vec_dot(a, b, sum)
 *   vec_exp2(x)     2^x to 2 ulp, 0 below 2^-126 and for -inf; NaN stays NaN
 *   vec_sum(v), vec_highest(v)                        over the lanes, to float
 *   transpose(const unit *src, lds, unit *dst, ldd)   a VEC x VEC block
 *   load_units(format, const uint8_t *row, unit *dst, n)  decodes n elements of a cache row, zeros up to a multiple of 32
 *   pack_values(rows, ldr, first, last, width, dst)   UNIT 2: rows of keys 2i and 2i+1 as pairs in row i of dst, 0 for keys
 *                   outside first..last-1
 *   pack_weights(p, first, last, dst)                 UNIT 2: floats 2i, 2i+1 as a pair, rounded to nearest even, in unit i
 *   ATTEND          the kernel's name
 *   ATTEND_DOT      if defined, the name of a kernel for few rows; with DOT_ROWS rows and as many vectors beside them (8: 32
 *                   registers, 4: 16), vec_sum4(a, b, c, d, float *out), the sum over the lanes of each, and
 *                   load_vec(format, const uint8_t *row, i): VEC decoded elements from i, a multiple of VEC, on
 *
 * A row's bits depend on nothing but the row, its keys and its interval: the order of every sum is fixed by the tiles. */
#include <math.h>
#include <string.h>

#include "cpu/kernel.h"

#define LOG2E 1.44269504088896340736f

enum { TILE = MOI_ATTEND_TILE, NR = NV * VEC };

static inline uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* c[r][j] = (c[r][j] * factor[r] if factor) + sum_k a[r][k] . b[k][j], mr rows, nv vectors of columns */
static inline __attribute__((always_inline)) void block(const uint32_t mr, const uint32_t nv, const unit *a, size_t lda,
                                                        const unit *b, size_t ldb, uint32_t count, float *c, size_t ldc,
                                                        const float *factor) {
  vec sum[MR][NV];
#pragma GCC unroll 8
  for (uint32_t r = 0; r < mr; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < nv; v++)
      sum[r][v] = factor ? vec_mul(vec_load(c + r * ldc + v * VEC), vec_splat(factor[r])) : vec_zero();
  for (uint32_t k = 0; k < count; k++, b += ldb) {
    operand column[NV];
#pragma GCC unroll 4
    for (uint32_t v = 0; v < nv; v++) column[v] = operand_load(b + v * VEC);
#pragma GCC unroll 8
    for (uint32_t r = 0; r < mr; r++) {
      const operand x = operand_splat(a + r * lda + k);
#pragma GCC unroll 4
      for (uint32_t v = 0; v < nv; v++) sum[r][v] = vec_dot(column[v], x, sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (uint32_t r = 0; r < mr; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < nv; v++) vec_store(c + r * ldc + v * VEC, sum[r][v]);
}

#define ROWS_CASE(n)                                                                                                   \
  case n: block(n, nv, a, lda, b, ldb, count, c, ldc, factor); break;

static inline __attribute__((always_inline)) void block_rows(const uint32_t nv, uint32_t m, const unit *a, size_t lda,
                                                             const unit *b, size_t ldb, uint32_t count, float *c,
                                                             size_t ldc, const float *factor) {
  for (; m >= MR; m -= MR, a += MR * lda, c += MR * ldc, factor = factor ? factor + MR : NULL)
    block(MR, nv, a, lda, b, ldb, count, c, ldc, factor);
  switch (m) {
    ROWS_CASE(1)
    ROWS_CASE(2)
    ROWS_CASE(3)
    ROWS_CASE(4)
    ROWS_CASE(5)
    default: break;
  }
}

/* All m rows against `width` columns (a multiple of VEC), panel after panel of NR. Panels of b lie ldp units apart. */
static __attribute__((noinline)) void product(uint32_t m, uint32_t width, const unit *a, size_t lda, const unit *b,
                                              size_t ldb, size_t ldp, uint32_t count, float *c, size_t ldc,
                                              const float *factor) {
  uint32_t j = 0;
  for (; j + NR <= width; j += NR, b += ldp, c += NR) {
    if (factor) block_rows(NV, m, a, lda, b, ldb, count, c, ldc, factor);
    else block_rows(NV, m, a, lda, b, ldb, count, c, ldc, NULL);
  }
  for (; NV > 2 && j + 2 * VEC <= width; j += 2 * VEC, b += 2 * VEC, c += 2 * VEC)
    block_rows(2, m, a, lda, b, ldb, count, c, ldc, factor);
  for (; j < width; j += VEC, b += VEC, c += VEC) block_rows(1, m, a, lda, b, ldb, count, c, ldc, factor);
}

/* Units of a prepared row, and of a row of values. */
static inline uint32_t units(uint32_t dim) { return MOI_ATTEND_PAD(dim) / UNIT; }

typedef struct tile {
  unit *rows;    /* [TILE][units(dk)]: keys as decoded */
  unit *keys;    /* [TILE / NR][units(dk)][NR]: transposed */
  unit *values;  /* UNIT 1: [TILE][pad(dv)]; UNIT 2: [TILE / 2][pad(dv)] */
  float *logits; /* [m][TILE] */
  unit *weights; /* UNIT 2: [m][TILE / 2] */
  float *factor; /* [m] */
} tile;

static tile carve(const moi_attend *a) {
  tile t;
  t.rows = a->scratch;
  t.keys = t.rows + (size_t)TILE * MOI_ATTEND_PAD(a->dk);
  t.values = t.keys + (size_t)TILE * MOI_ATTEND_PAD(a->dk);
  t.logits = (float *)(void *)(t.values + (size_t)TILE * MOI_ATTEND_PAD(a->dv));
  t.weights = (unit *)(void *)(t.logits + (size_t)MOI_ATTEND_ROWS * TILE);
  t.factor = (float *)(void *)(t.weights + (size_t)MOI_ATTEND_ROWS * TILE);
  return t;
}

static void load_rows(moi_format format, const uint8_t *const *src, uint32_t begin, uint32_t end, uint32_t n, unit *dst,
                      size_t ldd) {
  for (uint32_t j = begin; j < end; j++) load_units(format, src[j], dst + j * ldd, n);
}

/* What the rows see of the tile: rows row_begin .. row_end - 1 see something of its keys first .. last - 1. */
typedef struct part {
  uint32_t key0, first, last, row_begin, row_end;
  int ragged; /* some of these rows do not see all of these keys */
  /* key j < middle fetches the row k[j + ahead] + offset meanwhile, others k[j + then] + then_offset */
  uint32_t middle, ahead;
  int32_t then;
  size_t offset, then_offset;
} part;

static void transpose_keys(const tile *t, uint32_t dk, uint32_t begin, uint32_t end) {
  const uint32_t n = units(dk);
  for (uint32_t j = begin / VEC * VEC; j < end; j += VEC) {
    unit *panel = t->keys + (size_t)(j / NR) * n * NR + j % NR;
    for (uint32_t k = 0; k < n; k += VEC) transpose(t->rows + j * (size_t)n + k, n, panel + (size_t)k * NR, NR);
  }
}

/* c * tanh(x / c) in units of log2: small arguments by series, others through the exponential */
static inline vec soft(vec x, float c) {
  x = vec_mul(x, vec_splat(1 / c));
  const vec x2 = vec_mul(x, x);
  vec series = vec_fma(x2, vec_splat(62.0f / 2835), vec_splat(-17.0f / 315));
  series = vec_fma(series, x2, vec_splat(2.0f / 15));
  series = vec_fma(series, x2, vec_splat(-1.0f / 3));
  series = vec_fma(vec_mul(series, x2), x, x);
  const vec grown = vec_add(vec_exp2(vec_min(vec_mul(x, vec_splat(2 * LOG2E)), vec_splat(100))), vec_splat(1));
  const vec big = vec_sub(vec_splat(1), vec_div(vec_splat(2), grown));
  return vec_mul(vec_choose_less(x2, vec_splat(0.0625f), series, big), vec_splat(c * LOG2E));
}

static part part_of(const moi_attend *a, uint32_t key0) {
  part p = {.key0 = key0, .row_begin = a->m};
  const uint32_t key1 = key0 + TILE;
  p.first = (a->key_begin > key0 ? a->key_begin : key0) - key0;
  p.last = least(a->key_end, key1) - key0;
  for (uint32_t r = 0; r < a->m; r++) {
    if (a->begin[r] >= a->end[r] || a->begin[r] >= key1 || a->end[r] <= key0) {
      p.ragged |= p.row_begin != a->m;
      continue;
    }
    if (p.row_begin == a->m) p.row_begin = r;
    p.row_end = r + 1;
    p.ragged |= a->begin[r] > key0 + p.first || a->end[r] < key0 + p.last;
  }
  if (p.row_begin > p.row_end) p.row_begin = p.row_end;
  return p;
}

static const float lane_numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* Row r's logits become probabilities; its max and sum are brought forward, and factor[r] is for its acc. */
static inline void soften(const moi_attend *a, const tile *t, const part *p, uint32_t r) {
  float *x = t->logits + (size_t)r * TILE;
  const uint32_t begin = a->begin[r] > p->key0 ? a->begin[r] - p->key0 : 0;
  const uint32_t end = a->end[r] > p->key0 ? least(a->end[r] - p->key0, TILE) : 0;
  const uint32_t v0 = p->first / VEC * VEC, v1 = (p->last + VEC - 1) / VEC * VEC;
  t->factor[r] = 1;
  if (begin >= end) { /* a row between others that see something of this tile */
    for (uint32_t j = v0; j < v1; j++) x[j] = 0;
    return;
  }
  /* vectors of which the row sees nothing weigh 0 */
  const uint32_t s0 = begin > v0 ? begin / VEC * VEC : v0, s1 = least((end + VEC - 1) / VEC * VEC, v1);
  for (uint32_t j = v0; j < s0; j += VEC) vec_store(x + j, vec_zero());
  for (uint32_t j = s1; j < v1; j += VEC) vec_store(x + j, vec_zero());
  const vec scale = vec_splat(a->scale[r]), none = vec_splat(-INFINITY);
  if (a->softcap > 0)
    for (uint32_t j = s0; j < s1; j += VEC) vec_store(x + j, soft(vec_mul(vec_load(x + j), scale), a->softcap));
  else
    for (uint32_t j = s0; j < s1; j += VEC) vec_store(x + j, vec_mul(vec_load(x + j), scale));
  if (begin > s0) {
    const vec before = vec_splat((float)(begin - s0));
    vec_store(x + s0, vec_choose_less(vec_load(lane_numbers), before, none, vec_load(x + s0)));
  }
  if (end < s1) {
    const vec after = vec_splat((float)(end + VEC - s1));
    vec_store(x + s1 - VEC, vec_choose_less(vec_load(lane_numbers), after, vec_load(x + s1 - VEC), none));
  }
  vec highest = none;
  for (uint32_t j = s0; j < s1; j += VEC) highest = vec_max(highest, vec_load(x + j));
  const float before = a->max[r], here = vec_highest(highest), most = here <= before ? before : here;
  const vec shift = vec_splat(most == -INFINITY ? 0 : most);
  vec sum = vec_zero();
  for (uint32_t j = s0; j < s1; j += VEC) {
    const vec e = vec_exp2(vec_sub(vec_load(x + j), shift));
    sum = vec_add(sum, e);
    vec_store(x + j, e);
  }
  if (most != before) {
    t->factor[r] = before == -INFINITY ? 0 : exp2f(before - most);
    a->max[r] = most;
  }
  a->sum[r] = a->sum[r] * t->factor[r] + vec_sum(sum);
}

/* acc of rows = acc * factor + probabilities . values of the keys first .. last-1; row 0 of values is the tile's key 0 */
static void add_values(const moi_attend *a, const tile *t, const unit *values, size_t ldv, uint32_t row_begin,
                       uint32_t row_end, uint32_t first, uint32_t last) {
  const uint32_t ldc = MOI_ATTEND_PAD(a->dv), width = (a->dv + VEC - 1) / VEC * VEC;
#if UNIT == 1
  const unit *weights = t->logits;
  const uint32_t k0 = first, k1 = last;
#else
  const unit *weights = t->weights;
  const uint32_t k0 = first / 2, k1 = (last + 1) / 2;
#endif
  const size_t ldw = TILE / UNIT;
  product(row_end - row_begin, width, weights + row_begin * ldw + k0, ldw, values + k0 * ldv, ldv, NR, k1 - k0,
          a->acc + (size_t)row_begin * ldc, ldc, t->factor + row_begin);
}

/* Are all values of the keys finite? Weight 0 cannot hide one that is not. */
static int all_finite(const unit *values, size_t ldv, uint32_t keys, uint32_t width) {
  uint32_t bad = 0;
  for (uint32_t j = 0; j < keys; j++)
    for (uint32_t i = 0; i < width; i++) {
      uint32_t bits;
      memcpy(&bits, &values[j * ldv + i], 4);
#if UNIT == 1
      bad |= (bits & 0x7f800000u) == 0x7f800000u;
#else
      bad |= (bits & 0x7f800000u) == 0x7f800000u || (bits & 0x7f80u) == 0x7f80u;
#endif
    }
  return !bad;
}

/* Values that are not finite, and rows that do not see them: each row by itself, over the keys it sees. */
static __attribute__((noinline)) void add_values_apart(const moi_attend *a, const tile *t, const part *p,
                                                       const unit *values, size_t ldv) {
  for (uint32_t r = p->row_begin; r < p->row_end; r++) {
    const uint32_t begin = a->begin[r] > p->key0 ? a->begin[r] - p->key0 : 0;
    const uint32_t end = a->end[r] > p->key0 ? least(a->end[r] - p->key0, TILE) : 0;
    if (begin >= end) continue;
#if UNIT == 1
    add_values(a, t, values, ldv, r, r + 1, begin, end);
#else
    /* pairs of which one key is seen: the other's half is 0 in a copy */
    const uint32_t whole = (begin + 1) / 2 * 2, whole_end = end / 2 * 2, width = MOI_ATTEND_PAD(a->dv);
    if (whole < whole_end) {
      add_values(a, t, values, ldv, r, r + 1, whole, whole_end);
      t->factor[r] = 1;
    }
    for (uint32_t k = begin / 2; k < (end + 1) / 2; k++) {
      const uint32_t mask = (2 * k < begin ? 0xffff0000u : ~0u) & (2 * k + 1 >= end ? 0xffffu : ~0u);
      if (mask == ~0u) continue;
      unit own[1024];
      for (uint32_t i = 0; i < width; i++) own[i] = values[k * ldv + i] & mask;
      product(1, (a->dv + VEC - 1) / VEC * VEC, t->weights + (size_t)r * (TILE / 2) + k, TILE / 2, own, width, NR, 1,
              a->acc + (size_t)r * width, width, t->factor + r);
      t->factor[r] = 1;
    }
#endif
  }
}

/* The logits of the part's rows, by rows of transposed keys. */
static void logits_by_product(const moi_attend *a, const tile *t, const part *p) {
  const uint32_t n = units(a->dk), rows = p->row_end - p->row_begin, end = (p->last + VEC - 1) / VEC * VEC;
  const unit *q = (const unit *)a->q + (size_t)p->row_begin * n;
  float *out = t->logits + (size_t)p->row_begin * TILE;
  uint32_t from = p->first / VEC * VEC;
  transpose_keys(t, a->dk, p->first, p->last);
  if (from % NR) { /* the end of a panel */
    const uint32_t to = least((from / NR + 1) * NR, end);
    const unit *keys = t->keys + (size_t)(from / NR) * n * NR + from % NR;
    product(rows, to - from, q, n, keys, NR, 0, n, out + from, TILE, NULL);
    from = to;
  }
  const unit *keys = t->keys + (size_t)(from / NR) * n * NR;
  if (from < end) product(rows, end - from, q, n, keys, NR, (size_t)n * NR, n, out + from, TILE, NULL);
}

static void begin_rows(const moi_attend *a) {
  if (a->fresh) {
    for (uint32_t r = 0; r < a->m; r++) a->max[r] = -INFINITY;
    memset(a->sum, 0, a->m * sizeof *a->sum);
    memset(a->acc, 0, (size_t)a->m * MOI_ATTEND_PAD(a->dv) * sizeof *a->acc);
  }
}

void ATTEND(const moi_attend *a);
void ATTEND(const moi_attend *a) {
  const tile t = carve(a);
  const uint32_t nk = units(a->dk);
  begin_rows(a);
  for (uint32_t key0 = a->key_begin / TILE * TILE; key0 < a->key_end; key0 += TILE) {
    const part p = part_of(a, key0);
    if (p.row_begin == p.row_end) continue;
    load_rows(a->k_format, a->k + key0, p.first, p.last, a->dk, t.rows, nk);
    logits_by_product(a, &t, &p);
    for (uint32_t r = p.row_begin; r < p.row_end; r++) soften(a, &t, &p, r);
#if UNIT == 1
    const unit *values = t.rows;
    size_t ldv = nk;
    if (!a->v_in_k) {
      values = t.values;
      ldv = MOI_ATTEND_PAD(a->dv);
      load_rows(a->v_format, a->v + key0, p.first, p.last, a->dv, t.values, ldv);
    }
    const unit *seen = values + p.first * ldv;
    const uint32_t keys = p.last - p.first;
#else
    const size_t ldv = MOI_ATTEND_PAD(a->dv);
    size_t ldr = nk;
    if (!a->v_in_k) {
      ldr = units(a->dv);
      load_rows(a->v_format, a->v + key0, p.first, p.last, a->dv, t.rows, ldr);
    }
    pack_values(t.rows, ldr, p.first, p.last, (uint32_t)ldv, t.values);
    for (uint32_t r = p.row_begin; r < p.row_end; r++)
      pack_weights(t.logits + (size_t)r * TILE, p.first, p.last, t.weights + (size_t)r * (TILE / 2));
    const unit *values = t.values, *seen = values + p.first / 2 * ldv;
    const uint32_t keys = (p.last + 1) / 2 - p.first / 2;
#endif
    if (p.ragged && !all_finite(seen, ldv, keys, (a->dv + VEC - 1) / VEC * VEC)) add_values_apart(a, &t, &p, values, ldv);
    else add_values(a, &t, values, ldv, p.row_begin, p.row_end, p.first, p.last);
  }
}

#ifdef ATTEND_DOT
/* ---- few rows: keys and values go from memory through registers, each decoded once for up to 8 rows */

/* Rows about 2 KB ahead go into the first-level cache meanwhile: memory and arithmetic are to be busy at the same time,
 * and a head's rows lie apart, which hardware does not foresee. Farther ahead, or into the second level first, was
 * slower: every line then occupies a fill buffer twice. */
static inline uint32_t rows_ahead(uint32_t bytes) {
  return bytes > 256 ? 4 : bytes > 128 ? 8 : bytes > 64 ? 16 : 32; /* of 4, as are the groups of keys below */
}

static inline void fetch_row(const moi_attend *a, const part *p, const uint8_t *const *rows, uint32_t j,
                             uint32_t bytes) {
  const int near = j < p->middle;
  j += p->key0 + (near ? p->ahead : (uint32_t)p->then);
  if (j >= a->ahead_end) return;
  const char *row = (const char *)rows[j] + (near ? p->offset : p->then_offset);
  for (uint32_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 3);
}

static inline uint32_t row_bytes(moi_format format, uint32_t n) {
  return format == MOI_FORMAT_F32 ? n * 4 : format == MOI_FORMAT_FP8 ? n : format == MOI_FORMAT_Q8_0 ? n / 32 * 34 : n * 2;
}

/* mr rows times nk keys: logits[r][j] for keys k[0] .. k[nk-1] */
static inline __attribute__((always_inline)) void dots(moi_format format, const uint32_t mr, const uint32_t nk,
                                                       const float *q, uint32_t ldq, const uint8_t *const *k, uint32_t n,
                                                       float *out) {
  vec sum[8][4];
#pragma GCC unroll 8
  for (uint32_t r = 0; r < mr; r++)
#pragma GCC unroll 4
    for (uint32_t j = 0; j < nk; j++) sum[r][j] = vec_zero();
  for (uint32_t i = 0; i < n; i += VEC) {
    vec y[4];
#pragma GCC unroll 4
    for (uint32_t j = 0; j < nk; j++) y[j] = load_vec(format, k[j], i);
#pragma GCC unroll 8
    for (uint32_t r = 0; r < mr; r++) {
      const vec x = vec_load(q + r * (size_t)ldq + i);
#pragma GCC unroll 4
      for (uint32_t j = 0; j < nk; j++) sum[r][j] = vec_fma(x, y[j], sum[r][j]);
    }
  }
  if (nk == 4) {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < mr; r++) vec_sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], out + r * (size_t)TILE);
  } else if (nk == 2) {
    float two[4];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < mr; r += 2) {
      vec_sum4(sum[r][0], sum[r][1], sum[r + 1][0], sum[r + 1][1], two);
      memcpy(out + r * (size_t)TILE, two, 8);
      memcpy(out + (r + 1) * (size_t)TILE, two + 2, 8);
    }
  } else {
#pragma GCC unroll 8
    for (uint32_t r = 0; r < mr; r++) out[r * (size_t)TILE] = vec_sum(sum[r][0]);
  }
}

/* The same order of sums for every key, whichever group it is in: a group's lanes are added by vec_sum4 or, at the ragged
 * end, one by one, so ends are filled up with the last key instead. */
static inline __attribute__((always_inline)) void dot_rows(moi_format format, const uint32_t mr, const uint32_t nk,
                                                           const moi_attend *a, const tile *t, const part *p,
                                                           uint32_t row) {
  const uint32_t ldq = units(a->dk);
  const float *q = (const float *)a->q + (size_t)row * ldq;
  float *out = t->logits + (size_t)row * TILE;
  const uint32_t bytes = row_bytes(format, a->dk);
  for (uint32_t j = p->first / nk * nk; j < p->last; j += nk) {
    const uint8_t *k[4];
#pragma GCC unroll 4
    for (uint32_t i = 0; i < nk; i++) {
      const uint32_t at = j + i < p->first ? p->first : j + i < p->last ? j + i : p->last - 1;
      k[i] = a->k[p->key0 + at] + p->offset;
      if (row == p->row_begin) fetch_row(a, p, a->k, j + i, bytes);
    }
    dots(format, mr, nk, q, ldq, k, a->dk, out + j);
  }
}

static inline __attribute__((always_inline)) void logits_few(moi_format format, const moi_attend *a, const tile *t,
                                                             const part *p) {
  uint32_t r = p->row_begin;
#if DOT_ROWS == 8
  for (; r + 8 <= p->row_end; r += 8) dot_rows(format, 8, 2, a, t, p, r);
#endif
  for (; r + 4 <= p->row_end; r += 4) dot_rows(format, 4, DOT_ROWS / 2, a, t, p, r);
  if (r + 2 <= p->row_end) {
    dot_rows(format, 2, 4, a, t, p, r);
    r += 2;
  }
  if (r < p->row_end) dot_rows(format, 1, 4, a, t, p, r);
}

/* acc[r][i..] = acc * factor + sum_j p[r][j] v[j][i..], mr rows, nv vectors of columns */
static inline __attribute__((always_inline)) void weigh(moi_format format, const uint32_t mr, const uint32_t nv,
                                                        const moi_attend *a, const tile *t, const part *p, uint32_t row,
                                                        uint32_t column, const int fetch) {
  const uint32_t ldc = MOI_ATTEND_PAD(a->dv), bytes = row_bytes(format, a->dv);
  float *acc = a->acc + (size_t)row * ldc + column;
  const float *weights = t->logits + (size_t)row * TILE;
  vec sum[8][4];
#pragma GCC unroll 8
  for (uint32_t r = 0; r < mr; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < nv; v++)
      sum[r][v] = vec_mul(vec_load(acc + r * (size_t)ldc + v * VEC), vec_splat(t->factor[row + r]));
  for (uint32_t j = p->first; j < p->last; j++) {
    const uint8_t *v_row = a->v[p->key0 + j] + p->offset;
    if (fetch) fetch_row(a, p, a->v, j, bytes);
    vec y[4];
#pragma GCC unroll 4
    for (uint32_t v = 0; v < nv; v++) y[v] = load_vec(format, v_row, column + v * VEC);
#pragma GCC unroll 8
    for (uint32_t r = 0; r < mr; r++) {
      const vec x = vec_splat(weights[r * (size_t)TILE + j]);
#pragma GCC unroll 4
      for (uint32_t v = 0; v < nv; v++) sum[r][v] = vec_fma(x, y[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (uint32_t r = 0; r < mr; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < nv; v++) vec_store(acc + r * (size_t)ldc + v * VEC, sum[r][v]);
}

static inline __attribute__((always_inline)) void weigh_rows(moi_format format, const uint32_t mr, const uint32_t nv,
                                                             const moi_attend *a, const tile *t, const part *p,
                                                             uint32_t row) {
  uint32_t column = 0;
  const int fetch = !a->v_in_k && row == p->row_begin;
  for (; column + nv * VEC <= a->dv; column += nv * VEC) {
    if (fetch && !column) weigh(format, mr, nv, a, t, p, row, column, 1);
    else weigh(format, mr, nv, a, t, p, row, column, 0);
  }
  for (; column < a->dv; column += VEC) weigh(format, mr, 1, a, t, p, row, column, 0);
}

static inline __attribute__((always_inline)) void values_few(moi_format format, const moi_attend *a, const tile *t,
                                                             const part *p) {
  uint32_t r = p->row_begin;
#if DOT_ROWS == 8
  for (; r + 8 <= p->row_end; r += 8) weigh_rows(format, 8, 2, a, t, p, r);
#endif
  for (; r + 4 <= p->row_end; r += 4) weigh_rows(format, 4, DOT_ROWS / 2, a, t, p, r);
  if (r + 2 <= p->row_end) {
    weigh_rows(format, 2, 4, a, t, p, r);
    r += 2;
  }
  if (r < p->row_end) weigh_rows(format, 1, 4, a, t, p, r);
}

#define EACH_FORMAT(call)                                                                                              \
  call(F32) call(F16) call(BF16) call(FP8) call(Q8_0)
#define FEW(NAME)                                                                                                      \
  static __attribute__((noinline)) void logits_few_##NAME(const moi_attend *a, const tile *t, const part *p) {        \
    logits_few(MOI_FORMAT_##NAME, a, t, p);                                                                            \
  }                                                                                                                    \
  static __attribute__((noinline)) void values_few_##NAME(const moi_attend *a, const tile *t, const part *p) {        \
    values_few(MOI_FORMAT_##NAME, a, t, p);                                                                            \
  }
EACH_FORMAT(FEW)

typedef void (*pass)(const moi_attend *, const tile *, const part *);

/* A pass over the part's keys for all heads. Where heads lie side by side in each token, it goes through a few tokens
 * at a time, head after head: near the order of memory, which is the one in which memory is quick. */
static void walk(const moi_attend *a, const part *p, uint32_t bytes, size_t head_stride, const moi_attend *head,
                 tile *t, pass one) {
  const uint32_t ahead = rows_ahead(bytes), step = a->heads > 1 ? 2 * ahead : TILE;
  for (uint32_t at = p->first / step * step; at < p->last; at += step)
    for (uint32_t h = 0; h < a->heads; h++) {
      part some = *p;
      some.first = at > p->first ? at : p->first;
      some.last = least(at + step, p->last);
      some.ahead = ahead;
      some.middle = a->heads > 1 ? at + ahead : TILE;
      some.offset = h * head_stride;
      const int last = h + 1 == a->heads;
      some.then = last ? (int32_t)ahead : -(int32_t)ahead;
      some.then_offset = last ? 0 : some.offset + head_stride;
      one(&head[h], &t[h], &some);
      for (uint32_t r = p->row_begin; r < p->row_end; r++) t[h].factor[r] = 1; /* it has been applied */
    }
}

void ATTEND_DOT(const moi_attend *a);
void ATTEND_DOT(const moi_attend *a) {
  if (a->dk % VEC || a->dv % VEC) { /* rows that end inside a vector */
    ATTEND(a);
    return;
  }
  void (*logits)(const moi_attend *, const tile *, const part *) = logits_few_F32;
  void (*values)(const moi_attend *, const tile *, const part *) = values_few_F32;
#define PICK(NAME)                                                                                                     \
  if (a->k_format == MOI_FORMAT_##NAME) logits = logits_few_##NAME;                                                    \
  if (a->v_format == MOI_FORMAT_##NAME) values = values_few_##NAME;
  EACH_FORMAT(PICK)
  const tile all = carve(a);
  moi_attend head[MOI_ATTEND_HEADS];
  tile t[MOI_ATTEND_HEADS];
  for (uint32_t h = 0; h < a->heads; h++) {
    const uint32_t row = h * a->m;
    head[h] = *a;
    head[h].q = (const float *)a->q + (size_t)row * units(a->dk);
    head[h].scale += row;
    head[h].max += row;
    head[h].sum += row;
    head[h].acc += (size_t)row * MOI_ATTEND_PAD(a->dv);
    t[h] = all;
    t[h].logits += (size_t)row * TILE;
    t[h].factor += row;
    begin_rows(&head[h]);
  }
  for (uint32_t key0 = a->key_begin / TILE * TILE; key0 < a->key_end; key0 += TILE) {
    const part p = part_of(a, key0);
    if (p.row_begin == p.row_end) continue;
    walk(a, &p, row_bytes(a->k_format, a->dk), a->k_head_stride, head, t, logits);
    for (uint32_t h = 0; h < a->heads; h++)
      for (uint32_t r = p.row_begin; r < p.row_end; r++) soften(&head[h], &t[h], &p, r);
    if (!p.ragged) {
      walk(a, &p, row_bytes(a->v_format, a->dv), a->v_head_stride, head, t, values);
      continue;
    }
    /* rows see other keys: each over its own, for a weight of 0 cannot hide a value that is not finite */
    for (uint32_t r = p.row_begin; r < p.row_end; r++) {
      part own = p;
      own.first = a->begin[r] > key0 + p.first ? a->begin[r] - key0 : p.first;
      own.last = a->end[r] < key0 + p.last ? a->end[r] - key0 : p.last;
      own.row_begin = r;
      own.row_end = r + 1;
      if (a->begin[r] < a->end[r] && a->end[r] > key0 && own.first < own.last)
        walk(a, &own, row_bytes(a->v_format, a->dv), a->v_head_stride, head, t, values);
    }
  }
}
#endif
