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
 *   transpose(const unit *src, lds, unit *dst, ldd)   a VEC x VEC block
 * UNIT 1:
 *   load_units(format, const uint8_t *row, unit *dst, n)  decodes n elements of a cache row, zeros up to a multiple of 32
 * UNIT 2, zeros up to a multiple of 32 elements as well:
 *   turn_rows(format, const uint8_t *const *rows, n, unit *dst, ldd)  VEC rows of the cache; unit i of all at dst + i * ldd
 *   pair_rows(format, const uint8_t *even, const uint8_t *odd, n, unit *dst)  two rows as pairs; NULL: a row of 0
 *   pack_keys(vec p, unit *dst)                       VEC probabilities as pairs, rounded to nearest even
 * of q8_0 both the codes as they stand, whose scales are
 *   load_scales(const uint16_t *)                     VEC f16
 *   vec_mantissa(v)                                   of |v|, from 1 to below 2 whatever v is
 *   lanes_above(a, b)                                 bits of the lanes in which a > b
 * and
 *   ATTEND          the kernel's name
 *
 * A row's bits depend on nothing but the row, its keys and its interval: the order of every sum is fixed by the tiles. */
#include <math.h>
#include <string.h>

#include "cpu/kernel.h"

#define LOG2E 1.44269504088896340736f

enum { TILE = MOI_ATTEND_TILE, NR = NV * VEC, BLOCK = 32 / UNIT };

static inline uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* c[r][j] = (c[r][j] * factor[r] if factor) + sum_k a[r][k] . b[k][j], mr rows, nv vectors of columns. With scales, and no
 * factor: each BLOCK units of k by themselves, times scales[k / BLOCK][j], which lie TILE apart. */
static inline __attribute__((always_inline)) void block(const uint32_t mr, const uint32_t nv, const unit *a, size_t lda,
                                                        const unit *b, size_t ldb, uint32_t count, float *c, size_t ldc,
                                                        const float *factor, const float *scales) {
  const float *const first = scales;
  uint32_t k = 0;
  do {
    const uint32_t end = scales ? k + BLOCK : count;
    vec sum[MR][NV];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < mr; r++)
#pragma GCC unroll 4
      for (uint32_t v = 0; v < nv; v++)
        sum[r][v] = factor ? vec_mul(vec_load(c + r * ldc + v * VEC), vec_splat(factor[r])) : vec_zero();
    for (; k < end; k++, b += ldb) {
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
      for (uint32_t v = 0; v < nv; v++) {
        float *to = c + r * ldc + v * VEC;
        if (!scales) vec_store(to, sum[r][v]);
        else if (scales == first) vec_store(to, vec_mul(sum[r][v], vec_load(scales + v * VEC)));
        else vec_store(to, vec_fma(sum[r][v], vec_load(scales + v * VEC), vec_load(to)));
      }
    if (scales) scales += TILE;
  } while (k < count);
}

#define ROWS_CASE(n)                                                                                                   \
  case n: block(n, nv, a, lda, b, ldb, count, c, ldc, factor, scales); break;

static inline __attribute__((always_inline)) void block_rows(const uint32_t nv, uint32_t m, const unit *a, size_t lda,
                                                             const unit *b, size_t ldb, uint32_t count, float *c,
                                                             size_t ldc, const float *factor, const float *scales) {
  for (; m >= MR; m -= MR, a += MR * lda, c += MR * ldc, factor = factor ? factor + MR : NULL)
    block(MR, nv, a, lda, b, ldb, count, c, ldc, factor, scales);
  switch (m) {
    ROWS_CASE(1)
    ROWS_CASE(2)
    ROWS_CASE(3)
    ROWS_CASE(4)
    ROWS_CASE(5)
    default: break;
  }
}

/* All m rows against `width` columns (a multiple of VEC), panel after panel of NR. Panels of b lie ldp units apart. At most
 * one of factor and scales. */
static __attribute__((noinline)) void product(uint32_t m, uint32_t width, const unit *a, size_t lda, const unit *b,
                                              size_t ldb, size_t ldp, uint32_t count, float *c, size_t ldc,
                                              const float *factor, const float *scales) {
  uint32_t j = 0;
  for (; j + NR <= width; j += NR, b += ldp, c += NR) {
    if (factor) block_rows(NV, m, a, lda, b, ldb, count, c, ldc, factor, NULL);
    else if (UNIT == 2 && scales) block_rows(NV, m, a, lda, b, ldb, count, c, ldc, NULL, scales + j);
    else block_rows(NV, m, a, lda, b, ldb, count, c, ldc, NULL, NULL);
  }
  for (; NV > 2 && j + 2 * VEC <= width; j += 2 * VEC, b += 2 * VEC, c += 2 * VEC) {
    if (UNIT == 2 && scales) block_rows(2, m, a, lda, b, ldb, count, c, ldc, NULL, scales + j);
    else block_rows(2, m, a, lda, b, ldb, count, c, ldc, factor, NULL);
  }
  for (; j < width; j += VEC, b += VEC, c += VEC) {
    if (UNIT == 2 && scales) block_rows(1, m, a, lda, b, ldb, count, c, ldc, NULL, scales + j);
    else block_rows(1, m, a, lda, b, ldb, count, c, ldc, factor, NULL);
  }
}

/* Units of a prepared row, and of a row of values. */
static inline uint32_t units(uint32_t dim) { return MOI_ATTEND_PAD(dim) / UNIT; }

typedef struct tile {
  unit *rows;    /* UNIT 1: [TILE][units(dk)]: keys as decoded */
  unit *keys;    /* [TILE / NR][units(dk)][NR]: transposed */
  unit *values;  /* UNIT 1: [TILE][pad(dv)]; UNIT 2: [TILE / 2][pad(dv)] */
  float *logits; /* [m][TILE] */
  unit *weights; /* UNIT 2: [m][TILE / 2] */
  float *factor; /* [m] */
#if UNIT == 2
  float *key_scales, *value_scales; /* SCALED: [blocks of a row][TILE] */
  int32_t *peak;                    /* [m]: see peak_of */
#endif
} tile;

static tile carve(const moi_attend *a) {
  tile t;
  t.rows = a->scratch;
  t.keys = t.rows + (size_t)TILE * MOI_ATTEND_PAD(a->dk);
  t.values = t.keys + (size_t)TILE * MOI_ATTEND_PAD(a->dk);
  t.logits = (float *)(void *)(t.values + (size_t)TILE * MOI_ATTEND_PAD(a->dv));
  t.weights = (unit *)(void *)(t.logits + (size_t)MOI_ATTEND_ROWS * TILE);
  t.factor = (float *)(void *)(t.weights + (size_t)MOI_ATTEND_ROWS * TILE);
#if UNIT == 2 /* where there are no rows, and behind pairs of values */
  t.key_scales = (float *)(void *)t.rows;
  t.peak = (int32_t *)(void *)(t.rows + (size_t)TILE * MOI_ATTEND_PAD(a->dk) - MOI_ATTEND_ROWS);
  t.value_scales = (float *)(void *)(t.values + (size_t)TILE / 2 * MOI_ATTEND_PAD(a->dv));
#endif
  return t;
}

#if UNIT == 2
/* Formats of blocks of 32 codes, each behind the f16 scale that they share. */
#define SCALED(format) ((format) == MOI_FORMAT_Q8_0)
enum { BLOCK_BYTES = 34 };

/* What stands where there is no key. */
static const uint8_t no_values[1024 * 2];

/* The first key of vectors first .. last - 1, `apart` floats each, whose weight is 1 when rounded, -1: none. Where a tile has
 * the largest logit so far, this is its key, or as good. Rounded alone, such a weight is exact, and a row that one key takes
 * is that key's value. So that it is exact where it meets the key's scale first, all of the tile are divided by the mantissa
 * of that scale, and their sums multiplied by it. */
static inline int32_t peak_of(const float *weights, uint32_t apart, uint32_t first, uint32_t last) {
  for (uint32_t v = first; v < last; v++) {
    const uint32_t lanes = lanes_above(vec_load(weights + v * apart), vec_splat(1 - 0x1p-9f));
    if (lanes) return (int32_t)(v * VEC) + __builtin_ctz(lanes);
  }
  return -1;
}

/* The scales of n rows' blocks at byte `at`. */
static inline __attribute__((always_inline)) void keep_scales(const uint8_t *const *rows, const uint32_t n, size_t at,
                                                              uint16_t *scales) {
#pragma GCC unroll 16
  for (uint32_t i = 0; i < n; i++) scales[i] = moi_load_u16(rows[i] + at);
}

/* Those of all blocks of VEC rows of n elements, TILE apart. */
static inline void scales_of_rows(const uint8_t *const *rows, uint32_t n, float *to) {
  for (uint32_t b = 0; b < n / 32; b++, to += TILE) {
    uint16_t scales[VEC];
    keep_scales(rows, VEC, b * BLOCK_BYTES, scales);
    vec_store(to, load_scales(scales));
  }
}
#endif

#if UNIT == 1
static void load_rows(moi_format format, const uint8_t *const *src, uint32_t begin, uint32_t end, uint32_t n, unit *dst,
                      size_t ldd) {
  for (uint32_t j = begin; j < end; j++) load_units(format, src[j], dst + j * ldd, n);
}
#endif

/* What the rows see of the tile: rows row_begin .. row_end - 1 see something of its keys first .. last - 1. */
typedef struct part {
  uint32_t key0, first, last, row_begin, row_end;
  int ragged; /* some of these rows do not see all of these keys */
} part;

/* The tile's keys, decoded and transposed. */
static void transpose_keys(const moi_attend *a, const tile *t, const part *p) {
  const uint32_t n = units(a->dk);
  const uint8_t *const *keys = a->k + p->key0;
#if UNIT == 1
  load_rows(a->k_format, keys, p->first, p->last, a->dk, t->rows, n);
#endif
  for (uint32_t j = p->first / VEC * VEC; j < p->last; j += VEC) {
    unit *panel = t->keys + (size_t)(j / NR) * n * NR + j % NR;
#if UNIT == 1
    for (uint32_t k = 0; k < n; k += VEC) transpose(t->rows + j * (size_t)n + k, n, panel + (size_t)k * NR, NR);
#else
    const uint8_t *rows[VEC]; /* what stands beside the part's keys is seen by nobody */
    for (uint32_t i = 0; i < VEC; i++) rows[i] = keys[j + i < p->first ? p->first : least(j + i, p->last - 1)];
    turn_rows(a->k_format, rows, a->dk, panel, NR);
    if (SCALED(a->k_format)) scales_of_rows(rows, a->dk, t->key_scales + j);
#endif
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

/* Keys of a tile: fewer of large heads, so that they stay near. */
static inline uint32_t tile_keys(const moi_attend *a) { return a->dk + a->dv > 256 ? TILE / 2 : TILE; }

static part part_of(const moi_attend *a, uint32_t key0) {
  part p = {.key0 = key0, .row_begin = a->m};
  const uint32_t key1 = key0 + tile_keys(a);
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

/* Logits from j on, of which a row sees begin .. end - 1: `none` for others. */
static inline vec seen(vec x, uint32_t j, uint32_t begin, uint32_t end, vec none) {
  const vec lane = vec_load(lane_numbers);
  if (j < begin) x = vec_choose_less(lane, vec_splat((float)(begin - j)), none, x);
  if (j + VEC > end) x = vec_choose_less(lane, vec_splat((float)((int32_t)end - (int32_t)j)), x, none);
  return x;
}

/* A row's probabilities from key j on, for the second product; SCALED: for add_blocks. */
static inline void store_weights(const moi_attend *a, const tile *t, uint32_t row, uint32_t j, vec p) {
#if UNIT == 2
  if (!SCALED(a->v_format)) {
    pack_keys(p, t->weights + ((size_t)row * TILE + j) / 2);
    return;
  }
#endif
  (void)a;
  vec_store(t->logits + (size_t)row * TILE + j, p);
}

/* The logits of rows r .. r + VEC - 1, as far as they see something, become probabilities; max and sum are brought
 * forward, and factor is for acc. What is one number per row is computed for all rows at once. */
static inline void soften(const moi_attend *a, const tile *t, const part *p, uint32_t r) {
  const uint32_t v0 = p->first / VEC * VEC, v1 = (p->last + VEC - 1) / VEC * VEC;
  const vec none = vec_splat(-INFINITY), zero = vec_zero();
  float each[VEC * VEC], turned[VEC * VEC];
  uint32_t begin[VEC], end[VEC], s0[VEC], s1[VEC];
  for (uint32_t i = 0; i < VEC; i++) {
    vec highest = none;
    begin[i] = end[i] = s0[i] = s1[i] = v0;
    if (r + i >= p->row_begin && r + i < p->row_end) {
      float *x = t->logits + (size_t)(r + i) * TILE;
      begin[i] = a->begin[r + i] > p->key0 ? a->begin[r + i] - p->key0 : 0;
      end[i] = a->end[r + i] > p->key0 ? least(a->end[r + i] - p->key0, TILE) : 0;
      if (begin[i] < end[i]) { /* vectors that the row sees something of; others weigh 0 */
        s0[i] = begin[i] > v0 ? begin[i] / VEC * VEC : v0;
        s1[i] = least((end[i] + VEC - 1) / VEC * VEC, v1);
      }
      for (uint32_t j = v0; j < s0[i]; j += VEC) store_weights(a, t, r + i, j, zero);
      for (uint32_t j = s1[i]; j < v1; j += VEC) store_weights(a, t, r + i, j, zero);
      const vec scale = vec_splat(a->scale[r + i]);
      for (uint32_t j = s0[i]; j < s1[i]; j += VEC) {
        vec y = vec_mul(vec_load(x + j), scale);
        if (a->softcap > 0) vec_store(x + j, y = soft(y, a->softcap));
        highest = vec_max(highest, seen(y, j, begin[i], end[i], none));
      }
    }
    vec_store(each + i * VEC, highest);
  }
  transpose((const unit *)(const void *)each, VEC, (unit *)(void *)turned, VEC);
  const vec before = vec_load(a->max + r);
  vec most = before;
  for (uint32_t i = 0; i < VEC; i++) most = vec_max(most, vec_load(turned + i * VEC));
  const vec shift = vec_choose_less(none, most, most, vec_choose_less(most, zero, zero, most)); /* not of -inf */
  const vec factor = vec_exp2(vec_sub(before, shift));
#if UNIT == 2
  const uint32_t risen = lanes_above(most, before);
#endif
  float shifts[VEC];
  vec_store(shifts, shift);
  vec_store(t->factor + r, factor);
  vec_store(a->max + r, most);
  for (uint32_t i = 0; i < VEC; i++) {
    float *x = t->logits + (size_t)(r + i) * TILE;
    const vec scale = vec_splat(a->softcap > 0 || s0[i] == s1[i] ? 1 : a->scale[r + i]), down = vec_splat(-shifts[i]);
    vec sum = zero;
    for (uint32_t j = s0[i]; j < s1[i]; j += VEC) {
      const vec e = seen(vec_exp2(vec_fma(vec_load(x + j), scale, down)), j, begin[i], end[i], zero);
      sum = vec_add(sum, e);
      store_weights(a, t, r + i, j, e);
    }
#if UNIT == 2
    if (SCALED(a->v_format)) t->peak[r + i] = risen >> i & 1 ? peak_of(x, VEC, s0[i] / VEC, s1[i] / VEC) : -1;
#endif
    vec_store(each + i * VEC, sum);
  }
  transpose((const unit *)(const void *)each, VEC, (unit *)(void *)turned, VEC);
  for (uint32_t half = VEC / 2; half; half /= 2)
    for (uint32_t i = 0; i < half; i++)
      vec_store(turned + i * VEC, vec_add(vec_load(turned + i * VEC), vec_load(turned + (i + half) * VEC)));
  vec_store(a->sum + r, vec_fma(vec_load(a->sum + r), factor, vec_load(turned)));
}

#if UNIT == 2
/* What add_values does where values have scales, block after block: probabilities meet those before they are rounded. Keys
 * outside seen_begin .. seen_end - 1 weigh nothing whatever their scales are. */
static __attribute__((noinline)) void add_blocks(const moi_attend *a, const tile *t, const unit *values, size_t ldv,
                                                 uint32_t row_begin, uint32_t row_end, uint32_t first, uint32_t last,
                                                 uint32_t seen_begin, uint32_t seen_end, int empty) {
  const uint32_t ldc = MOI_ATTEND_PAD(a->dv), k0 = first / 2, k1 = (last + 1) / 2, j0 = first / VEC * VEC;
  const size_t ldw = TILE / 2;
  for (uint32_t e = 0; e < a->dv; e += 32) {
    const float *scales = t->value_scales + e / 32 * TILE;
    float factor[VEC], whole[VEC]; /* of acc, of sums */
    for (uint32_t r = row_begin, rows; r < row_end; r += rows) { /* few: weights stay in the first-level cache */
      rows = least(2 * MR, row_end - r);
      float peaks[VEC], share[VEC];
      for (uint32_t i = 0; i < VEC; i++) peaks[i] = i < rows && t->peak[r + i] >= 0 ? scales[t->peak[r + i]] : 1;
      const vec most = vec_mantissa(vec_load(peaks)), shares = vec_div(vec_splat(1), most);
      vec_store(whole, most);
      vec_store(share, shares);
      vec_store(factor, vec_mul(vec_load(t->factor + r), shares));
      for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = j0; j < last; j += VEC) {
          const vec p = vec_load(t->logits + (size_t)(r + i) * TILE + j);
          const vec w = vec_mul(vec_mul(p, vec_load(scales + j)), vec_splat(share[i]));
          pack_keys(seen(w, j, seen_begin, seen_end, vec_zero()), t->weights + (r + i) * ldw + j / 2);
        }
      float *acc = a->acc + (size_t)r * ldc + e;
      product(rows, 32, t->weights + r * ldw + k0, ldw, values + k0 * ldv + e, ldv, NR, k1 - k0, acc, ldc,
              empty ? NULL : factor, NULL);
      for (uint32_t i = 0; i < rows; i++, acc += ldc)
        if (t->peak[r + i] >= 0)
          for (uint32_t c = 0; c < 32; c += VEC) vec_store(acc + c, vec_mul(vec_load(acc + c), vec_splat(whole[i])));
    }
  }
}
#endif

/* acc of rows = acc * factor + probabilities . values of the keys first .. last-1; row 0 of values is the tile's key 0.
 * empty: acc is 0, whatever it holds */
static void add_values(const moi_attend *a, const tile *t, const unit *values, size_t ldv, uint32_t row_begin,
                       uint32_t row_end, uint32_t first, uint32_t last, int empty) {
  const uint32_t ldc = MOI_ATTEND_PAD(a->dv), width = (a->dv + VEC - 1) / VEC * VEC;
#if UNIT == 1
  const unit *weights = t->logits;
  const uint32_t k0 = first, k1 = last;
#else
  if (SCALED(a->v_format)) {
    add_blocks(a, t, values, ldv, row_begin, row_end, first, last, 0, TILE, empty);
    return;
  }
  const unit *weights = t->weights;
  const uint32_t k0 = first / 2, k1 = (last + 1) / 2;
#endif
  const size_t ldw = TILE / UNIT;
  product(row_end - row_begin, width, weights + row_begin * ldw + k0, ldw, values + k0 * ldv, ldv, NR, k1 - k0,
          a->acc + (size_t)row_begin * ldc, ldc, empty ? NULL : t->factor + row_begin, NULL);
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

static int finite_values(const moi_attend *a, const tile *t, const part *p, const unit *values, size_t ldv,
                         uint32_t keys) {
#if UNIT == 2
  if (SCALED(a->v_format)) { /* the codes are */
    int finite = 1;
    for (uint32_t b = 0; b < a->dv / 32; b++)
      for (uint32_t j = p->first; j < p->last; j++) finite &= isfinite(t->value_scales[b * TILE + j]) != 0;
    return finite;
  }
#endif
  (void)t;
  (void)p;
  return all_finite(values, ldv, keys, (a->dv + VEC - 1) / VEC * VEC);
}

#if UNIT == 2
/* The scales of the part's values; 0 beside them. */
static void scales_of_values(const moi_attend *a, const tile *t, const part *p) {
  for (uint32_t j = p->first / VEC * VEC; j < p->last; j += VEC) {
    const uint8_t *rows[VEC];
    for (uint32_t i = 0; i < VEC; i++)
      rows[i] = j + i < p->first || j + i >= p->last ? no_values : a->v[p->key0 + j + i];
    scales_of_rows(rows, a->dv, t->value_scales + j);
  }
}
#endif

/* Values that are not finite, and rows that do not see them: each row by itself, over the keys it sees. */
static __attribute__((noinline)) void add_values_apart(const moi_attend *a, const tile *t, const part *p,
                                                       const unit *values, size_t ldv) {
  for (uint32_t r = p->row_begin; r < p->row_end; r++) {
    const uint32_t begin = a->begin[r] > p->key0 ? a->begin[r] - p->key0 : 0;
    const uint32_t end = a->end[r] > p->key0 ? least(a->end[r] - p->key0, TILE) : 0;
    if (begin >= end) continue;
#if UNIT == 1
    add_values(a, t, values, ldv, r, r + 1, begin, end, 0);
#else
    if (SCALED(a->v_format)) { /* codes are finite, scales are not */
      add_blocks(a, t, values, ldv, r, r + 1, begin, end, begin, end, 0);
      continue;
    }
    /* in the order of the keys, as `product` goes: pairs of which one key is seen have 0 in the other's half of a copy */
    const uint32_t width = MOI_ATTEND_PAD(a->dv);
    for (uint32_t j = begin, next; j < end; j = next, t->factor[r] = 1) {
      next = j % 2 || j + 1 == end ? j + 1 : end / 2 * 2;
      if (next > j + 1) {
        add_values(a, t, values, ldv, r, r + 1, j, next, 0);
        continue;
      }
      unit own[1024];
      for (uint32_t i = 0; i < width; i++) own[i] = values[j / 2 * ldv + i] & (j % 2 ? 0xffff0000u : 0xffffu);
      product(1, (a->dv + VEC - 1) / VEC * VEC, t->weights + (size_t)r * (TILE / 2) + j / 2, TILE / 2, own, width, NR, 1,
              a->acc + (size_t)r * width, width, t->factor + r, NULL);
    }
#endif
  }
}

/* Rows that are multiplied by the keys that one of them sees, where not all see the same. */
enum { BAND = 2 * MR };

/* The band that begins at row r, and what its rows see of the part; none: first == last. */
static part band_of(const moi_attend *a, const part *p, uint32_t r) {
  part b = {
      .key0 = p->key0, .first = p->last, .last = p->first, .row_begin = r, .row_end = least(r + BAND, p->row_end)};
  for (; r < b.row_end; r++) {
    const uint32_t begin = a->begin[r] > p->key0 + p->first ? a->begin[r] - p->key0 : p->first;
    const uint32_t end = a->end[r] < p->key0 + p->last ? a->end[r] - p->key0 : p->last;
    if (a->begin[r] >= a->end[r] || a->end[r] <= p->key0 || begin >= end) continue;
    if (begin < b.first) b.first = begin;
    if (end > b.last) b.last = end;
  }
  if (b.first > b.last) b.first = b.last;
  return b;
}

/* The logits of the part's rows, by rows of transposed keys. */
static void logits_by_product(const moi_attend *a, const tile *t, const part *p) {
  const uint32_t n = units(a->dk), rows = p->row_end - p->row_begin, end = (p->last + VEC - 1) / VEC * VEC;
  const unit *q = (const unit *)a->q + (size_t)p->row_begin * n;
  float *out = t->logits + (size_t)p->row_begin * TILE;
  uint32_t from = p->first / VEC * VEC;
#if UNIT == 1
  const float *scales = NULL;
#else
  const float *scales = SCALED(a->k_format) ? t->key_scales : NULL;
#endif
  if (from % NR) { /* the end of a panel */
    const uint32_t to = least((from / NR + 1) * NR, end);
    const unit *keys = t->keys + (size_t)(from / NR) * n * NR + from % NR;
    product(rows, to - from, q, n, keys, NR, 0, n, out + from, TILE, NULL, scales ? scales + from : NULL);
    from = to;
  }
  const unit *keys = t->keys + (size_t)(from / NR) * n * NR;
  if (from < end) product(rows, end - from, q, n, keys, NR, (size_t)n * NR, n, out + from, TILE, NULL,
                           scales ? scales + from : NULL);
}

static void begin_rows(const moi_attend *a) {
  if (a->fresh) {
    const uint32_t rows = (a->m + 15) & ~15u;
    for (uint32_t r = 0; r < rows; r++) a->max[r] = -INFINITY;
    memset(a->sum, 0, rows * sizeof *a->sum);
  }
}

static void clear_acc(const moi_attend *a) {
  memset(a->acc, 0, (size_t)a->m * MOI_ATTEND_PAD(a->dv) * sizeof *a->acc);
}

void ATTEND(const moi_attend *a);
void ATTEND(const moi_attend *a) {
  const tile t = carve(a);
  int empty = a->fresh; /* acc is not written yet: the first tile does that where all rows see it */
  begin_rows(a);
  for (uint32_t key0 = a->key_begin / TILE * TILE; key0 < a->key_end; key0 += tile_keys(a)) {
    const part p = part_of(a, key0);
    if (p.row_begin == p.row_end) continue;
    if (empty && (p.ragged || p.row_begin || p.row_end < a->m)) {
      clear_acc(a);
      empty = 0;
    }
    transpose_keys(a, &t, &p);
    if (!p.ragged) logits_by_product(a, &t, &p);
    for (uint32_t r = p.row_begin; p.ragged && r < p.row_end; r += BAND) {
      const part b = band_of(a, &p, r);
      if (b.first < b.last) logits_by_product(a, &t, &b);
    }
    for (uint32_t r = p.row_begin / VEC * VEC; r < p.row_end; r += VEC) soften(a, &t, &p, r);
#if UNIT == 1
    const unit *values = t.rows;
    size_t ldv = units(a->dk);
    if (!a->v_in_k) {
      values = t.values;
      ldv = MOI_ATTEND_PAD(a->dv);
      load_rows(a->v_format, a->v + key0, p.first, p.last, a->dv, t.values, ldv);
    }
    const unit *seen = values + p.first * ldv;
    const uint32_t keys = p.last - p.first;
#else
    const size_t ldv = MOI_ATTEND_PAD(a->dv);
    for (uint32_t j = p.first & ~1u; j < p.last; j += 2)
      pair_rows(a->v_format, j < p.first ? NULL : a->v[key0 + j], j + 1 < p.last ? a->v[key0 + j + 1] : NULL, a->dv,
                t.values + j / 2 * ldv);
    const unit *values = t.values, *seen = values + p.first / 2 * ldv;
    const uint32_t keys = (p.last + 1) / 2 - p.first / 2;
    if (SCALED(a->v_format)) scales_of_values(a, &t, &p);
#endif
    if (!p.ragged) {
      add_values(a, &t, values, ldv, p.row_begin, p.row_end, p.first, p.last, empty);
    } else if (!finite_values(a, &t, &p, seen, ldv, keys)) {
      add_values_apart(a, &t, &p, values, ldv);
    } else {
      for (uint32_t r = p.row_begin; r < p.row_end; r += BAND) {
        const part b = band_of(a, &p, r);
        if (b.first < b.last) add_values(a, &t, values, ldv, b.row_begin, b.row_end, b.first, b.last, 0);
      }
    }
    empty = 0;
  }
  if (empty) clear_acc(a);
}
