/* Routing: rows for the router, and selection of a token's experts from its logits: the steps of moi_route_desc's
 * comment, for every model's rule. A warp selects for a token, a block where classes or groups are many.
 *
 * Values are held as keys, uints in the values' order; 0, below all of them, is a class that cannot be chosen. Class i
 * is the thread i % threads's, which remembers the best of its own: a round of the arg max reduces those, and only the
 * winner's classes are looked through again. Rules are branches that all threads take alike. */
#include "cuda/kernels/sort.h"

enum { SOFTMAX, SIGMOID, SQRT_SOFTPLUS, TOPK_SOFTMAX, TOPK_SIGMOID, SPARSEMIXER }; /* moi_score */
enum { TOP2_SUM };                                                                 /* moi_group_score */
enum { RENORM_NONE, RENORM_SUM };                                                  /* moi_renorm */

#define NONE 0xffffffffu

/* ---- route_prepare: a block makes a row at a time; route_logits: the logits of a few tokens, a block those of two classes */

#define PREPARE_THREADS 256u

/* The sum of squares of a row's elements times `before`. */
MOI_DEVICE float squares(const moi_cu_route_prepare_args *a, const void *row, float before, float *parts) {
  float sum = 0.0f, v[8];
  for (unsigned i = moi_thread(); i < a->k; i += 8u * PREPARE_THREADS) {
    moi_load8(a->input_type, row, i, PREPARE_THREADS, a->k, v);
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) sum += v[q] * before * (v[q] * before);
  }
  sum = moi_warp_sum(sum);
  moi_sync(); /* parts have been read */
  if (moi_lane() == 0u) parts[moi_warp()] = sum;
  moi_sync();
  sum = 0.0f;
  for (unsigned w = 0; w < PREPARE_THREADS / 32u; w++) sum += parts[w];
  return sum;
}

/* What a row's elements are multiplied by, one factor after the other: 1 / sqrt(mean + eps) as before * after. x * before is
 * small enough to be squared, and large enough. */
MOI_DEVICE void norm_of(const moi_cu_route_prepare_args *a, const void *row, float *parts, float *before, float *after) {
  *before = 1.0f;
  float sum = squares(a, row, *before, parts);
  if (sum > 1e37f || sum < 1e-25f) {
    *before = sum > 1e37f ? 5.421010862427522e-20f : 1.8446744073709552e19f; /* 2^-64, 2^64 */
    sum = squares(a, row, *before, parts);
  }
  *after = 1.0f / sqrtf(sum / (float)a->k + a->eps * *before * *before);
}

MOI_DEVICE const uint8_t *input_row(const moi_cu_route_prepare_args *a, unsigned t) {
  return (const uint8_t *)a->input + (uint64_t)t * a->stride * moi_element_bytes(a->input_type);
}

MOI_KERNEL(route_prepare, 256, moi_cu_route_prepare_args) {
  MOI_SHARED(float, parts, PREPARE_THREADS / 32u);
  unsigned n_tokens = moi_bounded(a->n_tokens, a->n_tokens_device);
  for (unsigned t = moi_block_x(); t < n_tokens; t += moi_grid_x()) {
    const uint8_t *row = input_row(a, t);
    float *to = a->rows + (uint64_t)t * a->ldx, before = 1.0f, after = 1.0f;
    if (a->norm_weight) norm_of(a, row, parts, &before, &after);
    for (unsigned i0 = moi_thread(); i0 < a->ldx; i0 += 8u * PREPARE_THREADS) {
      float v[8], w[8];
      moi_load8(a->input_type, row, i0, PREPARE_THREADS, a->k, v);
      if (a->norm_weight) {
        moi_load8(a->router_type, a->norm_weight, i0, PREPARE_THREADS, a->k, w);
        MOI_UNROLL
        for (unsigned q = 0; q < 8u; q++) v[q] = v[q] * before * after * w[q] * a->scale;
      }
      MOI_UNROLL
      for (unsigned q = 0; q < 8u; q++) {
        unsigned i = i0 + q * PREPARE_THREADS;
        if (i < a->ldx) to[i] = i < a->k ? v[q] : 0.0f; /* 0 * infinity is no zero */
      }
    }
  }
}

#define LOGIT_TOKENS 8u
#define LOGIT_CLASSES 2u

MOI_KERNEL(route_logits, 256, moi_cu_route_prepare_args) {
  MOI_SHARED(float, parts, PREPARE_THREADS / 32u);
  MOI_SHARED(float, norms, 2u * LOGIT_TOKENS);
  MOI_SHARED(float, sums, PREPARE_THREADS / 32u * LOGIT_CLASSES * LOGIT_TOKENS);
  unsigned n_tokens = moi_bounded(a->n_tokens, a->n_tokens_device), thread = moi_thread(), c0 = moi_block_x() * LOGIT_CLASSES;
  const uint8_t *w_row[LOGIT_CLASSES];
  float acc[LOGIT_CLASSES][LOGIT_TOKENS];
  MOI_UNROLL
  for (unsigned c = 0; c < LOGIT_CLASSES; c++) {
    unsigned row = c0 + c < a->n_class ? c0 + c : a->n_class - 1u;
    w_row[c] = (const uint8_t *)a->router + (uint64_t)row * a->k * moi_element_bytes(a->router_type);
    MOI_UNROLL
    for (unsigned t = 0; t < LOGIT_TOKENS; t++) acc[c][t] = 0.0f;
  }
  for (unsigned t = 0; a->norm_weight && t < n_tokens; t++) {
    float before, after;
    norm_of(a, input_row(a, t), parts, &before, &after);
    if (thread == 0u) {
      norms[2u * t] = before;
      norms[2u * t + 1u] = after;
    }
  }
  moi_sync();
  for (unsigned i0 = thread; i0 < a->k; i0 += 8u * PREPARE_THREADS) {
    float w[LOGIT_CLASSES][8], n[8];
    MOI_UNROLL
    for (unsigned c = 0; c < LOGIT_CLASSES; c++) moi_load8(a->router_type, w_row[c], i0, PREPARE_THREADS, a->k, w[c]);
    if (a->norm_weight) moi_load8(a->router_type, a->norm_weight, i0, PREPARE_THREADS, a->k, n);
    MOI_UNROLL
    for (unsigned t = 0; t < LOGIT_TOKENS; t++) {
      if (t >= n_tokens) continue;
      float v[8];
      moi_load8(a->input_type, input_row(a, t), i0, PREPARE_THREADS, a->k, v);
      MOI_UNROLL
      for (unsigned q = 0; q < 8u; q++) {
        if (i0 + q * PREPARE_THREADS >= a->k) continue;
        if (a->norm_weight) v[q] = v[q] * norms[2u * t] * norms[2u * t + 1u] * n[q] * a->scale;
        MOI_UNROLL
        for (unsigned c = 0; c < LOGIT_CLASSES; c++) acc[c][t] = fmaf(w[c][q], v[q], acc[c][t]);
      }
    }
  }
  MOI_UNROLL
  for (unsigned c = 0; c < LOGIT_CLASSES; c++) {
    MOI_UNROLL
    for (unsigned t = 0; t < LOGIT_TOKENS; t++) {
      float sum = moi_warp_sum(acc[c][t]);
      if (moi_lane() == 0u) sums[(moi_warp() * LOGIT_CLASSES + c) * LOGIT_TOKENS + t] = sum;
    }
  }
  moi_sync();
  unsigned t = thread % LOGIT_TOKENS, c = thread / LOGIT_TOKENS;
  if (c >= LOGIT_CLASSES || c0 + c >= a->n_class || t >= n_tokens) return;
  float sum = 0.0f;
  for (unsigned w = 0; w < PREPARE_THREADS / 32u; w++) sum += sums[(w * LOGIT_CLASSES + c) * LOGIT_TOKENS + t];
  a->logits[(uint64_t)t * a->n_class + c0 + c] = sum;
}

/* ---- selection. threads: that select for one token, 32 or a block's; a constant. */

#define BLOCK_THREADS 256u
#define TOP_K 64u

/* What those threads share. */
typedef struct shared {
  unsigned *keys;       /* [n_class] of the values that are compared; 0 once chosen */
  unsigned *group_keys; /* [n_group] */
  unsigned *slots;      /* [3][TOP_K]: ids, keys, bits of weights */
  unsigned *parts;      /* [2][warps] of a block */
  unsigned *counts;     /* [n_class]: slots of the tokens that have been selected for; or null */
} shared;

/* NaN and -infinity: 0; both zeros: the same. */
MOI_DEVICE unsigned key_of(float f) {
  unsigned u = moi_f32_bits(f);
  if (moi_is_nan(f) || u == 0xff800000u) return 0u;
  if (u == 0x80000000u) u = 0u;
  return (u & 0x80000000u) != 0u ? ~u : u | 0x80000000u;
}
MOI_DEVICE float value_of(unsigned key) {
  if (key == 0u) return -MOI_INF;
  return moi_bits_f32((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key);
}
/* of a logit: +infinity counts as the largest finite value */
MOI_DEVICE unsigned logit_key(float l) {
  unsigned key = key_of(l);
  return key < 0xff7fffffu ? key : 0xff7fffffu;
}

MOI_DEVICE unsigned member(const unsigned threads) { return threads == 32u ? moi_lane() : moi_thread(); }

/* Memory that one of the threads wrote is seen by all of them. */
MOI_DEVICE void meet(const unsigned threads) {
  if (threads == 32u) moi_sync_warp();
  else moi_sync();
}

/* reductions, of which every thread gets the result */

MOI_DEVICE void share(const shared *m, unsigned first, unsigned second) {
  moi_sync(); /* the last reduction's parts have been read */
  if (moi_lane() == 0u) {
    m->parts[moi_warp()] = first;
    m->parts[BLOCK_THREADS / 32u + moi_warp()] = second;
  }
  moi_sync();
}

/* the largest key, of equal ones the one with the lowest `at` */
MOI_DEVICE void arg_max(const shared *m, const unsigned threads, unsigned *key, unsigned *at) {
  unsigned top = moi_max_u32(*key);
  *at = moi_min_u32(*key == top ? *at : NONE);
  *key = top;
  if (threads == 32u) return;
  share(m, *key, *at);
  for (unsigned w = 0; w < BLOCK_THREADS / 32u; w++) {
    unsigned other = m->parts[w], other_at = m->parts[BLOCK_THREADS / 32u + w];
    if (other < *key || (other == *key && other_at >= *at)) continue;
    *key = other;
    *at = other_at;
  }
}

MOI_DEVICE unsigned max_of_all(const shared *m, const unsigned threads, unsigned key) {
  unsigned at = 0u;
  arg_max(m, threads, &key, &at);
  return key;
}

MOI_DEVICE float sum_of_all(const shared *m, const unsigned threads, float x) {
  x = moi_warp_sum(x);
  if (threads == 32u) return x;
  share(m, moi_f32_bits(x), 0u);
  x = 0.0f;
  for (unsigned w = 0; w < BLOCK_THREADS / 32u; w++) x += moi_bits_f32(m->parts[w]);
  return x;
}

/* scores */

MOI_DEVICE float sigmoid(float l) { return 1.0f / (1.0f + expf(-l)); }

/* sqrt(log(1 + exp(l))); beyond 20 log(1 + exp(l)) is l in fp32, below -20 exp(l), whose root is known */
MOI_DEVICE float sqrt_softplus(float l) {
  if (l < -20.0f) return expf(0.5f * l);
  return sqrtf(l > 20.0f ? l : log1pf(expf(l)));
}

/* top, inverse: of SOFTMAX, the largest logit and one over the sum; TOPK_SOFTMAX's sum comes after */
MOI_DEVICE float score_of(unsigned score, float l, float top, float inverse) {
  if (score == SIGMOID || score == TOPK_SIGMOID) return sigmoid(l);
  if (score == SQRT_SOFTPLUS) return sqrt_softplus(l);
  return score == SOFTMAX ? expf(l - top) * inverse : expf(l - top);
}

/* step 1 from the sum with the router's bias on */
MOI_DEVICE float logit_of(const moi_cu_select_args *a, float l) {
  l = moi_round_to(a->logits_type, l) * a->logit_scale;
  return a->logit_softcap > 0.0f ? a->logit_softcap * tanhf(l / a->logit_softcap) : l;
}
MOI_DEVICE unsigned logit_key_at(const moi_cu_select_args *a, const uint8_t *row, unsigned i) {
  float l = moi_load(a->input_type, row, i);
  if (a->router_bias) l += moi_load(a->bias_type, a->router_bias, i);
  return logit_key(logit_of(a, l));
}

/* One over softmax's sum: the weight of the class `top`, of those that remain within 2 * jitter of it. */
MOI_DEVICE float sparse_weight(const moi_cu_select_args *a, const shared *m, const unsigned threads, float top) {
  float sum = 0.0f, limit = 2.0f * a->jitter;
  for (unsigned i = member(threads); i < a->n_class; i += threads) {
    unsigned key = m->keys[i];
    if (key == 0u) continue;
    float l = value_of(key), factor = fabsf(l) > top ? fabsf(l) : top;
    if (!((top - l) / factor > limit)) sum += expf(l - top);
  }
  return 1.0f / sum_of_all(m, threads, sum);
}

/* Removes all but the best groups. A team of lanes of one warp has a group. */
MOI_DEVICE void limit_groups(const moi_cu_select_args *a, const shared *m, const unsigned threads) {
  unsigned n = a->n_group, size = a->n_class / n, team = 32u;
  while (team > 1u && team * n > threads) team >>= 1;
  unsigned teams = threads / team, mine = member(threads) / team, sub = member(threads) % team;
  unsigned steps = (size + team - 1u) / team;
  for (unsigned g0 = 0; g0 < n; g0 += teams) {
    unsigned g = g0 + mine, first = 0, second = 0;
    unsigned step = g % steps; /* begins elsewhere in each group: other banks of shared memory */
    for (unsigned j = 0; j < steps; j++) {
      unsigned at = step * team + sub, key = g < n && at < size ? m->keys[g * size + at] : 0u;
      unsigned less = first < key ? first : key;
      if (++step == steps) step = 0u;
      second = less > second ? less : second;
      first = key > first ? key : first;
    }
    for (unsigned mask = 1u; mask < team; mask *= 2u) {
      unsigned f = moi_xor_u32(first, mask), s = moi_xor_u32(second, mask), less = f < first ? f : first;
      second = s > second ? s : second;
      second = less > second ? less : second;
      first = f > first ? f : first;
    }
    if (sub == 0u && g < n)
      m->group_keys[g] =
          a->group_score == TOP2_SUM && second != 0u ? key_of(value_of(first) + value_of(second)) : first;
  }
  meet(threads);
  for (unsigned g0 = 0; g0 < n; g0 += teams) {
    unsigned g = g0 + mine, key = g < n ? m->group_keys[g] : 0u, better = 0;
    for (unsigned o = sub; o < n; o += team) {
      unsigned other = m->group_keys[o];
      better += other > key || (other == key && o < g) ? 1u : 0u;
    }
    for (unsigned mask = 1u; mask < team; mask *= 2u) better += moi_xor_u32(better, mask);
    if (g >= n || (key != 0u && better < a->topk_group)) continue;
    for (unsigned i = sub; i < size; i += team) m->keys[g * size + i] = 0u;
  }
  meet(threads);
}

/* The best of the classes first, first + step, ...: key and number; 0 and NONE if none is left. */
MOI_DEVICE void best_from(const unsigned *keys, unsigned first, unsigned step, unsigned n, unsigned *key,
                          unsigned *at) {
  *key = 0u;
  *at = NONE;
  for (unsigned i = first; i < n; i += 8u * step) { /* all asked for before the first is needed */
    unsigned other[8];
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++) other[q] = i + q * step < n ? keys[i + q * step] : 0u;
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++)
      if (other[q] > *key) *key = other[q], *at = i + q * step;
  }
}

/* Class `at` is chosen: its owner's best is another now. */
MOI_DEVICE void take(const shared *m, const unsigned threads, unsigned n, unsigned at, unsigned *best,
                     unsigned *best_at) {
  unsigned me = member(threads), owner = at % threads;
  if (me == owner) m->keys[at] = 0u;
  if (threads == 32u || n <= 8u * threads) {
    if (me == owner) best_from(m->keys, me, threads, n, best, best_at);
    return;
  }
  moi_sync(); /* many classes: all look */
  unsigned key, next;
  best_from(m->keys, owner + threads * me, threads * threads, n, &key, &next);
  arg_max(m, threads, &key, &next);
  if (me == owner) *best = key, *best_at = next;
}

MOI_DEVICE void select_token(const moi_cu_select_args *a, const shared *m, unsigned t, const unsigned threads) {
  unsigned me = member(threads), n = a->n_class, k = a->top_k, score = a->score;
  unsigned *slot_id = m->slots, *slot_key = m->slots + TOP_K, *slot_weight = m->slots + 2u * TOP_K;
  const uint8_t *row = (const uint8_t *)a->input + (uint64_t)t * a->stride * moi_element_bytes(a->input_type);
  float *logits_out = a->logits_out ? a->logits_out + (uint64_t)t * n : NULL;
  int scored = a->select_bias || (a->n_group > 1u && a->group_score == TOP2_SUM);
  unsigned best = 0u, best_at = NONE;

  for (unsigned i0 = me; i0 < n; i0 += 8u * threads) {
    float v[8], b[8];
    moi_load8(a->input_type, row, i0, threads, n, v);
    if (a->router_bias) {
      moi_load8(a->bias_type, a->router_bias, i0, threads, n, b);
      MOI_UNROLL
      for (unsigned q = 0; q < 8u; q++) v[q] += b[q];
    }
    MOI_UNROLL
    for (unsigned q = 0; q < 8u; q++)
      if (i0 + q * threads < n) m->keys[i0 + q * threads] = moi_f32_bits(v[q]);
  }
  for (unsigned i = me; i < n; i += threads) {
    float l = logit_of(a, moi_bits_f32(m->keys[i]));
    unsigned key = logit_key(l);
    if (logits_out) logits_out[i] = l;
    m->keys[i] = key;
    if (key > best) best = key, best_at = i;
  }

  float top = 0.0f, inverse = 0.0f;
  if (score == SOFTMAX) {
    top = value_of(max_of_all(m, threads, best));
    float sum = 0.0f;
    for (unsigned i = me; i < n; i += threads)
      if (m->keys[i] != 0u) sum += expf(value_of(m->keys[i]) - top);
    sum = sum_of_all(m, threads, sum);
    inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
  }
  if (scored) {
    const float *bias = a->select_bias;
    if (a->alt_mask && a->alt_mask[t]) bias = a->select_bias_alt;
    best = 0u;
    best_at = NONE;
    for (unsigned i0 = me; i0 < n; i0 += 4u * threads) {
      float b[4];
      MOI_UNROLL
      for (unsigned q = 0; q < 4u; q++) b[q] = bias && i0 + q * threads < n ? bias[i0 + q * threads] : 0.0f;
      MOI_UNROLL
      for (unsigned q = 0; q < 4u; q++) {
        unsigned i = i0 + q * threads, key = i < n ? m->keys[i] : 0u;
        if (key == 0u) continue;
        float value = value_of(key);
        if (score != TOPK_SOFTMAX && score != TOPK_SIGMOID) value = score_of(score, value, top, inverse);
        key = key_of(value + b[q]);
        m->keys[i] = key;
        if (key > best) best = key, best_at = i;
      }
    }
  }

  meet(threads); /* the slots of the token before have been read, and keys may be looked at */
  if (a->hash_table) {
    unsigned entry = (unsigned)a->token_ids[t];
    for (unsigned j = me; j < k; j += threads) {
      unsigned id = entry < a->vocab ? (unsigned)a->hash_table[(uint64_t)entry * k + j] : NONE;
      unsigned key = id < n ? m->keys[id] : 0u;
      slot_id[j] = key != 0u ? id : NONE;
      slot_key[j] = key;
    }
  } else {
    if (a->n_group > 1u) {
      limit_groups(a, m, threads);
      best_from(m->keys, me, threads, n, &best, &best_at);
    }
    for (unsigned j = 0; j < k; j++) {
      unsigned key = best, at = best_at;
      arg_max(m, threads, &key, &at);
      float weight = score == SPARSEMIXER && key != 0u ? sparse_weight(a, m, threads, value_of(key)) : 0.0f;
      if (me == 0u) {
        slot_id[j] = at;
        slot_key[j] = key;
        slot_weight[j] = moi_f32_bits(weight);
      }
      if (key != 0u) take(m, threads, n, at, &best, &best_at);
    }
  }
  meet(threads);

  /* weights: slot j is the thread j % threads's. Keys of scores are replaced by those of the logits. */
  unsigned largest = 0u;
  for (unsigned j = me; j < k; j += threads) {
    if (scored && slot_id[j] != NONE) slot_key[j] = logit_key_at(a, row, slot_id[j]);
    if (slot_key[j] > largest) largest = slot_key[j];
  }
  if (score == TOPK_SOFTMAX) top = value_of(max_of_all(m, threads, largest));
  float sum = 0.0f;
  for (unsigned j = me; j < k; j += threads) {
    float weight = 0.0f;
    if (slot_id[j] != NONE)
      weight =
          score == SPARSEMIXER ? moi_bits_f32(slot_weight[j]) : score_of(score, value_of(slot_key[j]), top, inverse);
    slot_weight[j] = moi_f32_bits(weight);
    sum += weight;
  }
  float factor = 1.0f, divisor = 1.0f;
  if (score == TOPK_SOFTMAX || a->renorm != RENORM_NONE) sum = sum_of_all(m, threads, sum);
  if (score == TOPK_SOFTMAX) {
    factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    sum *= factor;
  }
  if (a->renorm != RENORM_NONE)
    divisor = a->renorm == RENORM_SUM ? sum + a->renorm_eps : sum > a->renorm_eps ? sum : a->renorm_eps;
  for (unsigned j = me; j < k; j += threads) {
    unsigned id = slot_id[j];
    float weight = divisor == 0.0f ? 0.0f : moi_bits_f32(slot_weight[j]) * factor / divisor;
    weight *= a->scale;
    if (a->expert_scale && id != NONE) weight *= a->expert_scale[id];
    a->ids[(uint64_t)t * k + j] = (int32_t)id;
    if (m->counts && id != NONE) moi_atomic_add(&m->counts[id], 1u);
    a->weights[(uint64_t)t * k + j] = id == NONE ? 0.0f : moi_round_to(a->weight_type, weight);
  }
}

/* Tokens `first`, `first` + step, ... below `end`, each by a warp, whose memory begins at `words`. */
#define WARP_GROUPS 64u
#define WARP_WORDS(classes) ((classes) + WARP_GROUPS + 3u * TOP_K)
MOI_DEVICE void select_tokens(const moi_cu_select_args *a, unsigned *words, unsigned *counts, const unsigned classes,
                              unsigned first, unsigned step, unsigned end) {
  shared m;
  m.keys = words;
  m.group_keys = words + classes;
  m.slots = m.group_keys + WARP_GROUPS;
  m.parts = NULL;
  m.counts = counts;
  for (unsigned t = first; t < end; t += step) select_token(a, &m, t, 32u);
}

#define WARPS (BLOCK_THREADS / 32u)

/* By the first n_blocks blocks of a grid. Where slots are counted, each has a part of the tokens. */
MOI_DEVICE void select_parts(const moi_cu_select_args *a, unsigned *words, unsigned *counts, const unsigned classes) {
  unsigned thread = moi_thread(), block = moi_block_x(), n_tokens = moi_bounded(a->n_tokens, a->n_tokens_device);
  unsigned from = block * WARPS, to = n_tokens, step = a->n_blocks * WARPS;
  if (block >= a->n_blocks) return;
  if (a->histograms) {
    moi_part(&from, &to, n_tokens, block, a->n_blocks);
    step = WARPS;
    for (unsigned c = thread; c < a->n_class; c += BLOCK_THREADS) counts[c] = 0u;
    moi_sync();
  }
  select_tokens(a, words + moi_warp() * WARP_WORDS(classes), a->histograms ? counts : NULL, classes, from + moi_warp(),
                step, to);
  if (!a->histograms) return;
  moi_sync();
  for (unsigned c = thread; c < a->n_class; c += BLOCK_THREADS) a->histograms[block * a->n_class + c] = counts[c];
}

/* at most `classes` classes and WARP_GROUPS groups */
#define SELECT(name, classes)                                                                                          \
  MOI_KERNEL(name, 256, moi_cu_select_sort_args) {                                                                     \
    MOI_SHARED(unsigned, words, WARPS *WARP_WORDS(classes)); /* then the sort's */                                     \
    MOI_SHARED(unsigned, counts, classes);                                                                             \
    MOI_SHARED(unsigned, partial, MOI_SORT_PARTIALS);                                                                  \
    MOI_SHARED(float, shares, MOI_ROW_SHARES);                                                                         \
    if (a->sort.steps & MOI_CU_STEP_SELECT) {                                                                          \
      select_parts(&a->select, words, counts, classes);                                                                \
      moi_meet(&a->sort);                                                                                              \
    }                                                                                                                  \
    moi_sort_steps(&a->sort, &a->rows, words, WARPS *WARP_WORDS(classes), partial, shares);                            \
  }
SELECT(select_256, 256u)
SELECT(select_1024, 1024u)

MOI_KERNEL(select_any, 256, moi_cu_select_sort_args) {
  MOI_SHARED(unsigned, keys, MOI_CU_SELECT_HELD); /* then the sort's */
  MOI_SHARED(unsigned, group_keys, 1024);
  MOI_SHARED(unsigned, slots, 3u * TOP_K);
  MOI_SHARED(unsigned, parts, 2u * BLOCK_THREADS / 32u);
  MOI_SHARED(unsigned, partial, MOI_SORT_PARTIALS);
  MOI_SHARED(float, shares, MOI_ROW_SHARES);
  const moi_cu_select_args *s = &a->select;
  if (a->sort.steps & MOI_CU_STEP_SELECT) {
    unsigned block = moi_block_x(), n_tokens = moi_bounded(s->n_tokens, s->n_tokens_device);
    shared m;
    m.keys = s->n_class <= MOI_CU_SELECT_HELD ? keys : s->keys + (uint64_t)block * s->n_class;
    m.group_keys = group_keys;
    m.slots = slots;
    m.parts = parts;
    m.counts = NULL;
    for (unsigned t = block < s->n_blocks ? block : n_tokens; t < n_tokens; t += s->n_blocks)
      select_token(s, &m, t, BLOCK_THREADS);
    moi_meet(&a->sort);
  }
  moi_sort_steps(&a->sort, &a->rows, keys, MOI_CU_SELECT_HELD, partial, shares);
}
