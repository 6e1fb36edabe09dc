/* Attention of few rows (decode), the loops that every instruction set shares: keys and values go from memory through
 * registers, each decoded once for all rows of a panel. Included behind flash.h; besides what that asks for, the including
 * file defines
 *
 *   ATTEND_DOT      the kernel's name
 *   PANEL           rows of a panel, at most: PANEL * 2 accumulators, and what stands beside them, fit the registers
 *   vec_sum4(a, b, c, d, float *out)                  the sum over the lanes of each
 *   SUM16           if defined, there is vec_sum16(a, b, c, d, float *out), the sums of vectors a[0] .. a[3], b[0] .., each
 *                   in vec_sum4's order
 *   load_pair(format, const uint8_t *row, i, vec out[2])  2 * VEC decoded elements from i, a multiple of that, on
 *   IN_REGISTER(v)  keeps the compiler from loading v again for each use
 *   SPREAD(format)  whether load_pair gives the elements with an even index first, then the odd ones
 *
 * What belongs to a panel's rows lies side by side, so that the loops address by constants. A row's bits do not depend on
 * the rows beside it: sums over keys are of classes, key % VEC, whatever the width of a panel. */

enum { PAIR = 2 * VEC };

typedef struct panel {
  uint32_t row, rows, width; /* first row of the head, rows, and places for rows: 1, 2, 4 or 8 */
  float *q;      /* [dk / PAIR][2][width][VEC] */
  float *logits; /* [TILE][width] */
  float *acc;    /* [dv / PAIR][width][PAIR] */
  /* in lanes of a vector: entry i is row i % width's. Rows beyond `rows` weigh nothing */
  float scale[16], max[16], factor[16];
  float sum[PANEL * VEC]; /* [VEC][width]: of the keys of a class */
} panel;

static inline uint32_t row_bytes(moi_format format, uint32_t n) {
  return format == MOI_FORMAT_F32 ? n * 4 : format == MOI_FORMAT_FP8 ? n : format == MOI_FORMAT_Q8_0 ? n / 32 * 34 : n * 2;
}

/* Keys that are gone through for one KV head before the next head's turn: about 4 KB, a multiple of 4. Meanwhile those
 * of the next turn go into the first-level cache, evenly over the turn, for it holds few lines that are under way: memory
 * and arithmetic are to be busy at the same time, and a head's rows lie apart, which hardware does not foresee. */
static inline uint32_t turn(uint32_t bytes) {
  return bytes > 512 ? 4 : bytes > 256 ? 8 : bytes > 128 ? 16 : bytes > 64 ? 32 : 64;
}

/* Keys first .. last - 1 of the tile, for one KV head. */
typedef struct stretch {
  uint32_t key0, first, last;
  uint32_t ahead;          /* key j fetches that of key j + ahead, */
  size_t offset, to_fetch; /* bytes of the head in a token's row, and of the one to fetch */
  int fetch, rescale;
} stretch;

/* The keys before this one have rows to fetch. */
static inline uint32_t fetch_end(const moi_attend *a, const stretch *s) {
  const uint32_t first = s->key0 + s->ahead;
  return !s->fetch || first >= a->ahead_end ? 0 : least(s->last, a->ahead_end - first);
}

static inline void fetch_row(const uint8_t *row, uint32_t bytes) {
  const char *line = (const char *)row;
  for (; bytes >= 256; bytes -= 256, line += 256) {
    __builtin_prefetch(line, 0, 3);
    __builtin_prefetch(line + 64, 0, 3);
    __builtin_prefetch(line + 128, 0, 3);
    __builtin_prefetch(line + 192, 0, 3);
  }
  for (uint32_t at = 0; at < bytes; at += 64) __builtin_prefetch(line + at, 0, 3);
}

/* Logits of nk keys at a time; where a stretch ends inside such a group, its last key fills it. */
static inline __attribute__((always_inline)) void dots(moi_format format, const uint32_t rows, const uint32_t width,
                                                       const moi_attend *a, const panel *x, const stretch *s) {
  const uint32_t nk = width == 8 ? 2 : width == 4 ? PANEL / 2 : 4, bytes = row_bytes(format, a->dk), n = a->dk;
  const uint32_t first = s->first, last = s->last, until = fetch_end(a, s);
  const uint8_t *const *keys = a->k + s->key0, *const *ahead = keys + s->ahead;
  const size_t offset = s->offset, to_fetch = s->to_fetch;
  float *out = x->logits + first / nk * nk * width;
  for (uint32_t j = first / nk * nk; j < last; j += nk, out += nk * width) {
    const uint8_t *k[4];
    if (j >= first && j + nk <= last) {
#pragma GCC unroll 4
      for (uint32_t i = 0; i < nk; i++) k[i] = keys[j + i] + offset;
    } else {
#pragma GCC unroll 4
      for (uint32_t i = 0; i < nk; i++) k[i] = keys[j + i < first ? first : least(j + i, last - 1)] + offset;
    }
    if (j + nk <= until)
#pragma GCC unroll 4
      for (uint32_t i = 0; i < nk; i++) fetch_row(ahead[j + i] + to_fetch, bytes);
    const float *q = x->q;
    vec sum[4][PANEL];
#pragma GCC unroll 4
    for (uint32_t i = 0; i < nk; i++)
#pragma GCC unroll 8
      for (uint32_t r = 0; r < width; r++) sum[i][r] = vec_zero();
    for (uint32_t e = 0; e < n; e += PAIR, q += PAIR * width) {
      vec y[4][2];
#pragma GCC unroll 4
      for (uint32_t i = 0; i < nk; i++) load_pair(format, k[i], e, y[i]);
#pragma GCC unroll 2
      for (uint32_t half = 0; half < 2; half++)
#pragma GCC unroll 8
        for (uint32_t r = 0; r < rows; r++) {
          vec z = vec_load(q + (half * width + r) * VEC);
          IN_REGISTER(z); /* one load for all keys */
#pragma GCC unroll 4
          for (uint32_t i = 0; i < nk; i++) sum[i][r] = vec_fma(z, y[i][half], sum[i][r]);
        }
    }
    if (width == 1) {
      vec_sum4(sum[0][0], sum[1][0], sum[2][0], sum[3][0], out);
    } else if (width == 2) {
      vec_sum4(sum[0][0], sum[0][1], sum[1][0], sum[1][1], out);
      vec_sum4(sum[2][0], sum[2][1], sum[3][0], sum[3][1], out + 4);
#ifdef SUM16
    } else if (width == 4) {
      vec_sum16(sum[0], sum[1], sum[2], sum[3], out);
    } else {
      vec_sum16(sum[0], sum[0] + 4, sum[1], sum[1] + 4, out);
    }
#else
    } else {
#pragma GCC unroll 4
      for (uint32_t i = 0; i < nk; i++)
#pragma GCC unroll 2
        for (uint32_t r = 0; r < width; r += 4)
          vec_sum4(sum[i][r], sum[i][r + 1], sum[i][r + 2], sum[i][r + 3], out + i * width + r);
    }
#endif
  }
}

/* acc = acc * factor + sum_j p[j] v[j], `pairs` pairs of vectors at a time */
static inline __attribute__((always_inline)) void weigh(moi_format format, const uint32_t rows, const uint32_t width,
                                                        const uint32_t pairs, const moi_attend *a, const panel *x,
                                                        const stretch *s, uint32_t column) {
  /* the lines that begin in these columns are fetched */
  const uint32_t line = (row_bytes(format, column) + 63) & ~63u, end = row_bytes(format, column + pairs * PAIR);
  const uint32_t first = s->first, last = s->last, until = line < end ? fetch_end(a, s) : 0;
  const uint8_t *const *values = a->v + s->key0, *const *ahead = values + s->ahead;
  const size_t offset = s->offset, to_fetch = s->to_fetch + line;
  float *acc = x->acc + column * width;
  vec sum[PANEL][4];
#pragma GCC unroll 8
  for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < 2 * pairs; v++) sum[r][v] = vec_load(acc + (v / 2 * width + r) * PAIR + v % 2 * VEC);
  if (s->rescale)
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
      for (uint32_t v = 0; v < 2 * pairs; v++) sum[r][v] = vec_mul(sum[r][v], vec_splat(x->factor[r]));
  const float *weights = x->logits + first * width;
  for (uint32_t j = first; j < last; j++, weights += width) {
    const uint8_t *row = values[j] + offset;
    if (j < until) {
      __builtin_prefetch(ahead[j] + to_fetch, 0, 3);
      for (uint32_t at = 64; at < end - line; at += 64) __builtin_prefetch(ahead[j] + to_fetch + at, 0, 3);
    }
    vec y[4];
#pragma GCC unroll 2
    for (uint32_t i = 0; i < pairs; i++) load_pair(format, row, column + i * PAIR, y + 2 * i);
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++) {
      vec w = vec_splat(weights[r]);
      IN_REGISTER(w);
#pragma GCC unroll 4
      for (uint32_t v = 0; v < 2 * pairs; v++) sum[r][v] = vec_fma(w, y[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (uint32_t v = 0; v < 2 * pairs; v++) vec_store(acc + (v / 2 * width + r) * PAIR + v % 2 * VEC, sum[r][v]);
}

static inline __attribute__((always_inline)) void weighs(moi_format format, const uint32_t rows, const uint32_t width,
                                                         const moi_attend *a, const panel *x, const stretch *s) {
  const uint32_t pairs = width == PANEL ? 1 : 2;
  uint32_t column = 0;
  for (; column + pairs * PAIR <= a->dv; column += pairs * PAIR) weigh(format, rows, width, pairs, a, x, s, column);
  for (; column < a->dv; column += PAIR) weigh(format, rows, width, 1, a, x, s, column);
}

/* A panel's rows and places, as constants. */
#if PANEL == 8
#define WIDE(what)                                                                                                     \
  if (x->rows > 6) what(8, 8)                                                                                          \
  else if (x->rows > 5) what(6, 8)                                                                                     \
  else if (x->rows > 4) what(5, 8)                                                                                     \
  else
#else
#define WIDE(what)
#endif
#define EACH_SIZE(what)                                                                                                \
  WIDE(what) if (x->width == 4) what(4, 4)                                                                             \
  else if (x->width == 2) what(2, 2)                                                                                   \
  else what(1, 1)

typedef void (*pass)(const moi_attend *, const panel *, const stretch *);

#define EACH_FORMAT(what)                                                                                              \
  what(F32) what(F16) what(BF16) what(FP8) what(Q8_0)
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
  for (uint32_t e = 0; e < a->dv; e += PAIR) {
    float *acc = x->acc + e * x->width + r * PAIR;
    for (uint32_t v = 0; v < 2; v++) vec_store(acc + v * VEC, vec_mul(vec_load(acc + v * VEC), vec_splat(x->factor[r])));
    for (uint32_t j = s->first; j < s->last; j++) {
      const uint8_t *row = a->v[s->key0 + j] + s->offset;
      const vec w = vec_splat(x->logits[j * x->width + r]);
      vec y[2];
      switch (a->v_format) {
#define LOAD_ONE(NAME) case MOI_FORMAT_##NAME: load_pair(MOI_FORMAT_##NAME, row, e, y); break;
        EACH_FORMAT(LOAD_ONE)
        default: return;
      }
      for (uint32_t v = 0; v < 2; v++) vec_store(acc + v * VEC, vec_fma(w, y[v], vec_load(acc + v * VEC)));
    }
  }
}

/* A tile's logits become probabilities; max and sum are brought forward, and factor is for acc. */
static inline __attribute__((always_inline)) void soften_width(const uint32_t width, const moi_attend *a, panel *x,
                                                               const part *p, int ragged) {
  enum { MOST = PANEL > VEC ? PANEL / VEC : 1 }; /* vectors of a key's rows */
  const uint32_t lanes = width > VEC ? width : VEC, n = lanes / VEC;
  float low[16], high[16], all[16];
  vec highest[MOST], scale[MOST], shift[MOST];
  for (uint32_t i = 0; i < lanes; i++) { /* in keys from a vector's first on */
    const uint32_t r = x->row + i % width;
    const uint32_t begin = i % width < x->rows ? a->begin[r] : 0, end = i % width < x->rows ? a->end[r] : 0;
    low[i] = (float)((int32_t)(begin > p->key0 ? begin - p->key0 : 0) - (int32_t)(i / width));
    high[i] = (float)((int32_t)(end > p->key0 ? least(end - p->key0, TILE) : 0) - (int32_t)(i / width));
  }
  const vec none = vec_splat(-INFINITY);
#pragma GCC unroll 2
  for (uint32_t i = 0; i < n; i++) {
    highest[i] = none;
    scale[i] = vec_load(x->scale + i * VEC);
  }
  for (uint32_t j = p->first / VEC * VEC; j < p->last; j += VEC) {
    const int whole = !ragged && j >= p->first && j + VEC <= p->last;
    float *l = x->logits + j * width;
#pragma GCC unroll 8
    for (uint32_t v = 0; v < width; v++) {
      vec y = vec_mul(vec_load(l + v * VEC), scale[v % n]);
      if (a->softcap > 0) y = soft(y, a->softcap);
      if (!whole) {
        const vec key = vec_splat((float)(j + v * VEC / width));
        y = vec_choose_less(key, vec_load(low + v % n * VEC), none, y);
        y = vec_choose_less(key, vec_load(high + v % n * VEC), y, none);
      }
      vec_store(l + v * VEC, y);
      highest[v % n] = vec_max(highest[v % n], y);
    }
  }
#pragma GCC unroll 2
  for (uint32_t i = 0; i < n; i++) vec_store(all + i * VEC, highest[i]);
  for (uint32_t r = 0; r < width; r++) {
    float most = x->max[r];
    for (uint32_t i = r; i < lanes; i += width) most = all[i] <= most ? most : all[i];
    for (uint32_t i = r; i < lanes; i += width) all[i] = most;
  }
#pragma GCC unroll 2
  for (uint32_t i = 0; i < n; i++) {
    const vec most = vec_load(all + i * VEC);
    shift[i] = vec_choose_less(none, most, most, vec_choose_less(most, vec_zero(), vec_zero(), most));
    vec_store(x->factor + i * VEC, vec_exp2(vec_sub(vec_load(x->max + i * VEC), shift[i])));
    vec_store(x->max + i * VEC, most);
  }
  vec sum[PANEL];
#pragma GCC unroll 8
  for (uint32_t v = 0; v < width; v++) sum[v] = vec_mul(vec_load(x->sum + v * VEC), vec_load(x->factor + v % n * VEC));
  for (uint32_t j = p->first / VEC * VEC; j < p->last; j += VEC) {
    float *l = x->logits + j * width;
#pragma GCC unroll 8
    for (uint32_t v = 0; v < width; v++) {
      const vec e = vec_exp2(vec_sub(vec_load(l + v * VEC), shift[v % n]));
      sum[v] = vec_add(sum[v], e);
      vec_store(l + v * VEC, e);
    }
  }
#pragma GCC unroll 8
  for (uint32_t v = 0; v < width; v++) vec_store(x->sum + v * VEC, sum[v]);
}

static __attribute__((noinline)) void soften_panel(const moi_attend *a, panel *x, const part *p, int ragged) {
#if PANEL == 8
  if (x->width == 8) soften_width(8, a, x, p, ragged);
  else
#endif
  if (x->width == 4) soften_width(4, a, x, p, ragged);
  else if (x->width == 2) soften_width(2, a, x, p, ragged);
  else soften_width(1, a, x, p, ragged);
}

/* A pair of vectors from memory's order to load_pair's, and back. */
static inline void spread(int apart, const float *from, float *to) {
  if (!apart) memcpy(to, from, PAIR * sizeof *to);
  else
    for (uint32_t i = 0; i < VEC; i++) {
      to[i] = from[2 * i];
      to[VEC + i] = from[2 * i + 1];
    }
}
static inline void gather(int apart, const float *from, float *to) {
  if (!apart) memcpy(to, from, PAIR * sizeof *to);
  else
    for (uint32_t i = 0; i < VEC; i++) {
      to[2 * i] = from[i];
      to[2 * i + 1] = from[VEC + i];
    }
}

static void begin_panel(const moi_attend *a, uint32_t head, panel *x) {
  const uint32_t first = head * a->m + x->row, lanes = x->width > VEC ? x->width : VEC;
  const float *q = (const float *)a->q + (size_t)first * MOI_ATTEND_PAD(a->dk);
  for (uint32_t e = 0; e < a->dk; e += PAIR)
    for (uint32_t r = 0; r < x->width; r++) {
      float both[PAIR] = {0};
      if (r < x->rows) spread(SPREAD(a->k_format), q + (size_t)r * MOI_ATTEND_PAD(a->dk) + e, both);
      memcpy(x->q + e * x->width + r * VEC, both, sizeof(vec));
      memcpy(x->q + e * x->width + (x->width + r) * VEC, both + VEC, sizeof(vec));
    }
  for (uint32_t i = 0; i < lanes; i++) {
    const uint32_t r = i % x->width;
    x->scale[i] = r < x->rows ? a->scale[first + r] : 0;
    x->max[i] = r < x->rows && !a->fresh ? a->max[first + r] : -INFINITY;
  }
  memset(x->sum, 0, sizeof x->sum);
  if (a->fresh) {
    memset(x->acc, 0, (size_t)x->width * a->dv * sizeof *x->acc);
    return;
  }
  for (uint32_t r = 0; r < x->rows; r++) {
    x->sum[r] = a->sum[first + r];
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      spread(SPREAD(a->v_format), a->acc + (size_t)(first + r) * MOI_ATTEND_PAD(a->dv) + e, x->acc + e * x->width + r * PAIR);
  }
}

static void end_panel(const moi_attend *a, uint32_t head, panel *x) {
  const uint32_t first = head * a->m + x->row;
  for (uint32_t half = VEC / 2; half; half /= 2)
    for (uint32_t i = 0; i < half * x->width; i++) x->sum[i] += x->sum[half * x->width + i];
  for (uint32_t r = 0; r < x->rows; r++) {
    a->max[first + r] = x->max[r];
    a->sum[first + r] = x->sum[r];
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      gather(SPREAD(a->v_format), x->acc + e * x->width + r * PAIR, a->acc + (size_t)(first + r) * MOI_ATTEND_PAD(a->dv) + e);
  }
}

/* A pass over the part's keys for all heads, in turns: near the order of memory, which is the one in which memory is
 * quick, where heads lie side by side in each token. */
static void walk(const moi_attend *a, const part *p, uint32_t bytes, size_t head_stride, const panel *panels,
                 uint32_t n_panels, int fetch, pass one) {
  const uint32_t step = turn(bytes);
  for (uint32_t at = p->first / step * step; at < p->last; at += step)
    for (uint32_t h = 0; h < a->heads; h++) {
      const int last = h + 1 == a->heads;
      stretch s = {.key0 = p->key0, .first = at > p->first ? at : p->first, .last = least(at + step, p->last)};
      s.offset = h * head_stride;
      s.ahead = last ? step : 0;
      s.to_fetch = last ? 0 : s.offset + head_stride;
      s.rescale = s.first == p->first;
      for (uint32_t i = 0; i < n_panels; i++) {
        s.fetch = fetch && !i;
        one(a, &panels[h * n_panels + i], &s);
      }
    }
}

void ATTEND_DOT(const moi_attend *a);
void ATTEND_DOT(const moi_attend *a) {
  if (a->dk % PAIR || a->dv % PAIR) {
    ATTEND(a);
    return;
  }
  pass logits = logits_F32, values = values_F32;
#define PICK(NAME)                                                                                                     \
  if (a->k_format == MOI_FORMAT_##NAME) logits = logits_##NAME;                                                        \
  if (a->v_format == MOI_FORMAT_##NAME) values = values_##NAME;
  EACH_FORMAT(PICK)
  _Static_assert(sizeof(panel) <= 1024 && MOI_ATTEND_ROWS / PANEL <= MOI_ATTEND_PANELS, "they fit the scratch");
  panel *panels = a->scratch;
  const uint32_t n_panels = (a->m + PANEL - 1) / PANEL;
  float *memory = (float *)a->scratch + MOI_ATTEND_PANELS * 256;
  for (uint32_t i = 0; i < a->heads * n_panels; i++) {
    panel *x = &panels[i];
    x->row = i % n_panels * PANEL;
    x->rows = least(a->m - x->row, PANEL);
    x->width = x->rows > 4 ? 8 : x->rows > 2 ? 4 : x->rows;
    x->q = memory;
    x->acc = x->q + (size_t)x->width * a->dk;
    x->logits = x->acc + (size_t)x->width * a->dv;
    memory = x->logits + (size_t)x->width * TILE;
    begin_panel(a, i / n_panels, x);
  }
  for (uint32_t key0 = a->key_begin / TILE * TILE; key0 < a->key_end; key0 += tile_keys(a)) {
    const part p = part_of(a, key0);
    if (p.row_begin == p.row_end) continue;
    const int ragged = p.ragged || p.row_begin || p.row_end < a->m;
    walk(a, &p, row_bytes(a->k_format, a->dk), a->k_head_stride, panels, n_panels, 1, logits);
    for (uint32_t i = 0; i < a->heads * n_panels; i++) soften_panel(a, &panels[i], &p, ragged);
    if (!ragged) {
      walk(a, &p, row_bytes(a->v_format, a->dv), a->v_head_stride, panels, n_panels, !a->v_in_k, values);
      continue;
    }
    /* rows see other keys: each over its own, for a weight of 0 cannot hide a value that is not finite */
    for (uint32_t i = 0; i < a->heads * n_panels; i++) {
      const panel *x = &panels[i];
      stretch s = {.key0 = key0, .offset = i / n_panels * a->v_head_stride};
      for (uint32_t r = 0; r < x->rows; r++) {
        const uint32_t begin = a->begin[x->row + r], end = a->end[x->row + r];
        s.first = begin > key0 + p.first ? begin - key0 : p.first;
        s.last = end < key0 + p.last ? end - key0 : p.last;
        if (begin < end && end > key0 && s.first < s.last) value_of_one(a, x, &s, r);
      }
    }
  }
  for (uint32_t i = 0; i < a->heads * n_panels; i++) end_panel(a, i / n_panels, &panels[i]);
}
