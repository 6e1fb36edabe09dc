/* The Vulkan backend's face to core: devices, kernel list, plans, runs. */
#include <stdio.h>

#include "core/format.h"
#include "vulkan/pipelines.h"

static const char *needs_text(moi_vk_needs needs) {
  return needs == MOI_VK_CPU ? "software device" : needs == MOI_VK_GPU ? "gpu" : "";
}

static moi_status kernel_get(uint32_t index, moi_kernel_info *info) {
  if (index >= moi_vk_kernel_count)
    return moi_fail(MOI_INVALID_ARGUMENT, "moi_kernel_get", "index: %u, there are %u kernels", index, moi_vk_kernel_count);
  const moi_vk_kernel *row = &moi_vk_kernels[index];
  info->name = row->name;
  info->op = row->op;
  info->format = row->format;
  info->needs = needs_text(row->needs);
  info->plan_flags = row->flags & (MOI_DETERMINISTIC | MOI_BATCH_INVARIANT);
  if (!(row->flags & MOI_VK_FALLBACK)) info->plan_flags |= MOI_NO_FALLBACK;
  info->runs_here = 1; /* what a row is chosen for is not what it needs: all run wherever the backend does */
  return MOI_OK;
}

static moi_format pack_preferred(moi_format format) {
  switch (format) {
    case MOI_FORMAT_BF16_KN: return MOI_FORMAT_BF16;
    case MOI_FORMAT_AWQ_G32: return MOI_FORMAT_INT4Z_G32;
    case MOI_FORMAT_AWQ_G128: return MOI_FORMAT_INT4Z_G128;
    default: return format;
  }
}

/* ---- choice */

/* NULL if the row may be chosen, else why not. forced: it is asked for by name, so that its kind of device is no matter. */
static const char *refusal(const moi_vk_kernel *row, const moi_plan *plan, int forced) {
  const moi_vulkan *v = plan->context->state;
  if (!moi_vk_shader_exists(row->shader)) return "a shader that this build has not";
  if (row->flags & MOI_VK_WHOLE && !v->traits.exact) return "subgroups of a certain size (subgroupSizeControl)";
  if (!forced && row->needs == MOI_VK_CPU && !v->traits.is_cpu) return "a software device";
  if (!forced && row->needs == MOI_VK_GPU && v->traits.is_cpu) return "a GPU";
  if ((plan->plan_flags & MOI_NO_FALLBACK) && row->flags & MOI_VK_FALLBACK) return "no MOI_NO_FALLBACK";
  if ((plan->plan_flags & MOI_DETERMINISTIC) && !(row->flags & MOI_DETERMINISTIC)) return "no MOI_DETERMINISTIC";
  if ((plan->plan_flags & MOI_BATCH_INVARIANT) && !(row->flags & MOI_BATCH_INVARIANT)) return "no MOI_BATCH_INVARIANT";
  return NULL;
}

static int serves(const moi_vk_kernel *row, moi_op op, moi_format format) {
  return row->op == op && (row->format == format || row->format == MOI_FORMAT_NONE);
}

moi_status moi_vk_choose(const char *fn, moi_plan *plan, moi_op op, const char *what, moi_format format,
                         const char *forced, int *found, moi_vk_pick *pick) {
  const char *format_name = moi_format_name(format);
  if (!format_name) format_name = "any router";
  pick->few = pick->many = NULL;
  for (uint32_t i = 0; forced && i < moi_vk_kernel_count; i++) {
    const moi_vk_kernel *row = &moi_vk_kernels[i];
    if (!serves(row, op, format) || strcmp(row->name, forced)) continue;
    const char *why = refusal(row, plan, 1);
    if (why) return moi_fail(MOI_UNSUPPORTED, fn, "kernel: %s for %s needs %s", forced, what, why);
    pick->few = pick->many = row;
    *found = 1;
    return moi_plan_say(plan, "%s (%s): %s, as asked for\n", what, format_name, row->name);
  }
  char refused[384] = "";
  size_t at = 0;
  for (uint32_t i = 0; i < moi_vk_kernel_count && !pick->many; i++) {
    const moi_vk_kernel *row = &moi_vk_kernels[i];
    if (!serves(row, op, format)) continue;
    const char *why = refusal(row, plan, 0);
    if (why) {
      if (at < sizeof refused)
        at += (size_t)snprintf(refused + at, sizeof refused - at, "  refused %s: needs %s\n", row->name, why);
    } else if (!row->m_max) {
      pick->many = row;
    } else if (!pick->few && !(plan->plan_flags & MOI_BATCH_INVARIANT)) {
      pick->few = row; /* a batch-invariant plan must not change rows with the number of tokens */
    }
  }
  if (!pick->many)
    return moi_fail(MOI_UNSUPPORTED, fn, "format: no Vulkan kernel for %s (%s) meets plan_flags\n%s", what, format_name,
                    refused);
  if (!pick->few) pick->few = pick->many;
  moi_status status =
      pick->few == pick->many
          ? moi_plan_say(plan, "%s (%s): %s\n", what, format_name, pick->many->name)
          : moi_plan_say(plan, "%s (%s): %s for up to %u rows of %s, %s for more\n", what, format_name, pick->few->name,
                         pick->few->m_max, op == MOI_OP_ATTENTION ? "a KV head" : "an expert", pick->many->name);
  if (!status && refused[0]) status = moi_plan_say(plan, "%s", refused);
  if (!status && pick->many->flags & MOI_VK_FALLBACK)
    moi_log_line(plan->context, MOI_LOG_WARNING, "%s: %s (%s) falls back to the kernel '%s'", fn, what, format_name,
                 pick->many->name);
  return status;
}

/* The names in moi_plan_kernel: the GEMM's, the routed experts', or for a route plan the selection's. */
static void name_kernels(moi_plan *plan, const moi_vk_plan *state) {
  const moi_vk_pick *picks[] = {&state->gemm.pick, &state->ffn[0].up.pick, &state->ffn[0].down.pick,
                                &state->attention.pick};
  for (size_t i = 0; i < sizeof picks / sizeof picks[0]; i++) {
    if (!picks[i]->many) continue;
    moi_plan_use(plan, picks[i]->few->name);
    moi_plan_use(plan, picks[i]->many->name);
  }
  if (plan->op == MOI_OP_ROUTE && state->route.select) moi_plan_use(plan, state->route.select->name);
}

/* ---- plans and runs */

static void count(const moi_plan *plan, moi_carve *carve) {
  size_t slots = plan->has_experts ? (size_t)plan->experts.max_tokens * plan->experts.top_k
                                   : (size_t)plan->route.max_tokens * plan->route.top_k;
  switch (plan->op) {
    case MOI_OP_ATTENTION: moi_vk_attention_count(plan, carve); return;
    case MOI_OP_GEMM: moi_vk_gemm_count(plan, carve); return;
    default: break;
  }
  if (plan->has_route) {
    moi_take_at(carve, slots, 4); /* ids and weights where the engine wants none */
    moi_take_at(carve, slots, 4);
    moi_vk_route_count(plan, carve);
  }
  if (plan->has_experts) moi_vk_ffn_count(plan, carve);
}

static moi_status plan_op(const char *fn, moi_plan *plan) {
  int found = 0;
  moi_status status = MOI_OK;
  const char *forced = plan->kernel;
  switch (plan->op) {
    case MOI_OP_ATTENTION: status = moi_vk_attention_plan(fn, plan, forced, &found); break;
    case MOI_OP_GEMM: status = moi_vk_gemm_plan(fn, plan, forced, &found); break;
    default:
      if (plan->has_experts) status = moi_vk_ffn_plan(fn, plan, forced, &found);
      if (!status && plan->has_route) {
        int found_route = 0;
        const char *name = forced ? forced : plan->route.kernel;
        status = moi_vk_route_plan(fn, plan, name, &found_route);
        if (!status && !forced && name && !found_route)
          status = moi_fail(MOI_UNSUPPORTED, fn, "kernel: '%s' is no Vulkan kernel for this routing", name);
        found |= found_route;
      }
  }
  if (!status && forced && !found)
    status = moi_fail(MOI_UNSUPPORTED, fn, "kernel: '%s' is no Vulkan kernel for these formats", forced);
  return status;
}

static moi_status plan_vulkan(const char *fn, moi_plan *plan) {
  moi_vk_plan *state = moi_allocate(plan->context, sizeof *state);
  if (!state) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *state);
  memset(state, 0, sizeof *state);
  plan->state = state;
  moi_vk_wants wants = {.n = 0};
  state->wants = &wants;
  moi_status status = plan_op(fn, plan);
  if (!status) status = moi_vk_pipelines_make(fn, plan);
  state->wants = NULL;
  if (!status) {
    name_kernels(plan, state);
    moi_carve carve = {NULL, 0, 0};
    count(plan, &carve);
    if (carve.overflow)
      status = moi_fail(MOI_INVALID_ARGUMENT, fn, "max_tokens: the workspace exceeds this machine's address space");
    plan->workspace = (carve.used + 3) & ~(size_t)3;
    plan->workspace_align = MOI_WORKSPACE_ALIGN;
  }
  if (!status) status = moi_plan_say(plan, "workspace %zu bytes\n", plan->workspace);
  if (status) {
    moi_release(plan->context, state, sizeof *state);
    plan->state = NULL;
  }
  return status;
}

static void unplan_vulkan(moi_plan *plan) { moi_release(plan->context, plan->state, sizeof(moi_vk_plan)); }

static moi_status run_vulkan(const char *fn, const moi_plan *plan, const moi_run *run) {
  if (!run->queue.native)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "queue.native: is null, must be a VkCommandBuffer that is being recorded");
  moi_vk_record r = moi_vk_begin(plan, run);
  moi_carve carve = {NULL, 0, 0};
  if (plan->op == MOI_OP_ATTENTION) {
    moi_vk_attention_record(plan, run, &r, &carve);
    return MOI_OK;
  }
  if (plan->op == MOI_OP_GEMM) {
    moi_vk_bare_gemm_record(plan, run, &r, &carve);
    return MOI_OK;
  }
  uint64_t ids = 0, weights = 0;
  if (plan->has_route) {
    size_t slots = plan->has_experts ? (size_t)plan->experts.max_tokens * plan->experts.top_k
                                     : (size_t)plan->route.max_tokens * plan->route.top_k;
    size_t at_ids = moi_take_at(&carve, slots, 4), at_weights = moi_take_at(&carve, slots, 4);
    ids = run->route.ids.handle ? moi_vk_address(&r, run->route.ids) : r.workspace_address + at_ids;
    weights = run->route.weights.handle ? moi_vk_address(&r, run->route.weights) : r.workspace_address + at_weights;
    moi_vk_route_record(plan, run, &r, &carve, ids, weights);
    if (plan->has_experts) moi_vk_barrier(&r);
  } else {
    ids = moi_vk_address(&r, run->experts.args.ids);
    weights = moi_vk_address(&r, run->experts.args.weights);
  }
  if (plan->has_experts) moi_vk_ffn_record(plan, run, &r, &carve, ids, weights);
  return MOI_OK;
}

const moi_backend_ops moi_vulkan_ops = {
    .name = "vulkan",
    .by_handle = 1,
    .device_count = moi_vk_device_count,
    .device_get = moi_vk_device_get,
    .kernel_get = kernel_get,
    .pack_preferred = pack_preferred,
    .open = moi_vk_open,
    .close = moi_vk_close,
    .plan = plan_vulkan,
    .unplan = unplan_vulkan,
    .run = run_vulkan,
};
