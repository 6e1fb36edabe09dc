/* One token through one of two experts whose weights are all 1/32: y = silu(1) in every element. */
#include <math.h>
#include <moiety.h>
#include <stdio.h>
#include <stdlib.h>

#define WIDTH 32

int main(void) {
  moi_context_desc context_desc = MOI_CONTEXT_DESC_INIT;
  moi_experts_desc desc = MOI_EXPERTS_DESC_INIT;
  moi_experts_args args = MOI_EXPERTS_ARGS_INIT;
  moi_weights w = MOI_WEIGHTS_INIT;
  moi_queue queue = {NULL};
  moi_context *context = NULL;
  moi_plan *plan = NULL;
  void *workspace = NULL;
  static float matrix[2 * WIDTH * WIDTH], x[WIDTH], y[WIDTH];
  const float weight = 1;
  const int32_t id = 1;
  int i, failed;

  for (i = 0; i < 2 * WIDTH * WIDTH; i++) matrix[i] = 1.0f / WIDTH;
  for (i = 0; i < WIDTH; i++) x[i] = 1;
  desc.max_tokens = desc.top_k = 1;
  desc.hidden = desc.intermediate = WIDTH;
  desc.n_experts = 2;
  desc.format = MOI_FORMAT_F32;
  w.data = moi_ptr(matrix, sizeof(matrix));
  args.n_tokens = 1;
  args.input = moi_ptr(x, sizeof(x));
  args.ids = moi_ptr(&id, sizeof(id));
  args.weights = moi_ptr(&weight, sizeof(weight));
  args.output = moi_ptr(y, sizeof(y));
  args.gate = args.up = args.down = &w;

  failed = moi_context_create(&context_desc, &context) || moi_experts_plan(context, &desc, &plan);
  if (!failed) {
    size_t align, size = moi_plan_workspace(plan, &align);
#if defined(_WIN32)
    workspace = _aligned_malloc(size + 1, align);
#else
    workspace = aligned_alloc(align, (size + align) / align * align);
#endif
    failed = !workspace || moi_experts_run(plan, &args, moi_ptr(workspace, size), queue);
  }
  if (failed) fprintf(stderr, "%s\n", moi_last_error());
  for (i = 0; i < WIDTH && !failed; i++) failed = !(fabsf(y[i] - 0.731058579f) < 1e-5f);
  printf("moiety %u.%u.%u: y = %.7f\n", moi_version() >> 16, moi_version() >> 8 & 255, moi_version() & 255,
         (double)y[0]);
#if defined(_WIN32)
  _aligned_free(workspace);
#else
  free(workspace);
#endif
  moi_plan_destroy(plan);
  moi_context_destroy(context);
  return failed;
}
