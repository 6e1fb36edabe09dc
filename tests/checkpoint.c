/* bench/checkpoint on samples of every kind (tests/checkpoints, made by make_checkpoints.py): what is listed, the rule
 * that is inferred, and elements of the weights against values that independent code decoded. */
#ifdef MOI_CHECKPOINTS_DIR

#include "tests/checkpoint.h"

#include <math.h>

#include "core/shared/decode.h"

/* ---------------------------------------------------------------------------------------------------------- samples */

static float element(moi_format format, const uint8_t *d, const uint8_t *s, const uint8_t *z, uint32_t n, uint32_t k,
                     uint32_t N, uint32_t K) {
  (void)s, (void)z, (void)N;
  switch (format) {
#define MOI_X(NAME, ...)                                                                                               \
  case MOI_FORMAT_##NAME:                                                                                              \
    return MOI_AT_##NAME(d, s, z, n, k, N, K);
    MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
  default:
    fail_msg("format %d", (int)format);
    return 0;
  }
}

static const uint8_t *stream(moi_buffer b, bool tables, uint32_t e, uint64_t bytes) {
  if (!b.ptr) return NULL;
  if (tables) return (const uint8_t *)(uintptr_t)((const uint64_t *)b.ptr)[e];
  return (const uint8_t *)b.ptr + e * bytes;
}

static float weight_at(const moi_layer *l, const char *matrix, uint32_t e, uint32_t n, uint32_t k) {
  bool shared = !strncmp(matrix, "shared_", 7);
  if (shared) matrix += 7;
  const moi_experts_desc *d = shared ? &l->shared : &l->experts;
  const moi_weights *gate = shared ? &l->shared_gate : &l->gate, *up = shared ? &l->shared_up : &l->up;
  const moi_weights *down = shared ? &l->shared_down : &l->down;
  bool is_down = !strcmp(matrix, "down");
  const moi_weights *w = is_down ? down : !strcmp(matrix, "gate") ? gate : up;
  moi_format format = is_down && d->down_format ? d->down_format : d->format;
  uint32_t rows = is_down ? d->hidden : d->intermediate, columns = is_down ? d->intermediate : d->hidden;
  if (!is_down && d->gate_layout != MOI_GATE_SPLIT) rows *= 2;
  assert_true(e < d->n_experts && n < rows && k < columns);
  moi_format_sizes sizes;
  assert_int_equal(moi_format_size(format, rows, columns, &sizes), MOI_OK);
  bool tables = d->flags & MOI_EXPERTS_TABLES;
  float v = element(format, stream(w->data, tables, e, sizes.data), stream(w->scales, tables, e, sizes.scales),
                    stream(w->zeros, tables, e, sizes.zeros), n, k, rows, columns);
  return w->global_scale.ptr ? v * ((const float *)w->global_scale.ptr)[e] : v;
}

/* Every layout, transposition and table: elements as numpy and the gguf package decode them. */
static void test_values(void **state) {
  (void)state;
  char path[512], name[64] = "", file[64], matrix[32];
  sample(path, "expected.txt");
  FILE *lines = fopen(path, "r");
  assert_non_null(lines);
  moi_checkpoint *c = NULL;
  moi_layer layer;
  unsigned index, open_index = 0, e, n, k, count = 0, files = 0;
  float value;
  while (fscanf(lines, "%63s %u %31s %u %u %u %f", file, &index, matrix, &e, &n, &k, &value) == 7) {
    if (strcmp(file, name) || index != open_index) {
      if (c) moi_layer_close(&layer);
      moi_checkpoint_close(c);
      c = open_sample(file);
      layer = open_layer(c, index);
      strcpy(name, file);
      open_index = index;
      files++;
    }
    float got = weight_at(&layer, matrix, e, n, k);
    if (fabsf(got - value) > 2e-6f * fabsf(value))
      fail_msg("%s layer %u %s[%u][%u][%u]: %.9g, expected %.9g", file, index, matrix, e, n, k, got, value);
    count++;
  }
  assert_true(feof(lines));
  fclose(lines);
  moi_layer_close(&layer);
  moi_checkpoint_close(c);
  assert_int_equal(files, 13);
  assert_int_equal(count, 612);
}

static void test_listing(void **state) {
  (void)state;
  moi_checkpoint *c = open_sample("types.gguf");
  uint64_t n = moi_checkpoint_count(c);
  assert_int_equal(n, 34);
  assert_null(moi_checkpoint_tensor(c, n));
  uint32_t supported = 0;
  for (uint64_t i = 0; i < n; i++) {
    const moi_tensor *t = moi_checkpoint_tensor(c, i);
    assert_string_equal(t->name + 2, t->type); /* the sample names each tensor by its type */
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[0], 2);
    supported += t->format != MOI_FORMAT_NONE;
    if (!t->format) continue;
    moi_format_sizes sizes;
    assert_int_equal(moi_format_size(t->format, 2, (uint32_t)t->dims[1], &sizes), MOI_OK);
    assert_int_equal(t->size, sizes.data);
  }
  assert_int_equal(supported, 10);
  const moi_tensor *t = moi_checkpoint_find(c, "t.IQ2_XXS");
  assert_non_null(t);
  assert_int_equal(t->format, MOI_FORMAT_NONE);
  assert_int_equal(t->size, 2 * 66);
  assert_int_equal(moi_checkpoint_find(c, "t.MXFP4")->format, MOI_FORMAT_MXFP4_GGUF);
  moi_checkpoint_close(c);

  c = open_sample("qwen3_moe"); /* three shards, one list */
  assert_int_equal(moi_checkpoint_get_kind(c), MOI_CHECKPOINT_SAFETENSORS);
  assert_int_equal(moi_checkpoint_count(c), 13);
  t = moi_checkpoint_find(c, "model.layers.0.mlp.experts.3.down_proj.weight");
  assert_non_null(t);
  assert_string_equal(t->type, "BF16");
  assert_int_equal(t->format, MOI_FORMAT_BF16);
  assert_int_equal(t->dims[0], 48);
  assert_int_equal(t->dims[1], 24);
  assert_int_equal(t->size, 48 * 24 * 2);
  assert_null(moi_checkpoint_find(c, "model"));
  touch_tensors(c, 0);
  moi_checkpoint_close(c);

  c = open_sample("deepseek_v3/model.safetensors");
  t = moi_checkpoint_find(c, "model.layers.3.mlp.experts.0.up_proj.weight");
  assert_non_null(t);
  assert_string_equal(t->type, "F8_E4M3");
  assert_int_equal(t->format, MOI_FORMAT_NONE);
  moi_checkpoint_close(c);
}

static void test_metadata(void **state) {
  (void)state;
  moi_checkpoint *c = open_sample("qwen3moe.gguf");
  double v;
  assert_string_equal(moi_checkpoint_text(c, "general.architecture"), "qwen3moe");
  assert_true(moi_checkpoint_number(c, "qwen3moe.embedding_length", 0, &v) && v == 256);
  assert_true(moi_checkpoint_number(c, "qwen3moe.embedding_length", 7, &v) && v == 256);
  assert_true(moi_checkpoint_number(c, "qwen3moe.rope.sections", 2, &v) && v == 3);
  assert_false(moi_checkpoint_number(c, "qwen3moe.rope.sections", 4, &v));
  assert_true(moi_checkpoint_number(c, "qwen3moe.a_bool", 0, &v) && v == 1);
  assert_true(moi_checkpoint_number(c, "qwen3moe.a_double", 0, &v) && v == 0.25);
  assert_true(moi_checkpoint_number(c, "qwen3moe.a_long", 0, &v) && v == -5);
  assert_false(moi_checkpoint_number(c, "tokenizer.ggml.tokens", 0, &v));
  assert_false(moi_checkpoint_number(c, "general.architecture", 0, &v));
  assert_null(moi_checkpoint_text(c, "qwen3moe.a_bool"));
  assert_null(moi_checkpoint_text(c, "tokenizer.chat_template")); /* 5000 bytes: not kept */
  assert_null(moi_checkpoint_text(c, "absent"));
  moi_checkpoint_close(c);

  c = open_sample("kimi_int4");
  assert_string_equal(moi_checkpoint_text(c, "model_type"), "kimi_k2"); /* text_config wins */
  assert_true(moi_checkpoint_number(c, "quantization_config.config_groups.group_0.weights.num_bits", 0, &v) && v == 4);
  assert_null(moi_checkpoint_text(c, "quantization_config"));
  moi_checkpoint_close(c);
  c = open_sample("deepseek_v3");
  assert_true(moi_checkpoint_number(c, "quantization_config.weight_block_size", 1, &v) && v == 128);
  assert_false(moi_checkpoint_number(c, "quantization_config.weight_block_size", 2, &v));
  moi_checkpoint_close(c);
}

static void check_shape(const moi_layer *l, uint32_t h, uint32_t i, uint32_t e, uint32_t k) {
  assert_int_equal(l->route.struct_size, sizeof(moi_route_desc));
  assert_int_equal(l->experts.struct_size, sizeof(moi_experts_desc));
  assert_int_equal(l->route.hidden, h);
  assert_int_equal(l->experts.hidden, h);
  assert_int_equal(l->experts.intermediate, i);
  assert_int_equal(l->route.n_experts, e);
  assert_int_equal(l->experts.n_experts, e);
  assert_int_equal(l->route.top_k, k);
  assert_int_equal(l->experts.top_k, k);
  assert_int_equal(l->route.max_tokens, 0);
}

static void test_qwen3(void **state) {
  (void)state;
  moi_checkpoint *c = open_sample("qwen3moe.gguf");
  assert_false(moi_layer_is_moe(c, 0));
  assert_true(moi_layer_is_moe(c, 1));
  moi_layer l = open_layer(c, 1);
  assert_string_equal(l.architecture, "qwen3moe");
  check_shape(&l, 256, 32, 2, 1);
  assert_int_equal(l.route.score, MOI_SCORE_SOFTMAX);
  assert_int_equal(l.route.renorm, MOI_RENORM_SUM);
  assert_int_equal(l.route.flags, 0);
  assert_int_equal(l.route.router_type, MOI_FORMAT_F32);
  assert_int_equal(l.route.input_type, MOI_FORMAT_F32);
  assert_ptr_equal(l.router.ptr, moi_checkpoint_find(c, "blk.1.ffn_gate_inp.weight")->data);
  assert_int_equal(l.experts.format, MOI_FORMAT_Q4_K);
  assert_int_equal(l.experts.down_format, MOI_FORMAT_Q8_0);
  assert_int_equal(l.experts.gate_layout, MOI_GATE_SPLIT);
  assert_int_equal(l.experts.flags, 0);
  assert_ptr_equal(l.up.data.ptr, moi_checkpoint_find(c, "blk.1.ffn_up_exps.weight")->data);
  assert_false(l.has_shared);
  moi_layer_close(&l);
  moi_checkpoint_close(c);

  c = open_sample("qwen3_moe");
  l = open_layer(c, 0);
  check_shape(&l, 48, 24, 4, 2);
  assert_int_equal(l.route.renorm, MOI_RENORM_SUM);
  assert_int_equal(l.route.weight_type, MOI_FORMAT_BF16);
  assert_int_equal(l.route.router_type, MOI_FORMAT_BF16);
  assert_int_equal(l.experts.input_type, MOI_FORMAT_BF16);
  assert_int_equal(l.experts.format, MOI_FORMAT_BF16);
  assert_int_equal(l.experts.down_format, MOI_FORMAT_NONE);
  assert_int_equal(l.experts.flags, MOI_EXPERTS_TABLES);
  assert_int_equal(l.gate.data.size, 4 * 8);
  assert_ptr_equal(((void **)l.down.data.ptr)[2],
                   moi_checkpoint_find(c, "model.layers.0.mlp.experts.2.down_proj.weight")->data);
  moi_layer_close(&l);
  moi_checkpoint_close(c);

  c = open_sample("qwen3_5_moe");
  l = open_layer(c, 7);
  check_shape(&l, 32, 16, 3, 2);
  assert_int_equal(l.experts.gate_layout, MOI_GATE_CONCAT);
  assert_int_equal(l.gate.data.size, 0);
  assert_true(l.has_shared);
  assert_int_equal(l.shared_kind, MOI_SHARED_SIGMOID);
  assert_int_equal(l.shared_gate_type, MOI_FORMAT_BF16);
  assert_int_equal(l.shared_gate_vector.size, 32 * 2);
  assert_int_equal(l.shared.n_experts, 1);
  assert_int_equal(l.shared.top_k, 1);
  assert_int_equal(l.shared.intermediate, 16);
  moi_layer_close(&l);
  moi_checkpoint_close(c);
}

static void test_deepseek(void **state) {
  (void)state;
  moi_checkpoint *c = open_sample("deepseek2.gguf");
  moi_layer l = open_layer(c, 0);
  check_shape(&l, 256, 8, 4, 2);
  assert_int_equal(l.route.score, MOI_SCORE_SIGMOID); /* expert_gating_func 2, not the architecture's softmax */
  assert_int_equal(l.route.renorm, MOI_RENORM_SUM);
  assert_true(l.route.renorm_eps == 1e-20f && l.route.scale == 2.5f);
  assert_int_equal(l.route.n_group, 2);
  assert_int_equal(l.route.topk_group, 1);
  assert_int_equal(l.route.group_score, MOI_GROUP_TOP2_SUM);
  assert_int_equal(l.route.flags, MOI_ROUTE_SELECT_BIAS);
  assert_ptr_equal(l.select_bias.ptr, moi_checkpoint_find(c, "blk.0.exp_probs_b.bias")->data);
  assert_int_equal(l.experts.format, MOI_FORMAT_Q6_K);
  assert_int_equal(l.experts.down_format, MOI_FORMAT_F16);
  assert_true(l.has_shared);
  assert_int_equal(l.shared_kind, MOI_SHARED_PLAIN);
  assert_int_equal(l.shared.format, MOI_FORMAT_Q5_K);
  assert_int_equal(l.shared.down_format, MOI_FORMAT_IQ4_NL);
  assert_int_equal(l.shared.intermediate, 32);
  moi_layer_close(&l);
  moi_checkpoint_close(c);

  c = open_sample("deepseek_v3");
  l = open_layer(c, 3);
  check_shape(&l, 160, 16, 4, 2);
  assert_int_equal(l.route.score, MOI_SCORE_SIGMOID);
  assert_int_equal(l.route.n_group, 2);
  assert_int_equal(l.route.flags, MOI_ROUTE_SELECT_BIAS);
  assert_true(l.route.scale == 2.5f);
  assert_int_equal(l.experts.format, MOI_FORMAT_FP8_B128);
  assert_int_equal(l.experts.act_quant, MOI_ACT_QUANT_FP8_128);
  assert_ptr_equal(((void **)l.gate.scales.ptr)[3],
                   moi_checkpoint_find(c, "model.layers.3.mlp.experts.3.gate_proj.weight_scale_inv")->data);
  assert_int_equal(l.shared.format, MOI_FORMAT_FP8_B128);
  assert_int_equal(l.shared.act_quant, MOI_ACT_QUANT_FP8_128);
  moi_layer_close(&l);
  moi_checkpoint_close(c);

  c = open_sample("kimi_int4");
  l = open_layer(c, 1);
  check_shape(&l, 64, 32, 3, 2);
  assert_int_equal(l.route.n_group, 0);
  assert_true(l.route.scale == 2.827f);
  assert_int_equal(l.experts.format, MOI_FORMAT_INT4_G32);
  assert_int_equal(l.experts.act_quant, MOI_ACT_QUANT_NONE);
  moi_layer_close(&l);
  moi_checkpoint_close(c);

  c = open_sample("deepseek_v4");
  l = open_layer(c, 0);
  check_shape(&l, 64, 32, 3, 2);
  assert_int_equal(l.route.score, MOI_SCORE_SQRT_SOFTPLUS);
  assert_int_equal(l.route.flags, MOI_ROUTE_HASH);
  assert_int_equal(l.route.vocab, 10);
  assert_int_equal(l.hash_table.size, 10 * 2 * 4);
  const moi_tensor *table = moi_checkpoint_find(c, "layers.0.ffn.gate.tid2eid");
  for (int i = 0; i < 20; i++) {
    int64_t id;
    memcpy(&id, table->data + 8 * i, 8);
    assert_int_equal(((const int32_t *)l.hash_table.ptr)[i], id);
  }
  assert_int_equal(l.experts.format, MOI_FORMAT_MXFP4);
  assert_int_equal(l.experts.weight_on, MOI_WEIGHT_ON_ACTIVATION);
  assert_int_equal(l.experts.act_quant, MOI_ACT_QUANT_FP8_128_POW2);
  assert_true(l.experts.act_limit == 10);
  assert_int_equal(l.shared.format, MOI_FORMAT_FP8_B128);
  assert_int_equal(l.shared.weight_on, MOI_WEIGHT_ON_OUTPUT);
  moi_layer_close(&l);
  moi_checkpoint_close(c);
}

static void test_gpt_oss(void **state) {
  (void)state;
  moi_checkpoint *c = open_sample("gpt-oss.gguf");
  moi_layer l = open_layer(c, 0);
  check_shape(&l, 64, 32, 4, 2);
  assert_int_equal(l.route.score, MOI_SCORE_TOPK_SOFTMAX);
  assert_int_equal(l.route.flags, MOI_ROUTE_BIAS);
  assert_int_equal(l.experts.activation, MOI_ACT_SWIGLU_OAI);
  assert_int_equal(l.experts.format, MOI_FORMAT_MXFP4_GGUF);
  assert_int_equal(l.experts.gate_layout, MOI_GATE_SPLIT);
  assert_int_equal(l.experts.bias_type, MOI_FORMAT_F32);
  assert_ptr_equal(l.up.bias.ptr, moi_checkpoint_find(c, "blk.0.ffn_up_exps.bias")->data);
  assert_int_equal(l.down.bias.size, 4 * 64 * 4);
  moi_layer_close(&l);
  moi_checkpoint_close(c);

  c = open_sample("gpt_oss");
  l = open_layer(c, 0);
  check_shape(&l, 64, 32, 4, 2);
  assert_int_equal(l.route.flags, MOI_ROUTE_BIAS);
  assert_int_equal(l.route.router_type, MOI_FORMAT_BF16);
  assert_int_equal(l.router_bias.size, 4 * 2);
  assert_int_equal(l.experts.activation, MOI_ACT_SWIGLU_OAI);
  assert_true(l.experts.act_limit == 7);
  assert_int_equal(l.experts.format, MOI_FORMAT_MXFP4);
  assert_int_equal(l.experts.gate_layout, MOI_GATE_INTERLEAVED);
  assert_int_equal(l.experts.bias_type, MOI_FORMAT_BF16);
  assert_int_equal(l.up.bias.size, 4 * 64 * 2);
  moi_layer_close(&l);
  moi_checkpoint_close(c);
}

static void test_others(void **state) {
  (void)state;
  moi_checkpoint *c = open_sample("llama4");
  moi_layer l = open_layer(c, 1);
  check_shape(&l, 32, 24, 2, 1);
  assert_int_equal(l.route.score, MOI_SCORE_TOPK_SIGMOID);
  assert_int_equal(l.route.logits_type, MOI_FORMAT_BF16);
  assert_int_equal(l.experts.format, MOI_FORMAT_BF16_KN);
  assert_int_equal(l.experts.down_format, MOI_FORMAT_NONE);
  assert_int_equal(l.experts.gate_layout, MOI_GATE_CONCAT);
  assert_int_equal(l.experts.weight_on, MOI_WEIGHT_ON_INPUT);
  assert_int_equal(l.shared.format, MOI_FORMAT_BF16);
  assert_int_equal(l.shared.gate_layout, MOI_GATE_SPLIT);
  moi_layer_close(&l);
  moi_checkpoint_close(c);

  static const struct {
    const char *name;
    moi_format format;
  } packed[] = {{"gptq", MOI_FORMAT_GPTQ_G32}, {"awq", MOI_FORMAT_AWQ_G32}, {"nvfp4", MOI_FORMAT_NVFP4}};
  for (int i = 0; i < 3; i++) {
    c = open_sample(packed[i].name);
    l = open_layer(c, 0);
    assert_int_equal(l.experts.format, packed[i].format);
    assert_int_equal(l.experts.flags, MOI_EXPERTS_TABLES);
    if (i < 2) assert_int_equal(l.experts.input_type, MOI_FORMAT_F16);
    if (i < 2) assert_int_equal(l.gate.zeros.size, 2 * 8);
    else assert_int_equal(l.gate.global_scale.size, 2 * 4);
    moi_layer_close(&l);
    moi_checkpoint_close(c);
  }
}

/* The descs are what the library's plans accept. */
static void test_plans(void **state) {
  (void)state;
  static const struct {
    const char *name;
    uint32_t layer;
  } all[] = {{"qwen3moe.gguf", 1}, {"deepseek2.gguf", 0}, {"gpt-oss.gguf", 0}, {"qwen3_moe", 0}, {"qwen3_5_moe", 7},
             {"gpt_oss", 0},       {"deepseek_v3", 3},    {"kimi_int4", 1},    {"nvfp4", 0},     {"llama4", 1},
             {"deepseek_v4", 0},   {"gptq", 0},           {"awq", 0}};
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  moi_context *context;
  assert_int_equal(moi_context_create(&desc, &context), MOI_OK);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    moi_checkpoint *c = open_sample(all[i].name);
    moi_layer l = open_layer(c, all[i].layer);
    l.route.max_tokens = l.experts.max_tokens = l.shared.max_tokens = 4;
    moi_moe_desc moe = MOI_MOE_DESC_INIT;
    moe.route = &l.route;
    moe.experts = &l.experts;
    moe.shared = l.has_shared ? &l.shared : NULL;
    moe.shared_gate = l.shared_kind;
    moe.shared_gate_type = l.shared_gate_type;
    moe.output_scale = l.output_scale;
    moi_plan *plan;
    if (moi_moe_plan(context, &moe, &plan) != MOI_OK) fail_msg("%s: %s", all[i].name, moi_last_error());
    moi_plan_destroy(plan);
    moi_layer_close(&l);
    moi_checkpoint_close(c);
  }
  moi_context_destroy(context);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_values), cmocka_unit_test(test_listing),  cmocka_unit_test(test_metadata),
      cmocka_unit_test(test_qwen3),  cmocka_unit_test(test_deepseek), cmocka_unit_test(test_gpt_oss),
      cmocka_unit_test(test_others), cmocka_unit_test(test_plans),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

#include <stdio.h>

int main(void) {
  fprintf(stderr, "built without MOI_CHECKPOINTS_DIR: there is nothing to check\n");
  return 1;
}

#endif
