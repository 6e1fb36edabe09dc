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
 *   vec_highest(vec)                                  of its lanes
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
  int fetch, rescale, ends; /* begins, ends with the keys of the tile that are seen */
#if UNIT == 1
  uint32_t ahead;  /* key j fetches that of key j + ahead, */
  size_t to_fetch; /* these bytes on */
#else
  const uint8_t *const *rows;     /* keys or values that come next: as many rows are fetched as there are keys, */
  size_t stride;                  /* heads this far apart, */
  uint32_t bytes, key, head, end; /* from this key's and head's on, up to key `end` */
#endif
} stretch;

/* What is fetched meanwhile, evenly over the turn. UNIT 1: into the first-level cache, which holds few lines that are
 * under way; UNIT 2, whose arithmetic is too short for that, into the second-level cache and in the order of memory,
 * across heads. */
typedef struct course course;

#if UNIT == 1
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

/* The keys before this one have rows to fetch. */
static inline uint32_t fetch_end(const moi_attend *a, const stretch *s) {
  const uint32_t first = s->key0 + s->ahead;
  return !s->fetch || first >= a->ahead_end ? 0 : least(s->last, a->ahead_end - first);
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

#else
/* Lines of the cache from a key's head on, in the order of memory. */
struct course {
  const uint8_t *const *rows;
  const uint8_t *line;
  uint32_t left, step; /* lines of the row from `line` on; 64, or 0 at the end */
  uint32_t key, end, lines;
  size_t offset, stride, width;
};

static __attribute__((noinline)) void next_row(course *c) {
  if (c->key >= c->end) { /* the same line again and again */
    c->step = 0;
    c->left = UINT32_MAX;
    return;
  }
  c->line = c->rows[c->key] + c->offset;
  c->left = c->lines;
  c->offset += c->stride;
  if (c->offset >= c->width) {
    c->offset = 0;
    c->key++;
  }
}

static inline course course_of(const moi_attend *a, const stretch *s) {
  course c = {.rows = s->rows, .line = no_values, .step = 64, .key = s->key, .end = s->fetch ? s->end : 0};
  c.offset = s->head * s->stride;
  c.stride = s->stride;
  c.width = a->heads * s->stride;
  c.lines = (s->bytes + 63) / 64;
  if (s->stride == s->bytes && c.key < c.end) { /* heads without a gap are one row */
    c.line = s->rows[c.key++] + c.offset;
    c.left = (uint32_t)(c.width - c.offset + 63) / 64;
    c.lines = (uint32_t)(c.width + 63) / 64;
    c.offset = 0;
    c.stride = c.width;
  } else next_row(&c);
  return c;
}

static inline __attribute__((always_inline)) void fetch_lines(course *c, const uint32_t n) {
  if (c->left > n) {
    const size_t step = c->step;
#pragma GCC unroll 4
    for (uint32_t i = 0; i < n; i++) __builtin_prefetch(c->line + i * step, 0, 2);
    c->line += n * step;
    c->left -= n;
    return;
  }
  for (uint32_t i = 0; i < n; i++) {
    __builtin_prefetch(c->line, 0, 2);
    c->line += c->step;
    if (--c->left == 0) next_row(c);
  }
}

/* Rows of VEC keys from j on; those outside the stretch are its first or last. */
static inline const uint8_t *const *group_of(const uint8_t *const *keys, const stretch *s, uint32_t j,
                                             const uint8_t *few[VEC]) {
  if (j >= s->first && j + VEC <= s->last) return keys + j;
  for (uint32_t i = 0; i < VEC; i++) few[i] = keys[j + i < s->first ? s->first : least(j + i, s->last - 1)];
  return few;
}

/* Logits of VEC keys at a time. SCALED: a block's sum of codes meets the key's scale. */
static inline __attribute__((always_inline)) void dots(moi_format format, const uint32_t rows, const uint32_t width,
                                                       const moi_attend *a, const panel *x, const stretch *s) {
  const uint32_t n = a->dk, first = s->first / VEC * VEC, last = s->last, lines = row_bytes(format, 2 * PAIR) / 32;
  const uint8_t *few[VEC], *const *keys = a->k + s->key0, *const *k = group_of(keys, s, first, few);
  course ahead = course_of(a, s);
  operand fours[VEC];
  (void)rows;
  const int blocks = SCALED(format);
  uint16_t scales[2][VEC]; /* of this block, and of the next */
  uint32_t turn = 0;
#pragma GCC unroll 4
  for (uint32_t u = 0; u < 4; u++) {
    load_four(format, k + 4 * u, s->offset, fours + 4 * u);
    if (blocks) keep_scales(k + 4 * u, 4, s->offset, scales[0] + 4 * u);
  }
  for (uint32_t j = first; j < last; j += VEC) {
    const unit *q = x->q;
    vec sum[PANEL], whole[PANEL];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < width; r++) sum[r] = whole[r] = vec_zero();
    for (uint32_t e = 0; e < n; e += PAIR) {
      size_t at = s->offset + row_bytes(format, e + PAIR);
      operand next[VEC];
      if (e + PAIR == n) {
        at = s->offset;
        if (j + VEC < last) k = group_of(keys, s, j + VEC, few);
      }
      KEEP_IN_MEMORY(k);
#pragma GCC unroll 4
      for (uint32_t u = 0; u < 4; u++) {
        operand y[4];
        turn_fours(fours, u, y);
        load_four(format, k + 4 * u, at, next + 4 * u);
        if (blocks) keep_scales(k + 4 * u, 4, at, scales[!turn] + 4 * u);
        fetch_lines(&ahead, lines + (blocks && u == 3)); /* no more than there are, but for a fraction */
#pragma GCC unroll 4
        for (uint32_t c = 0; c < 4; c++)
#pragma GCC unroll 8
          for (uint32_t r = 0; r < width; r++) sum[r] = vec_dot_unit(y[c], q + (4 * c + u) * width + r, sum[r]);
      }
#pragma GCC unroll 16
      for (uint32_t i = 0; i < VEC; i++) fours[i] = next[i];
      q += VEC * width;
      if (blocks) {
        const vec scale = load_scales(scales[turn]);
        turn ^= 1;
#pragma GCC unroll 8
        for (uint32_t r = 0; r < width; r++) {
          whole[r] = vec_fma(sum[r], scale, whole[r]);
          sum[r] = vec_zero();
        }
      }
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < width; r++) vec_store(x->logits + j * width + r * VEC, blocks ? whole[r] : sum[r]);
  }
}
#endif

/* acc = acc * factor + sum_j p[j] v[j] of rows row0 .. row0 + rows - 1, `pairs` pairs of vectors at a time */
static inline __attribute__((always_inline)) void weigh(moi_format format, uint32_t row0, const uint32_t rows,
                                                        const uint32_t width, const uint32_t pairs, const moi_attend *a,
                                                        const panel *x, const stretch *s, uint32_t column,
                                                        course *fetched) {
#if UNIT == 1
  (void)fetched;
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
    fetch_lines(fetched, row_bytes(format, pairs * PAIR) / 32);
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

#if UNIT == 2
/* What belongs to a block of PAIR columns: the keys' scales, of whole vectors of keys and 0 outside the stretch; what the
 * rows' weights and sums are multiplied by, see peak_of. */
typedef struct column_scales {
  uint16_t of_keys[TILE];
  float share[VEC], whole[VEC];
} column_scales;

/* The same of values with scales, which weights meet before they are rounded. */
static inline __attribute__((always_inline)) void weigh_block(moi_format format, uint32_t row0, const uint32_t rows,
                                                              const uint32_t width, const moi_attend *a, const panel *x,
                                                              const stretch *s, uint32_t column, const column_scales *scales,
                                                              course *fetched) {
  const uint32_t first = s->first, last = s->last, lines = row_bytes(format, PAIR) / 32;
  const uint8_t *const *values = a->v + s->key0;
  const size_t offset = s->offset;
  float *acc = x->acc + column * width + row0 * PAIR;
  vec sum[PANEL][2];
#pragma GCC unroll 8
  for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 2
    for (uint32_t v = 0; v < 2; v++) {
      sum[r][v] = vec_load(acc + r * PAIR + v * VEC);
      if (s->rescale) sum[r][v] = vec_mul(sum[r][v], vec_splat(x->factor[row0 + r] * scales->share[row0 + r]));
    }
  for (uint32_t j = first / 2 * 2; j < last;) {
    const uint32_t group = j / VEC * VEC, end = least(group + VEC, last);
    const vec scale = load_scales(scales->of_keys + group);
    unit weights[PANEL][VEC / 2];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++) {
      const vec p = vec_load(x->logits + group * width + (row0 + r) * VEC);
      pack_keys(vec_mul(vec_mul(p, scale), vec_splat(scales->share[row0 + r])), weights[r]);
    }
    fetch_lines(fetched, 1); /* what blocks are longer than the whole lines below */
    for (; j < end; j += 2) {
      operand y[2];
      const uint8_t *even = j < first ? no_values : values[j] + offset;
      const uint8_t *odd = j + 1 < last ? values[j + 1] + offset : no_values;
      load_twins(format, even, odd, column, y);
      fetch_lines(fetched, lines);
#pragma GCC unroll 8
      for (uint32_t r = 0; r < rows; r++) {
        operand w = operand_splat(&weights[r][j % VEC / 2]);
        IN_REGISTER(w);
#pragma GCC unroll 2
        for (uint32_t v = 0; v < 2; v++) sum[r][v] = vec_dot(w, y[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 2
    for (uint32_t v = 0; v < 2; v++)
      vec_store(acc + r * PAIR + v * VEC, s->ends ? vec_mul(sum[r][v], vec_splat(scales->whole[row0 + r])) : sum[r][v]);
}

/* For all blocks of a stretch's values. */
static inline void scales_of(const moi_attend *a, const panel *x, const stretch *s, column_scales *scales) {
  const uint32_t blocks = a->dv / PAIR, begin = s->first / VEC * VEC, end = (s->last + VEC - 1) / VEC * VEC;
  const uint8_t *const *rows = a->v + s->key0;
  uint16_t peaks[1024 / PAIR][VEC];
  for (uint32_t b = 0; b < blocks; b++) {
    memset(scales[b].of_keys + begin, 0, (end - begin) * sizeof scales[b].of_keys[0]);
    for (uint32_t r = 0; r < VEC; r++) peaks[b][r] = 0;
  }
  for (uint32_t j = s->first; j < s->last; j++)
    for (uint32_t b = 0; b < blocks; b++) scales[b].of_keys[j] = moi_load_u16(rows[j] + s->offset + b * BLOCK_BYTES);
  for (uint32_t r = 0; r < x->rows; r++)
    for (uint32_t b = 0; x->peak[r] >= 0 && b < blocks; b++)
      peaks[b][r] = moi_load_u16(rows[x->peak[r]] + s->offset + b * BLOCK_BYTES);
  for (uint32_t b = 0; b < blocks; b++) {
    const vec whole = vec_mantissa(load_scales(peaks[b]));
    vec_store(scales[b].whole, whole);
    vec_store(scales[b].share, vec_div(vec_splat(1), whole));
  }
}
#endif

static inline __attribute__((always_inline)) void weighs(moi_format format, const uint32_t rows, const uint32_t width,
                                                         const moi_attend *a, const panel *x, const stretch *s) {
  const uint32_t pairs = width * 4 > 24 ? 1 : 2;
  uint32_t column = 0;
#if UNIT == 1
  course *fetched = NULL;
#else
  course ahead = course_of(a, s), *fetched = &ahead;
  if (SCALED(format)) {
    column_scales scales[1024 / PAIR];
    scales_of(a, x, s, scales);
    for (; column < a->dv; column += PAIR)
      weigh_block(format, 0, rows, width, a, x, s, column, &scales[column / PAIR], fetched);
    return;
  }
#endif
  for (; column + pairs * PAIR <= a->dv; column += pairs * PAIR)
    weigh(format, 0, rows, width, pairs, a, x, s, column, fetched);
  for (; column < a->dv; column += PAIR) weigh(format, 0, rows, width, 1, a, x, s, column, fetched);
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
#if UNIT == 1
  course *none = NULL;
#else
  course nothing = course_of(a, s), *none = &nothing;
  if (SCALED(a->v_format)) {
    column_scales scales[1024 / PAIR];
    scales_of(a, x, s, scales);
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      weigh_block(MOI_FORMAT_Q8_0, r, 1, x->width, a, x, s, e, &scales[e / PAIR], none);
    return;
  }
#endif
  for (uint32_t e = 0; e < a->dv; e += PAIR) switch (a->v_format) {
#define WEIGH_ONE(NAME)                                                                                                \
  case MOI_FORMAT_##NAME:                                                                                              \
    weigh(MOI_FORMAT_##NAME, r, 1, x->width, 1, a, x, s, e, none);                                                     \
    break;
      EACH_FORMAT(WEIGH_ONE)
      default: return;
    }
}

#if UNIT == 1
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

static __attribute__((noinline)) void soften_panel(const moi_attend *a, uint32_t head, panel *x, const part *p,
                                                   int ragged) {
  (void)head;
#if PANEL == 8
  if (x->width == 8) soften_width(8, a, x, p, ragged);
  else
#endif
      if (x->width == 4)
    soften_width(4, a, x, p, ragged);
  else if (x->width == 2) soften_width(2, a, x, p, ragged);
  else soften_width(1, a, x, p, ragged);
}
#else
/* The same, where a row's keys lie side by side. */
static __attribute__((noinline)) void soften_panel(const moi_attend *a, uint32_t head, panel *x, const part *p,
                                                   int ragged) {
  const uint32_t first = p->first / VEC * VEC, last = p->last, width = x->width;
  const int whole = !ragged && p->first == first && last % VEC == 0;
  const vec none = vec_splat(-INFINITY), zero = vec_zero();
  float most[VEC], down[VEC];
  uint32_t begin[PANEL], end[PANEL];
  for (uint32_t i = 0; i < VEC; i++) most[i] = -INFINITY;
  for (uint32_t r = 0; r < x->rows; r++) {
    const uint32_t from = a->begin[x->row + r], to = a->end[x->row + r];
    begin[r] = from > p->key0 ? from - p->key0 : 0;
    end[r] = to > p->key0 ? least(to - p->key0, TILE) : 0;
    const vec scale = vec_splat(x->scale[r]);
    vec highest = none;
    for (uint32_t j = first; j < last; j += VEC) {
      float *l = x->logits + j * width + r * VEC;
      vec y = vec_mul(vec_load(l), scale);
      if (a->softcap > 0) vec_store(l, y = soft(y, a->softcap));
      if (!whole) y = seen(y, j, begin[r], end[r], none);
      highest = vec_max(highest, y);
    }
    most[r] = vec_highest(highest);
  }
  const vec before = vec_load(x->max), after = vec_max(before, vec_load(most));
  const vec shift = vec_choose_less(none, after, after, vec_choose_less(after, zero, zero, after)); /* not of -inf */
  const uint32_t risen = lanes_above(after, before);
  vec_store(x->factor, vec_exp2(vec_sub(before, shift)));
  vec_store(x->max, after);
  vec_store(down, vec_sub(zero, shift));
  for (uint32_t r = 0; r < x->rows; r++) {
    const vec scale = vec_splat(a->softcap > 0 ? 1 : x->scale[r]), minus = vec_splat(down[r]);
    vec sum = vec_mul(vec_load(x->sum + r * VEC), vec_splat(x->factor[r]));
    for (uint32_t j = first; j < last; j += VEC) {
      float *l = x->logits + j * width + r * VEC;
      vec e = vec_exp2(vec_fma(vec_load(l), scale, minus));
      if (!whole) e = seen(e, j, begin[r], end[r], zero);
      sum = vec_add(sum, e);
      if (SCALED(a->v_format)) vec_store(l, e);
      else pack_keys(e, x->weights + j * width + r * VEC);
    }
    vec_store(x->sum + r * VEC, sum);
    if (!SCALED(a->v_format)) continue;
    x->peak[r] = risen >> r & 1 ? peak_of(x->logits + r * VEC, width * VEC, first / VEC, (last + VEC - 1) / VEC) : -1;
    for (uint32_t at = 0; x->peak[r] >= 0 && at < row_bytes(a->v_format, a->dv); at += 64)
      __builtin_prefetch(a->v[p->key0 + x->peak[r]] + head * a->v_head_stride + at, 0, 3); /* for its scales, early */
  }
}
#endif

/* A pair of vectors from memory's order to that in which elements are loaded, and back. */
#if UNIT == 1
static inline void spread(moi_format format, const float *from, float *to) {
  (void)format; /* where no format's order differs */
  if (!SPREAD(format)) memcpy(to, from, PAIR * sizeof *to);
  else
    for (uint32_t i = 0; i < VEC; i++) {
      to[i] = from[2 * i];
      to[VEC + i] = from[2 * i + 1];
    }
}
static inline void gather(moi_format format, const float *from, float *to) {
  (void)format;
  if (!SPREAD(format)) memcpy(to, from, PAIR * sizeof *to);
  else
    for (uint32_t i = 0; i < VEC; i++) {
      to[2 * i] = from[i];
      to[2 * i + 1] = from[VEC + i];
    }
}
#else
static inline void spread(moi_format format, const float *from, float *to) {
  if (SCALED(format)) memcpy(to, from, PAIR * sizeof *to);
  else
    for (uint32_t i = 0; i < 8; i++) memcpy(to + i % 2 * VEC + i / 2 * 4, from + i * 4, 16);
}
static inline void gather(moi_format format, const float *from, float *to) {
  if (SCALED(format)) memcpy(to, from, PAIR * sizeof *to);
  else
    for (uint32_t i = 0; i < 8; i++) memcpy(to + i * 4, from + i % 2 * VEC + i / 2 * 4, 16);
}
#endif

/* UNIT 2: for each row as many lines are fetched. */
static void queries_of(const moi_attend *a, uint32_t first, panel *x, course *fetched, uint32_t lines) {
  const uint32_t pad = MOI_ATTEND_PAD(a->dk) / UNIT;
  const unit *q = (const unit *)a->q + (size_t)first * pad;
#if UNIT == 1
  (void)fetched;
  (void)lines;
  for (uint32_t e = 0; e < a->dk; e += PAIR)
    for (uint32_t r = 0; r < x->width; r++) {
      float both[PAIR] = {0};
      if (r < x->rows) spread(a->k_format, q + (size_t)r * pad + e, both);
      memcpy(x->q + e * x->width + r * VEC, both, sizeof(vec));
      memcpy(x->q + e * x->width + (x->width + r) * VEC, both + VEC, sizeof(vec));
    }
#else
  const uint32_t width = x->width;
  for (uint32_t r = 0; r < width; r++, q += pad) {
    unit *to = x->q + r;
    if (r < x->rows) fetch_lines(fetched, lines);
    for (uint32_t e = 0; e < pad; e++, to += width) *to = r < x->rows ? q[e] : 0;
  }
#endif
}

static void begin_panel(const moi_attend *a, uint32_t head, panel *x, course *fetched, uint32_t lines) {
  const uint32_t first = head * a->m + x->row, lanes = x->width > VEC ? x->width : VEC;
  queries_of(a, first, x, fetched, lines);
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
    x->sum[UNIT == 1 ? r : r * VEC] = a->sum[first + r];
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      spread(a->v_format, a->acc + (size_t)(first + r) * MOI_ATTEND_PAD(a->dv) + e, x->acc + e * x->width + r * PAIR);
  }
}

static void end_panel(const moi_attend *a, uint32_t head, panel *x) {
  const uint32_t first = head * a->m + x->row;
  const uint32_t apart = UNIT == 1 ? x->width : 1,
                 next = UNIT == 1 ? 1 : VEC; /* from class to class, from row to row */
  for (uint32_t half = VEC / 2; half; half /= 2)
    for (uint32_t i = 0; i < half; i++)
      for (uint32_t r = 0; r < x->width; r++) x->sum[i * apart + r * next] += x->sum[(i + half) * apart + r * next];
  for (uint32_t r = 0; r < x->rows; r++) {
    a->max[first + r] = x->max[r];
    a->sum[first + r] = x->sum[r * next];
    for (uint32_t e = 0; e < a->dv; e += PAIR)
      gather(a->v_format, x->acc + e * x->width + r * PAIR, a->acc + (size_t)(first + r) * MOI_ATTEND_PAD(a->dv) + e);
  }
}

/* Keys or values of all heads, as a pass goes through them. */
typedef struct stream {
  const uint8_t *const *rows;
  size_t head_stride;
  uint32_t bytes, step; /* of a head's row; keys of a turn */
  pass one;
  int fetch;
} stream;

/* A pass over the part's keys for all heads, in turns: near the order of memory, which is the one in which memory is
 * quick, where heads lie side by side in each token. The last turn fetches the first of `next`, from key next_key on. */
static void walk(const moi_attend *a, const part *p, const stream *x, const panel *panels, uint32_t n_panels,
                 const stream *next, uint32_t next_key) {
  const uint32_t step = x->step;
#if UNIT == 1
  (void)next;
  (void)next_key;
#endif
  for (uint32_t at = p->first / step * step; at < p->last; at += step)
    for (uint32_t h = 0; h < a->heads; h++) {
      stretch s = {.key0 = p->key0, .first = at > p->first ? at : p->first, .last = least(at + step, p->last)};
      s.offset = h * x->head_stride;
#if UNIT == 1
      const int last = h + 1 == a->heads;
      s.ahead = last ? step : 0;
      s.to_fetch = last ? 0 : s.offset + x->head_stride;
#else
      const int end = at + step >= p->last;
      const stream *of = end ? next : x;
      const uint32_t row = h * (s.last - s.first);
      s.rows = of->rows;
      s.stride = of->head_stride;
      s.bytes = of->bytes;
      s.key = (end ? next_key : p->key0 + at + step) + row / a->heads;
      s.head = row % a->heads;
      s.end = a->ahead_end;
#endif
      s.rescale = s.first == p->first;
      s.ends = s.last == p->last;
      for (uint32_t i = 0; i < n_panels; i++) {
        s.fetch = x->fetch && !i;
        x->one(a, &panels[h * n_panels + i], &s);
      }
    }
}

void ATTEND_DOT(const moi_attend *a);
void ATTEND_DOT(const moi_attend *a) {
  if (a->dk % PAIR || a->dv % PAIR) {
    ATTEND(a);
    return;
  }
  stream keys = {.rows = a->k, .head_stride = a->k_head_stride, .bytes = row_bytes(a->k_format, a->dk), .fetch = 1};
  stream values = {.rows = a->v, .head_stride = a->v_head_stride, .bytes = row_bytes(a->v_format, a->dv)};
  values.fetch = !a->v_in_k;
  keys.step = turn(a->heads, keys.bytes);
  values.step = turn(a->heads, values.bytes);
#define PICK(NAME)                                                                                                     \
  if (a->k_format == MOI_FORMAT_##NAME) keys.one = logits_##NAME;                                                      \
  if (a->v_format == MOI_FORMAT_##NAME) values.one = values_##NAME;
  EACH_FORMAT(PICK)
  course *fetched = NULL;
  uint32_t lines = 0; /* of a row */
#if UNIT == 2
  /* the first turn, which none before it has fetched */
  stretch begin_at = {.rows = keys.rows, .stride = keys.head_stride, .bytes = keys.bytes, .key = a->key_begin};
  begin_at.fetch = a->fresh && !a->fetched;
  begin_at.end = least(a->key_end, (a->key_begin / keys.step + 1) * keys.step);
  course first = course_of(a, &begin_at);
  fetched = &first;
  if (begin_at.fetch) lines = ((begin_at.end - begin_at.key) * ((keys.bytes + 63) / 64) + a->m - 1) / a->m;
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
    begin_panel(a, i / n_panels, x, fetched, lines);
  }
  for (uint32_t key0 = a->key_begin / TILE * TILE; key0 < a->key_end; key0 += tile_keys(a)) {
    const part p = part_of(a, key0);
    if (p.row_begin == p.row_end) continue;
    const int ragged = p.ragged || p.row_begin || p.row_end < a->m;
    const uint32_t next = key0 + tile_keys(a); /* tile */
    walk(a, &p, &keys, panels, n_panels, a->v_in_k ? &keys : &values, a->v_in_k ? next : key0 + p.first);
    for (uint32_t i = 0; i < a->heads * n_panels; i++) soften_panel(a, i / n_panels, &panels[i], &p, ragged);
    if (!ragged) {
      walk(a, &p, &values, panels, n_panels, &keys, next);
      continue;
    }
    /* rows see other keys: each over its own, for a weight of 0 cannot hide a value that is not finite */
    for (uint32_t i = 0; i < a->heads * n_panels; i++) {
      const panel *x = &panels[i];
      stretch s = {.key0 = key0, .offset = i / n_panels * a->v_head_stride, .rescale = 1, .ends = 1};
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
