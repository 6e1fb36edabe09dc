#include "bench/rig/tolerance.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/format.h"
#include "core/shared/round.h"

/* Elements of large tests reach 5 standard deviations of an error whose spread differs from row to row. */
#define SPREAD 12.0

static double step_of(moi_format type) {
  return type == MOI_FORMAT_BF16 ? 0x1p-8 : type == MOI_FORMAT_F16 ? 0x1p-11 : 0x1p-24;
}

/* Rows of devices are called "<format>-<row>". */
static int is_of(const char *kernel, moi_format format) {
  const char *name = moi_format_name(format);
  return !strncmp(kernel, name, strlen(name)) && kernel[strlen(name)] == '-';
}

moi_accumulator moi_accumulator_of(moi_backend backend, const char *kernel, moi_format format) {
  if (backend != MOI_BACKEND_CPU && kernel && !is_of(kernel, format)) kernel = NULL; /* a matrix of another format */
  if (backend == MOI_BACKEND_CUDA) {
    const moi_format_row *row = moi_format_find(format);
    int whole = row && row->block_k * row->block_n > 1; /* formats of blocks are whole numbers, and may have int8 rows */
    if (whole && (!kernel || strstr(kernel, "-int8"))) return MOI_ACCUMULATE_I16;
    if (kernel && strstr(kernel, "-mma-fp8") && (format == MOI_FORMAT_FP8 || format == MOI_FORMAT_FP8_B128))
      return MOI_ACCUMULATE_E4M3;
    if (kernel && strstr(kernel, "-mma-mx") && (format == MOI_FORMAT_MXFP4 || format == MOI_FORMAT_MXFP4_GGUF))
      return MOI_ACCUMULATE_E4M3;
    if (format != MOI_FORMAT_F32 && (!kernel || strstr(kernel, "-mma") || strstr(kernel, "-cublas"))) return MOI_ACCUMULATE_BF16X2;
  }
  int dense = format == MOI_FORMAT_F32 || format == MOI_FORMAT_F16 || format == MOI_FORMAT_BF16 ||
              format == MOI_FORMAT_BF16_KN;
  int fp8 = format == MOI_FORMAT_FP8 || format == MOI_FORMAT_FP8_B128;
  if (backend == MOI_BACKEND_VULKAN && !dense && !fp8 && (!kernel || strstr(kernel, "-dot"))) return MOI_ACCUMULATE_I16;
  if (backend != MOI_BACKEND_CPU) return MOI_ACCUMULATE_F32;
  return dense || (kernel && (!strcmp(kernel, "generic") || !strcmp(kernel, "ref"))) ? MOI_ACCUMULATE_F32
                                                                                     : MOI_ACCUMULATE_I16;
}

static double dot_error(moi_accumulator accumulator, uint32_t k) {
  static const double all[] = {[MOI_ACCUMULATE_BF16X2] = 0x1p-18, [MOI_ACCUMULATE_I16] = 0x1p-15,
                               [MOI_ACCUMULATE_E4M3] = 0x1p-12};
  double digits = all[accumulator];
  return 4 * sqrt(k) * 0x1p-24 + digits;
}

moi_error moi_gemm_error(moi_accumulator accumulator, uint32_t k) {
  return (moi_error){dot_error(accumulator, k), 0};
}

/* k values of error e are rounded to a type, then enter a dot product. */
static void round_values(moi_error *error, double step, double k) {
  error->e += sqrt(error->e * step);
  error->s += 12 * step / sqrt(k);
}

moi_error moi_experts_error(moi_accumulator accumulator, const moi_experts_desc *desc) {
  moi_format input = desc->input_type ? desc->input_type : MOI_FORMAT_F32;
  moi_format mid = desc->mid_type ? desc->mid_type : input;
  moi_error error = {2 * dot_error(accumulator, desc->hidden) + 0x1p-20, 0};
  if (mid != MOI_FORMAT_F32) round_values(&error, step_of(mid), desc->intermediate);
  if (desc->act_quant) /* half a step of E4M3; of INT8, beside the largest of 32 */
    round_values(&error, desc->act_quant == MOI_ACT_QUANT_INT8_32 ? 0x1p-5 : 0x1p-4, desc->intermediate);
  error.e += dot_error(accumulator, desc->intermediate);
  return error;
}

moi_error moi_moe_error(moi_accumulator accumulator, const moi_moe_desc *desc) {
  moi_error error = moi_experts_error(accumulator, desc->experts);
  if (desc->shared) {
    moi_error shared = moi_experts_error(accumulator, desc->shared);
    error.e = fmax(error.e, shared.e);
    error.s = fmax(error.s, shared.s);
  }
  if (desc->shared_gate) error.e += dot_error(MOI_ACCUMULATE_F32, desc->experts->hidden);
  if (desc->route) { /* softmax and sigmoid turn a logit's error into a relative one; 4: the largest logits */
    moi_format weight = desc->route->weight_type ? desc->route->weight_type : MOI_FORMAT_F32;
    double e = 4 * moi_logit_error(accumulator, desc->route);
    error.e += e;
    if (weight != MOI_FORMAT_F32) {
      error.e += sqrt(e * step_of(weight));
      error.s += 2 * step_of(weight);
    }
  }
  return error;
}

moi_error moi_attention_error(const char *kernel, const moi_attention_desc *desc, double logits, uint32_t keys,
                              uint64_t positions) {
  double tau = 1;
  if (desc->temperature_floor)
    tau = fmax(1, fabs(1 + desc->temperature * log(1 + (double)(positions / desc->temperature_floor))));
  double spread = logits * tau, e = (sqrt(desc->head_dim) + 5) * spread * 0x1p-24;
  e += 2 * fabs(desc->softcap) * 0x1p-24 + 0x1p-23 + sqrt(keys) * 0x1p-24;
  if (kernel && strstr(kernel, "bf16")) e += 0x1p-10;
  return (moi_error){e, 0};
}

double moi_logit_error(moi_accumulator accumulator, const moi_route_desc *desc) {
  moi_format type = desc->logits_type ? desc->logits_type : MOI_FORMAT_F32;
  double e = 0x1p-22;
  if (desc->hidden) e += dot_error(accumulator, desc->hidden);
  return type == MOI_FORMAT_F32 ? e : e + sqrt(e * step_of(type));
}

static void fail(moi_verdict *v, const char *format, ...) {
  if (!v->ok) return; /* the first finding is the one to read */
  va_list list;
  v->ok = 0;
  va_start(list, format);
  vsnprintf(v->text, sizeof v->text, format, list);
  va_end(list);
}

static double at(const moi_matrix_view *m, uint32_t row, uint32_t col) {
  return moi_dense_load(m->type, m->data, (size_t)row * m->stride + col);
}

static double whole_rms(const moi_matrix_view *m) {
  double square = 0;
  uint64_t finite = 0;
  for (uint32_t r = 0; r < m->rows; r++)
    for (uint32_t c = 0; c < m->cols; c++)
      if (isfinite(at(m, r, c))) square += at(m, r, c) * at(m, r, c), finite++;
  return finite ? sqrt(square / (double)finite) : 0;
}

/* A row of fewer elements says little about the size of the sums behind them: all rows are asked. */
enum { FEW = 16 };

moi_verdict moi_compare(const moi_matrix_view *result, const moi_matrix_view *reference, moi_error allowed,
                        int mistrust) {
  double e = allowed.e, s = allowed.s;
  moi_verdict v = {.ok = 1};
  double step = result->type == MOI_FORMAT_F32 ? 0x1p-22 : 2 * step_of(result->type);
  double floor = result->type == MOI_FORMAT_F16 ? 0x1p-24 : 0; /* the spacing of f16 subnormals */
  double sum = 0, error = 0, excess = 0;
  uint64_t zeros = 0, weighed = 0, differ = 0;
  double whole = whole_rms(reference);
  for (uint32_t r = 0; r < reference->rows; r++) {
    double square = 0;
    uint32_t finite = 0, row_zeros = 0;
    for (uint32_t c = 0; c < reference->cols; c++) {
      double x = at(reference, r, c);
      if (isfinite(x)) square += x * x, finite++;
      row_zeros += x == 0;
    }
    double rms = finite ? sqrt(square / finite) : 0;
    if (reference->cols < FEW && rms > 0) rms = fmax(rms, whole);
    if (square > 0) zeros += row_zeros, weighed += reference->cols;
    for (uint32_t c = 0; c < reference->cols; c++) {
      double y = at(result, r, c), x = at(reference, r, c);
      if (!isfinite(x)) {
        if (isfinite(y)) fail(&v, "row %u, column %u: %g, the reference has %g", r, c, y, x);
        continue;
      }
      double d = fabs(y - x), ulp = step * fabs(x) + floor, bound = ulp + (SPREAD * e + 3.5 * s) * fmax(rms, fabs(x));
      if (!(d <= bound)) {
        fail(&v, "row %u, column %u: %.9g, the reference has %.9g; they differ by %.3g, allowed is %.3g", r, c, y, x, d,
             bound);
        continue;
      }
      differ += y != x;
      sum += x * x;
      error += d * d;
      if (d > ulp) excess += (d - ulp) * (d - ulp);
    }
  }
  v.nmse = sum > 0 ? error / sum : error;
  double square_bound = 16 * e * e + 2 * s * s / (reference->rows ? reference->rows : 1);
  v.error = sqrt(sum > 0 ? excess / sum : excess);
  v.allowed = sqrt(square_bound);
  if (excess > square_bound * sum)
    fail(&v, "normalised squared error %.3g beyond the output's rounding, allowed is %.3g", excess / sum, square_bound);
  if (result->type != MOI_FORMAT_F32) {
    double may = (double)reference->rows * reference->cols * fmin(1, 8 * e / step_of(result->type)) + 8 +
                 2.0 * reference->cols * fmin(1, s / step_of(result->type));
    if ((double)differ > may)
      fail(&v, "%llu elements differ from the reference in their last bit or more, allowed are %.0f: not rounded to "
               "nearest even?", (unsigned long long)differ, may);
  }
  if (mistrust && (!weighed || zeros * 2 > weighed))
    fail(&v, "mistrusted: the reference is mostly zeros (%llu of %llu)", (unsigned long long)zeros,
         (unsigned long long)weighed);
  return v;
}

/* ---- routing */

static const void *base(moi_buffer b) { return b.ptr ? (const uint8_t *)b.ptr + b.offset : NULL; }

/* The reference's selection values of one token, from its logits, and how far apart two may lie and still be a tie. */
typedef struct token_values {
  double *v;
  double near;
  int edge; /* a group, or sparsemixer's threshold, is decided by less than `near` */
} token_values;

static double score(moi_score rule, double l) {
  if (rule == MOI_SCORE_SIGMOID) return 1 / (1 + exp(-l));
  if (rule == MOI_SCORE_SQRT_SOFTPLUS) return sqrt(l > 30 ? l : log1p(exp(l)));
  return l;
}

static int descending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? 1 : x > y ? -1 : 0;
}

/* Whether the groups that stay are decided by less than near. */
static int group_edge(const moi_route_desc *d, const double *v, double near) {
  uint32_t size = d->n_experts / d->n_group;
  double *best = malloc(d->n_group * sizeof *best);
  if (!best) return 1;
  for (uint32_t g = 0; g < d->n_group; g++) {
    double first = -INFINITY, second = -INFINITY;
    for (uint32_t i = g * size; i < (g + 1) * size; i++) {
      if (v[i] > first) second = first, first = v[i];
      else if (v[i] > second) second = v[i];
    }
    best[g] = d->group_score == MOI_GROUP_TOP2_SUM && second > -INFINITY ? first + second : first;
  }
  qsort(best, d->n_group, sizeof *best, descending);
  int edge = d->topk_group < d->n_group && best[d->topk_group - 1] - best[d->topk_group] <= 2 * near;
  free(best);
  return edge;
}

static void values_of(const moi_route_desc *d, const moi_route_args *a, uint32_t t, const float *l, token_values *out) {
  uint32_t n = d->n_experts + d->n_identity;
  const float *bias = NULL;
  if (d->flags & MOI_ROUTE_SELECT_BIAS) {
    const uint8_t *alt = d->flags & MOI_ROUTE_SELECT_BIAS_ALT ? base(a->alt_mask) : NULL;
    bias = base(alt && alt[t] ? a->select_bias_alt : a->select_bias);
  }
  double max = -INFINITY, sum = 0;
  for (uint32_t i = 0; i < n; i++)
    if (l[i] > max) max = l[i];
  if (d->score == MOI_SCORE_SOFTMAX)
    for (uint32_t i = 0; i < n; i++) sum += isnan(l[i]) ? 0 : exp(l[i] - max);
  for (uint32_t i = 0; i < n; i++) {
    double x = isnan(l[i]) ? -INFINITY : l[i];
    double s = d->score == MOI_SCORE_SOFTMAX && bias ? exp(x - max) / sum : score(d->score, x);
    out->v[i] = isnan(l[i]) || x == -INFINITY ? -INFINITY : bias ? s + bias[i] : s;
    if (isnan(out->v[i])) out->v[i] = -INFINITY;
  }
  out->edge = 0;
  if (d->score == MOI_SCORE_SPARSEMIXER) {
    double jitter = d->jitter == 0 ? 0.01f : d->jitter;
    for (uint32_t j = 0; j < 2; j++) { /* the two maxima's masks */
      double top = -INFINITY;
      for (uint32_t i = 0; i < n; i++)
        if (l[i] > top && (j == 0 || l[i] < max)) top = l[i];
      for (uint32_t i = 0; i < n; i++)
        if (fabs((top - l[i]) / fmax(fabs(l[i]), top) - 2 * jitter) < 1e-4) out->edge = 1;
    }
  } else if (d->n_group > 1) {
    out->edge = group_edge(d, out->v, out->near);
  }
}

static int near_tie(double a, double b, double near) {
  return a == b || fabs(a - b) <= near;
}

static void check_sorted(const moi_route_desc *d, const moi_route_args *a, moi_verdict *v) {
  uint32_t n = d->n_experts + d->n_identity, slots = a->n_tokens * d->top_k, at_slot = 0;
  const int32_t *ids = base(a->ids), *counts = base(a->counts), *offsets = base(a->offsets);
  const int32_t *permutation = base(a->permutation);
  if (!counts || !offsets || !permutation) return;
  int32_t running = 0;
  uint32_t *expected = calloc(n, sizeof *expected);
  if (!expected) {
    fail(v, "out of memory");
    return;
  }
  for (uint32_t s = 0; s < slots; s++)
    if (ids[s] >= 0) expected[ids[s]]++;
  for (uint32_t e = 0; e < n; e++) {
    if ((uint32_t)counts[e] != expected[e]) fail(v, "counts[%u]: %d, the ids hold %u", e, counts[e], expected[e]);
    if (offsets[e] != running) fail(v, "offsets[%u]: %d, the counts sum to %d", e, offsets[e], running);
    running += (int32_t)expected[e];
  }
  if (offsets[n] != running) fail(v, "offsets[%u]: %d, the counts sum to %d", n, offsets[n], running);
  for (uint32_t e = 0; e < n && v->ok; e++)
    for (uint32_t s = 0; expected[e] && s < slots; s++) {
      if (ids[s] != (int32_t)e) continue;
      if ((uint32_t)permutation[at_slot] != s)
        fail(v, "permutation[%u]: %d, expert %u's next slot is %u", at_slot, permutation[at_slot], e, s);
      at_slot++;
    }
  for (; at_slot < slots && v->ok; at_slot++)
    if (permutation[at_slot] != -1) fail(v, "permutation[%u]: %d, behind the last slot -1 is due", at_slot,
                                         permutation[at_slot]);
  free(expected);
}

moi_verdict moi_compare_route(const moi_route_desc *d, const moi_route_args *result, const moi_route_args *reference,
                              double e) {
  moi_verdict v = {.ok = 1};
  uint32_t n = d->n_experts + d->n_identity, k = d->top_k;
  const int32_t *ids = base(result->ids), *ref_ids = base(reference->ids);
  const float *w = base(result->weights), *ref_w = base(reference->weights);
  const float *l = base(result->logits_out), *ref_l = base(reference->logits_out);
  moi_format weight_type = d->weight_type ? d->weight_type : MOI_FORMAT_F32;
  moi_format logits_type = d->logits_type ? d->logits_type : MOI_FORMAT_F32;
  token_values values = {malloc(n * sizeof *values.v), 0, 0};
  if (!values.v) fail(&v, "out of memory");
  for (uint32_t i = 0; i < result->n_tokens * k && v.ok; i++)
    if (ids[i] < -1 || ids[i] >= (int32_t)n) fail(&v, "token %u, slot %u: id %d of %u", i / k, i % k, ids[i], n);
  for (uint32_t t = 0; t < result->n_tokens && v.ok; t++) {
    double square = 0, delta = 0;
    uint32_t finite = 0;
    for (uint32_t i = 0; i < n; i++)
      if (isfinite(ref_l[(size_t)t * n + i])) square += pow(ref_l[(size_t)t * n + i], 2), finite++;
    double rms = finite ? sqrt(square / finite) : 0;
    for (uint32_t i = 0; i < n; i++) {
      double y = l[(size_t)t * n + i], x = ref_l[(size_t)t * n + i];
      double step = logits_type == MOI_FORMAT_F32 ? 0x1p-22 : 2 * step_of(logits_type);
      double bound = step * fabs(x) + SPREAD * e * fmax(rms, fabs(x));
      if (!isfinite(x) ? (isnan(x) != isnan(y) || (!isnan(x) && x != y)) : !(fabs(y - x) <= bound))
        fail(&v, "token %u, logit %u: %.9g, the reference has %.9g, allowed is %.3g", t, i, y, x, bound);
      if (isfinite(x)) delta = fmax(delta, fabs(y - x));
    }
    if (!v.ok) break;
    /* two logits may each have moved by delta, and a score by a few roundings */
    values.near = 2 * delta + 0x1p-21 * fmax(1, 4 * rms);
    values_of(d, reference, t, ref_l + (size_t)t * n, &values);
    int same = !memcmp(ids + (size_t)t * k, ref_ids + (size_t)t * k, k * sizeof *ids), same_set = 1;
    for (uint32_t j = 0; j < k && !same; j++) {
      int32_t a = ids[(size_t)t * k + j], b = ref_ids[(size_t)t * k + j];
      int in_set = 0;
      for (uint32_t i = 0; i < k; i++) in_set |= ref_ids[(size_t)t * k + i] == a;
      same_set &= in_set;
      if (a == b || values.edge) continue;
      if (d->flags & MOI_ROUTE_HASH || a < 0 || b < 0 || !near_tie(values.v[a], values.v[b], values.near))
        fail(&v, "token %u, slot %u: expert %d (value %.9g), the reference chose %d (value %.9g), ties are within %.3g",
             t, j, a, a < 0 ? NAN : values.v[a], b, b < 0 ? NAN : values.v[b], values.near);
    }
    if (!same) v.excused++;
    if (!same_set || (d->score == MOI_SCORE_SPARSEMIXER && values.edge)) continue;
    for (uint32_t j = 0; j < k && v.ok; j++) {
      double y = w[(size_t)t * k + j], x = NAN;
      for (uint32_t i = 0; i < k; i++)
        if (ref_ids[(size_t)t * k + i] == ids[(size_t)t * k + j] && isnan(x)) x = ref_w[(size_t)t * k + i];
      double relative = 2 * delta + 0x1p-19 + (weight_type == MOI_FORMAT_F32 ? 0 : 2 * step_of(weight_type));
      if (d->score == MOI_SCORE_SPARSEMIXER) relative *= 2;
      double bound = relative * fabs(x) + 0x1p-30 * fabs(d->scale == 0 ? 1 : d->scale);
      if (weight_type == MOI_FORMAT_F16) bound += 0x1p-24;
      if (isfinite(x) && x != 0 && fabs(y - x) / bound >= (v.allowed > 0 ? v.error / v.allowed : 0))
        v.error = fabs((y - x) / x), v.allowed = bound / fabs(x);
      if (isfinite(x) ? !(fabs(y - x) <= bound) : isfinite(y))
        fail(&v, "token %u, slot %u: weight %.9g, the reference has %.9g, allowed is %.3g", t, j, y, x, bound);
    }
  }
  if (v.ok) check_sorted(d, result, &v);
  free(values.v);
  return v;
}
