/* Routing, experts and the whole layer: descs and args, run where a plan is made. */
#include "tests/fuzz/bytes.h"

static void weights_of(bytes *b, moi_weights *w, moi_format format, uint32_t n, uint32_t k, uint32_t experts,
                       moi_format bias) {
  moi_format_sizes sizes;
  *w = (moi_weights)MOI_WEIGHTS_INIT;
  if (moi_format_size(format, n, k, &sizes)) return;
  w->data = odd_view(b, sizes.data * experts);
  if (sizes.scales) w->scales = odd_view(b, sizes.scales * experts);
  if (sizes.zeros) w->zeros = odd_view(b, sizes.zeros * experts);
  if (bias) w->bias = odd_view(b, (uint64_t)n * experts * (bias == MOI_FORMAT_F32 ? 4 : 2));
  if (next8(b) > 200) w->global_scale = view(b, (uint64_t)experts * 4);
  if (next8(b) > 250) w->data_stride = next32(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  bytes b = {data, data + size};
  moi_route_desc r = MOI_ROUTE_DESC_INIT;
  moi_experts_desc e = MOI_EXPERTS_DESC_INIT;
  uint32_t tokens = count(&b, 12);
  e.max_tokens = r.max_tokens = next8(&b) < 240 ? 12 : next32(&b);
  e.n_experts = r.n_experts = count(&b, 12);
  e.n_identity = r.n_identity = next8(&b) < 200 ? 0 : count(&b, 3);
  e.top_k = r.top_k = count(&b, 4);
  uint32_t block = 32 << below(&b, 4);
  e.hidden = next8(&b) < 200 ? block * (1 + below(&b, 2)) : count(&b, 100);
  e.intermediate = next8(&b) < 200 ? block * (1 + below(&b, 2)) : count(&b, 100);
  r.hidden = next8(&b) < 128 ? e.hidden : 0;
  r.score = (moi_score)below(&b, 7);
  r.n_group = next8(&b) < 160 ? 0 : count(&b, 4);
  r.topk_group = count(&b, 4);
  r.group_score = (moi_group_score)below(&b, 3);
  r.renorm = (moi_renorm)below(&b, 4);
  r.renorm_eps = real(&b);
  r.scale = real(&b);
  r.logit_scale = real(&b);
  r.logit_softcap = real(&b);
  r.flags = next8(&b) & 0x7f;
  r.vocab = count(&b, 20);
  r.input_type = dense_type(&b);
  r.router_type = dense_type(&b);
  r.logits_type = dense_type(&b);
  r.weight_type = dense_type(&b);
  r.plan_flags = below(&b, 9);
  e.activation = (moi_activation)below(&b, 7);
  e.gate_layout = (moi_gate_layout)below(&b, 5);
  e.weight_on = (moi_weight_on)below(&b, 4);
  e.act_quant = (moi_act_quant)below(&b, 5);
  e.act_limit = real(&b);
  e.format = any_format(&b);
  e.down_format = next8(&b) < 200 ? 0 : any_format(&b);
  e.bias_type = next8(&b) < 200 ? 0 : dense_type(&b);
  e.input_type = dense_type(&b);
  e.mid_type = dense_type(&b);
  e.output_type = dense_type(&b);
  e.output_scale = real(&b);
  e.flags = next8(&b) < 250 ? below(&b, 2) : next8(&b) & ~2u;
  e.plan_flags = below(&b, 9);
  e.kernel = any_kernel(&b);
  moi_moe_desc d = MOI_MOE_DESC_INIT;
  d.route = next8(&b) < 200 ? &r : NULL;
  d.experts = &e;
  moi_plan *plan = NULL;
  moi_status status = moi_moe_plan(fuzz_context(), &d, &plan);
  told(status);
  if (status || moi_plan_workspace(plan, NULL) > (1u << 26)) {
    moi_plan_destroy(plan);
    return 0;
  }
  moi_route_args ra = MOI_ROUTE_ARGS_INIT;
  uint64_t n_class = (uint64_t)r.n_experts + r.n_identity;
  ra.n_tokens = tokens;
  if (r.hidden) ra.hidden = odd_view(&b, (uint64_t)tokens * r.hidden * 4);
  if (r.hidden) ra.router = odd_view(&b, n_class * r.hidden * 4);
  if (!r.hidden) ra.logits = odd_view(&b, tokens * n_class * 4);
  ra.router_bias = view(&b, n_class * 4);
  ra.select_bias = view(&b, n_class * 4);
  ra.select_bias_alt = view(&b, n_class * 4);
  ra.alt_mask = view(&b, tokens);
  ra.expert_scale = view(&b, n_class * 4);
  ra.norm_weight = view(&b, (uint64_t)r.hidden * 4);
  ra.hash_table = indices(&b, (uint64_t)(r.vocab < 64 ? r.vocab : 64) * r.top_k, (uint32_t)n_class);
  ra.token_ids = indices(&b, tokens, 20);
  ra.counts = odd_view(&b, n_class * 4);
  ra.offsets = odd_view(&b, (n_class + 1) * 4);
  ra.permutation = odd_view(&b, (uint64_t)tokens * r.top_k * 4);
  moi_experts_args ea = MOI_EXPERTS_ARGS_INIT;
  moi_weights gate, up, down;
  uint32_t both = e.gate_layout == MOI_GATE_CONCAT || e.gate_layout == MOI_GATE_INTERLEAVED;
  weights_of(&b, &gate, e.format, e.intermediate, e.hidden, e.n_experts, e.bias_type);
  weights_of(&b, &up, e.format, e.intermediate << both, e.hidden, e.n_experts, e.bias_type);
  weights_of(&b, &down, e.down_format ? e.down_format : e.format, e.hidden, e.intermediate, e.n_experts, e.bias_type);
  ea.n_tokens = tokens;
  ea.input = odd_view(&b, (uint64_t)tokens * e.hidden * 4);
  ea.output = odd_view(&b, (uint64_t)tokens * e.hidden * 4);
  ea.ids = indices(&b, (uint64_t)tokens * e.top_k, e.n_experts + e.n_identity);
  ea.weights = view(&b, (uint64_t)tokens * e.top_k * 4);
  ea.gate = &gate;
  ea.up = &up;
  ea.down = &down;
  moi_moe_args a = MOI_MOE_ARGS_INIT;
  a.route = &ra;
  a.experts = &ea;
  const moi_queue queue = {NULL};
  told(moi_moe_run(plan, &a, workspace_of(plan), queue));
  moi_plan_destroy(plan);
  drop_blocks();
  return 0;
}
