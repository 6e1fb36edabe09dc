/* Attention's Vulkan rows over every value of a cache: each f16 there is comes out as it is. */
#include "tests/support.h"

#include <math.h>

#if defined(MOI_HAVE_VULKAN)

#include "bench/rig/attention.h"
#include "bench/rig/device.h"
#include "core/shared/round.h"
#include "tests/vulkan.h"

enum { HEADS = 64, DIM = 512, VALUES = HEADS * DIM };

/* One key for each head: its weight is 1, and the output its value. First the positive values, then the negative. */
static void every_f16(moi_context *context, const char *kernel) {
  moi_attention_operands o = {.task = MOI_RIG_ATTEND, .desc = MOI_ATTENTION_DESC_INIT, .n_seqs = 1};
  o.desc.max_kv = 1;
  o.desc.n_heads = o.desc.n_kv_heads = HEADS;
  o.desc.head_dim = 32;
  o.desc.v_head_dim = DIM;
  o.desc.k_format = o.desc.v_format = MOI_FORMAT_F16;
  o.desc.input_type = o.desc.output_type = MOI_FORMAT_F32;
  o.sequences[0] = (moi_sequence){.rows = 1, .kv_len = 1};
  o.n_rows = 1;
  o.layout.tight = 1;
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  moi_make_attention(&arena, &o);
  moi_attention_outputs out = moi_attention_outputs_make(&arena, &o);
  moi_plan *plan = NULL;
  passes(moi_attention_operands_plan(&o, context, kernel, 0, &plan));
  size_t align, size = moi_plan_workspace(plan, &align);
  moi_buffer workspace = moi_arena_view(&arena, size, align ? align : 1, "workspace");
  assert_int_equal(o.cache.v.size, VALUES * 2);
  for (uint32_t sign = 0; sign < 2; sign++) {
    uint16_t *v = o.cache.v.ptr;
    for (uint32_t i = 0; i < VALUES; i++) v[i] = (uint16_t)(sign << 15 | i);
    passes(moi_attention_operands_run(&o, plan, &out, workspace));
    const float *y = out.output.ptr;
    for (uint32_t i = 0; i < VALUES; i++) {
      float want = moi_dense_load(MOI_FORMAT_F16, v, i);
      if (isnan(want) ? !isnan(y[i]) : y[i] != want) fail_msg("%s: f16 0x%04x is %.9g", kernel, v[i], (double)y[i]);
    }
  }
  moi_plan_destroy(plan);
  moi_arena_free(&arena);
}

static void test_every_f16(void **state) {
  (void)state;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  moi_context *context;
  desc.backend = MOI_BACKEND_VULKAN;
  passes(moi_context_create(&desc, &context));
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  uint32_t rows = 0;
  for (uint32_t i = 0; !moi_kernel_get(MOI_BACKEND_VULKAN, i, &info); i++)
    if (info.op == MOI_OP_ATTENTION) every_f16(context, info.name), rows++;
  assert_true(rows > 1);
  moi_device_forget(context);
  moi_context_destroy(context);
}

int main(void) {
  engine probe;
  if (!engine_open(&probe, 1)) return 77;
  engine_close(&probe);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_f16)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void) {
  print_message("this build has no Vulkan backend\n");
  return 77;
}

#endif
