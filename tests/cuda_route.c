/* CUDA's routing and its sort at sizes where they change their ways: on a device whose memory is the host's, which the
 * emulated driver gives. What `moiety check` runs is smaller. */
#include "tests/support.h"

#include <dlfcn.h>

#include "bench/rig/case.h"

static moi_context *cuda, *cpu;
static void (*launches)(unsigned *all, unsigned *programmatic);
static void (*together)(int blocks);
static unsigned ran; /* launches of the last run */

static int open_contexts(void **state) {
  (void)state;
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  if (moi_device_get(MOI_BACKEND_CUDA, 0, &info) || strcmp(info.name, "emulated on the CPU")) return -1;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *f = dlsym(library, "moi_emulated_launches");
  memcpy(&launches, &f, sizeof f);
  f = dlsym(library, "moi_emulated_together");
  memcpy(&together, &f, sizeof f);
  desc.backend = MOI_BACKEND_CUDA;
  passes(moi_context_create(&desc, &cuda));
  cpu = open_cpu(2);
  return 0;
}

static int close_contexts(void **state) {
  (void)state;
  moi_context_destroy(cuda);
  moi_context_destroy(cpu);
  return 0;
}

static moi_outputs run(const moi_case *c, moi_context *on, const char *kernel, moi_arena *arena) {
  moi_plan *plan = NULL;
  char damage[160];
  unsigned before, unused;
  moi_outputs out = moi_case_outputs(c, arena);
  passes(moi_case_plan(c, on, kernel, 0, &plan));
  launches(&before, &unused);
  moi_status status = moi_case_run_guarded(c, plan, &out, damage, sizeof damage);
  if (on == cuda) {
    launches(&ran, &unused);
    ran -= before;
  }
  if (status) fail_msg("%s", status == MOI_INTERNAL ? damage : moi_last_error());
  long long offset;
  const char *hit = moi_arena_damage(arena, &offset);
  if (hit) fail_msg("wrote to %s at %lld", hit, offset);
  moi_plan_destroy(plan);
  return out;
}

/* The result is the reference's, and the same when it is run again. */
static void check(moi_case *c, const char *name) {
  moi_arena arenas[3] = {{.flags = MOI_ARENA_GUARD}, {.flags = MOI_ARENA_GUARD}, {.flags = MOI_ARENA_GUARD}};
  moi_case_make(c, MOI_ARENA_GUARD);
  moi_outputs result = run(c, cuda, NULL, &arenas[0]), again = run(c, cuda, NULL, &arenas[1]);
  moi_outputs reference = run(c, cpu, "ref", &arenas[2]);
  moi_verdict v = moi_case_compare(c, MOI_BACKEND_CUDA, "", &result, &reference);
  if (!v.ok) fail_msg("%s: %s", name, v.text);
  if (v.excused) fail_msg("%s: %u near ties, of logits that have none", name, v.excused);
  if (!moi_case_same_bits(c, &result, &again)) fail_msg("%s: another result the second time", name);
  for (int i = 0; i < 3; i++) moi_arena_free(&arenas[i]);
  moi_case_free(c);
}

static moi_case route_case(uint32_t tokens, uint32_t experts, uint32_t top_k) {
  moi_case c;
  memset(&c, 0, sizeof c);
  c.op = MOI_OP_ROUTE;
  c.n_tokens = tokens;
  c.seed = 1000 + tokens + experts;
  c.route = (moi_route_desc)MOI_ROUTE_DESC_INIT;
  c.route.n_experts = experts;
  c.route.top_k = top_k;
  c.route.renorm = MOI_RENORM_SUM;
  return c;
}

static void test_many_slots(void **state) {
  (void)state;
  static const moi_logits_kind kinds[] = {MOI_LOGITS_RANDOM, MOI_LOGITS_NAN, MOI_LOGITS_EQUAL, MOI_LOGITS_NOTHING};
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    moi_case c = route_case(3000, 64, 8);
    c.logits = kinds[i];
    check(&c, "sorted in 24 parts");
  }
  moi_case c = route_case(700, 60, 8);
  c.device_tokens = 301;
  check(&c, "parts by the device's count");
  c = route_case(1500, 4096, 4);
  check(&c, "a row of cursors in each part");
  c = route_case(683, 16, 6);
  check(&c, "4098 slots");
  c = route_case(4096, 16, 1);
  check(&c, "4096 slots");
}

static void test_many_classes(void **state) {
  (void)state;
  static const struct {
    uint32_t tokens, experts, identity, top_k, n_group, topk_group;
  } sizes[] = {{3, 256, 0, 8, 0, 0},   {3, 257, 0, 64, 0, 0},   {2, 1024, 0, 64, 64, 5}, {33, 1024, 0, 8, 32, 5},
               {3, 1025, 0, 8, 0, 0},  {3, 700, 400, 12, 0, 0}, {3, 520, 0, 8, 65, 4},   {5, 2048, 0, 8, 1024, 700},
               {5, 3000, 0, 64, 8, 2}, {300, 8192, 0, 6, 0, 0}, {260, 8193, 0, 6, 0, 0}, {2, 65536, 65536, 8, 0, 0},
               {3, 9216, 0, 8, 9, 4},  {4, 1000, 0, 8, 20, 7}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int scored = 0; scored < 2; scored++) {
      char name[96];
      moi_case c = route_case(sizes[i].tokens, sizes[i].experts, sizes[i].top_k);
      c.route.n_identity = sizes[i].identity;
      c.route.n_group = sizes[i].n_group;
      c.route.topk_group = sizes[i].topk_group;
      c.route.group_score = scored ? MOI_GROUP_TOP2_SUM : MOI_GROUP_MAX;
      c.route.score = scored ? MOI_SCORE_SIGMOID : MOI_SCORE_SOFTMAX;
      c.route.flags = scored ? MOI_ROUTE_SELECT_BIAS : 0;
      c.logits = i % 2 ? MOI_LOGITS_NAN : MOI_LOGITS_TIES;
      snprintf(name, sizeof name, "%u tokens, %u + %u classes, %u groups, %s", sizes[i].tokens, sizes[i].experts,
               sizes[i].identity, sizes[i].n_group, scored ? "scored" : "logits");
      check(&c, name);
    }
}

/* A token has the same result alone, among those that one launch selects and sorts, and among more. */
static void test_tokens_alone(void **state) {
  (void)state;
  for (moi_score score = MOI_SCORE_SOFTMAX; score <= MOI_SCORE_SPARSEMIXER; score++) {
    moi_arena all = {.flags = MOI_ARENA_GUARD}, few = all;
    moi_case c = route_case(33, 200, score == MOI_SCORE_SPARSEMIXER ? 2 : 40);
    c.route.score = score;
    c.route.renorm = score == MOI_SCORE_TOPK_SIGMOID ? MOI_RENORM_MAX : MOI_RENORM_SUM;
    c.route.renorm_eps = 0.25f; /* no part of softmax over the chosen */
    moi_case_make(&c, MOI_ARENA_GUARD);
    moi_outputs whole = run(&c, cuda, NULL, &all);
    moi_case fewer = c;
    fewer.n_tokens = fewer.operands.route.n_tokens = 32;
    moi_outputs part = run(&fewer, cuda, NULL, &few);
    for (uint32_t t = 0; t < 33; t++) {
      moi_arena arena = {.flags = MOI_ARENA_GUARD};
      moi_case one;
      moi_case_token(&c, t, &one);
      moi_outputs alone = run(&one, cuda, NULL, &arena);
      assert_true(moi_case_same_row(&c, t, &whole, &alone));
      if (t < 32) assert_true(moi_case_same_row(&c, t, &part, &alone));
      moi_arena_free(&arena);
    }
    moi_arena_free(&few);
    moi_arena_free(&all);
    moi_case_free(&c);
  }
}

/* Work items, of experts with many rows, few and none. */
static void test_items(void **state) {
  (void)state;
  for (moi_traffic traffic = 0; traffic < MOI_TRAFFIC_COUNT; traffic++) {
    moi_case c;
    memset(&c, 0, sizeof c);
    c.op = MOI_OP_EXPERTS;
    c.n_tokens = traffic == MOI_TRAFFIC_ONE ? 2200 : 1100; /* an expert's 35 items: a second time round for a lane */
    c.seed = 77;
    c.traffic = traffic;
    c.experts = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
    c.experts.hidden = c.experts.intermediate = 32;
    c.experts.n_experts = 40;
    c.experts.top_k = 4;
    c.experts.format = MOI_FORMAT_F32;
    check(&c, "experts");
  }
}

/* From logits on it is one launch; where blocks cannot meet, one for each step, of which there are up to three. */
static const struct {
  uint32_t tokens, experts, top_k, n_group, device_tokens;
  unsigned steps;
} sizes[] = {{1, 256, 8, 8, 0, 1},   {16, 256, 8, 8, 0, 1},   {17, 256, 8, 8, 0, 2},   {64, 256, 8, 8, 0, 2},
             {64, 256, 8, 8, 19, 2}, {65, 1024, 6, 0, 64, 2}, {130, 1000, 6, 0, 0, 2}, {90, 7, 7, 0, 1, 2},
             {40, 2000, 6, 0, 0, 2}, {8193, 8, 1, 0, 8190, 3}};

static void check_size(size_t i, int apart) {
  moi_case c = route_case(sizes[i].tokens, sizes[i].experts, sizes[i].top_k);
  char name[64];
  c.device_tokens = sizes[i].device_tokens;
  c.route.n_group = sizes[i].n_group;
  c.route.topk_group = sizes[i].n_group / 2;
  c.route.score = sizes[i].n_group ? MOI_SCORE_SIGMOID : MOI_SCORE_SOFTMAX;
  c.route.flags = sizes[i].n_group ? MOI_ROUTE_SELECT_BIAS : 0;
  snprintf(name, sizeof name, "%u tokens, %u experts", sizes[i].tokens, sizes[i].experts);
  check(&c, name);
  if (ran != (apart ? sizes[i].steps : 1)) fail_msg("%s: %u launches", name, ran);
}

static void test_sizes(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_size(i, 0);
}

/* In a context that has fewer multiprocessors than it says, and on a device without such launches. */
static void test_apart(void **state) {
  (void)state;
  moi_context *first = cuda;
  for (int blocks = 2; blocks >= 0; blocks -= 2) {
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.backend = MOI_BACKEND_CUDA;
    together(blocks);
    passes(moi_context_create(&desc, &cuda));
    for (size_t i = 2; i < sizeof sizes / sizeof *sizes; i++)
      if (blocks || sizes[i].tokens < 8000) check_size(i, 1);
    moi_context_destroy(cuda);
  }
  together(64);
  cuda = first;
}

/* Layers of few tokens, whose launches are fewer: with all that a launch may have to do. */
static void test_few_tokens(void **state) {
  (void)state;
  enum { SHARED = 1, OTHER_SHARED = 2, IDENTITY = 4, QUANTISED = 8, ON_INPUT = 16, ON_ACTIVATION = 32, NORM = 64 };
  static const struct {
    uint32_t how;
    moi_format format, input;
    uint32_t tokens, device_tokens;
    unsigned launches;
  } layers[] = {
      {SHARED | IDENTITY, MOI_FORMAT_BF16, MOI_FORMAT_BF16, 1, 0, 4},
      {SHARED | IDENTITY | NORM, MOI_FORMAT_F32, MOI_FORMAT_F32, 2, 0, 4},
      {SHARED, MOI_FORMAT_Q8_0, MOI_FORMAT_F16, 2, 1, 4},
      {SHARED | NORM, MOI_FORMAT_Q4_0, MOI_FORMAT_BF16, 8, 0, 5},
      {SHARED, MOI_FORMAT_Q4_0, MOI_FORMAT_BF16, 8, 3, 5},
      {OTHER_SHARED, MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_BF16, 1, 0, 7},
      {SHARED | QUANTISED, MOI_FORMAT_FP8_B128, MOI_FORMAT_BF16, 2, 0, 5},
      {SHARED | ON_INPUT, MOI_FORMAT_BF16, MOI_FORMAT_BF16, 2, 0, 4},
      {ON_ACTIVATION, MOI_FORMAT_INT4_G32, MOI_FORMAT_F16, 1, 0, 4},
      {IDENTITY, MOI_FORMAT_BF16_KN, MOI_FORMAT_BF16, 2, 0, 0}, /* no kernel of few rows; forms of mid are the device's */
      {SHARED | IDENTITY, MOI_FORMAT_F32, MOI_FORMAT_F32, 9, 0, 10},
  };
  for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
    uint32_t how = layers[i].how;
    moi_case c = route_case(layers[i].tokens, 20, 6);
    c.op = MOI_OP_MOE;
    c.has_route = 1;
    c.has_shared = (how & (SHARED | OTHER_SHARED)) != 0;
    c.device_tokens = layers[i].device_tokens;
    c.route.hidden = 256;
    c.route.n_identity = how & IDENTITY ? 3 : 0;
    c.route.input_type = layers[i].input;
    c.route.router_type = how & NORM ? MOI_FORMAT_BF16 : MOI_FORMAT_F32;
    c.route.flags = how & NORM ? MOI_ROUTE_INPUT_NORM : 0;
    c.route.norm_eps = 1e-6f;
    c.experts = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
    c.experts.hidden = 256;
    c.experts.intermediate = 128;
    c.experts.n_experts = 20;
    c.experts.n_identity = c.route.n_identity;
    c.experts.top_k = 6;
    c.experts.format = layers[i].format;
    c.experts.input_type = layers[i].input;
    c.experts.act_quant = how & QUANTISED ? MOI_ACT_QUANT_FP8_128 : MOI_ACT_QUANT_NONE;
    c.experts.weight_on = how & ON_INPUT        ? MOI_WEIGHT_ON_INPUT
                          : how & ON_ACTIVATION ? MOI_WEIGHT_ON_ACTIVATION
                                                : MOI_WEIGHT_ON_OUTPUT;
    c.experts.flags = i % 2 ? MOI_EXPERTS_ACCUMULATE : 0;
    c.shared = c.experts;
    c.shared.n_experts = c.shared.top_k = 1;
    c.shared.n_identity = c.shared.flags = 0;
    c.shared.weight_on = MOI_WEIGHT_ON_OUTPUT;
    c.shared.intermediate = 256;
    if (how & OTHER_SHARED) c.shared.format = MOI_FORMAT_F16;
    c.moe = (moi_moe_desc)MOI_MOE_DESC_INIT;
    c.moe.shared_gate = c.has_shared && i % 3 == 0 ? MOI_SHARED_SIGMOID : MOI_SHARED_PLAIN;
    c.moe.output_scale = 0.5f;
    char name[32];
    snprintf(name, sizeof name, "layer %zu", i);
    check(&c, name);
    if (layers[i].launches && ran != layers[i].launches) fail_msg("layer %zu: %u launches", i, ran);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_many_slots),
      cmocka_unit_test(test_many_classes),
      cmocka_unit_test(test_tokens_alone),
      cmocka_unit_test(test_items),
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_apart),
      cmocka_unit_test(test_few_tokens),
  };
  return cmocka_run_group_tests(tests, open_contexts, close_contexts);
}
