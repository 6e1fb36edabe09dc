/* What a run refuses: views that are absent, small, misaligned or overlap, strides, counts, workspaces, queues. */
#include "tests/support.h"

#include <math.h>

static moi_context *context;
static layer l;

static int open_context(void **state) {
  *state = context = open_cpu(1);
  return 0;
}
static int make_layer(void **state) {
  (void)state;
  layer_make(&l);
  return 0;
}

static moi_status run_layer(moi_op op) {
  moi_plan *plan = NULL;
  passes(layer_plan(&l, op, context, &plan));
  moi_buffer workspace = take_workspace(plan);
  moi_status status = layer_run(&l, op, plan, workspace);
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  return status;
}

typedef struct bad_view {
  moi_op op;
  void *base; /* the struct that holds the view */
  size_t offset;
  uint32_t align;
  int optional;
  const char *name;
} bad_view;

static void test_views(void **state) {
  (void)state;
#define V(op, base, type, member, align, optional)                                                                     \
  {MOI_OP_##op, &l.base, offsetof(type, member), align, optional, #member}
  l.route.flags = MOI_ROUTE_BIAS | MOI_ROUTE_SELECT_BIAS | MOI_ROUTE_SELECT_BIAS_ALT | MOI_ROUTE_EXPERT_SCALE |
                  MOI_ROUTE_INPUT_NORM;
  static float vectors[4][LAYER_H];
  static uint8_t mask[LAYER_T];
  static uint32_t tokens[2] = {LAYER_T, LAYER_T};
  l.route_args.router_bias = moi_ptr(vectors[0], LAYER_E * 4);
  l.route_args.select_bias = moi_ptr(vectors[1], LAYER_E * 4);
  l.route_args.select_bias_alt = moi_ptr(vectors[2], LAYER_E * 4);
  l.route_args.expert_scale = moi_ptr(vectors[3], LAYER_E * 4);
  l.route_args.norm_weight = moi_ptr(vectors[0], LAYER_H * 4);
  l.route_args.alt_mask = VIEW(mask);
  l.route_args.n_tokens_device = l.experts_args.n_tokens_device = moi_ptr(tokens, 4);
  static float biases[3][LAYER_E * LAYER_H];
  l.experts.bias_type = l.shared.bias_type = l.gemm.bias_type = MOI_FORMAT_F32;
  l.gate_w.bias = moi_ptr(biases[0], LAYER_E * LAYER_I * 4);
  l.up_w.bias = moi_ptr(biases[1], LAYER_E * LAYER_I * 4);
  l.down_w.bias = moi_ptr(biases[2], LAYER_E * LAYER_H * 4);
  l.shared_gate_w.bias = moi_ptr(biases[0], LAYER_I * 4);
  l.shared_up_w.bias = moi_ptr(biases[1], LAYER_I * 4);
  l.shared_down_w.bias = moi_ptr(biases[2], LAYER_H * 4);
  l.shared_gate_w.data.size = l.shared_up_w.data.size = LAYER_I * LAYER_H * 4; /* one expert */
  l.shared_down_w.data.size = LAYER_H * LAYER_I * 4;
  const bad_view views[] = {
      V(ROUTE, route_args, moi_route_args, hidden, 4, 0),
      V(ROUTE, route_args, moi_route_args, router, 4, 0),
      V(ROUTE, route_args, moi_route_args, router_bias, 4, 0),
      V(ROUTE, route_args, moi_route_args, select_bias, 4, 0),
      V(ROUTE, route_args, moi_route_args, select_bias_alt, 4, 0),
      V(ROUTE, route_args, moi_route_args, alt_mask, 1, 0),
      V(ROUTE, route_args, moi_route_args, expert_scale, 4, 0),
      V(ROUTE, route_args, moi_route_args, norm_weight, 4, 0),
      V(ROUTE, route_args, moi_route_args, ids, 4, 0),
      V(ROUTE, route_args, moi_route_args, weights, 4, 0),
      V(ROUTE, route_args, moi_route_args, counts, 4, 1),
      V(ROUTE, route_args, moi_route_args, offsets, 4, 1),
      V(ROUTE, route_args, moi_route_args, permutation, 4, 1),
      V(ROUTE, route_args, moi_route_args, logits_out, 4, 1),
      V(ROUTE, route_args, moi_route_args, n_tokens_device, 4, 1),
      V(EXPERTS, experts_args, moi_experts_args, input, 4, 0),
      V(EXPERTS, experts_args, moi_experts_args, ids, 4, 0),
      V(EXPERTS, experts_args, moi_experts_args, weights, 4, 0),
      V(EXPERTS, experts_args, moi_experts_args, output, 4, 0),
      V(EXPERTS, experts_args, moi_experts_args, n_tokens_device, 4, 1),
      V(EXPERTS, gate_w, moi_weights, data, 4, 0),
      V(EXPERTS, up_w, moi_weights, data, 4, 0),
      V(EXPERTS, down_w, moi_weights, data, 4, 0),
      V(EXPERTS, gate_w, moi_weights, bias, 4, 0),
      V(EXPERTS, down_w, moi_weights, bias, 4, 0),
      V(GEMM, gemm_args, moi_gemm_args, input, 4, 0),
      V(GEMM, gemm_args, moi_gemm_args, offsets, 4, 0),
      V(GEMM, gemm_args, moi_gemm_args, output, 4, 0),
      V(GEMM, up_w, moi_weights, data, 4, 0),
      V(GEMM, up_w, moi_weights, bias, 4, 0),
      V(MOE, experts_args, moi_experts_args, input, 4, 0),
      V(MOE, experts_args, moi_experts_args, output, 4, 0),
      V(MOE, moe_args, moi_moe_args, shared_gate, 4, 0),
      V(MOE, route_args, moi_route_args, router, 4, 0),
      V(MOE, route_args, moi_route_args, ids, 4, 1),
      V(MOE, route_args, moi_route_args, weights, 4, 1),
      V(MOE, shared_gate_w, moi_weights, data, 4, 0),
      V(MOE, shared_down_w, moi_weights, bias, 4, 0),
  };
  for (size_t i = 0; i < 4; i++) passes(run_layer(layer_ops[i]));
  for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
    const bad_view *v = &views[i];
    moi_buffer *view = (moi_buffer *)(void *)((uint8_t *)v->base + v->offset), kept = *view;
    memset(view, 0, sizeof *view); /* absent */
    if (v->optional) passes(run_layer(v->op));
    else refused(run_layer(v->op), MOI_INVALID_ARGUMENT, v->name);
    *view = kept;
    view->size--;
    refused(run_layer(v->op), MOI_INVALID_ARGUMENT, v->name);
    *view = kept;
    view->ptr = NULL, view->handle = 77; /* names memory that the CPU cannot read */
    refused(run_layer(v->op), MOI_INVALID_ARGUMENT, v->name);
    *view = kept;
    if (v->align > 1) {
      view->offset = 1;
      refused(run_layer(v->op), MOI_INVALID_ARGUMENT, v->name);
    }
    *view = kept;
  }
  for (size_t i = 0; i < 4; i++) passes(run_layer(layer_ops[i]));
}

static void test_offset_of_views(void **state) {
  (void)state;
  passes(run_layer(MOI_OP_EXPERTS));
  float y[LAYER_T * LAYER_H];
  memcpy(y, l.y, sizeof y);
  static float shifted[LAYER_T * LAYER_H + 5], out[LAYER_T * LAYER_H + 7];
  memcpy(shifted + 5, l.x, sizeof l.x);
  l.experts_args.input = moi_ptr(shifted, sizeof l.x);
  l.experts_args.input.offset = 20;
  l.experts_args.output = moi_ptr(out, sizeof y);
  l.experts_args.output.offset = 28;
  passes(run_layer(MOI_OP_EXPERTS));
  assert_memory_equal(out + 7, y, sizeof y);
}

static void test_runs_refuse(void **state) {
  (void)state;
  static const moi_op other[] = {MOI_OP_EXPERTS, MOI_OP_GEMM, MOI_OP_MOE, MOI_OP_ROUTE};
  for (size_t i = 0; i < 4; i++) {
    moi_op op = layer_ops[i];
    moi_plan *plan = NULL, *wrong = NULL;
    layer_make(&l);
    passes(layer_plan(&l, op, context, &plan));
    passes(layer_plan(&l, other[i], context, &wrong));
    moi_buffer workspace = take_workspace(plan), spare = take_workspace(wrong);
    size_t align = 0;
    assert_int_equal(moi_plan_workspace(plan, &align), moi_plan_workspace(plan, NULL));
    assert_true(align && !(align & (align - 1)));
    passes(layer_run(&l, op, plan, workspace));
    refused(layer_run(&l, op, wrong, spare), MOI_INVALID_ARGUMENT, "plan");
    moi_buffer bad = workspace;
    bad.size--;
    refused(layer_run(&l, op, plan, bad), MOI_INVALID_ARGUMENT, "workspace");
    bad = workspace;
    bad.offset = 1;
    refused(layer_run(&l, op, plan, bad), MOI_INVALID_ARGUMENT, "workspace");
    refused(layer_run(&l, op, plan, moi_ptr(NULL, 0)), MOI_INVALID_ARGUMENT, "workspace");
    moi_queue queue = {&l};
    moi_status status = op == MOI_OP_ROUTE     ? moi_route_run(plan, &l.route_args, workspace, queue)
                        : op == MOI_OP_EXPERTS ? moi_experts_run(plan, &l.experts_args, workspace, queue)
                        : op == MOI_OP_GEMM    ? moi_gemm_run(plan, &l.gemm_args, workspace, queue)
                                               : moi_moe_run(plan, &l.moe_args, workspace, queue);
    refused(status, MOI_INVALID_ARGUMENT, "queue");
    uint32_t *n = op == MOI_OP_ROUTE  ? &l.route_args.n_tokens
                  : op == MOI_OP_GEMM ? &l.gemm_args.n_rows
                                      : &l.experts_args.n_tokens;
    *n = LAYER_T + 1;
    refused(layer_run(&l, op, plan, workspace), MOI_INVALID_ARGUMENT, op == MOI_OP_GEMM ? "n_rows: 4" : "n_tokens: 4");
    *n = UINT32_MAX;
    refused(layer_run(&l, op, plan, workspace), MOI_INVALID_ARGUMENT, "4294967295");
    *n = LAYER_T;
    uint32_t *stride = op == MOI_OP_ROUTE  ? &l.route_args.hidden_stride
                       : op == MOI_OP_GEMM ? &l.gemm_args.input_stride
                                           : &l.experts_args.input_stride;
    *stride = LAYER_H - 1;
    refused(layer_run(&l, op, plan, workspace), MOI_INVALID_ARGUMENT, "stride");
    *stride = UINT32_MAX; /* rows would lie beyond the view */
    refused(layer_run(&l, op, plan, workspace), MOI_INVALID_ARGUMENT, "size");
    *stride = LAYER_H;
    passes(layer_run(&l, op, plan, workspace));
    drop_aligned(workspace.ptr);
    free(spare.ptr);
    moi_plan_destroy(plan);
    moi_plan_destroy(wrong);
  }
  layer_make(&l);
  l.experts_args.output_stride = LAYER_H - 1;
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "output_stride");
  layer_make(&l);
  l.gemm_args.output_stride = LAYER_I - 1;
  refused(run_layer(MOI_OP_GEMM), MOI_INVALID_ARGUMENT, "output_stride");
  layer_make(&l);
  l.route_args.n_tokens = LAYER_T - 1;
  refused(run_layer(MOI_OP_MOE), MOI_INVALID_ARGUMENT, "route->n_tokens");
  layer_make(&l);
  l.up_w.data_stride = LAYER_I * LAYER_H * 4 - 4; /* experts would overlap */
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "data_stride");
  l.up_w.data_stride = LAYER_I * LAYER_H * 4 + 2;
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "data_stride");
  l.up_w.data_stride = UINT64_MAX - 3;
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "data_stride");
  l.up_w.data_stride = LAYER_I * LAYER_H * 4 + 4; /* the last expert would lie beyond the view */
  refused(run_layer(MOI_OP_GEMM), MOI_INVALID_ARGUMENT, "size");
  layer_make(&l);
  l.experts_args.down = NULL;
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "down");
  layer_make(&l);
  l.moe_args.route = NULL;
  refused(run_layer(MOI_OP_MOE), MOI_INVALID_ARGUMENT, "route");
}

/* Streams that the format does not have are not looked at. */
static void test_streams_of_other_formats(void **state) {
  (void)state;
  for (size_t i = 1; i < 4; i++) {
    layer_make(&l);
    passes(run_layer(layer_ops[i]));
    layer before = l;
    moi_weights *w[3] = {&l.gate_w, &l.up_w, &l.down_w};
    for (int j = 0; j < 3; j++) {
      w[j]->scales = w[j]->zeros = w[j]->bias = moi_ptr((uint8_t *)&l + 1, 1);
      w[j]->scales_stride = w[j]->zeros_stride = w[j]->bias_stride = UINT64_MAX / 2 + 7;
    }
    passes(run_layer(layer_ops[i]));
    assert_memory_equal(l.y, before.y, sizeof l.y);
    assert_memory_equal(l.product, before.product, sizeof l.product);
  }
}

static void test_overlap(void **state) {
  (void)state;
  static float both[2 * LAYER_T * LAYER_H];
  l.experts_args.input = moi_ptr(both, sizeof l.x);
  l.experts_args.output = moi_ptr(both, sizeof l.y);
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "overlap");
  l.experts_args.output = moi_ptr(both + LAYER_T * LAYER_H - 1, sizeof l.y);
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "overlap");
  refused(run_layer(MOI_OP_MOE), MOI_INVALID_ARGUMENT, "overlap");
  l.experts_args.output = moi_ptr(both + LAYER_T * LAYER_H, sizeof l.y); /* beside it */
  passes(run_layer(MOI_OP_EXPERTS));
  layer_make(&l);
  l.experts_args.ids = l.experts_args.output;
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "overlap");
  layer_make(&l);
  l.experts_args.weights = l.experts_args.output;
  refused(run_layer(MOI_OP_EXPERTS), MOI_INVALID_ARGUMENT, "overlap");
  layer_make(&l);
  l.gemm_args.output = l.gemm_args.input;
  refused(run_layer(MOI_OP_GEMM), MOI_INVALID_ARGUMENT, "overlap");
  layer_make(&l);
  l.gemm_args.output = moi_ptr(both, sizeof l.product);
  l.gemm_args.offsets = moi_ptr(both + 2, sizeof l.groups);
  refused(run_layer(MOI_OP_GEMM), MOI_INVALID_ARGUMENT, "overlap");
  layer_make(&l);
  l.shared_args.input = moi_ptr(both, sizeof l.x);
  passes(run_layer(MOI_OP_MOE));
  l.experts_args.output = moi_ptr(both + 1, sizeof l.y);
  refused(run_layer(MOI_OP_MOE), MOI_INVALID_ARGUMENT, "overlap");
}

/* A count in "device" memory lowers n_tokens, never raises it; the rows behind are not touched. */
static void test_n_tokens_device(void **state) {
  (void)state;
  for (size_t i = 0; i < 4; i++) {
    moi_op op = layer_ops[i];
    if (op == MOI_OP_GEMM) continue;
    layer_make(&l);
    l.experts_args.weights = l.experts_args.ids = moi_ptr(NULL, 0);
    static int32_t ids[LAYER_T * LAYER_K];
    static float weights[LAYER_T * LAYER_K];
    for (int j = 0; j < LAYER_T * LAYER_K; j++) ids[j] = j % LAYER_E, weights[j] = 1;
    l.experts_args.ids = VIEW(ids);
    l.experts_args.weights = VIEW(weights);
    passes(run_layer(op));
    layer whole = l;
    for (uint32_t n = 0; n <= LAYER_T + 1; n++) {
      uint32_t count = n, run = n < LAYER_T ? n : LAYER_T;
      layer_make(&l);
      l.experts_args.ids = VIEW(ids);
      l.experts_args.weights = VIEW(weights);
      l.experts_args.n_tokens_device = moi_ptr(&count, 4);
      if (op == MOI_OP_ROUTE) l.route_args.n_tokens_device = moi_ptr(&count, 4);
      memset(l.ids, 0x55, sizeof l.ids);
      passes(run_layer(op));
      if (op != MOI_OP_ROUTE) {
        assert_memory_equal(l.y, whole.y, run * LAYER_H * 4);
        for (uint32_t j = run * LAYER_H; j < LAYER_T * LAYER_H; j++) assert_true(isnan(l.y[j]));
      }
      if (op == MOI_OP_EXPERTS) continue;
      assert_memory_equal(l.ids, whole.ids, run * LAYER_K * 4);
      int32_t sum = 0;
      for (int e = 0; e < LAYER_E; e++) sum += l.counts[e];
      assert_int_equal(sum, run * LAYER_K);
      for (uint32_t j = run * LAYER_K; j < LAYER_T * LAYER_K; j++) {
        assert_int_equal(l.ids[j], 0x55555555);
        assert_int_equal(l.permutation[j], -1);
      }
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_views, make_layer),
      cmocka_unit_test_setup(test_offset_of_views, make_layer),
      cmocka_unit_test_setup(test_runs_refuse, make_layer),
      cmocka_unit_test_setup(test_streams_of_other_formats, make_layer),
      cmocka_unit_test_setup(test_overlap, make_layer),
      cmocka_unit_test_setup(test_n_tokens_device, make_layer),
  };
  return cmocka_run_group_tests(tests, open_context, close_context);
}
