/* The expert FFN, the shared expert and the bare GEMM against formulas in double that are written here again. */
#include "tests/support.h"

#include <math.h>

#include "bench/rig/encode.h"
#include "bench/rig/operands.h"
#include "bench/rig/random.h"

static moi_context *context;

static int open_context(void **state) {
  *state = context = open_cpu(2);
  return 0;
}

/* ---- the formulas again */

static float load(moi_format type, const void *p, size_t i) {
  if (!type || type == MOI_FORMAT_F32) return ((const float *)p)[i];
  uint16_t h = ((const uint16_t *)p)[i];
  if (type == MOI_FORMAT_F16) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float magnitude = exponent ? ldexpf((float)(1024 + mantissa), exponent - 25) : ldexpf((float)mantissa, -24);
    return h >> 15 ? -magnitude : magnitude;
  }
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

/* To nearest, ties to even, by arithmetic on the value. */
static double round_to(moi_format type, double v) {
  if (v == 0 || !isfinite(v)) return v;
  int digits = type == MOI_FORMAT_BF16  ? 8
               : type == MOI_FORMAT_F16 ? 11
                                        : 24,
      least = type == MOI_FORMAT_F16 ? -24 : -149;
  int exponent;
  frexp(v, &exponent);
  int step = exponent - digits > least ? exponent - digits : least;
  return ldexp(nearbyint(ldexp(v, -step)), step);
}

/* The nearest of the E4M3 numbers, ties to the even code. */
static double to_e4m3(double v) {
  double a = fabs(v), best = 0, best_distance = a;
  for (int code = 1; code < 127; code++) {
    double value = code < 8 ? ldexp(code, -9) : ldexp(8 + (code & 7), (code >> 3) - 10), distance = fabs(a - value);
    if (distance < best_distance || (distance == best_distance && !(code & 1))) best = value, best_distance = distance;
  }
  return v < 0 ? -best : best;
}

static void quantise(moi_act_quant quant, double *x, uint32_t n) {
  for (uint32_t at = 0; quant == MOI_ACT_QUANT_INT8_32 && at < n; at += 32) {
    uint32_t end = at + 32 < n ? at + 32 : n;
    float a = 0;
    for (uint32_t i = at; i < end; i++) a = isfinite(x[i]) ? fmaxf(a, fabsf((float)x[i])) : INFINITY;
    float s = fmaxf(a / 127.0f, 0x1p-126f);
    for (uint32_t i = at; i < end; i++) x[i] = isinf(s) ? NAN : rintf((float)x[i] / s) * s;
  }
  if (quant == MOI_ACT_QUANT_INT8_32) return;
  for (uint32_t at = 0; quant && at < n; at += 128) {
    uint32_t end = at + 128 < n ? at + 128 : n;
    float a = 1e-4f;
    for (uint32_t i = at; i < end; i++) a = fmaxf(a, fabsf((float)x[i]));
    float s = a / 448.0f;
    if (quant == MOI_ACT_QUANT_FP8_128_POW2) s = exp2f(ceilf(log2f(s)));
    for (uint32_t i = at; i < end; i++) x[i] = to_e4m3((float)x[i] / s) * s;
  }
}

static double sigma(double x) { return 1 / (1 + exp(-x)); }
static double clip(double x, double to) { return fmax(-to, fmin(to, x)); }

static double act(const moi_experts_desc *d, double g, double u) {
  double alpha = d->act_alpha, limit = d->act_limit;
  switch (d->activation) {
  case MOI_ACT_SWIGLU:
    return limit > 0 ? fmin(g, limit) * sigma(fmin(g, limit)) * clip(u, limit) : g * sigma(g) * u;
  case MOI_ACT_SWIGLU_OAI:
    alpha = alpha != 0 ? alpha : 1.702f, limit = limit != 0 ? limit : 7;
    return fmin(g, limit) * sigma(alpha * fmin(g, limit)) * (clip(u, limit) + 1);
  case MOI_ACT_GEGLU_TANH:
    return g / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (g + 0.044715 * pow(g, 3)))) * u;
  case MOI_ACT_GEGLU_ERF:
    return g / 2 * (1 + erf(g / sqrt(2))) * u;
  case MOI_ACT_SITU:
    alpha = alpha != 0 ? alpha : 4, limit = limit != 0 ? limit : 25;
    return alpha * tanh(g / alpha) * sigma(g) * limit * tanh(u / limit);
  default:
    return u > 0 ? u * u : 0;
  }
}

enum { T = 7, H = 52, I = 36, E = 5, K = 3, ID = 2 };

typedef struct ffn {
  moi_experts_desc d;
  moi_experts_args a;
  float gate[E * I * H], up[E * 2 * I * H], down[E * H * I], gate_bias[E * I], up_bias[E * 2 * I], down_bias[E * H];
} ffn;

static double bias_of(const ffn *f, const float *bias, size_t i) { return f->d.bias_type ? bias[i] : 0; }

/* o of one expert for one row of input */
static void one_expert(const ffn *f, uint32_t e, const double *input, double w, double *o) {
  const moi_experts_desc *d = &f->d;
  moi_format in = moi_or(d->input_type, MOI_FORMAT_F32), mid_type = moi_or(d->mid_type, in);
  double x[H], mid[I];
  for (int h = 0; h < H; h++)
    x[h] = d->weight_on == MOI_WEIGHT_ON_INPUT ? round_to(in, (float)input[h] * (float)w) : input[h];
  quantise(d->act_quant, x, H);
  for (int i = 0; i < I; i++) {
    int both = d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED;
    size_t rows = both ? 2 * I : I;
    size_t g_row = d->gate_layout == MOI_GATE_INTERLEAVED ? 2 * (size_t)i : (size_t)i;
    size_t u_row = d->gate_layout == MOI_GATE_INTERLEAVED ? 2 * (size_t)i + 1
                   : d->gate_layout == MOI_GATE_CONCAT    ? (size_t)i + I
                                                          : (size_t)i;
    const float *gate = both ? f->up + (e * rows + g_row) * H : f->gate + (e * (size_t)I + g_row) * H;
    double g = both ? bias_of(f, f->up_bias, e * rows + g_row) : bias_of(f, f->gate_bias, e * (size_t)I + g_row);
    double u = bias_of(f, f->up_bias, e * rows + u_row);
    for (int h = 0; h < H; h++) g += gate[h] * x[h], u += f->up[(e * rows + u_row) * H + (size_t)h] * x[h];
    double a = act(d, g, u);
    if (d->weight_on == MOI_WEIGHT_ON_ACTIVATION) a *= w;
    mid[i] = round_to(mid_type, a);
  }
  quantise(d->act_quant, mid, I);
  for (int h = 0; h < H; h++) {
    o[h] = bias_of(f, f->down_bias, e * (size_t)H + (size_t)h);
    for (int i = 0; i < I; i++) o[h] += f->down[(e * H + (size_t)h) * I + (size_t)i] * mid[i];
  }
}

static uint32_t in_stride(const ffn *f) { return f->a.input_stride ? f->a.input_stride : H; }
static uint32_t out_stride(const ffn *f) { return f->a.output_stride ? f->a.output_stride : H; }

/* y of the whole op, before rounding to the output type; y holds the residual where it is accumulated */
static void all_experts(const ffn *f, double *y) {
  const moi_experts_desc *d = &f->d;
  const int32_t *ids = f->a.ids.ptr;
  const float *w = f->a.weights.ptr;
  double scale = d->output_scale != 0 ? d->output_scale : 1;
  for (uint32_t t = 0; t < f->a.n_tokens; t++) {
    double x[H], o[H], sum[H] = {0};
    for (uint32_t h = 0; h < H; h++) x[h] = load(d->input_type, f->a.input.ptr, (size_t)t * in_stride(f) + h);
    for (uint32_t j = 0; j < d->top_k; j++) {
      int64_t e = ids[t * d->top_k + j];
      double weight = w[t * d->top_k + j];
      if (e < 0 || e >= (int64_t)d->n_experts + d->n_identity) continue;
      if (e >= d->n_experts) memcpy(o, x, sizeof o);
      else one_expert(f, (uint32_t)e, x, weight, o);
      int once = e < d->n_experts && d->weight_on != MOI_WEIGHT_ON_OUTPUT;
      for (int h = 0; h < H; h++) sum[h] += once ? o[h] : weight * o[h];
    }
    for (int h = 0; h < H; h++) {
      double before = d->flags & MOI_EXPERTS_ACCUMULATE ? y[t * H + (uint32_t)h] : 0;
      y[t * H + (uint32_t)h] = scale * sum[h] + before;
    }
  }
}

/* ---- a case: the desc and what is odd about its args */

typedef struct variant {
  const char *name;
  moi_experts_desc d;
  uint32_t stride_extra;
  int odd_ids;
  double loose; /* beyond fp32: of a row's rms */
} variant;

static void random_fill(float *p, size_t n, float scale, uint64_t seed) {
  for (size_t i = 0; i < n; i++) p[i] = scale * moi_random_normal(seed, i);
}

static const moi_format dense[3] = {MOI_FORMAT_F32, MOI_FORMAT_F16, MOI_FORMAT_BF16};

static void run_variant(const variant *v, const char *kernel, uint64_t seed) {
  static ffn f;
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  f.d = v->d;
  f.d.struct_size = sizeof f.d;
  f.d.max_tokens = T;
  f.d.hidden = H;
  f.d.intermediate = I;
  f.d.n_experts = E;
  f.d.top_k = K;
  f.d.format = MOI_FORMAT_F32;
  f.d.kernel = kernel;
  moi_format in = moi_or(f.d.input_type, MOI_FORMAT_F32), out = moi_or(f.d.output_type, in);
  int both = f.d.gate_layout == MOI_GATE_CONCAT || f.d.gate_layout == MOI_GATE_INTERLEAVED;
  uint32_t rows = both ? 2 * I : I;
  float width = 1 / sqrtf((float)H);
  random_fill(f.gate, E * I * H, 3 * width, seed + 1);
  random_fill(f.up, (size_t)E * rows * H, 3 * width, seed + 2);
  random_fill(f.down, E * H * I, width, seed + 3);
  moi_weights gate = MOI_WEIGHTS_INIT, up = MOI_WEIGHTS_INIT, down = MOI_WEIGHTS_INIT;
  gate.data = moi_ptr(f.gate, sizeof f.gate);
  up.data = moi_ptr(f.up, (size_t)E * rows * H * 4);
  down.data = moi_ptr(f.down, sizeof f.down);
  if (f.d.bias_type) { /* random biases, then their values as the formulas see them */
    size_t element = moi_element_bytes(f.d.bias_type);
    moi_weights *w[3] = {&gate, &up, &down};
    float *seen[3] = {f.gate_bias, f.up_bias, f.down_bias};
    const size_t n[3] = {E * I, (size_t)E * rows, E * H};
    for (int i = 0; i < 3; i++) {
      w[i]->bias = moi_arena_view(&arena, n[i] * element, element, "bias");
      moi_random_dense(f.d.bias_type, w[i]->bias.ptr, n[i], 0.5f, seed + 10 + (uint64_t)i);
      for (size_t j = 0; j < n[i]; j++) seen[i][j] = load(f.d.bias_type, w[i]->bias.ptr, j);
    }
  }
  moi_ffn_weights weights = {gate, up, down};
  moi_make_experts(&arena, &f.d, T, v->odd_ids ? MOI_TRAFFIC_HOLES : MOI_TRAFFIC_RANDOM, v->stride_extra, seed,
                   &weights, &f.a);
  f.a.gate = f.d.gate_layout == MOI_GATE_SPLIT ? &gate : NULL;
  f.a.up = &up;
  f.a.down = &down;
  if (v->odd_ids) {
    static const int32_t odd[] = {-1, E + ID, INT32_MAX, INT32_MIN, -2, E + ID + 1, 65536, 1 << 30};
    for (int i = 0; i < 8; i++) ((int32_t *)f.a.ids.ptr)[2 * i] = odd[i];
    for (int i = 0; i < K; i++) ((int32_t *)f.a.ids.ptr)[6 * K + i] = -1; /* a token with no expert at all */
  }
  static double y[T * H];
  for (uint32_t i = 0; i < T * H; i++) y[i] = load(out, f.a.output.ptr, i / H * out_stride(&f) + i % H);
  all_experts(&f, y);

  moi_plan *plan = NULL;
  passes(moi_experts_plan(context, &f.d, &plan));
  moi_buffer workspace = take_workspace(plan);
  passes(moi_experts_run(plan, &f.a, workspace, no_queue));
  long long offset;
  const char *damage = moi_arena_damage(&arena, &offset);
  if (damage) fail_msg("%s: wrote to %s at %lld", v->name, damage, offset);
  double step = out == MOI_FORMAT_BF16 ? 0x1p-8 : out == MOI_FORMAT_F16 ? 0x1p-11 : 0x1p-22;
  double loose = (v->loose > 0 ? v->loose : 0) + 3e-6;
  for (uint32_t t = 0; t < T; t++) {
    double rms = 0;
    for (uint32_t h = 0; h < H; h++) rms += y[t * H + h] * y[t * H + h] / H;
    rms = sqrt(rms);
    for (uint32_t h = 0; h < H; h++) {
      double got = load(out, f.a.output.ptr, (size_t)t * out_stride(&f) + h), want = y[t * H + h];
      if (fabs(got - want) <= step * fabs(want) + loose * rms) continue;
      fail_msg("%s, kernel %s: y[%u][%u] is %.9g, wanted %.9g (row's rms %.3g)", v->name, kernel ? kernel : "chosen", t,
               h, got, want, rms);
    }
    if (rms == 0 && !v->odd_ids) fail_msg("%s: a row of zeros proves nothing", v->name);
  }
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  moi_arena_free(&arena);
}

static void run_variants(const variant *v, size_t n) {
  static const char *const kernels[] = {NULL, "generic", "ref"};
  for (size_t i = 0; i < n; i++)
    for (int k = 0; k < 3; k++) run_variant(&v[i], kernels[k], 100 + i);
}
#define RUN(variants) run_variants(variants, sizeof variants / sizeof variants[0])

static void test_activations(void **state) {
  (void)state;
  static const variant v[] = {
      {"swiglu", {.activation = MOI_ACT_SWIGLU}, 0, 0, 0},
      {"swiglu, limit", {.activation = MOI_ACT_SWIGLU, .act_limit = 1.5f}, 0, 0, 0},
      {"swiglu_oai", {.activation = MOI_ACT_SWIGLU_OAI}, 0, 0, 0},
      {"swiglu_oai, own numbers", {.activation = MOI_ACT_SWIGLU_OAI, .act_alpha = 0.7f, .act_limit = 1.25f}, 0, 0, 0},
      {"geglu_tanh", {.activation = MOI_ACT_GEGLU_TANH}, 0, 0, 0},
      {"geglu_erf", {.activation = MOI_ACT_GEGLU_ERF}, 0, 0, 0},
      {"situ", {.activation = MOI_ACT_SITU}, 0, 0, 0},
      {"situ, own numbers", {.activation = MOI_ACT_SITU, .act_alpha = 2, .act_limit = 3}, 0, 0, 0},
      {"relu2", {.activation = MOI_ACT_RELU2, .gate_layout = MOI_GATE_NONE}, 0, 0, 0},
  };
  RUN(v);
}

static void test_layouts_and_biases(void **state) {
  (void)state;
  for (int layout = 0; layout < 4; layout++)
    for (int bias = 0; bias < 4; bias++) {
      variant v = {"layout and bias",
                   {.gate_layout = (moi_gate_layout)layout, .bias_type = bias ? dense[bias - 1] : 0},
                   0,
                   0,
                   0};
      if (layout == MOI_GATE_NONE) v.d.activation = MOI_ACT_RELU2;
      run_variants(&v, 1);
    }
}

static void test_weight_on(void **state) {
  (void)state;
  for (int on = 0; on < 3; on++)
    for (int type = 0; type < 3; type++) {
      variant v = {"weight_on",
                   {.weight_on = (moi_weight_on)on,
                    .input_type = dense[type],
                    .bias_type = MOI_FORMAT_F32,
                    .output_type = MOI_FORMAT_F32},
                   0,
                   0,
                   type ? 1e-3 : 0};
      run_variants(&v, 1);
    }
}

static void test_types(void **state) {
  (void)state;
  for (int c = 0; c < 27; c++) {
    variant v = {
        "types", {.input_type = dense[c % 3], .mid_type = dense[c / 3 % 3], .output_type = dense[c / 9]}, 0, 0, 0};
    v.loose = c / 3 % 3 ? 1e-3 : 0; /* a mid value that both sides round apart */
    run_variants(&v, 1);
  }
  static const variant defaults[] = {{"mid and output as input", {.input_type = MOI_FORMAT_BF16}, 0, 0, 1e-3},
                                     {"f16", {.input_type = MOI_FORMAT_F16}, 0, 0, 2e-4}};
  RUN(defaults);
}

static void test_act_quant(void **state) {
  (void)state;
  static const variant v[] = {
      {"fp8", {.act_quant = MOI_ACT_QUANT_FP8_128}, 0, 0, 2e-2},
      {"fp8, powers of 2", {.act_quant = MOI_ACT_QUANT_FP8_128_POW2}, 0, 0, 2e-2},
      {"fp8, DeepSeek V4",
       {.act_quant = MOI_ACT_QUANT_FP8_128_POW2,
        .weight_on = MOI_WEIGHT_ON_ACTIVATION,
        .act_limit = 10,
        .input_type = MOI_FORMAT_BF16,
        .output_type = MOI_FORMAT_F32},
       0,
       0,
       2e-2},
      {"int8", {.act_quant = MOI_ACT_QUANT_INT8_32}, 0, 0, 1e-2},
  };
  RUN(v);
}

static void test_the_rest_of_the_desc(void **state) {
  (void)state;
  static const variant v[] = {
      {"output scale", {.output_scale = 0.37f}, 0, 0, 0},
      {"accumulate", {.flags = MOI_EXPERTS_ACCUMULATE}, 0, 0, 0},
      {"accumulate, scale", {.flags = MOI_EXPERTS_ACCUMULATE, .output_scale = -2}, 0, 0, 0},
      {"accumulate, bf16", {.flags = MOI_EXPERTS_ACCUMULATE, .output_type = MOI_FORMAT_BF16}, 0, 0, 0},
      {"identity experts", {.n_identity = ID}, 0, 0, 0},
      {"identity experts, weight on input", {.n_identity = ID, .weight_on = MOI_WEIGHT_ON_INPUT}, 0, 0, 0},
      {"identity experts, weight on activation", {.n_identity = ID, .weight_on = MOI_WEIGHT_ON_ACTIVATION}, 0, 0, 0},
      {"odd ids", {.n_identity = ID}, 0, 1, 0},
      {"odd ids, accumulate", {.n_identity = ID, .flags = MOI_EXPERTS_ACCUMULATE}, 0, 1, 0},
      {"odd ids, weight on input, biases",
       {.n_identity = ID, .weight_on = MOI_WEIGHT_ON_INPUT, .bias_type = MOI_FORMAT_F32},
       0,
       1,
       0},
      {"strides", {.n_identity = ID}, 5, 0, 0},
      {"strides, bf16",
       {.input_type = MOI_FORMAT_BF16, .mid_type = MOI_FORMAT_F32, .flags = MOI_EXPERTS_ACCUMULATE},
       3,
       1,
       0},
  };
  RUN(v);
}

/* ---- tables */

static void test_tables(void **state) {
  (void)state;
  static const char *const kernels[] = {NULL, "ref"};
  static layer l;
  for (int k = 0; k < 2; k++)
    for (int bias = 0; bias < 2; bias++) {
      layer_make(&l);
      static float biases[3][LAYER_E * LAYER_H];
      for (int i = 0; i < 3; i++) layer_fill(biases[i], LAYER_E * LAYER_H, 7);
      l.experts.kernel = kernels[k];
      l.experts.bias_type = bias ? MOI_FORMAT_F32 : 0;
      l.gate_w.bias = VIEW(biases[0]), l.up_w.bias = VIEW(biases[1]), l.down_w.bias = VIEW(biases[2]);
      for (int i = 0; i < LAYER_T * LAYER_K; i++) l.ids[i] = i & 1 ? 2 : -1; /* only expert 2 is used */
      moi_plan *plan = NULL;
      passes(moi_experts_plan(context, &l.experts, &plan));
      moi_buffer workspace = take_workspace(plan);
      passes(moi_experts_run(plan, &l.experts_args, workspace, no_queue));
      moi_plan_destroy(plan);
      drop_aligned(workspace.ptr);
      float y[LAYER_T * LAYER_H];
      memcpy(y, l.y, sizeof y);

      l.experts.flags = MOI_EXPERTS_TABLES;
      uint64_t data[3][LAYER_E], bias_table[3][LAYER_E];
      for (uint32_t e = 0; e < LAYER_E; e++) {
        data[0][e] = (uintptr_t)(l.gate + e * LAYER_I * LAYER_H),
        bias_table[0][e] = (uintptr_t)(biases[0] + e * LAYER_I);
        data[1][e] = (uintptr_t)(l.up + e * LAYER_I * LAYER_H), bias_table[1][e] = (uintptr_t)(biases[1] + e * LAYER_I);
        data[2][e] = (uintptr_t)(l.down + e * LAYER_I * LAYER_H),
        bias_table[2][e] = (uintptr_t)(biases[2] + e * LAYER_H);
      }
      for (int i = 0; i < 3; i++)
        data[i][0] = data[i][1] = bias_table[i][0] = bias_table[i][1] = 0; /* unused: absent */
      moi_weights *w[3] = {&l.gate_w, &l.up_w, &l.down_w};
      for (int i = 0; i < 3; i++) w[i]->data = VIEW(data[i]), w[i]->bias = VIEW(bias_table[i]);
      passes(moi_experts_plan(context, &l.experts, &plan));
      workspace = take_workspace(plan);
      memset(l.y, 0xff, sizeof l.y);
      passes(moi_experts_run(plan, &l.experts_args, workspace, no_queue));
      assert_memory_equal(l.y, y, sizeof y);
      for (int i = 0; i < 3; i++) { /* a used expert without an address */
        uint64_t kept = data[i][2];
        data[i][2] = 0;
        refused(moi_experts_run(plan, &l.experts_args, workspace, no_queue), MOI_INVALID_ARGUMENT, "expert 2");
        data[i][2] = kept;
        if (!bias) continue;
        kept = bias_table[i][2];
        bias_table[i][2] = 0;
        refused(moi_experts_run(plan, &l.experts_args, workspace, no_queue), MOI_INVALID_ARGUMENT, "expert 2");
        bias_table[i][2] = kept;
      }
      passes(moi_experts_run(plan, &l.experts_args, workspace, no_queue));
      w[1]->data.size -= 8; /* a table that is too short */
      refused(moi_experts_run(plan, &l.experts_args, workspace, no_queue), MOI_INVALID_ARGUMENT, "up->data");
      moi_plan_destroy(plan);
      drop_aligned(workspace.ptr);
    }
}

/* Wider strides between experts, gaps poisoned; one stride for each stream. */
static void test_expert_strides(void **state) {
  (void)state;
  static layer l;
  layer_make(&l);
  moi_plan *plan = NULL;
  l.experts.bias_type = MOI_FORMAT_F32;
  float bias[3][LAYER_E * LAYER_H];
  for (uint32_t i = 0; i < 3; i++) layer_fill(bias[i], LAYER_E * LAYER_H, 20 + i);
  moi_weights *w[3] = {&l.gate_w, &l.up_w, &l.down_w};
  for (int i = 0; i < 3; i++) w[i]->bias = VIEW(bias[i]);
  passes(moi_experts_plan(context, &l.experts, &plan));
  moi_buffer workspace = take_workspace(plan);
  passes(moi_experts_run(plan, &l.experts_args, workspace, no_queue));
  float y[LAYER_T * LAYER_H];
  memcpy(y, l.y, sizeof y);
  enum { EACH = LAYER_I * LAYER_H };
  static float data[3][LAYER_E * (EACH + 3)], wide_bias[3][LAYER_E * (LAYER_H + 1)];
  memset(data, 0xff, sizeof data);
  memset(wide_bias, 0xff, sizeof wide_bias);
  const float *from[3] = {l.gate, l.up, l.down};
  for (int i = 0; i < 3; i++) {
    uint32_t n = i == 2 ? LAYER_H : LAYER_I;
    for (uint32_t e = 0; e < LAYER_E; e++) {
      memcpy(data[i] + e * (EACH + 3), from[i] + e * EACH, EACH * 4);
      memcpy(wide_bias[i] + e * (LAYER_H + 1), bias[i] + e * n, n * 4);
    }
    w[i]->data = moi_ptr(data[i], sizeof data[i] - 12);
    w[i]->data_stride = (EACH + 3) * 4;
    w[i]->bias = moi_ptr(wide_bias[i], sizeof wide_bias[i] - (LAYER_H + 1 - n) * 4);
    w[i]->bias_stride = (LAYER_H + 1) * 4;
  }
  memset(l.y, 0xff, sizeof l.y);
  passes(moi_experts_run(plan, &l.experts_args, workspace, no_queue));
  assert_memory_equal(l.y, y, sizeof y);
  moi_plan_destroy(plan);
  drop_aligned(workspace.ptr);
}

/* ---- shared expert and moe's own members */

static void test_shared_expert(void **state) {
  (void)state;
  static const char *const kernels[] = {NULL, "ref"};
  for (int c = 0; c < 8; c++) {
    static layer l;
    layer_make(&l);
    l.moe.route = NULL; /* the engine's ids and weights */
    l.moe.kernel = kernels[c & 1];
    l.moe.shared_gate = c & 2 ? MOI_SHARED_SIGMOID : MOI_SHARED_PLAIN;
    l.moe.output_scale = c & 4 ? 0.5f : 0;
    float other[LAYER_T * LAYER_H]; /* the shared expert's own input */
    layer_fill(other, LAYER_T * LAYER_H, 9);
    if (c & 4) l.shared_args.input = VIEW(other);
    moi_plan *plan = NULL;
    passes(moi_moe_plan(context, &l.moe, &plan));
    moi_buffer workspace = take_workspace(plan);
    passes(moi_moe_run(plan, &l.moe_args, workspace, no_queue));
    for (uint32_t t = 0; t < LAYER_T; t++) {
      double y[LAYER_H] = {0}, gate_sum = 0;
      const float *own = c & 4 ? other + t * LAYER_H : l.x + t * LAYER_H;
      for (int h = 0; h < LAYER_H; h++) gate_sum += (double)own[h] * l.shared_gate[h];
      for (uint32_t j = 0; j <= LAYER_K; j++) { /* the last is the shared one, expert 0's matrices */
        int shared = j == LAYER_K;
        uint32_t e = shared ? 0 : (uint32_t)l.ids[t * LAYER_K + j];
        double w = !shared ? l.ids_weights[t * LAYER_K + j] : c & 2 ? sigma(gate_sum) : 1, mid[LAYER_I];
        const float *x = shared ? own : l.x + t * LAYER_H;
        for (uint32_t i = 0; i < LAYER_I; i++) {
          double g = 0, u = 0;
          for (uint32_t h = 0; h < LAYER_H; h++) {
            g += (double)l.gate[(e * LAYER_I + i) * LAYER_H + h] * x[h];
            u += (double)l.up[(e * LAYER_I + i) * LAYER_H + h] * x[h];
          }
          mid[i] = g * sigma(g) * u;
        }
        for (uint32_t h = 0; h < LAYER_H; h++)
          for (uint32_t i = 0; i < LAYER_I; i++) y[h] += w * l.down[(e * LAYER_H + h) * LAYER_I + i] * mid[i];
      }
      for (int h = 0; h < LAYER_H; h++) {
        double want = y[h] * (c & 4 ? 0.5 : 1);
        assert_true(fabs(l.y[t * LAYER_H + (uint32_t)h] - want) <= 1e-5 * (1 + fabs(want)));
      }
    }
    moi_plan_destroy(plan);
    drop_aligned(workspace.ptr);
  }
}

/* ---- GEMM */

static void test_gemm_offsets(void **state) {
  (void)state;
  enum { M = 10, N = 20, C = 16, G = 4 };
  static const char *const kernels[] = {NULL, "generic", "ref"};
  /* expected owner of each row, -1: nobody */
  static const struct {
    int32_t offsets[G + 1];
    int8_t owner[M];
  } groups[] = {
      {{0, 3, 5, 8, 10}, {0, 0, 0, 1, 1, 2, 2, 2, 3, 3}},
      {{0, 0, 10, 10, 10}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
      {{2, 4, 4, 7, 9}, {-1, -1, 0, 0, 2, 2, 2, 3, 3, -1}},
      {{0, 0, 0, 0, 0}, {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1}},
      {{-5, 3, 5, 8, 99}, {0, 0, 0, 1, 1, 2, 2, 2, 3, 3}}, /* clamped */
      {{INT32_MIN, INT32_MIN, 1, INT32_MAX, INT32_MAX}, {1, 2, 2, 2, 2, 2, 2, 2, 2, 2}},
  };
  static const int32_t disordered[][G + 1] = {
      {5, 3, 8, 1, 10}, {10, 8, 6, 4, 2}, {INT32_MAX, INT32_MIN, INT32_MAX, 0, 7}};
  static float x[M * C], w[G * N * C], bias[G * N];
  layer_fill(x, M * C, 1);
  layer_fill(w, G * N * C, 2);
  layer_fill(bias, G * N, 3);
  for (int k = 0; k < 3; k++)
    for (int c = 0; c < 4; c++) {
      int accumulate = c & 1, wide = c & 2 ? 3 : 0;
      moi_gemm_desc d = MOI_GEMM_DESC_INIT;
      d.max_rows = M, d.n = N, d.k = C, d.n_experts = G, d.format = MOI_FORMAT_F32, d.bias_type = MOI_FORMAT_F32;
      d.flags = accumulate ? MOI_EXPERTS_ACCUMULATE : 0;
      d.kernel = kernels[k];
      moi_plan *plan = NULL;
      passes(moi_gemm_plan(context, &d, &plan));
      moi_buffer workspace = take_workspace(plan);
      moi_weights weights = MOI_WEIGHTS_INIT;
      weights.data = VIEW(w);
      weights.bias = VIEW(bias);
      for (size_t g = 0; g < sizeof groups / sizeof groups[0]; g++) {
        float y[M * (N + 3)];
        for (int i = 0; i < M * (N + 3); i++) y[i] = accumulate ? 0.5f : NAN;
        moi_gemm_args a = MOI_GEMM_ARGS_INIT;
        a.n_rows = M, a.output_stride = N + (uint32_t)wide;
        a.input = VIEW(x), a.offsets = VIEW(groups[g].offsets), a.weights = &weights;
        a.output = moi_ptr(y, ((M - 1) * (N + (size_t)wide) + N) * 4);
        passes(moi_gemm_run(plan, &a, workspace, no_queue));
        for (int r = 0; r < M; r++)
          for (int n = 0; n < N + wide && r * (N + wide) + n < (M - 1) * (N + wide) + N; n++) {
            float got = y[r * (N + wide) + n];
            int e = groups[g].owner[r];
            if (n >= N) { /* between the rows */
              assert_true(accumulate ? got == 0.5f : isnan(got));
              continue;
            }
            double want = accumulate ? 0.5 : 0;
            if (e >= 0) want += bias[e * N + n];
            for (int i = 0; e >= 0 && i < C; i++) want += (double)x[r * C + i] * w[(e * N + n) * C + i];
            assert_true(fabs(got - want) <= 1e-5 * (1 + fabs(want)));
          }
      }
      for (size_t g = 0; g < sizeof disordered / sizeof disordered[0];
           g++) { /* any rows, but none twice, none outside */
        float y[M * N + 8];
        for (int i = 0; i < M * N + 8; i++) y[i] = 0.5f;
        moi_gemm_args a = MOI_GEMM_ARGS_INIT;
        a.n_rows = M;
        a.input = VIEW(x), a.offsets = VIEW(disordered[g]), a.weights = &weights;
        a.output = moi_ptr(y, M * N * 4);
        passes(moi_gemm_run(plan, &a, workspace, no_queue));
        for (int i = M * N; i < M * N + 8; i++) assert_true(y[i] == 0.5f);
        for (int r = 0; r < M; r++) {
          int owners = 0;
          for (int e = -1; e < G; e++) { /* each row is one expert's, or nobody's */
            int same = 1;
            for (int n = 0; n < N && same; n++) {
              double want = accumulate ? 0.5 : 0;
              if (e >= 0) want += bias[e * N + n];
              for (int i = 0; e >= 0 && i < C; i++) want += (double)x[r * C + i] * w[(e * N + n) * C + i];
              same = fabs(y[r * N + n] - want) <= 1e-5 * (1 + fabs(want));
            }
            owners += same;
          }
          assert_int_equal(owners, 1);
        }
      }
      moi_gemm_args none = MOI_GEMM_ARGS_INIT; /* no rows */
      none.offsets = VIEW(groups[0].offsets), none.weights = &weights;
      passes(moi_gemm_run(plan, &none, workspace, no_queue));
      moi_plan_destroy(plan);
      drop_aligned(workspace.ptr);
    }
}

/* Inputs are the same fp32 numbers on both sides, so the online quantisation must agree to the last bit. */
static void test_gemm_act_quant(void **state) {
  (void)state;
  enum { M = 6, C = 300 };
  static const char *const kernels[] = {NULL, "generic", "ref"};
  static float x[M * C], w[C * C], y[M * C];
  random_fill(x, M * C, 3, 77);
  for (int i = 0; i < C; i++)
    x[C + i] *= 1e-6f, x[2 * C + i] *= 1e4f, x[3 * C + i] = i < 128 ? 0 : x[3 * C + i], x[4 * C + i] = (float)(i - 150);
  for (int i = 0; i < C; i++) w[i * C + i] = 1; /* W is the identity: y shows what x became */
  for (int q = 0; q <= MOI_ACT_QUANT_INT8_32; q++)
    for (int k = 0; k < 3; k++) {
      moi_gemm_desc d = MOI_GEMM_DESC_INIT;
      d.max_rows = M, d.n = C, d.k = C, d.n_experts = 1, d.format = MOI_FORMAT_F32, d.act_quant = (moi_act_quant)q;
      d.kernel = kernels[k];
      moi_plan *plan = NULL;
      passes(moi_gemm_plan(context, &d, &plan));
      moi_buffer workspace = take_workspace(plan);
      int32_t offsets[2] = {0, M};
      moi_weights weights = MOI_WEIGHTS_INIT;
      weights.data = VIEW(w);
      moi_gemm_args a = MOI_GEMM_ARGS_INIT;
      a.n_rows = M, a.input = VIEW(x), a.offsets = VIEW(offsets), a.output = VIEW(y), a.weights = &weights;
      passes(moi_gemm_run(plan, &a, workspace, no_queue));
      for (int r = 0; r < M; r++) {
        double want[C];
        for (int i = 0; i < C; i++) want[i] = x[r * C + i];
        quantise((moi_act_quant)q, want, C);
        for (int i = 0; i < C; i++) assert_float_equal(y[r * C + i], (float)want[i], 0);
      }
      moi_plan_destroy(plan);
      drop_aligned(workspace.ptr);
    }
}

/* ---- packing */

static void decode(moi_format format, const moi_weights *w, uint32_t n, uint32_t k, uint32_t n_experts, float *out) {
  float *x = calloc((size_t)k * n_experts * k, 4);
  int32_t *offsets = malloc((n_experts + 1) * 4);
  assert_true(x && offsets);
  for (uint32_t r = 0; r < n_experts * k; r++) x[(size_t)r * k + r % k] = 1;
  for (uint32_t e = 0; e <= n_experts; e++) offsets[e] = (int32_t)(e * k);
  moi_gemm_desc d = MOI_GEMM_DESC_INIT;
  d.max_rows = n_experts * k, d.n = n, d.k = k, d.n_experts = n_experts, d.format = format, d.kernel = "ref";
  moi_plan *plan = NULL;
  passes(moi_gemm_plan(context, &d, &plan));
  moi_buffer workspace = take_workspace(plan);
  moi_gemm_args a = MOI_GEMM_ARGS_INIT;
  a.n_rows = d.max_rows, a.weights = w;
  a.input = moi_ptr(x, (uint64_t)k * n_experts * k * 4), a.offsets = moi_ptr(offsets, (n_experts + 1) * 4);
  a.output = moi_ptr(out, (uint64_t)n_experts * k * n * 4);
  passes(moi_gemm_run(plan, &a, workspace, no_queue));
  moi_plan_destroy(plan);
  drop_aligned(workspace.ptr);
  free(x);
  free(offsets);
}

/* A plan's run on three workers leaves the bytes that are in dst already. */
static void pack_by_workers(const moi_pack_desc *desc, const moi_weights *src, const moi_weights *dst) {
  static uint8_t wanted[3][3 << 15];
  const moi_buffer views[3] = {dst->data, dst->scales, dst->zeros};
  for (int backwards = 0; backwards < 2; backwards++) {
    const lanes three = {3, backwards};
    moi_context *workers = open_lanes(&three);
    moi_plan *plan = NULL;
    for (int i = 0; i < 3; i++) {
      if (!views[i].size) continue;
      assert_true(views[i].size <= sizeof wanted[i]);
      if (!backwards) memcpy(wanted[i], views[i].ptr, views[i].size);
      memset(views[i].ptr, 0xaa, views[i].size);
    }
    passes(moi_pack_plan(workers, desc, &plan));
    passes(moi_pack_run(plan, src, dst, no_queue));
    for (int i = 0; i < 3; i++)
      if (views[i].size) assert_memory_equal(views[i].ptr, wanted[i], views[i].size);
    moi_plan_destroy(plan);
    moi_context_destroy(workers);
  }
}

static void test_pack(void **state) {
  (void)state;
  enum { N = 48, C = 256, X = 3 };
  static float before[X * C * N], after[X * C * N];
  for (size_t p = 0; p < sizeof packed_pairs / sizeof packed_pairs[0]; p++) {
    moi_arena arena = {.flags = MOI_ARENA_GUARD};
    moi_weights_spec spec = {.format = packed_pairs[p][0], .n = N, .k = C, .n_experts = X};
    moi_weights src = moi_make_weights(&arena, &spec, 40 + p), dst = MOI_WEIGHTS_INIT;
    /* every code and zero point there is, GPTQ's zero of 16 among them */
    for (uint64_t i = 0; i < src.zeros.size; i++) ((uint8_t *)src.zeros.ptr)[i] = (uint8_t)moi_random_bits(p, i);
    if (src.scales.size && packed_pairs[p][0] != MOI_FORMAT_BF16_KN)
      for (uint64_t i = 0; i < src.data.size; i++) ((uint8_t *)src.data.ptr)[i] = (uint8_t)moi_random_bits(p + 50, i);
    moi_format_sizes sizes;
    passes(moi_format_size(packed_pairs[p][1], N, C, &sizes));
    dst.data_stride = sizes.data + 64; /* strides of its own */
    dst.data = moi_arena_view(&arena, (X - 1) * dst.data_stride + sizes.data, 64, "packed data");
    memset(dst.data.ptr, 0xaa, dst.data.size);
    dst.scales = moi_arena_view(&arena, X * sizes.scales, 64, "packed scales");
    dst.zeros = moi_arena_view(&arena, X * sizes.zeros, 64, "packed zeros");
    moi_pack_desc desc = MOI_PACK_DESC_INIT;
    desc.from = packed_pairs[p][0], desc.to = packed_pairs[p][1], desc.n = N, desc.k = C, desc.n_experts = X;
    passes(moi_pack(&desc, &src, &dst));
    for (uint32_t e = 0; e + 1 < X; e++)
      for (int i = 0; i < 64; i++)
        assert_int_equal(((uint8_t *)dst.data.ptr)[e * dst.data_stride + sizes.data + (uint64_t)i], 0xaa);
    long long offset;
    assert_null(moi_arena_damage(&arena, &offset));
    decode(packed_pairs[p][0], &src, N, C, X, before);
    decode(packed_pairs[p][1], &dst, N, C, X, after);
    pack_by_workers(&desc, &src, &dst);
    assert_null(moi_arena_damage(&arena, &offset));
    uint32_t nonzero = 0;
    for (int i = 0; i < X * C * N; i++) nonzero += before[i] != 0;
    assert_true(nonzero > X * C * N / 2);
    assert_memory_equal(before, after, sizeof before);
    moi_arena_free(&arena);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_activations),    cmocka_unit_test(test_layouts_and_biases),
      cmocka_unit_test(test_weight_on),      cmocka_unit_test(test_types),
      cmocka_unit_test(test_act_quant),      cmocka_unit_test(test_the_rest_of_the_desc),
      cmocka_unit_test(test_tables),         cmocka_unit_test(test_expert_strides),
      cmocka_unit_test(test_shared_expert),  cmocka_unit_test(test_gemm_offsets),
      cmocka_unit_test(test_gemm_act_quant), cmocka_unit_test(test_pack),
  };
  return cmocka_run_group_tests(tests, open_context, close_context);
}
