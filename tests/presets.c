/* The presets' kinds of attention: each makes a plan, agrees with what its name says, and with the layers of the model.
 * */
#include "support.h"

#include <math.h>

static int is(const moi_preset_attention *a, const char *kind) { return !strcmp(a->kind, kind); }

static void check_kind(const moi_preset *p, const moi_preset_attention *a, moi_context *context) {
  const moi_attention_desc *d = a->desc;
  if (!is(a, "full") && !is(a, "window") && !is(a, "chunked") && !is(a, "nope") && !is(a, "mla") &&
      !is(a, "mla-absorbed"))
    fail_msg("%s: kind '%s'", p->name, a->kind);
  assert_true(a->layers > 0 && !a->reserved);
  assert_true(d->struct_size == sizeof *d && !d->next && !d->kernel && !d->plan_flags);
  assert_true(!d->max_rows && !d->max_seqs && !d->max_kv && !d->page_size);
  assert_true(d->k_format == MOI_FORMAT_BF16 && d->v_format == MOI_FORMAT_BF16 && d->input_type == MOI_FORMAT_BF16);
  assert_true(d->n_heads && d->n_kv_heads && d->head_dim && d->v_head_dim && d->n_heads % d->n_kv_heads == 0);
  assert_true((d->window != 0) == is(a, "window") && (d->chunk != 0) == is(a, "chunked"));
  assert_true((d->temperature != 0) == is(a, "nope") && (d->temperature_floor != 0) == is(a, "nope"));
  assert_true(is(a, "mla") ? d->n_heads == d->n_kv_heads : 1);
  assert_true(is(a, "mla-absorbed") ? d->n_kv_heads == 1 && d->flags & MOI_ATTENTION_V_IN_K : 1);
  moi_attention_desc desc = *d;
  desc.max_rows = 32;
  desc.max_seqs = 4;
  desc.max_kv = 4096;
  for (uint32_t page = 0; page <= 16; page += 16) {
    moi_plan *plan = NULL;
    desc.page_size = page;
    if (moi_attention_plan(context, &desc, &plan)) fail_msg("%s, %s: %s", p->name, a->kind, moi_last_error());
    assert_true(moi_plan_workspace(plan, NULL) > 0);
    moi_plan_destroy(plan);
  }
}

static void test_attention(void **state) {
  (void)state;
  moi_context *context = open_cpu(1);
  uint32_t n_kinds = 0;
  for (uint32_t i = 0; moi_preset_at(i); i++) {
    const moi_preset *p = moi_preset_at(i);
    uint32_t layers = 0;
    for (uint32_t k = 0; k < p->n_attention; k++) {
      const moi_preset_attention *a = &p->attention[k];
      check_kind(p, a, context);
      n_kinds++;
      for (uint32_t j = 0; j < k; j++) assert_string_not_equal(a->kind, p->attention[j].kind);
      if (!is(a, "mla-absorbed")) {
        layers += a->layers;
        continue;
      }
      assert_true(k > 0); /* the other form of the layers before it */
      const moi_preset_attention *plain = a - 1;
      assert_true(is(plain, "mla") && plain->layers == a->layers && plain->desc->n_heads == a->desc->n_heads);
      assert_true(plain->desc->scale == a->desc->scale && a->desc->scale > 0);
    }
    if (layers != p->layers && !p->note[0]) fail_msg("%s: %u of %u layers, and no note", p->name, layers, p->layers);
  }
  assert_true(n_kinds > 50);
  moi_context_destroy(context);
}

static const moi_attention_desc *desc_of(const char *name, const char *kind, uint32_t layers) {
  const moi_preset *p = moi_preset_find(name);
  assert_non_null(p);
  for (uint32_t k = 0; k < p->n_attention; k++)
    if (is(&p->attention[k], kind)) {
      assert_int_equal(p->attention[k].layers, layers);
      return p->attention[k].desc;
    }
  fail_msg("%s has no '%s'", name, kind);
  return NULL;
}

/* head_dim^-0.5 * (0.1 * m * ln f + 1)^2 */
static void check_scale(const char *name, uint32_t layers, double head_dim, double factor, double m) {
  double mscale = 1 + 0.1 * m * log(factor), scale = mscale * mscale / sqrt(head_dim);
  assert_true(fabs((double)desc_of(name, "mla", layers)->scale / scale - 1) < 1e-6);
}

static void test_rules_of_models(void **state) {
  (void)state;
  check_scale("deepseek-v3", 61, 192, 40, 1);
  check_scale("deepseek-v2", 60, 192, 40, 1);
  check_scale("deepseek-v2-lite", 27, 192, 40, 0.707);
  check_scale("kimi-k2", 61, 192, 32, 1);
  check_scale("kimi-k2-thinking", 61, 192, 64, 1);
  check_scale("kimi-linear-48b-a3b", 7, 192, 1, 1);
  check_scale("glm-4.7-flash", 47, 256, 1, 1);
  const moi_attention_desc *d = desc_of("gpt-oss-120b", "window", 18);
  assert_true(d->window == 128 && d->flags == MOI_ATTENTION_SINKS && d->n_heads == 64 && d->n_kv_heads == 8);
  assert_true(desc_of("gpt-oss-120b", "full", 18)->flags == MOI_ATTENTION_SINKS);
  d = desc_of("llama4-scout", "nope", 12);
  assert_true(d->temperature == 0.1f && d->temperature_floor == 8192 && d->chunk == 0);
  assert_int_equal(desc_of("llama4-maverick", "chunked", 36)->chunk, 8192);
  d = desc_of("gemma4-26b-a4b", "full", 5);
  assert_true(d->scale == 1 && d->head_dim == 512 && d->n_kv_heads == 2);
  d = desc_of("mimo-v2-flash", "window", 39);
  assert_true(d->head_dim == 192 && d->v_head_dim == 128 && d->n_kv_heads == 8 && d->flags == MOI_ATTENTION_SINKS);
  assert_true(desc_of("grok-1", "full", 64)->softcap == 30);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention), cmocka_unit_test(test_rules_of_models)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
