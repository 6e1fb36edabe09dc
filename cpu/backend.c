/* The CPU backend's face to core: devices, kernel list, plans, runs. */
#include <stdio.h>
#include <string.h>

#include "core/choose.h"
#include "core/threads.h"
#include "cpu/cpu.h"
#include "cpu/kv.h"

/* ---- devices */

static moi_status device_count(uint32_t *count) {
  *count = 1;
  return MOI_OK;
}

static moi_status device_get(uint32_t index, moi_device_info *info) {
  if (index) return moi_fail(MOI_NO_DEVICE, "moi_device_get", "index: %u, the CPU is device 0", index);
  uint32_t isa = moi_isa_detect();
  info->backend = MOI_BACKEND_CPU;
  moi_cpu_name(info->name, sizeof info->name);
  snprintf(info->driver, sizeof info->driver, "%s", isa ? moi_isa_name(isa) : "scalar");
  size_t at = 0;
  for (uint32_t bit = 1; bit && bit <= isa; bit <<= 1)
    if (isa & bit)
      at += (size_t)snprintf(info->features + at, sizeof info->features - at, "%s%s", at ? " " : "", moi_isa_name(bit));
  moi_cpu_memory(info);
  info->n_workers = moi_cores();
  return MOI_OK;
}

static moi_status kernel_get(uint32_t index, moi_kernel_info *info) {
  if (index >= moi_cpu_kernel_count)
    return moi_fail(MOI_INVALID_ARGUMENT, "moi_kernel_get", "index: %u, there are %u kernels", index,
                    moi_cpu_kernel_count);
  const moi_cpu_kernel *row = &moi_cpu_kernels[index];
  info->name = row->name;
  info->op = row->op;
  info->format = row->format;
  info->needs = moi_isa_name(row->needs);
  info->plan_flags = row->flags & (MOI_DETERMINISTIC | MOI_BATCH_INVARIANT);
  if (!(row->flags & MOI_ROW_FALLBACK)) info->plan_flags |= MOI_NO_FALLBACK;
  info->runs_here = (row->needs & ~moi_isa_detect()) == 0;
  return MOI_OK;
}

static moi_format pack_preferred(moi_format format) {
  const int rows_of_16 = (moi_isa_detect() & MOI_ISA_AVX512VNNI) != 0; /* elsewhere panels are quicker for many tokens */
  switch (format) {
    case MOI_FORMAT_Q4_0: return rows_of_16 ? MOI_FORMAT_Q4_0_R16 : format;
    case MOI_FORMAT_IQ4_NL: return rows_of_16 ? MOI_FORMAT_IQ4_NL_R16 : format;
    case MOI_FORMAT_Q8_0: return rows_of_16 ? MOI_FORMAT_Q8_0_R16 : format;
    case MOI_FORMAT_Q4_K: return rows_of_16 ? MOI_FORMAT_Q4_K_R16 : format;
    case MOI_FORMAT_MXFP4:
    case MOI_FORMAT_MXFP4_GGUF: return rows_of_16 ? MOI_FORMAT_MXFP4_R16 : format;
    case MOI_FORMAT_BF16_KN: return MOI_FORMAT_BF16;
    case MOI_FORMAT_GPTQ_G32:
    case MOI_FORMAT_AWQ_G32: return MOI_FORMAT_INT4Z_G32;
    case MOI_FORMAT_GPTQ_G128:
    case MOI_FORMAT_AWQ_G128: return MOI_FORMAT_INT4Z_G128;
    default: return format;
  }
}

static moi_status open_cpu(moi_context *context) {
  const char *fn = "moi_context_create";
  if (context->desc.next) return moi_fail(MOI_UNSUPPORTED, fn, "desc->next: the CPU backend takes no chained struct");
  if (context->desc.device)
    return moi_fail(MOI_NO_DEVICE, fn, "desc->device: %u, the CPU is device 0", context->desc.device);
  if (moi_isa_bad_cap())
    moi_log_line(context, MOI_LOG_WARNING, "MOI_DEBUG: '%s' is not understood and ignored", moi_isa_bad_cap());
  moi_cpu *cpu = moi_allocate(context, sizeof *cpu);
  if (!cpu) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *cpu);
  cpu->isa = moi_isa_detect();
  cpu->pool = NULL;
  moi_status status = moi_pool_open(fn, context, &cpu->pool);
  if (status) {
    moi_release(context, cpu, sizeof *cpu);
    return status;
  }
  context->state = cpu;
  return MOI_OK;
}

static void close_cpu(moi_context *context) {
  moi_cpu *cpu = context->state;
  moi_pool_close(context, cpu->pool);
  moi_release(context, cpu, sizeof *cpu);
}

/* ---- choice */

static moi_row row_of(uint32_t i) {
  const moi_cpu_kernel *k = &moi_cpu_kernels[i];
  return (moi_row){k->name, k->op, k->format, k->m_max, k->flags};
}

/* holds: an int, enum moi_holds */
static const char *needs(const moi_plan *plan, uint32_t i, int asked, const void *holds) {
  const moi_cpu *cpu = plan->context->state;
  const moi_cpu_kernel *row = &moi_cpu_kernels[i];
  (void)asked;
  if (row->needs & ~cpu->isa) return moi_isa_name(row->needs);
  if (row->form == MOI_FORM_BF16 && !(*(const int *)holds & MOI_HOLDS_BF16)) return "activations that are bf16";
  if (moi_form_is_int8(row->form) && !(*(const int *)holds & MOI_HOLDS_INT8)) return "MOI_ACT_QUANT_INT8_32";
  return NULL;
}

static moi_choice choice_of(moi_op op, const char *what, moi_format format, const int *holds, const char *forced) {
  return (moi_choice){"CPU", what, op, format, forced, moi_cpu_kernel_count, row_of, needs, holds};
}

moi_status moi_cpu_choose(const char *fn, moi_plan *plan, moi_op op, const char *what, moi_format format, int holds,
                          const char *forced, int *found, moi_pick *pick) {
  moi_choice choice = choice_of(op, what, format, &holds, forced);
  uint32_t few, many;
  moi_status status = moi_choose(fn, plan, &choice, found, &few, &many);
  if (status) return status;
  pick->few = &moi_cpu_kernels[few];
  pick->many = &moi_cpu_kernels[many];
  return MOI_OK;
}

/* What the activations of a type hold after act_quant. */
static int holds_of(moi_format type, moi_act_quant quant) {
  if (quant == MOI_ACT_QUANT_INT8_32) return MOI_HOLDS_INT8;
  return quant == MOI_ACT_QUANT_NONE && type == MOI_FORMAT_BF16 ? MOI_HOLDS_BF16 : 0;
}

static moi_status choose_route(const char *fn, moi_plan *plan, const char *forced, int *found, moi_cpu_plan *state) {
  const moi_route_desc *d = &plan->route;
  const int holds = 0;
  const moi_choice choice = choice_of(MOI_OP_ROUTE, "selection", MOI_FORMAT_NONE, &holds, forced);
  state->route.select = NULL;
  for (uint32_t i = 0; i < moi_cpu_kernel_count; i++) {
    const moi_cpu_kernel *row = &moi_cpu_kernels[i];
    moi_row seen = row_of(i);
    if (!moi_row_serves(&seen, MOI_OP_ROUTE, MOI_FORMAT_NONE)) continue;
    int asked = forced && !strcmp(forced, row->name);
    const char *why = moi_row_refusal(plan, &choice, i, asked);
    if (asked && why) return moi_fail(MOI_UNSUPPORTED, fn, "kernel: %s needs %s", row->name, why);
    if (asked || (!why && !state->route.select)) state->route.select = row;
    if (asked) {
      *found = 1;
      break;
    }
  }
  if (!state->route.select) return moi_fail(MOI_UNSUPPORTED, fn, "plan_flags: no routing kernel meets them");
  moi_status status = moi_plan_say(plan, "selection: %s\n", state->route.select->name);
  if (!status && d->hidden)
    status = moi_cpu_choose(fn, plan, MOI_OP_GEMM, "router", d->router_type,
                            d->flags & MOI_ROUTE_INPUT_NORM ? 0 : holds_of(d->input_type, MOI_ACT_QUANT_NONE), forced,
                            found, &state->route.router);
  return status;
}

/* q8_0: its codes */
static int holds_bf16(moi_format format) {
  return format == MOI_FORMAT_BF16 || format == MOI_FORMAT_FP8 || format == MOI_FORMAT_Q8_0;
}

static moi_status choose_attention(const char *fn, moi_plan *plan, moi_attention_state *state, int *found) {
  const moi_attention_desc *d = &plan->attention;
  moi_cpu_attention_shape(plan, state);
  return moi_cpu_choose(fn, plan, MOI_OP_ATTENTION, "attention", d->k_format,
                        d->input_type == MOI_FORMAT_BF16 && holds_bf16(d->k_format) && holds_bf16(d->v_format) ? MOI_HOLDS_BF16
                                                                                                             : 0,
                        plan->kernel, found, &state->pick);
}

static moi_status choose_ffn(const char *fn, moi_plan *plan, const moi_experts_desc *d, const char *name,
                             const char *forced, int *found, moi_ffn_state *state) {
  char what[48];
  snprintf(what, sizeof what, "%s gate and up", name);
  moi_status status = moi_cpu_choose(fn, plan, MOI_OP_GEMM, what, d->format, holds_of(d->input_type, d->act_quant), forced,
                                     found, &state->gate);
  if (status) return status;
  snprintf(what, sizeof what, "%s down", name);
  return moi_cpu_choose(fn, plan, MOI_OP_GEMM, what, d->down_format, holds_of(d->mid_type, d->act_quant), forced, found,
                        &state->down);
}

/* The names in moi_plan_kernel: the GEMM's, the routed experts', or for a route plan the selection's. */
static void name_kernels(moi_plan *plan, const moi_cpu_plan *state) {
  const moi_pick *picks[] = {&state->gemm.gate, &state->ffn[0].gate, &state->ffn[0].down, &state->attention.pick};
  for (size_t i = 0; i < sizeof picks / sizeof picks[0]; i++) {
    if (!picks[i]->many) continue;
    moi_plan_use(plan, picks[i]->few->name);
    moi_plan_use(plan, picks[i]->many->name);
  }
  if (plan->op == MOI_OP_ROUTE && state->route.select) moi_plan_use(plan, state->route.select->name);
}

static moi_status choose(const char *fn, moi_plan *plan, moi_cpu_plan *state) {
  const char *forced = plan->kernel;
  int found = 0;
  moi_status status = MOI_OK;
  state->reference = forced && !strcmp(forced, "ref");
  if (state->reference) {
    moi_plan_use(plan, "ref");
    if (plan->plan_flags & MOI_NO_FALLBACK)
      return moi_fail(MOI_UNSUPPORTED, fn, "plan_flags: MOI_NO_FALLBACK refuses the kernel 'ref' that was asked for");
    return moi_plan_say(plan, "kernel ref: plain C, double accumulation, one thread\n");
  }
  if (plan->op == MOI_OP_PACK) return moi_plan_say(plan, "pack: plain C\n");
  if (plan->op == MOI_OP_ATTENTION) return choose_attention(fn, plan, &state->attention, &found);
  if (plan->op == MOI_OP_GEMM)
    return moi_cpu_choose(fn, plan, MOI_OP_GEMM, "gemm", plan->gemm.format,
                          holds_of(plan->gemm.input_type, plan->gemm.act_quant), forced, &found,
                          &state->gemm.gate);
  if (plan->has_experts)
    status = choose_ffn(fn, plan, &plan->experts, "experts", forced ? forced : plan->experts.kernel, &found,
                        &state->ffn[0]);
  if (!status && plan->has_shared)
    status = choose_ffn(fn, plan, &plan->shared, "shared", forced ? forced : plan->shared.kernel, &found,
                        &state->ffn[1]);
  if (!status && plan->has_route)
    status = choose_route(fn, plan, forced ? forced : plan->route.kernel, &found, state);
  return status;
}

/* A forced name must exist and fit somewhere in its desc, or the caller would measure another kernel than the one named. */
static moi_status check_forced(const char *fn, const moi_plan *plan, const moi_cpu_plan *state) {
  if (state->reference) return MOI_OK;
  const moi_pick *picks[] = {&state->gemm.gate,   &state->ffn[0].gate, &state->ffn[0].down,
                             &state->ffn[1].gate, &state->ffn[1].down, &state->route.router,
                             &state->attention.pick};
  const struct {
    const char *name;
    size_t first, end; /* of the picks that the name may serve */
    int selects;
  } asked[] = {{plan->kernel, 0, 7, 1},
               {plan->kernel ? NULL : plan->experts.kernel, 1, 3, 0},
               {plan->kernel ? NULL : plan->shared.kernel, 3, 5, 0},
               {plan->kernel ? NULL : plan->route.kernel, 5, 6, 1}};
  for (size_t a = 0; a < sizeof asked / sizeof asked[0]; a++) {
    const char *name = asked[a].name;
    if (!name) continue;
    const moi_cpu_kernel *select = asked[a].selects ? state->route.select : NULL;
    int served = select && !strcmp(select->name, name);
    for (size_t i = asked[a].first; i < asked[a].end; i++)
      served |= picks[i]->many && !strcmp(picks[i]->many->name, name);
    if (!served) return moi_fail(MOI_UNSUPPORTED, fn, "kernel: '%s' is no CPU kernel for these formats", name);
  }
  return MOI_OK;
}

/* ---- plans and runs */

static void count(const moi_plan *plan, moi_carve *carve) {
  const moi_cpu_plan *state = plan->state;
  size_t slots = plan->has_experts ? (size_t)plan->experts.max_tokens * plan->experts.top_k
                                   : (size_t)plan->route.max_tokens * plan->route.top_k;
  if (plan->op == MOI_OP_PACK) return;
  if (plan->op == MOI_OP_ATTENTION) {
    (state->reference ? moi_ref_attention_count : moi_cpu_attention_count)(plan, carve);
    return;
  }
  if (plan->op == MOI_OP_GEMM) {
    (state->reference ? moi_ref_gemm_count : moi_cpu_gemm_count)(plan, carve);
    return;
  }
  if (plan->has_route) {
    moi_take(carve, slots, 4); /* ids and weights where the engine wants none */
    moi_take(carve, slots, 4);
    moi_carve route = *carve;
    (state->reference ? moi_ref_route_count : moi_cpu_route_count)(plan, &route);
    moi_carve ffn = *carve; /* the two phases use the same memory one after the other */
    if (plan->has_experts) (state->reference ? moi_ref_ffn_count : moi_cpu_ffn_count)(plan, &ffn);
    carve->used = moi_max_size(route.used, ffn.used);
    carve->overflow |= route.overflow | ffn.overflow;
    return;
  }
  (state->reference ? moi_ref_ffn_count : moi_cpu_ffn_count)(plan, carve);
}

static moi_status plan_cpu(const char *fn, moi_plan *plan) {
  moi_cpu_plan *state = moi_allocate(plan->context, sizeof *state);
  if (!state) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *state);
  memset(state, 0, sizeof *state);
  moi_status status = choose(fn, plan, state);
  if (!status) status = check_forced(fn, plan, state);
  if (!status && !state->reference) name_kernels(plan, state);
  if (!status) {
    plan->state = state;
    moi_carve carve = {NULL, 0, 0};
    count(plan, &carve);
    if (carve.overflow) status = moi_fail(MOI_INVALID_ARGUMENT, fn, "max_tokens: the workspace exceeds this machine's "
                                                                    "address space");
    plan->workspace = carve.used;
    plan->workspace_align = MOI_WORKSPACE_ALIGN;
  }
  if (!status)
    status = moi_plan_say(plan, "workspace %zu bytes, %u workers\n", plan->workspace, plan->context->desc.n_workers);
  if (status) {
    moi_release(plan->context, state, sizeof *state);
    plan->state = NULL;
  }
  return status;
}

static void unplan_cpu(moi_plan *plan) { moi_release(plan->context, plan->state, sizeof(moi_cpu_plan)); }

static moi_status run_cpu(const char *fn, const moi_plan *plan, const moi_run *run) {
  const moi_cpu_plan *state = plan->state;
  if (run->queue.native) return moi_fail(MOI_INVALID_ARGUMENT, fn, "queue.native: must be null on the CPU");
  moi_carve carve = {moi_view(run->workspace), 0, 0};
  if (plan->op == MOI_OP_PACK) {
    moi_cpu_pack(plan, run);
    return MOI_OK;
  }
  if (plan->op == MOI_OP_ATTENTION) {
    if (run->attention_task == MOI_KV_APPEND) moi_cpu_kv_append(plan, run);
    else if (run->attention_task == MOI_ATTENTION_MERGE) moi_cpu_merge(plan, run);
    else (state->reference ? moi_ref_attention : moi_cpu_attention)(plan, run, &carve);
    return MOI_OK;
  }
  if (plan->op == MOI_OP_GEMM)
    return (state->reference ? moi_ref_gemm : moi_cpu_gemm)(fn, plan, run, &carve);
  const int32_t *ids = moi_view(run->experts.args.ids);
  const float *weights = moi_view(run->experts.args.weights);
  uint32_t n_tokens = moi_tokens_of(run->n_tokens, plan->has_experts ? run->experts.args.n_tokens_device
                                                                      : run->route.n_tokens_device);
  if (plan->has_route) {
    size_t slots = plan->has_experts ? (size_t)plan->experts.max_tokens * plan->experts.top_k
                                     : (size_t)plan->route.max_tokens * plan->route.top_k;
    int32_t *own_ids = moi_take(&carve, slots, 4);
    float *own_weights = moi_take(&carve, slots, 4);
    if (run->route.ids.ptr) own_ids = moi_view(run->route.ids);
    if (run->route.weights.ptr) own_weights = moi_view(run->route.weights);
    moi_carve route = carve;
    if (state->reference) moi_ref_route(plan, run, &route, own_ids, own_weights, n_tokens);
    else moi_cpu_route(plan, run, &route, own_ids, own_weights, n_tokens);
    if (!plan->has_experts) return MOI_OK;
    ids = own_ids;
    weights = own_weights;
  }
  return (state->reference ? moi_ref_ffn : moi_cpu_ffn)(fn, plan, run, &carve, ids, weights, n_tokens);
}

const moi_backend_ops moi_cpu_ops = {
    .name = "cpu",
    .device_count = device_count,
    .device_get = device_get,
    .kernel_get = kernel_get,
    .pack_preferred = pack_preferred,
    .open = open_cpu,
    .close = close_cpu,
    .plan = plan_cpu,
    .unplan = unplan_cpu,
    .run = run_cpu,
};
