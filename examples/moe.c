/* A whole MoE layer: hidden states in, routing, experts, hidden states out.
 *
 * An engine does the first half once for each layer shape and the second half for each step. The numbers are those of
 * Qwen3-30B-A3B made small; moi_preset_find("qwen3-30b-a3b") has the real ones. */
#include <moiety.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 5, HIDDEN = 256, INTERMEDIATE = 96, EXPERTS = 16, TOP_K = 4 };

static void log_line(void *user, moi_log_level level, const char *text) {
  (void)user;
  fprintf(stderr, "moiety, level %d: %s\n", (int)level, text);
}

/* n bf16 numbers in -scale..scale */
static uint16_t *random_bf16(size_t n, float scale) {
  static uint32_t state = 1;
  uint16_t *out = malloc(n * sizeof *out);
  if (!out) exit(1);
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    float value = scale * ((float)(state >> 8) / 8388608.0f - 1.0f);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    out[i] = (uint16_t)(bits >> 16);
  }
  return out;
}

static float from_bf16(uint16_t value) {
  uint32_t bits = (uint32_t)value << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

int main(void) {
  moi_context *context = NULL;
  moi_plan *plan = NULL;
  void *workspace = NULL;
  int status = 1;

  /* An engine's weights are mapped from its checkpoint; every expert's matrix follows the one before. */
  uint16_t *router = random_bf16((size_t)EXPERTS * HIDDEN, 0.2f);
  uint16_t *gate_data = random_bf16((size_t)EXPERTS * INTERMEDIATE * HIDDEN, 0.1f);
  uint16_t *up_data = random_bf16((size_t)EXPERTS * INTERMEDIATE * HIDDEN, 0.1f);
  uint16_t *down_data = random_bf16((size_t)EXPERTS * HIDDEN * INTERMEDIATE, 0.1f);
  uint16_t *x = random_bf16((size_t)TOKENS * HIDDEN, 1);
  uint16_t *y = calloc((size_t)TOKENS * HIDDEN, sizeof *y);
  int32_t ids[TOKENS * TOP_K];

  /* Once: the context, and a plan for each layer shape. */
  moi_context_desc context_desc = MOI_CONTEXT_DESC_INIT;
  context_desc.log = log_line;
  if (moi_context_create(&context_desc, &context)) goto done;

  moi_route_desc route = MOI_ROUTE_DESC_INIT;
  route.max_tokens = 512;
  route.hidden = HIDDEN;
  route.n_experts = EXPERTS;
  route.top_k = TOP_K;
  route.score = MOI_SCORE_SOFTMAX;
  route.renorm = MOI_RENORM_SUM;
  route.input_type = route.router_type = MOI_FORMAT_BF16;

  moi_experts_desc experts = MOI_EXPERTS_DESC_INIT;
  experts.max_tokens = 512;
  experts.hidden = HIDDEN;
  experts.intermediate = INTERMEDIATE;
  experts.n_experts = EXPERTS;
  experts.top_k = TOP_K;
  experts.format = experts.input_type = MOI_FORMAT_BF16;

  moi_moe_desc desc = MOI_MOE_DESC_INIT;
  desc.route = &route;
  desc.experts = &experts;
  if (moi_moe_plan(context, &desc, &plan)) goto done;

  char text[4096];
  moi_plan_describe(plan, text, sizeof text);
  puts(text);

  size_t align, size = moi_plan_workspace(plan, &align);
#if defined(_WIN32)
  workspace = _aligned_malloc(size, align);
#else
  workspace = aligned_alloc(align, (size + align - 1) / align * align);
#endif
  if (!workspace || !y) goto done;

  /* Each step: name the memory, run. */
  moi_weights gate = MOI_WEIGHTS_INIT, up = MOI_WEIGHTS_INIT, down = MOI_WEIGHTS_INIT;
  const uint64_t matrices = (uint64_t)EXPERTS * INTERMEDIATE * HIDDEN * sizeof(uint16_t);
  gate.data = moi_ptr(gate_data, matrices);
  up.data = moi_ptr(up_data, matrices);
  down.data = moi_ptr(down_data, matrices);

  moi_route_args route_args = MOI_ROUTE_ARGS_INIT;
  route_args.n_tokens = TOKENS;
  route_args.hidden = moi_ptr(x, (uint64_t)TOKENS * HIDDEN * sizeof *x);
  route_args.router = moi_ptr(router, (uint64_t)EXPERTS * HIDDEN * sizeof *router);
  route_args.ids = moi_ptr(ids, sizeof ids); /* optional in this op: which experts worked */

  moi_experts_args experts_args = MOI_EXPERTS_ARGS_INIT;
  experts_args.n_tokens = TOKENS;
  experts_args.input = route_args.hidden;
  experts_args.output = moi_ptr(y, (uint64_t)TOKENS * HIDDEN * sizeof *y);
  experts_args.gate = &gate;
  experts_args.up = &up;
  experts_args.down = &down;

  moi_moe_args args = MOI_MOE_ARGS_INIT;
  args.route = &route_args;
  args.experts = &experts_args;
  moi_queue cpu = {NULL};
  if (moi_moe_run(plan, &args, moi_ptr(workspace, size), cpu)) goto done;

  status = 0;
  for (int t = 0; t < TOKENS; t++) {
    float norm = 0;
    for (int h = 0; h < HIDDEN; h++) norm += from_bf16(y[t * HIDDEN + h]) * from_bf16(y[t * HIDDEN + h]);
    printf("token %d: experts", t);
    for (int k = 0; k < TOP_K; k++) printf(" %d", (int)ids[t * TOP_K + k]);
    printf(", |y| = %.4f\n", (double)sqrtf(norm));
    if (!(norm > 0 && norm < INFINITY)) status = 1;
  }

done:
  if (status) fprintf(stderr, "failed: %s\n", moi_last_error());
#if defined(_WIN32)
  _aligned_free(workspace);
#else
  free(workspace);
#endif
  moi_plan_destroy(plan);
  moi_context_destroy(context);
  free(router);
  free(gate_data);
  free(up_data);
  free(down_data);
  free(x);
  free(y);
  return status;
}
