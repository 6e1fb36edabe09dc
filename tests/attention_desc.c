/* What a desc of attention may not say. */
#include "support.h"

#include <math.h>

static moi_context *context;

static int open_context(void **state) {
  *state = context = open_cpu(1);
  return 0;
}

static void test_desc(void **state) {
  (void)state;
  const moi_attention_desc good = {.struct_size = sizeof good,
                                   .max_rows = 4,
                                   .max_seqs = 2,
                                   .max_kv = 64,
                                   .n_heads = 8,
                                   .n_kv_heads = 2,
                                   .head_dim = 64};
  moi_attention_desc d;
  moi_plan *plan = (moi_plan *)&context;
  refused(moi_attention_plan(context, NULL, &plan), MOI_INVALID_ARGUMENT, "desc");
  assert_null(plan);
#define BAD(member, value, status, says)                                                                               \
  do {                                                                                                                 \
    d = good;                                                                                                          \
    d.member = value;                                                                                                  \
    plan = (moi_plan *)&context;                                                                                       \
    refused(moi_attention_plan(context, &d, &plan), status, says);                                                     \
    assert_null(plan);                                                                                                 \
  } while (0)
  BAD(max_rows, 0, MOI_INVALID_ARGUMENT, "max_rows");
  BAD(max_seqs, 0, MOI_INVALID_ARGUMENT, "max_seqs");
  BAD(max_kv, (1u << 28) + 1, MOI_INVALID_ARGUMENT, "max_kv");
  BAD(n_heads, 7, MOI_INVALID_ARGUMENT, "n_heads: 7");
  BAD(n_heads, 1026, MOI_INVALID_ARGUMENT, "n_heads");
  BAD(head_dim, 1025, MOI_INVALID_ARGUMENT, "head_dim");
  BAD(v_head_dim, 1025, MOI_INVALID_ARGUMENT, "v_head_dim");
  BAD(softcap, -1, MOI_INVALID_ARGUMENT, "softcap");
  BAD(scale, INFINITY, MOI_INVALID_ARGUMENT, "scale");
  BAD(temperature, 0.1f, MOI_INVALID_ARGUMENT, "temperature_floor");
  BAD(mask, (moi_mask)2, MOI_INVALID_ARGUMENT, "mask");
  BAD(flags, 0x4, MOI_INVALID_ARGUMENT, "flags");
  BAD(page_size, (1u << 28) + 1, MOI_INVALID_ARGUMENT, "page_size");
  BAD(k_format, MOI_FORMAT_Q4_0, MOI_UNSUPPORTED, "k_format");
  BAD(v_format, MOI_FORMAT_MXFP4, MOI_UNSUPPORTED, "v_format");
  BAD(input_type, MOI_FORMAT_FP8, MOI_INVALID_ARGUMENT, "input_type");
  BAD(kernel, "no such row", MOI_UNSUPPORTED, "no such row");
#undef BAD
  d = good;
  d.mask = MOI_MASK_NONE;
  d.window = 4;
  refused(moi_attention_plan(context, &d, &plan), MOI_INVALID_ARGUMENT, "window");
  d = good;
  d.flags = MOI_ATTENTION_V_IN_K;
  d.v_head_dim = 65;
  refused(moi_attention_plan(context, &d, &plan), MOI_INVALID_ARGUMENT, "v_head_dim");
  d.v_head_dim = 64;
  d.v_format = MOI_FORMAT_F16;
  refused(moi_attention_plan(context, &d, &plan), MOI_INVALID_ARGUMENT, "v_format");
  d = good;
  d.head_dim = 80;
  d.k_format = MOI_FORMAT_Q8_0;
  refused(moi_attention_plan(context, &d, &plan), MOI_INVALID_ARGUMENT, "q8_0");
  passes(moi_attention_plan(context, &good, &plan));
  moi_plan_destroy(plan);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_desc)};
  return cmocka_run_group_tests(tests, open_context, close_context);
}
