/* flash_few.h's part for UNIT 2: pairs of bf16 elements. */

/* The cache's lines as a call goes through them: the keys of a tile, for all heads and in the order of memory, then its
 * values, the next tile's, and the first of the call that follows. */
struct course {
  const uint8_t *line;
  uint32_t left, step; /* lines of the row from `line` on; 64, or 0 at the end */
  const moi_attend *a;
  uint32_t stage, first, end; /* keys of a tile of this call, or of the next */
  const uint8_t *const *rows;
  uint32_t key, lines; /* the next row's key; lines of a row */
  size_t offset, stride, width;
  uint32_t begun, gone; /* lines of the rows that were begun; lines that were gone through */
};
enum { KEYS, VALUES, NEXT_KEYS, NEXT_VALUES };

/* Lines of a key's or value's row of all heads: heads without a gap are one row. */
static inline uint32_t lines_of(uint32_t heads, size_t stride, uint32_t bytes) {
  return stride == bytes ? (heads * bytes + 63) / 64 : heads * ((bytes + 63) / 64);
}

static void begin_stage(course *c, uint32_t key, uint32_t end) {
  const moi_attend *a = c->a;
  const int values = c->stage == VALUES || c->stage == NEXT_VALUES, next = c->stage > VALUES;
  const uint32_t bytes = values ? row_bytes(a->v_format, a->dv) : row_bytes(a->k_format, a->dk);
  c->rows = next ? values ? a->next_v : a->next_k : values ? a->v : a->k;
  c->first = c->key = key;
  c->end = end;
  c->offset = 0;
  c->stride = values ? a->v_head_stride : a->k_head_stride;
  c->width = a->heads * c->stride;
  c->lines = (bytes + 63) / 64;
  if (c->stride != bytes) return;
  c->stride = c->width; /* heads without a gap are one row */
  c->lines = (uint32_t)(c->width + 63) / 64;
}

/* Values behind the keys of a tile, then the next tile's keys, then those of the call that follows; 0: there are no more. */
static int next_stage(course *c) {
  const moi_attend *a = c->a;
  const uint32_t keys = tile_keys(a);
  if (!a->v_in_k && (c->stage == KEYS || c->stage == NEXT_KEYS)) {
    c->stage++;
    begin_stage(c, c->first, c->end);
  } else if (c->stage <= VALUES && c->end < a->ahead_end) {
    c->stage = KEYS;
    begin_stage(c, c->end, least(a->ahead_end, c->end / keys * keys + keys));
  } else {
    const uint32_t from = c->stage <= VALUES ? 0 : c->end, at = a->next_at + from;
    if (from >= a->next_keys) return 0;
    c->stage = NEXT_KEYS;
    begin_stage(c, from, least(a->next_keys, from + keys - at % keys));
  }
  return 1;
}

static __attribute__((noinline)) void next_row(course *c) {
  if (c->key == c->end && !next_stage(c)) { /* the same line again and again */
    c->step = 0;
    c->left = UINT32_MAX;
    return;
  }
  c->line = c->rows[c->key] + c->offset;
  c->left = c->lines;
  c->begun += c->lines;
  c->offset += c->stride;
  if (c->offset >= c->width) {
    c->offset = 0;
    c->key++;
  }
}

/* From the first line on that the call before did not fetch. */
static course begin_course(const moi_attend *a) {
  course c = {.a = a, .step = 64, .stage = KEYS};
  const uint32_t keys = tile_keys(a);
  uint32_t skip = *a->fetched;
  begin_stage(&c, a->key_begin, least(a->ahead_end, a->key_begin / keys * keys + keys));
  for (next_row(&c); c.step && skip >= c.left; next_row(&c)) skip -= c.left;
  if (!c.step) return c;
  c.line += skip * 64;
  c.left -= skip;
  return c;
}

/* Lines that were fetched and are still to be gone through. */
static inline uint32_t lines_ahead(const course *c) {
  const uint32_t fetched = c->begun - (c->step ? c->left : 0);
  return fetched > c->gone ? fetched - c->gone : 0;
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

/* What is needed at once: prefetches that come faster than memory gives would be dropped. */
static void load_lines(course *c, uint32_t n) {
  while (n && c->step) {
    const uint32_t some = least(n, c->left);
    for (uint32_t i = 0; i < some; i++) (void)*(const volatile uint8_t *)(c->line + i * 64);
    c->line += some * 64;
    n -= some;
    c->left -= some;
    if (!c->left) next_row(c);
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
  course *ahead = s->course;
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
        fetch_lines(ahead, lines + (blocks && u == 3)); /* no more than there are, but for a fraction */
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

/* What belongs to a block of PAIR columns: the keys' scales, of whole vectors of keys and 0 outside the stretch; what the
 * rows' weights and sums are multiplied by, see peak_of. */
typedef struct column_scales {
  uint16_t of_keys[TILE];
  float share[VEC], whole[VEC];
} column_scales;

/* The same of values with scales, which weights meet before they are rounded. */
static inline __attribute__((always_inline)) void weigh_block(moi_format format, uint32_t row0, const uint32_t rows,
                                                              const uint32_t width, const moi_attend *a, const panel *x,
                                                              const stretch *s, uint32_t column,
                                                              const column_scales *scales) {
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
    fetch_lines(s->course, 1); /* what blocks are longer than the whole lines below */
    for (; j < end; j += 2) {
      operand y[2];
      const uint8_t *even = j < first ? no_values : values[j] + offset;
      const uint8_t *odd = j + 1 < last ? values[j + 1] + offset : no_values;
      load_twins(format, even, odd, column, y);
      fetch_lines(s->course, lines);
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

/* A tile's logits become probabilities; max and sum are brought forward, and factor is for acc. A row's keys lie side by side. */
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

/* A pair of vectors from memory's order to that in which elements are loaded, and back. */
static inline void spread(moi_format format, const float *from, float *to) {
  if (SCALED(format)) memcpy(to, from, PAIR * sizeof *to);
  else
    for (uint32_t i = 0; i < 8; i++) memcpy(to + i % 2 * VEC + i / 2 * 4, from + i * 4, 16);
}
static inline void gather(moi_format format, const float *from, float *to) {
  if (SCALED(format)) memcpy(to, from, PAIR * sizeof *to);
  else vec_gather(from, to);
}
