/* flash_few.h's part for UNIT 1: elements one by one, fp32. */

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

/* A pair of vectors from memory's order to that in which elements are loaded, and back. */
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
