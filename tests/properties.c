/* What must hold whatever the numbers are: permutations, splits, repetitions, and a residual at a real model's size. */
#include "tests/support.h"

#include <math.h>

#include "bench/rig/case.h"
#include "bench/rig/random.h"

static moi_context *context;

static int open_context(void **state) {
  *state = context = open_cpu(2);
  return 0;
}

enum { T = 13, W = 256, E = 6, K = 3 };

/* Experts of a format, fp32 in and out, so that nothing but the kernels' own arithmetic rounds. */
static void make_case(moi_case *c, moi_format format, uint64_t seed) {
  memset(c, 0, sizeof *c);
  c->op = MOI_OP_EXPERTS;
  c->n_tokens = T;
  c->seed = seed;
  c->experts = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  c->experts.hidden = c->experts.intermediate = W;
  c->experts.n_experts = E;
  c->experts.top_k = K;
  c->experts.format = format;
  moi_case_make(c, MOI_ARENA_GUARD);
}

/* Runs with fresh, poisoned outputs; the rows of c's n_tokens. */
static void run(const moi_case *c, moi_context *on, const char *kernel, uint32_t flags, float *y) {
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  moi_plan *plan = NULL;
  char damage[160];
  moi_outputs out = moi_case_outputs(c, &arena);
  passes(moi_case_plan(c, on, kernel, flags, &plan));
  moi_status status = moi_case_run_guarded(c, plan, &out, damage, sizeof damage);
  if (status)
    fail_msg("%s: %s", moi_format_name(c->experts.format), status == MOI_INTERNAL ? damage : moi_last_error());
  long long offset;
  const char *hit = moi_arena_damage(&arena, &offset);
  if (hit) fail_msg("%s: wrote to %s at %lld", moi_format_name(c->experts.format), hit, offset);
  memcpy(y, out.output.ptr, (size_t)c->n_tokens * c->experts.hidden * 4);
  moi_plan_destroy(plan);
  moi_arena_free(&arena);
}

static double rms_of(const float *y, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += (double)y[i] * y[i];
  return sqrt(sum / (double)n);
}

static void assert_near(const char *what, const float *y, const float *wanted, size_t n, double e) {
  double rms = rms_of(wanted, n);
  assert_true(rms > 1e-3);
  for (size_t i = 0; i < n; i++)
    if (!(fabs((double)y[i] - wanted[i]) <= e * (rms + fabs(wanted[i]))))
      fail_msg("%s: element %zu is %.9g, wanted %.9g (rms %.3g)", what, i, (double)y[i], (double)wanted[i], rms);
}

static moi_format format_after(moi_format format) {
  uint32_t at = 0;
  while (moi_format_at(at) != format) at++;
  return moi_format_at(at + 1);
}
#define EVERY_FORMAT(format) for (moi_format format = moi_format_at(0); format; format = format_after(format))

static float ya[T * W], yb[T * W], yc[T * W];

static void test_permuted_tokens(void **state) {
  (void)state;
  EVERY_FORMAT(format) {
    moi_case c;
    make_case(&c, format, 3);
    run(&c, context, NULL, MOI_BATCH_INVARIANT, ya);
    static float x[T * W], w[T * K];
    static int32_t ids[T * K];
    const moi_experts_args *a = &c.operands.experts;
    for (uint32_t t = 0; t < T; t++) {
      uint32_t from = (t * 5 + 2) % T;
      memcpy(x + t * W, (float *)a->input.ptr + from * W, W * 4);
      memcpy(w + t * K, (float *)a->weights.ptr + from * K, K * 4);
      memcpy(ids + t * K, (int32_t *)a->ids.ptr + from * K, K * 4);
    }
    memcpy(a->input.ptr, x, sizeof x);
    memcpy(a->weights.ptr, w, sizeof w);
    memcpy(a->ids.ptr, ids, sizeof ids);
    run(&c, context, NULL, MOI_BATCH_INVARIANT, yb);
    for (uint32_t t = 0; t < T; t++) assert_memory_equal(yb + t * W, ya + (t * 5 + 2) % T * W, W * 4);
    moi_case_free(&c);
  }
}

/* Moves expert e's bytes to place p[e]. */
static void permute_stream(moi_buffer b, const uint32_t *p) {
  if (!b.ptr) return;
  size_t each = b.size / E;
  uint8_t *copy = malloc(b.size);
  assert_non_null(copy);
  memcpy(copy, b.ptr, b.size);
  for (uint32_t e = 0; e < E; e++) memcpy((uint8_t *)b.ptr + p[e] * each, copy + e * each, each);
  free(copy);
}

static void test_permuted_experts(void **state) {
  (void)state;
  static const uint32_t p[E] = {4, 2, 0, 5, 1, 3};
  EVERY_FORMAT(format) {
    moi_case c;
    make_case(&c, format, 4);
    run(&c, context, NULL, 0, ya);
    moi_weights *w[3] = {&c.operands.weights.gate, &c.operands.weights.up, &c.operands.weights.down};
    for (int i = 0; i < 3; i++) {
      permute_stream(w[i]->data, p);
      permute_stream(w[i]->scales, p);
      permute_stream(w[i]->zeros, p);
      permute_stream(w[i]->global_scale, p);
    }
    int32_t *ids = c.operands.experts.ids.ptr;
    for (int i = 0; i < T * K; i++) ids[i] = (int32_t)p[ids[i]];
    run(&c, context, NULL, 0, yb);
    assert_near(moi_format_name(format), yb, ya, T * W, 1e-6); /* only the order of K terms has changed */
    moi_case_free(&c);
  }
}

/* Every expert for every token is the sum of the experts alone. */
static void test_all_experts_are_dense(void **state) {
  (void)state;
  static const moi_format formats[] = {MOI_FORMAT_F32, MOI_FORMAT_BF16, MOI_FORMAT_Q4_K, MOI_FORMAT_MXFP4};
  for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
    moi_case c;
    make_case(&c, formats[f], 5);
    static int32_t ids[T * E];
    static float w[T * E];
    for (int i = 0; i < T * E; i++) ids[i] = (i + i / E) % E, w[i] = 0.25f + 0.1f * moi_random_uniform(9, (uint64_t)i);
    moi_experts_args *a = &c.operands.experts;
    c.experts.top_k = E;
    a->ids = VIEW(ids);
    a->weights = VIEW(w);
    run(&c, context, NULL, MOI_BATCH_INVARIANT, ya);
    double sum[T * W] = {0};
    c.experts.top_k = 1;
    for (int e = 0; e < E; e++) {
      static int32_t one[T];
      static float weight[T];
      for (int t = 0; t < T; t++) {
        one[t] = e;
        for (int j = 0; j < E; j++)
          if (ids[t * E + j] == e) weight[t] = w[t * E + j];
      }
      a->ids = VIEW(one);
      a->weights = VIEW(weight);
      run(&c, context, NULL, MOI_BATCH_INVARIANT, yb);
      for (int i = 0; i < T * W; i++) sum[i] += yb[i];
    }
    for (int i = 0; i < T * W; i++) yc[i] = (float)sum[i];
    assert_near(moi_format_name(formats[f]), ya, yc, T * W, 2e-6);
    moi_case_free(&c);
  }
}

/* Experts that nobody uses are not even read: their weights are NaN. */
static void test_empty_experts(void **state) {
  (void)state;
  EVERY_FORMAT(format) {
    moi_case c;
    make_case(&c, format, 6);
    int32_t *ids = c.operands.experts.ids.ptr;
    for (int i = 0; i < T * K; i++) ids[i] = i % 7 == 3 ? -1 : 3;
    run(&c, context, NULL, 0, ya);
    moi_weights *w[3] = {&c.operands.weights.gate, &c.operands.weights.up, &c.operands.weights.down};
    for (int i = 0; i < 3; i++) {
      moi_buffer streams[4] = {w[i]->data, w[i]->scales, w[i]->zeros, w[i]->global_scale};
      for (int s = 0; s < 4; s++) {
        size_t each = streams[s].size / E;
        uint8_t *p = streams[s].ptr;
        if (!p) continue;
        memset(p, 0xff, 3 * each);
        memset(p + 4 * each, 0xff, 2 * each);
      }
    }
    run(&c, context, NULL, 0, yb);
    assert_true(rms_of(ya, T * W) > 1e-3);
    assert_memory_equal(ya, yb, sizeof ya);
    moi_case_free(&c);
  }
}

static void test_split_calls(void **state) {
  (void)state;
  EVERY_FORMAT(format) {
    moi_case c;
    make_case(&c, format, 7);
    run(&c, context, NULL, MOI_BATCH_INVARIANT, ya);
    const moi_experts_args whole = c.operands.experts;
    for (uint32_t cut = 1; cut < T; cut += 5) {
      for (int half = 0; half < 2; half++) {
        moi_experts_args *a = &c.operands.experts;
        uint32_t first = half ? cut : 0, n = half ? T - cut : cut;
        *a = whole;
        a->n_tokens = c.n_tokens = n;
        a->input = moi_ptr((float *)whole.input.ptr + first * W, n * W * 4);
        a->ids = moi_ptr((int32_t *)whole.ids.ptr + first * K, n * K * 4);
        a->weights = moi_ptr((float *)whole.weights.ptr + first * K, n * K * 4);
        run(&c, context, NULL, MOI_BATCH_INVARIANT, yb);
        assert_memory_equal(yb, ya + first * W, n * W * 4);
      }
    }
    c.n_tokens = T;
    moi_case_free(&c);
  }
}

/* ---- the same bits */

static void test_same_bits(void **state) {
  (void)state;
  lanes how[3] = {{1, 0}, {3, 1}, {7, 0}};
  moi_context *contexts[5] = {context, open_cpu(1), NULL, NULL, NULL};
  for (int i = 0; i < 3; i++) contexts[2 + i] = open_lanes(&how[i]);
  EVERY_FORMAT(format) {
    moi_case c;
    make_case(&c, format, 8);
    run(&c, context, NULL, MOI_DETERMINISTIC, ya);
    for (int i = 0; i < 5; i++) { /* context itself: a second run */
      run(&c, contexts[i], NULL, MOI_DETERMINISTIC, yb);
      assert_memory_equal(yb, ya, sizeof ya);
    }
    moi_case_free(&c);
  }
  for (int op = 0; op < 2; op++) { /* a whole layer: routing, shared expert */
    moi_case c;
    moi_case_of_preset(moi_preset_find("qwen3-next-80b-a3b"), op ? MOI_OP_MOE : MOI_OP_ROUTE, MOI_FORMAT_BF16, 5, 9,
                       &c);
    c.route.n_experts = c.experts.n_experts = 12;
    c.route.hidden = c.experts.hidden = c.shared.hidden = 128;
    c.experts.intermediate = c.shared.intermediate = 96;
    c.route.top_k = c.experts.top_k = 4;
    moi_case_make(&c, MOI_ARENA_GUARD);
    moi_arena arenas[5];
    moi_outputs out[5];
    for (int i = 0; i < 5; i++) {
      memset(&arenas[i], 0, sizeof arenas[i]);
      out[i] = moi_case_outputs(&c, &arenas[i]);
      moi_plan *plan = NULL;
      char damage[160];
      passes(moi_case_plan(&c, contexts[i], NULL, MOI_DETERMINISTIC, &plan));
      passes(moi_case_run_guarded(&c, plan, &out[i], damage, sizeof damage));
      moi_plan_destroy(plan);
      assert_true(moi_case_same_bits(&c, &out[i], &out[0]));
    }
    for (int i = 0; i < 5; i++) moi_arena_free(&arenas[i]);
    moi_case_free(&c);
  }
  for (int i = 1; i < 5; i++) moi_context_destroy(contexts[i]);
}

/* A power of two is exact. */
static void test_doubled_weights(void **state) {
  (void)state;
  for (int on = 0; on < 2; on++) EVERY_FORMAT(format) {
      moi_case c;
      make_case(&c, format, 10);
      if (on) c.experts.output_scale = 1;
      run(&c, context, NULL, 0, ya);
      float *w = c.operands.experts.weights.ptr;
      if (on) c.experts.output_scale = 2;
      else
        for (int i = 0; i < T * K; i++) w[i] *= 2;
      run(&c, context, NULL, 0, yb);
      for (int i = 0; i < T * W; i++) assert_true(yb[i] == 2 * ya[i]);
      moi_case_free(&c);
    }
}

/* ---- guard zones at sizes that fill no tile */

static void test_ragged_shapes(void **state) {
  (void)state;
  static const uint32_t tokens[] = {0, 1, 2, 9, 33, 130};
  EVERY_FORMAT(format) {
    uint32_t k = 1, n = 1; /* the smallest steps of k and n that the format allows */
    moi_format_sizes sizes;
    while (moi_format_size(format, 256, k, &sizes)) k *= 2;
    while (moi_format_size(format, n, 256, &sizes)) n *= 2;
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
      moi_case c;
      memset(&c, 0, sizeof c);
      c.op = MOI_OP_GEMM;
      c.n_tokens = tokens[i];
      c.seed = 20 + i;
      c.stride_extra = i & 1 ? 3 : 0;
      c.gemm = (moi_gemm_desc)MOI_GEMM_DESC_INIT;
      c.gemm.k = k * (k < 64 ? 64 / k + 3 : 3);
      c.gemm.n = n * (n == 1 ? 67 : 9);
      c.gemm.n_experts = 3;
      c.gemm.format = format;
      c.gemm.input_type = i & 2 ? MOI_FORMAT_BF16 : MOI_FORMAT_F32;
      c.gemm.output_type = MOI_FORMAT_F32;
      c.hostile_offsets = i == 4;
      moi_case_make(&c, MOI_ARENA_GUARD);
      moi_arena arena = {.flags = MOI_ARENA_GUARD};
      moi_outputs out[2] = {moi_case_outputs(&c, &arena), moi_case_outputs(&c, &arena)};
      char kernel[128] = "";
      for (int r = 0; r < 2; r++) {
        moi_plan *plan = NULL;
        char damage[160];
        passes(moi_case_plan(&c, context, r ? "ref" : NULL, 0, &plan));
        if (!r) snprintf(kernel, sizeof kernel, "%s", moi_plan_kernel(plan));
        moi_status status = moi_case_run_guarded(&c, plan, &out[r], damage, sizeof damage);
        if (status) fail_msg("%s: %s", kernel, status == MOI_INTERNAL ? damage : moi_last_error());
        moi_plan_destroy(plan);
      }
      long long offset;
      const char *hit = moi_arena_damage(&arena, &offset);
      if (hit) fail_msg("%s: wrote to %s at %lld", kernel, hit, offset);
      moi_verdict v = moi_case_compare(&c, MOI_BACKEND_CPU, kernel, &out[0], &out[1]);
      if (!v.ok) fail_msg("%s, %u rows: %s", kernel, tokens[i], v.text);
      moi_arena_free(&arena);
      moi_case_free(&c);
    }
  }
}

/* Streams of bytes may lie anywhere, as they do in mapped files. */
static void test_unaligned_streams(void **state) {
  (void)state;
  EVERY_FORMAT(format) {
    moi_case c;
    make_case(&c, format, 40);
    run(&c, context, NULL, 0, ya);
    int dense = format == MOI_FORMAT_F32 || format == MOI_FORMAT_F16 || format == MOI_FORMAT_BF16 ||
                format == MOI_FORMAT_BF16_KN;
    int words = format >= MOI_FORMAT_GPTQ_G32 && format <= MOI_FORMAT_AWQ_G128;
    int byte_scales = format >= MOI_FORMAT_MXFP4 && format <= MOI_FORMAT_FP4_G16;
    moi_weights *w[3] = {&c.operands.weights.gate, &c.operands.weights.up, &c.operands.weights.down};
    for (int i = 0; i < 3; i++) {
      moi_buffer *streams[3] = {&w[i]->data, &w[i]->scales, &w[i]->zeros};
      const int odd[3] = {!dense && !words, byte_scales, !words};
      for (int s = 0; s < 3; s++) {
        if (!streams[s]->ptr || !odd[s]) continue;
        uint8_t *p = moi_arena_take(&c.arena, streams[s]->size + 1, 64, "unaligned stream");
        memcpy(p + 1, streams[s]->ptr, streams[s]->size);
        streams[s]->ptr = p + 1;
      }
    }
    run(&c, context, NULL, 0, yb);
    assert_memory_equal(ya, yb, sizeof ya);
    run(&c, context, "ref", 0, yb);
    assert_near(moi_format_name(format), ya, yb, T * W, 1e-3);
    moi_case_free(&c);
  }
}

/* ---- a real layer, where the reference would take too long: y . v = sum_j w_j a_j . (D_j^T v) for a random v */

static double bf16(const uint16_t *p, size_t i) {
  uint32_t bits = (uint32_t)p[i] << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static void test_residual_of_a_real_layer(void **state) {
  (void)state;
  enum { H = 2048, I = 768, N = 16, TOKENS = 40, TOP = 4, CHECKED = 5 };
  moi_case c;
  memset(&c, 0, sizeof c);
  c.op = MOI_OP_EXPERTS;
  c.n_tokens = TOKENS;
  c.seed = 30;
  c.experts = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  c.experts.hidden = H, c.experts.intermediate = I, c.experts.n_experts = N, c.experts.top_k = TOP;
  c.experts.format = MOI_FORMAT_BF16;
  c.experts.input_type = MOI_FORMAT_BF16;
  c.experts.mid_type = c.experts.output_type = MOI_FORMAT_F32;
  moi_case_make(&c, 0);
  float *y = malloc(TOKENS * H * 4);
  double *v = malloc(H * 8), *dv = malloc(I * 8);
  assert_true(y && v && dv);
  run(&c, context, NULL, 0, y);
  for (uint32_t h = 0; h < H; h++) v[h] = moi_random_normal(31, h);
  const moi_experts_args *a = &c.operands.experts;
  const uint16_t *gate = a->gate->data.ptr, *up = a->up->data.ptr, *down = a->down->data.ptr, *x = a->input.ptr;
  for (uint32_t t = 0; t < TOKENS; t += TOKENS / CHECKED) {
    double left = 0, right = 0;
    for (uint32_t h = 0; h < H; h++) left += v[h] * y[t * H + h];
    for (uint32_t j = 0; j < TOP; j++) {
      uint32_t e = ((uint32_t *)a->ids.ptr)[t * TOP + j];
      double w = ((float *)a->weights.ptr)[t * TOP + j];
      memset(dv, 0, I * 8);
      for (uint32_t h = 0; h < H; h++)
        for (uint32_t i = 0; i < I; i++) dv[i] += v[h] * bf16(down, ((size_t)e * H + h) * I + i);
      for (uint32_t i = 0; i < I; i++) {
        double g = 0, u = 0;
        for (uint32_t h = 0; h < H; h++) {
          g += bf16(gate, ((size_t)e * I + i) * H + h) * bf16(x, (size_t)t * H + h);
          u += bf16(up, ((size_t)e * I + i) * H + h) * bf16(x, (size_t)t * H + h);
        }
        right += w * dv[i] * g / (1 + exp(-g)) * u;
      }
    }
    double scale = rms_of(y + t * H, H) * sqrt((double)H);
    assert_true(scale > 0.1);
    if (!(fabs(left - right) <= 1e-5 * scale)) fail_msg("token %u: y.v is %.9g, wanted %.9g", t, left, right);
  }
  free(y);
  free(v);
  free(dv);
  moi_case_free(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_permuted_tokens),       cmocka_unit_test(test_permuted_experts),
      cmocka_unit_test(test_all_experts_are_dense), cmocka_unit_test(test_empty_experts),
      cmocka_unit_test(test_split_calls),           cmocka_unit_test(test_same_bits),
      cmocka_unit_test(test_doubled_weights),       cmocka_unit_test(test_ragged_shapes),
      cmocka_unit_test(test_unaligned_streams),     cmocka_unit_test(test_residual_of_a_real_layer),
  };
  return cmocka_run_group_tests(tests, open_context, close_context);
}
