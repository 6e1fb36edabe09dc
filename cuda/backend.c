/* The CUDA backend's face to core: devices, kernel list, plans, runs. */
#include <stdio.h>

#include "core/format.h"
#include "cuda/cuda.h"

static const char *needs_text(uint32_t needs) {
  static const struct {
    uint32_t sm;
    const char *text;
  } names[] = {{75, "sm_75"}, {80, "sm_80"}, {86, "sm_86"}, {89, "sm_89"}, {90, "sm_90"}, {100, "sm_100"}, {120, "sm_120"}};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (names[i].sm == needs) return names[i].text;
  return "";
}

/* The best device that is here, for moi_kernel_get; 0: none. */
static uint32_t capability_here(void) {
  const moi_cu_driver *cu;
  int n, major, minor, best = 0;
  moi_cu_device device;
  if (moi_cu_load("moi_kernel_get", &cu) || cu->DeviceGetCount(&n)) return 0;
  for (int i = 0; i < n; i++) {
    if (cu->DeviceGet(&device, i) || cu->DeviceGetAttribute(&major, MOI_CU_MAJOR, device) ||
        cu->DeviceGetAttribute(&minor, MOI_CU_MINOR, device))
      continue;
    if (major * 10 + minor > best) best = major * 10 + minor;
  }
  return (uint32_t)best;
}

static moi_status kernel_get(uint32_t index, moi_kernel_info *info) {
  if (index >= moi_cu_kernel_count)
    return moi_fail(MOI_INVALID_ARGUMENT, "moi_kernel_get", "index: %u, there are %u kernels", index, moi_cu_kernel_count);
  const moi_cu_kernel *row = &moi_cu_kernels[index];
  info->name = row->name;
  info->op = row->op;
  info->format = row->format;
  info->needs = needs_text(row->needs);
  info->plan_flags = row->flags & (MOI_DETERMINISTIC | MOI_BATCH_INVARIANT);
  if (!(row->flags & MOI_CU_FALLBACK)) info->plan_flags |= MOI_NO_FALLBACK;
  info->runs_here = capability_here() >= row->needs;
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

/* NULL if the row may be chosen, else why not. */
static const char *refusal(const moi_cu_kernel *row, const moi_plan *plan) {
  const moi_cuda *c = plan->context->state;
  if (!moi_cu_image_exists(row->image)) return "a kernel that this build has not";
  if (row->needs > c->traits.sm) return needs_text(row->needs);
  if ((plan->plan_flags & MOI_NO_FALLBACK) && row->flags & MOI_CU_FALLBACK) return "no MOI_NO_FALLBACK";
  if ((plan->plan_flags & MOI_DETERMINISTIC) && !(row->flags & MOI_DETERMINISTIC)) return "no MOI_DETERMINISTIC";
  if ((plan->plan_flags & MOI_BATCH_INVARIANT) && !(row->flags & MOI_BATCH_INVARIANT)) return "no MOI_BATCH_INVARIANT";
  return NULL;
}

static int serves(const moi_cu_kernel *row, moi_op op, moi_format format, int digits) {
  return row->op == op && (row->format == format || row->format == MOI_FORMAT_NONE) &&
         (digits || row->form == MOI_CU_FLOATS);
}

moi_status moi_cu_choose(const char *fn, moi_plan *plan, moi_op op, const char *what, moi_format format,
                         const char *forced, int *found, moi_cu_pick *pick) {
  return moi_cu_choose_of(fn, plan, op, what, format, 0, forced, found, pick);
}

moi_status moi_cu_choose_of(const char *fn, moi_plan *plan, moi_op op, const char *what, moi_format format, int digits,
                            const char *forced, int *found, moi_cu_pick *pick) {
  const char *format_name = moi_format_name(format);
  if (!format_name) format_name = "any router";
  pick->few = pick->many = NULL;
  for (uint32_t i = 0; forced && i < moi_cu_kernel_count; i++) {
    const moi_cu_kernel *row = &moi_cu_kernels[i];
    if (!serves(row, op, format, digits) || strcmp(row->name, forced)) continue;
    const char *why = refusal(row, plan);
    if (why) return moi_fail(MOI_UNSUPPORTED, fn, "kernel: %s for %s needs %s", forced, what, why);
    pick->few = pick->many = row;
    *found = 1;
    return moi_plan_say(plan, "%s (%s): %s, as asked for\n", what, format_name, row->name);
  }
  char refused[384] = "";
  size_t at = 0;
  for (uint32_t i = 0; i < moi_cu_kernel_count && !pick->many; i++) {
    const moi_cu_kernel *row = &moi_cu_kernels[i];
    if (!serves(row, op, format, digits)) continue;
    const char *why = refusal(row, plan);
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
    return moi_fail(MOI_UNSUPPORTED, fn, "format: no CUDA kernel for %s (%s) meets plan_flags\n%s", what, format_name,
                    refused);
  if (!pick->few) pick->few = pick->many;
  moi_status status =
      pick->few == pick->many
          ? moi_plan_say(plan, "%s (%s): %s\n", what, format_name, pick->many->name)
          : moi_plan_say(plan, "%s (%s): %s for up to %u rows of %s, %s for more\n", what, format_name, pick->few->name,
                         pick->few->m_max, op == MOI_OP_ATTENTION ? "a KV head" : "an expert", pick->many->name);
  if (!status && refused[0]) status = moi_plan_say(plan, "%s", refused);
  if (!status && pick->many->flags & MOI_CU_FALLBACK)
    moi_log_line(plan->context, MOI_LOG_WARNING, "%s: %s (%s) falls back to the kernel '%s'", fn, what, format_name,
                 pick->many->name);
  return status;
}

/* The names in moi_plan_kernel: the GEMM's, the routed experts', or for a route plan the selection's. */
static void name_kernels(moi_plan *plan, const moi_cu_plan *state) {
  const moi_cu_pick *picks[] = {&state->gemm.pick, &state->ffn[0].up.pick, &state->ffn[0].down.pick,
                                &state->attention.pick};
  for (size_t i = 0; i < sizeof picks / sizeof picks[0]; i++) {
    if (!picks[i]->many) continue;
    moi_plan_use(plan, picks[i]->few->name);
    moi_plan_use(plan, picks[i]->many->name);
  }
  if (plan->op == MOI_OP_ROUTE && state->route.select) moi_plan_use(plan, state->route.select->name);
}

/* ---- plans and runs */

static size_t slots_of(const moi_plan *plan) {
  return plan->has_experts ? (size_t)plan->experts.max_tokens * plan->experts.top_k
                           : (size_t)plan->route.max_tokens * plan->route.top_k;
}

static void count(const moi_plan *plan, moi_carve *carve) {
  switch (plan->op) {
    case MOI_OP_ATTENTION: moi_cu_attention_count(plan, carve); return;
    case MOI_OP_GEMM: moi_cu_gemm_count(plan, carve); return;
    default: break;
  }
  if (plan->has_route) {
    moi_take(carve, slots_of(plan), 4); /* ids and weights where the engine wants none */
    moi_take(carve, slots_of(plan), 4);
    moi_cu_route_count(plan, carve);
  }
  if (plan->has_experts) moi_cu_ffn_count(plan, carve);
}

static moi_status plan_op(const char *fn, moi_plan *plan) {
  int found = 0;
  moi_status status = MOI_OK;
  const char *forced = plan->kernel;
  switch (plan->op) {
    case MOI_OP_ATTENTION: status = moi_cu_attention_plan(fn, plan, forced, &found); break;
    case MOI_OP_GEMM: status = moi_cu_gemm_plan(fn, plan, forced, &found); break;
    default:
      if (plan->has_experts) status = moi_cu_ffn_plan(fn, plan, forced, &found);
      if (!status && plan->has_route) {
        int found_route = 0;
        const char *name = forced ? forced : plan->route.kernel;
        status = moi_cu_route_plan(fn, plan, name, &found_route);
        if (!status && !forced && name && !found_route)
          status = moi_fail(MOI_UNSUPPORTED, fn, "kernel: '%s' is no CUDA kernel for this routing", name);
        found |= found_route;
      }
  }
  if (!status && forced && !found)
    status = moi_fail(MOI_UNSUPPORTED, fn, "kernel: '%s' is no CUDA kernel for these formats", forced);
  return status;
}

static moi_status plan_cuda(const char *fn, moi_plan *plan) {
  const moi_cuda *c = plan->context->state;
  moi_cu_plan *state = moi_allocate(plan->context, sizeof *state);
  if (!state) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *state);
  memset(state, 0, sizeof *state);
  plan->state = state;
  moi_status status = moi_cu_enter(fn, c);
  if (!status) {
    status = plan_op(fn, plan);
    moi_cu_leave(c);
  }
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

static void unplan_cuda(moi_plan *plan) { moi_release(plan->context, plan->state, sizeof(moi_cu_plan)); }

static void run_ops(const moi_plan *plan, const moi_run *run, moi_cu_run *r, moi_carve *carve) {
  if (plan->op == MOI_OP_ATTENTION) {
    moi_cu_attention_run(plan, run, r, carve);
    return;
  }
  if (plan->op == MOI_OP_GEMM) {
    moi_cu_bare_gemm_run(plan, run, r, carve);
    return;
  }
  const int32_t *ids = moi_view(run->experts.args.ids);
  const float *weights = moi_view(run->experts.args.weights);
  if (plan->has_route) {
    int32_t *own_ids = moi_take(carve, slots_of(plan), 4);
    float *own_weights = moi_take(carve, slots_of(plan), 4);
    int32_t *to_ids = run->route.ids.ptr ? moi_view(run->route.ids) : own_ids;
    float *to_weights = run->route.weights.ptr ? moi_view(run->route.weights) : own_weights;
    moi_cu_route_run(plan, run, r, carve, to_ids, to_weights);
    ids = to_ids;
    weights = to_weights;
  }
  if (plan->has_experts) moi_cu_ffn_run(plan, run, r, carve, ids, weights);
}

static moi_status run_cuda(const char *fn, const moi_plan *plan, const moi_run *run) {
  const moi_cuda *c = plan->context->state;
  moi_cu_run r = {.c = c, .function = fn, .stream = run->queue.native, .workspace = moi_view(run->workspace)};
  moi_carve carve = {r.workspace, 0, 0};
  moi_status status = moi_cu_enter(fn, c);
  if (status) return status;
  run_ops(plan, run, &r, &carve);
  moi_cu_leave(c);
  return r.status;
}

const moi_backend_ops moi_cuda_ops = {
    .name = "cuda",
    .by_handle = 0,
    .device_count = moi_cu_device_count,
    .device_get = moi_cu_device_get,
    .kernel_get = kernel_get,
    .pack_preferred = pack_preferred,
    .open = moi_cu_open,
    .close = moi_cu_close,
    .plan = plan_cuda,
    .unplan = unplan_cuda,
    .run = run_cuda,
};
