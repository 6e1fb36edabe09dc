/* The rig's copies on devices: what a run writes comes back, where it must not write is seen, and it is all the same
 * whether the host sees the device's memory or not. */
#include "tests/support.h"

#if defined(MOI_HAVE_VULKAN)

#include "bench/rig/case.h"
#include "bench/rig/device.h"
#include "tests/vulkan.h"

static moi_context *contexts[2]; /* mapped where it can be, staged */

static int make_contexts(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.backend = MOI_BACKEND_VULKAN;
    passes(moi_context_create(&desc, &contexts[i]));
  }
  moi_status status;
  moi_device *device = moi_device_of(contexts[1], &status);
  assert_non_null(device);
  passes(moi_device_stage(device));
  passes(moi_device_stage(device)); /* once is enough */
  assert_non_null(moi_device_of(contexts[0], &status));
  moi_context *cpu = open_cpu(1);
  assert_null(moi_device_of(cpu, &status));
  assert_int_equal(status, MOI_OK);
  moi_context_destroy(cpu);
  return 0;
}
static int drop_contexts(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    moi_device_forget(contexts[i]);
    moi_context_destroy(contexts[i]);
  }
  return 0;
}

static void make_experts_case(moi_case *c, moi_format format, uint32_t flags, uint64_t seed) {
  memset(c, 0, sizeof *c);
  c->op = MOI_OP_EXPERTS;
  c->n_tokens = 5;
  c->stride_extra = 3;
  c->seed = seed;
  c->experts = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  c->experts.hidden = c->experts.intermediate = 256;
  c->experts.n_experts = 6;
  c->experts.top_k = 2;
  c->experts.format = format;
  c->experts.flags = flags;
  moi_case_make(c, MOI_ARENA_GUARD);
}

static void test_staged_is_as_mapped(void **state) {
  (void)state;
  static const moi_format formats[] = {MOI_FORMAT_F32, MOI_FORMAT_BF16, MOI_FORMAT_Q4_K, MOI_FORMAT_MXFP4};
  for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++)
    for (uint32_t tables = 0; tables < 2; tables++) {
      static moi_case c;
      make_experts_case(&c, formats[f], (tables ? MOI_EXPERTS_TABLES : 0) | (f & 1 ? MOI_EXPERTS_ACCUMULATE : 0),
                        7 + f);
      moi_arena arena = {.flags = MOI_ARENA_GUARD};
      moi_outputs out[2];
      for (int i = 0; i < 2; i++) {
        moi_plan *plan = NULL;
        char damage[160] = "";
        out[i] = moi_case_outputs(&c, &arena);
        passes(moi_case_plan(&c, contexts[i], NULL, 0, &plan));
        moi_status status = moi_case_run_guarded(&c, plan, &out[i], damage, sizeof damage);
        if (status) fail_msg("%s: %s", damage, moi_last_error());
        moi_plan_destroy(plan);
      }
      long long offset;
      assert_null(moi_arena_damage(&arena, &offset));
      assert_true(moi_case_same_bits(&c, &out[0], &out[1]));
      moi_context *cpu = open_cpu(1);
      moi_plan *plan = NULL;
      moi_outputs truth = moi_case_outputs(&c, &arena);
      char damage[160];
      passes(moi_case_plan(&c, cpu, "ref", 0, &plan));
      passes(moi_case_run_guarded(&c, plan, &truth, damage, sizeof damage));
      moi_verdict v = moi_case_compare(&c, MOI_BACKEND_VULKAN, NULL, &out[0], &truth);
      if (!v.ok) fail_msg("%s", v.text);
      moi_plan_destroy(plan);
      moi_context_destroy(cpu);
      moi_arena_free(&arena);
      moi_case_free(&c);
    }
}

static PFN_vkCmdFillBuffer fill_of(const moi_context *context) {
  moi_vulkan_handles_out h = MOI_VULKAN_HANDLES_INIT;
  passes(moi_vulkan_handles(context, &h));
  PFN_vkGetInstanceProcAddr get = (PFN_vkGetInstanceProcAddr)h.get_instance_proc_addr;
  PFN_vkCmdFillBuffer fill = (PFN_vkCmdFillBuffer)get(h.instance, "vkCmdFillBuffer");
  assert_non_null(fill);
  return fill;
}

/* One word is written on the device, at `offset` of a block of 100 bytes; the guard zones see what is outside. */
static void test_what_is_written_outside_is_seen(void **state) {
  (void)state;
  static const long long offsets[] = {-4, -512, 0, 48, 96, 100, 104};
  for (int i = 0; i < 2; i++)
    for (size_t k = 0; k < sizeof offsets / sizeof offsets[0]; k++) {
      moi_arena arena = {.flags = MOI_ARENA_GUARD};
      moi_buffer view = moi_arena_view(&arena, 100, 16, "a block");
      memset(view.ptr, 0x11, 100);
      moi_status status;
      moi_mirror *mirror = NULL;
      passes(moi_mirror_begin(moi_device_of(contexts[i], &status), &mirror));
      moi_buffer there = moi_mirror_view(mirror, view);
      assert_null(there.ptr);
      assert_int_equal(there.size, 100);
      fill_of(contexts[i])((VkCommandBuffer)moi_mirror_queue(mirror).native, (VkBuffer)(uintptr_t)there.handle,
                           there.offset + (uint64_t)offsets[k], 4, 0x22222222u);
      passes(moi_mirror_end(mirror, MOI_OK));
      long long at;
      const char *name = moi_arena_damage(&arena, &at);
      if (offsets[k] >= 0 && offsets[k] < 100) {
        assert_null(name);
        assert_int_equal(((uint8_t *)view.ptr)[offsets[k]], 0x22);
      } else {
        assert_string_equal(name, "a block");
        assert_true(at == offsets[k]);
        assert_int_equal(((uint8_t *)view.ptr)[0], 0x11);
      }
      moi_arena_free(&arena);
    }
}

/* Views of no arena are the rig's mistake, and said to be; a run that could not be recorded is not submitted. */
static void test_runs_that_fail(void **state) {
  (void)state;
  static uint8_t nowhere[64];
  for (int i = 0; i < 2; i++) {
    moi_status status;
    moi_mirror *mirror = NULL;
    moi_device *device = moi_device_of(contexts[i], &status);
    passes(moi_mirror_begin(device, &mirror));
    moi_mirror_view(mirror, VIEW(nowhere));
    assert_int_equal(moi_mirror_end(mirror, MOI_OK), MOI_INTERNAL);
    assert_non_null(strstr(moi_last_error(), "no arena"));
    moi_arena arena = {.flags = MOI_ARENA_GUARD};
    moi_buffer view = moi_arena_view(&arena, 64, 4, "a block");
    memset(view.ptr, 0x11, 64);
    passes(moi_mirror_begin(device, &mirror));
    moi_buffer there = moi_mirror_view(mirror, view);
    fill_of(contexts[i])((VkCommandBuffer)moi_mirror_queue(mirror).native, (VkBuffer)(uintptr_t)there.handle,
                         there.offset, 64, 0x22222222u);
    assert_int_equal(moi_mirror_end(mirror, MOI_UNSUPPORTED), MOI_UNSUPPORTED);
    assert_int_equal(((uint8_t *)view.ptr)[0], 0x11);
    moi_arena_free(&arena);
  }
}

/* A block larger than the staging buffer arrives whole, and odd places keep their alignment. */
static void test_large_and_odd(void **state) {
  (void)state;
  enum { LARGE = (80 << 20) + 6 };
  for (int i = 0; i < 2; i++) {
    moi_arena arena = {.flags = MOI_ARENA_GUARD};
    moi_buffer large = moi_arena_view(&arena, LARGE, 2, "large"), odd = moi_arena_view(&arena, 1001, 1, "odd");
    uint8_t *p = large.ptr;
    for (size_t b = 0; b < LARGE; b++) p[b] = (uint8_t)(b * 31 ^ b >> 13);
    memset(odd.ptr, 0x33, 1001);
    moi_status status;
    moi_mirror *mirror = NULL;
    passes(moi_mirror_begin(moi_device_of(contexts[i], &status), &mirror));
    moi_buffer there = moi_mirror_view(mirror, large), other = moi_mirror_view(mirror, odd);
    assert_int_equal(there.offset % 256, (uintptr_t)large.ptr % 256);
    assert_int_equal(other.offset % 256, (uintptr_t)odd.ptr % 256);
    passes(moi_mirror_end(mirror, MOI_OK)); /* and everything comes back over it */
    for (size_t b = 0; b < LARGE; b++)
      if (p[b] != (uint8_t)(b * 31 ^ b >> 13)) fail_msg("byte %zu", b);
    for (size_t b = 0; b < 1001; b++) assert_int_equal(((uint8_t *)odd.ptr)[b], 0x33);
    moi_arena_free(&arena);
  }
}

int main(void) {
  engine probe;
  if (!engine_open(&probe, 1)) return 77;
  engine_close(&probe);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_staged_is_as_mapped),
      cmocka_unit_test(test_what_is_written_outside_is_seen),
      cmocka_unit_test(test_runs_that_fail),
      cmocka_unit_test(test_large_and_odd),
  };
  return cmocka_run_group_tests(tests, make_contexts, drop_contexts);
}

#else

int main(void) {
  print_message("this build has no Vulkan backend\n");
  return 77;
}

#endif
