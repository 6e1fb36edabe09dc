/* Attention of few rows (decode), the loops that every instruction set shares: keys and values go from memory through
 * registers, each decoded once for all rows of a panel. Included behind flash.h; besides what that asks for, the including
 * file defines
 *
 *   ATTEND_DOT      the kernel's name
 *   PANEL           rows of a panel, at most: PANEL * 2 accumulators, and what stands beside them, fit the registers
 *   IN_REGISTER(v)  keeps the compiler from loading v again for each use
 * UNIT 1:
 *   vec_sum4(a, b, c, d, float *out)                  the sum over the lanes of each
 *   SUM16           if defined, there is vec_sum16(a, b, c, d, float *out), the sums of vectors a[0] .. a[3], b[0] .., each
 *                   in vec_sum4's order
 *   load_pair(format, const uint8_t *row, i, vec out[2])  2 * VEC decoded elements from i, a multiple of that, on
 *   SPREAD(format)  whether load_pair gives the elements with an even index first, then the odd ones
 * UNIT 2, VEC 16, PANEL 8: VEC keys are turned in registers, so that a unit of them meets one of q and nothing is left
 * to sum over lanes, and the weights of two keys meet pairs of their values:
 *   load_four(format, const uint8_t *const *rows, size_t at, operand out[4])  units of 4 rows from byte `at` on, turned
 *                   among these, and
 *   turn_fours(const operand in[16], u, operand out[4])  of VEC rows: out[c] has unit 4 c + u of each
 *   load_twins(format, even, odd, i, operand out[2])  2 * VEC pairs of elements of two rows: of each 8 the first 4 in
 *                   out[0], the others in out[1]; SCALED: the first VEC codes, the others
 *   vec_dot_unit(operand, const unit *, sum)          the unit meets all lanes
 *   KEEP_IN_MEMORY(pointer)                           keeps the compiler from holding what it points to in registers
 *   vec_highest(vec), vec_halves(vec)                 of its lanes; their sum, halves upon halves
 *   vec_gather(const float *from, float *to)          PAIR sums of what load_twins gives, to the order of memory
 *
 * What belongs to a panel's rows lies side by side, so that the loops address by constants. A row's bits do not depend on
 * the rows beside it: sums over keys are of classes, key % VEC, whatever the width of a panel. */

enum { PAIR = 2 * VEC };

typedef struct panel {
  uint32_t row, rows, width; /* first row of the head, rows, and places for rows: 1, 2, 4 or 8 */
  unit *q;                   /* UNIT 1: [dk / PAIR][2][width][VEC]; UNIT 2: [dk / 2][width] */
  float *logits;             /* UNIT 1: [TILE][width]; UNIT 2: [TILE / VEC][width][VEC] */
  unit *weights;             /* where logits were, UNIT 1, or SCALED: as those; UNIT 2: in the first half of each vector */
  float *acc;    /* [dv / PAIR][width][PAIR] */
  /* in lanes of a vector: entry i is row i % width's. Rows beyond `rows` weigh nothing */
  float scale[16], max[16], factor[16];
#if UNIT == 2
  int32_t peak[PANEL]; /* see peak_of */
#endif
  float sum[PANEL * VEC]; /* of the keys of a class; UNIT 1: [VEC][width]; UNIT 2: [width][VEC] */
} panel;

static inline uint32_t row_bytes(moi_format format, uint32_t n) {
  return format == MOI_FORMAT_F32 ? n * 4 : format == MOI_FORMAT_FP8 ? n : format == MOI_FORMAT_Q8_0 ? n / 32 * 34 : n * 2;
}

static inline uint32_t width_of(uint32_t rows) {
  if (UNIT == 2 && rows > 4 && rows < 7) return rows;
  return rows > 4 ? 8 : rows > 2 ? 4 : rows;
}

/* Keys that are gone through for one KV head before the next head's turn, a multiple of 4 (UNIT 2: of VEC). Meanwhile
 * those of the next turn are fetched: memory and arithmetic are to be busy at the same time, and a head's rows lie
 * apart, which hardware does not foresee. UNIT 1: about 4 KB, for the first-level cache. UNIT 2: 72 KB of all heads,
 * which leaves room in the second-level cache, for each turn loads and stores the sums of its values. */
static inline uint32_t turn(uint32_t heads, uint32_t bytes) {
#if UNIT == 1
  (void)heads;
  return bytes > 512 ? 4 : bytes > 256 ? 8 : bytes > 128 ? 16 : bytes > 64 ? 32 : 64;
#else
  const uint32_t keys = (72 << 10) / (heads * bytes) / VEC * VEC;
  return keys < VEC ? VEC : least(keys, TILE);
#endif
}

/* Keys first .. last - 1 of the tile, for one KV head. */
typedef struct stretch {
  uint32_t key0, first, last;
  size_t offset; /* bytes of the head in a token's row */
  int rescale, ends; /* begins, ends with the keys of the tile that are seen */
#if UNIT == 1
  int fetch;
  uint32_t ahead;  /* key j fetches that of key j + ahead, */
  size_t to_fetch; /* these bytes on */
#else
  struct course *course; /* what is fetched meanwhile */
#endif
} stretch;

/* What is fetched meanwhile, evenly over the turn. UNIT 1: into the first-level cache, which holds few lines that are
 * under way; UNIT 2, whose arithmetic is too short for that, into the second-level cache and in the order of memory,
 * across heads. */
typedef struct course course;

#if UNIT == 1
#include "cpu/kernels/flash_few_f32.h"
#else
#include "cpu/kernels/flash_few_bf16.h"
#endif

/* acc = acc * factor + sum_j p[j] v[j] of rows row0 .. row0 + rows - 1, `pairs` pairs of vectors at a time */
static inline __attribute__((always_inline)) void weigh(moi_format format, uint32_t row0, const uint32_t rows,
                                                        const uint32_t width, const uint32_t pairs, const moi_attend *a,
                                                        const panel *x, const stretch *s, uint32_t column) {
#if UNIT == 1
  /* the lines that begin in these columns are fetched */
  const uint32_t line = (row_bytes(format, column) + 63) & ~63u, end = row_bytes(format, column + pairs * PAIR);
  const uint32_t until = line < end ? fetch_end(a, s) : 0;
  const uint8_t *const *ahead = a->v + s->key0 + s->ahead;
  const size_t to_fetch = s->to_fetch + line;
#endif
  const uint32_t first = s->first, last = s->last;
  const uint8_t *const *values = a->v + s->key0;
  const size_t offset = s->offset;
  float *acc = x->acc + column * width + row0 * PAIR;
  vec sum[PANEL][4];
#pragma GCC unroll 8
  for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < 2 * pairs; v++) sum[r][v] = vec_load(acc + (v / 2 * width + r) * PAIR + v % 2 * VEC);
  if (s->rescale)
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
      for (uint32_t v = 0; v < 2 * pairs; v++) sum[r][v] = vec_mul(sum[r][v], vec_splat(x->factor[row0 + r]));
#if UNIT == 1
  const unit *weights = x->weights + first * width + row0;
  const uint32_t apart = 1;
#else
  const unit *weights = x->weights + (first / VEC * width + row0) * VEC + first % VEC / 2;
  const uint32_t apart = VEC; /* from row to row */
#endif
  for (uint32_t j = first / UNIT * UNIT; j < last; j += UNIT) {
    operand y[4];
#if UNIT == 1
    if (j < until) {
      __builtin_prefetch(ahead[j] + to_fetch, 0, 3);
      for (uint32_t at = 64; at < end - line; at += 64) __builtin_prefetch(ahead[j] + to_fetch + at, 0, 3);
    }
    const uint8_t *row = values[j] + offset;
#pragma GCC unroll 2
    for (uint32_t i = 0; i < pairs; i++) load_pair(format, row, column + i * PAIR, y + 2 * i);
#else
    const uint8_t *even = j < first ? no_values : values[j] + offset;
    const uint8_t *odd = j + 1 < last ? values[j + 1] + offset : no_values;
#pragma GCC unroll 2
    for (uint32_t i = 0; i < pairs; i++) load_twins(format, even, odd, column + i * PAIR, y + 2 * i);
    fetch_lines(s->course, row_bytes(format, pairs * PAIR) / 32);
#endif
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++) {
      operand w = operand_splat(weights + r * apart);
      IN_REGISTER(w);
#pragma GCC unroll 4
      for (uint32_t v = 0; v < 2 * pairs; v++) sum[r][v] = vec_dot(w, y[v], sum[r][v]);
    }
#if UNIT == 1
    weights += width;
#else
    weights += (j + 2) % VEC ? 1 : width * VEC - (VEC / 2 - 1);
#endif
  }
#pragma GCC unroll 8
  for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < 2 * pairs; v++) vec_store(acc + (v / 2 * width + r) * PAIR + v % 2 * VEC, sum[r][v]);
}

static inline __attribute__((always_inline)) void weighs(moi_format format, const uint32_t rows, const uint32_t width,
                                                         const moi_attend *a, const panel *x, const stretch *s) {
  const uint32_t pairs = width * 4 > 24 ? 1 : 2;
  uint32_t column = 0;
#if UNIT == 2
  if (SCALED(format)) {
    column_scales scales[1024 / PAIR];
    scales_of(a, x, s, scales);
    for (; column < a->dv; column += PAIR)
      weigh_block(format, 0, rows, width, a, x, s, column, &scales[column / PAIR]);
    return;
  }
#endif
  for (; column + pairs * PAIR <= a->dv; column += pairs * PAIR)
    weigh(format, 0, rows, width, pairs, a, x, s, column);
  for (; column < a->dv; column += PAIR) weigh(format, 0, rows, width, 1, a, x, s, column);
}

/* A panel's rows and places, as constants. */
#if UNIT == 2
#define WIDE(what)                                                                                                     \
  if (x->width == 8) what(8, 8) else if (x->width == 6) what(6, 6) else if (x->width == 5) what(5, 5) else
#elif PANEL == 8
#define WIDE(what)                                                                                                     \
  if (x->rows > 6) what(8, 8)                                                                                          \
  else if (x->rows > 5) what(6, 8)                                                                                     \
  else if (x->rows > 4) what(5, 8)                                                                                     \
  else
#else
#define WIDE(what)
#endif
#define NARROW(what)                                                                                                   \
  if (x->width == 2) what(2, 2)                                                                                        \
  else what(1, 1)
#define EACH_SIZE(what)                                                                                                \
  WIDE(what) if (x->rows > 2) what(4, 4)                                                                               \
  else NARROW(what)

typedef void (*pass)(const moi_attend *, const panel *, const stretch *);

#if UNIT == 1
#define EACH_FORMAT(what)                                                                                              \
  what(F32) what(F16) what(BF16) what(FP8) what(Q8_0)
#else
#define EACH_FORMAT(what)                                                                                              \
  what(BF16) what(FP8) what(Q8_0)
#endif
#define PASSES(NAME)                                                                                                   \
  static __attribute__((noinline)) void logits_##NAME(const moi_attend *a, const panel *x, const stretch *s) {        \
    EACH_SIZE(DOTS_##NAME)                                                                                             \
  }                                                                                                                    \
  static __attribute__((noinline)) void values_##NAME(const moi_attend *a, const panel *x, const stretch *s) {        \
    EACH_SIZE(WEIGHS_##NAME)                                                                                           \
  }
#define DOTS_F32(rows, width) dots(MOI_FORMAT_F32, rows, width, a, x, s);
#define DOTS_F16(rows, width) dots(MOI_FORMAT_F16, rows, width, a, x, s);
#define DOTS_BF16(rows, width) dots(MOI_FORMAT_BF16, rows, width, a, x, s);
#define DOTS_FP8(rows, width) dots(MOI_FORMAT_FP8, rows, width, a, x, s);
#define DOTS_Q8_0(rows, width) dots(MOI_FORMAT_Q8_0, rows, width, a, x, s);
#define WEIGHS_F32(rows, width) weighs(MOI_FORMAT_F32, rows, width, a, x, s);
#define WEIGHS_F16(rows, width) weighs(MOI_FORMAT_F16, rows, width, a, x, s);
#define WEIGHS_BF16(rows, width) weighs(MOI_FORMAT_BF16, rows, width, a, x, s);
#define WEIGHS_FP8(rows, width) weighs(MOI_FORMAT_FP8, rows, width, a, x, s);
#define WEIGHS_Q8_0(rows, width) weighs(MOI_FORMAT_Q8_0, rows, width, a, x, s);
EACH_FORMAT(PASSES)

/* One row by itself, over keys that only it sees. */
static __attribute__((noinline)) void value_of_one(const moi_attend *a, const panel *x, const stretch *s, uint32_t r) {
#if UNIT == 2
  if (SCALED(a->v_format)) {
    column_scales scales[1024 / PAIR];
    scales_of(a, x, s, scales);
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      weigh_block(MOI_FORMAT_Q8_0, r, 1, x->width, a, x, s, e, &scales[e / PAIR]);
    return;
  }
#endif
  for (uint32_t e = 0; e < a->dv; e += PAIR) switch (a->v_format) {
#define WEIGH_ONE(NAME)                                                                                                \
  case MOI_FORMAT_##NAME:                                                                                              \
    weigh(MOI_FORMAT_##NAME, r, 1, x->width, 1, a, x, s, e);                                                           \
    break;
      EACH_FORMAT(WEIGH_ONE)
      default: return;
    }
}

/* UNIT 2: meanwhile `due` lines are fetched for each row. */
static void queries_of(const moi_attend *a, uint32_t first, panel *x, course *c, uint32_t due) {
  const uint32_t pad = MOI_ATTEND_PAD(a->dk) / UNIT;
  const unit *q = (const unit *)a->q + (size_t)first * pad;
#if UNIT == 1
  (void)c;
  (void)due;
  for (uint32_t e = 0; e < a->dk; e += PAIR)
    for (uint32_t r = 0; r < x->width; r++) {
      float both[PAIR] = {0};
      if (r < x->rows) spread(a->k_format, q + (size_t)r * pad + e, both);
      memcpy(x->q + e * x->width + r * VEC, both, sizeof(vec));
      memcpy(x->q + e * x->width + (x->width + r) * VEC, both + VEC, sizeof(vec));
    }
#else
  const uint32_t width = x->width;
  uint32_t r = 0;
  for (; !due && r + 4 <= width; r += 4) {
    const uint8_t *rows[4];
    for (uint32_t i = 0; i < 4; i++)
      rows[i] = r + i < x->rows ? (const uint8_t *)(q + (size_t)(r + i) * pad) : no_values;
    for (uint32_t e = 0; e < pad; e += VEC) {
      operand y[4];
      load_four(MOI_FORMAT_BF16, rows, e * sizeof *q, y);
      unit *to = x->q + (size_t)e * width + r;
      for (uint32_t j = 0; j < 4; j++) {
        unit turned[VEC]; /* of each 4 units the j-th */
        memcpy(turned, &y[j], sizeof turned);
        for (uint32_t i = 0; i < 4; i++) memcpy(to + (4 * i + j) * width, turned + 4 * i, 4 * sizeof *to);
      }
    }
  }
  /* one by one: what is fetched takes longer, and prefetches that come faster than memory gives are dropped */
  for (; r < width; r++) {
    if (r < x->rows) fetch_lines(c, due);
    for (uint32_t e = 0; e < pad; e++) x->q[(size_t)e * width + r] = r < x->rows ? q[(size_t)r * pad + e] : 0;
  }
#endif
}

static void begin_panel(const moi_attend *a, uint32_t head, panel *x, course *c, uint32_t due) {
  const uint32_t first = head * a->m + x->row, lanes = x->width > VEC ? x->width : VEC;
  queries_of(a, first, x, c, due);
  for (uint32_t i = 0, r = 0; i < lanes; i++) {
    x->scale[i] = r < x->rows ? a->scale[first + r] : 0;
    x->max[i] = r < x->rows && !a->fresh ? a->max[first + r] : -INFINITY;
    if (++r == x->width) r = 0;
  }
  memset(x->sum, 0, sizeof x->sum);
  if (a->fresh) {
    memset(x->acc, 0, (size_t)x->width * a->dv * sizeof *x->acc);
    return;
  }
  for (uint32_t r = 0; r < x->rows; r++) {
    x->sum[UNIT == 1 ? r : r * VEC] = a->sum[first + r];
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      spread(a->v_format, a->acc + (size_t)(first + r) * MOI_ATTEND_PAD(a->dv) + e, x->acc + e * x->width + r * PAIR);
  }
}

/* Sums over the classes, halves upon halves, to the first of each row. */
static inline void add_classes(panel *x) {
#if UNIT == 1
  for (uint32_t half = VEC / 2; half; half /= 2)
    for (uint32_t i = 0; i < half * x->width; i++) x->sum[i] += x->sum[i + half * x->width];
#else
  for (uint32_t r = 0; r < x->rows; r++) x->sum[r * VEC] = vec_halves(vec_load(x->sum + r * VEC));
#endif
}

static void end_panel(const moi_attend *a, uint32_t head, panel *x) {
  const uint32_t first = head * a->m + x->row;
  add_classes(x);
  for (uint32_t r = 0; r < x->rows; r++) {
    a->max[first + r] = x->max[r];
    a->sum[first + r] = x->sum[UNIT == 1 ? r : r * VEC];
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      gather(a->v_format, x->acc + e * x->width + r * PAIR, a->acc + (size_t)(first + r) * MOI_ATTEND_PAD(a->dv) + e);
  }
}

/* Keys or values of all heads, as a pass goes through them. */
typedef struct stream {
  const uint8_t *const *rows;
  size_t head_stride;
  uint32_t step; /* keys of a turn */
  pass one;
  int fetch;
  uint32_t lines; /* UNIT 2: of a key */
} stream;

#if UNIT == 2
/* The end of a turn that begins at key `at`: its keys are fetched then, and as many lines are during the turn. */
static uint32_t begin_turn(const part *p, const stream *x, course *c, uint32_t at) {
  const uint32_t end = least((at / x->step + 1) * x->step, p->last), lines = (end - at) * x->lines;
  if (!x->fetch) return end;
  const uint32_t ahead = lines_ahead(c);
  if (ahead < lines) load_lines(c, lines - ahead);
  c->gone += lines;
  return end;
}
#endif

/* A pass over the part's keys for all heads, in turns: near the order of memory, which is the one in which memory is
 * quick, where heads lie side by side in each token. */
static void walk(const moi_attend *a, const part *p, const stream *x, const panel *panels, uint32_t n_panels, course *c) {
  for (uint32_t at = p->first, next; at < p->last; at = next) {
#if UNIT == 1
    (void)c;
    next = least((at / x->step + 1) * x->step, p->last);
#else
    next = begin_turn(p, x, c, at);
#endif
    for (uint32_t h = 0; h < a->heads; h++) {
      stretch s = {.key0 = p->key0, .first = at, .last = next};
      s.offset = h * x->head_stride;
#if UNIT == 1
      const int last = h + 1 == a->heads;
      s.ahead = last ? x->step : 0;
      s.to_fetch = last ? 0 : s.offset + x->head_stride;
#endif
      s.rescale = s.first == p->first;
      s.ends = s.last == p->last;
      for (uint32_t i = 0; i < n_panels; i++) {
#if UNIT == 1
        s.fetch = x->fetch && !i;
#else
        s.course = &c[x->fetch && !i ? 0 : 1];
#endif
        x->one(a, &panels[h * n_panels + i], &s);
      }
    }
  }
}

void ATTEND_DOT(const moi_attend *a);
void ATTEND_DOT(const moi_attend *a) {
  if (a->dk % PAIR || a->dv % PAIR) {
    ATTEND(a);
    return;
  }
  const uint32_t k_bytes = row_bytes(a->k_format, a->dk), v_bytes = row_bytes(a->v_format, a->dv);
  stream keys = {.rows = a->k, .head_stride = a->k_head_stride, .step = turn(a->heads, k_bytes), .fetch = 1};
  stream values = {.rows = a->v, .head_stride = a->v_head_stride, .step = turn(a->heads, v_bytes), .fetch = !a->v_in_k};
#define PICK(NAME)                                                                                                     \
  if (a->k_format == MOI_FORMAT_##NAME) keys.one = logits_##NAME;                                                      \
  if (a->v_format == MOI_FORMAT_##NAME) values.one = values_##NAME;
  EACH_FORMAT(PICK)
#if UNIT == 1
  course *ahead = NULL;
  const uint32_t due = 0;
#else
  keys.lines = lines_of(a->heads, a->k_head_stride, k_bytes);
  values.lines = lines_of(a->heads, a->v_head_stride, v_bytes);
  /* and one that fetches nothing */
  course ahead[2] = {begin_course(a), {.line = no_values, .left = UINT32_MAX}};
  /* the first turn, as far as it is not fetched */
  const uint32_t first_keys = least(a->key_end, (a->key_begin / keys.step + 1) * keys.step) - a->key_begin;
  const uint32_t first = first_keys * keys.lines, fetched = lines_ahead(ahead), rows = a->heads * a->m;
  const uint32_t due = first > fetched ? (first - fetched + rows - 1) / rows : 0;
#endif
  _Static_assert(sizeof(panel) <= 1024 && MOI_ATTEND_ROWS / PANEL <= MOI_ATTEND_PANELS, "they fit the scratch");
  panel *panels = a->scratch;
  const uint32_t n_panels = (a->m + PANEL - 1) / PANEL;
  float *memory = (float *)a->scratch + MOI_ATTEND_PANELS * 256;
  for (uint32_t i = 0; i < a->heads * n_panels; i++) {
    panel *x = &panels[i];
    x->row = i % n_panels * PANEL;
    x->rows = least(a->m - x->row, PANEL);
    x->width = width_of(x->rows);
    x->q = (unit *)(void *)memory;
    x->acc = memory + (size_t)x->width * a->dk / UNIT;
    x->logits = x->acc + (size_t)x->width * a->dv;
    x->weights = (unit *)(void *)x->logits;
    memory = x->logits + (size_t)x->width * TILE;
    begin_panel(a, i / n_panels, x, ahead, due);
  }
  for (uint32_t key0 = a->key_begin / TILE * TILE; key0 < a->key_end; key0 += tile_keys(a)) {
    const part p = part_of(a, key0);
    if (p.row_begin == p.row_end) continue;
    const int ragged = p.ragged || p.row_begin || p.row_end < a->m;
    walk(a, &p, &keys, panels, n_panels, ahead);
    for (uint32_t i = 0; i < a->heads * n_panels; i++) soften_panel(a, i / n_panels, &panels[i], &p, ragged);
    if (!ragged) {
      walk(a, &p, &values, panels, n_panels, ahead);
      continue;
    }
#if UNIT == 2
    if (values.fetch) ahead->gone += (p.last - p.first) * values.lines;
#endif
    /* rows see other keys: each over its own, for a weight of 0 cannot hide a value that is not finite */
    for (uint32_t i = 0; i < a->heads * n_panels; i++) {
      const panel *x = &panels[i];
      stretch s = {.key0 = key0, .offset = i / n_panels * a->v_head_stride, .rescale = 1, .ends = 1};
#if UNIT == 2
      s.course = &ahead[1];
#endif
      for (uint32_t r = 0; r < x->rows; r++) {
        const uint32_t begin = a->begin[x->row + r], end = a->end[x->row + r];
        s.first = begin > key0 + p.first ? begin - key0 : p.first;
        s.last = end < key0 + p.last ? end - key0 : p.last;
        if (begin < end && end > key0 && s.first < s.last) value_of_one(a, x, &s, r);
      }
    }
  }
  for (uint32_t i = 0; i < a->heads * n_panels; i++) end_panel(a, i / n_panels, &panels[i]);
#if UNIT == 2
  *a->fetched = lines_ahead(ahead);
#endif
}
