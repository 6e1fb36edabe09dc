/* The Vulkan backend's face to core: devices, kernel list, plans, runs. */
#include "core/choose.h"
#include "core/format.h"
#include "vulkan/pipelines.h"

static const char *needs_text(moi_vk_needs needs) {
  return needs == MOI_VK_CPU   ? "software device"
         : needs == MOI_VK_GPU ? "gpu"
         : needs == MOI_VK_DOT ? "gpu with integer dot products"
                               : "";
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
  if (!(row->flags & MOI_ROW_FALLBACK)) info->plan_flags |= MOI_NO_FALLBACK;
  info->runs_here = 1; /* what a row is chosen for is not what it needs: all but MOI_VK_DOT run wherever the backend does */
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

static moi_row row_of(uint32_t i) {
  const moi_vk_kernel *k = &moi_vk_kernels[i];
  return (moi_row){k->name, k->op, k->format, k->m_max, k->flags};
}

/* A row that is asked for runs on either kind of device. */
static const char *needs(const moi_plan *plan, uint32_t i, int asked, const void *user) {
  const moi_vulkan *v = plan->context->state;
  const moi_vk_kernel *row = &moi_vk_kernels[i];
  (void)user;
  if (!moi_vk_shader_exists(v, row->shader))
    return v->traits.sets ? "buffer device addresses (bufferDeviceAddress)" : "a shader that this build has not";
  if (row->flags & MOI_VK_WHOLE && !v->traits.exact) return "subgroups of a certain size (subgroupSizeControl)";
  if (!asked && row->needs == MOI_VK_CPU && !v->traits.is_cpu) return "a software device";
  if (row->needs == MOI_VK_DOT && !v->traits.dot) return "integer dot products (shaderIntegerDotProduct)";
  if (!asked && row->needs == MOI_VK_DOT && !v->traits.fast_dot) return "integer dot products that are accelerated";
  if (!asked && row->needs >= MOI_VK_GPU && v->traits.is_cpu && !v->traits.sets) return "a GPU";
  return NULL;
}

moi_status moi_vk_choose(const char *fn, moi_plan *plan, moi_op op, const char *what, moi_format format,
                         const char *forced, int *found, moi_vk_pick *pick) {
  moi_choice choice = {"Vulkan", what, op, format, forced, moi_vk_kernel_count, row_of, needs, NULL};
  uint32_t few, many;
  moi_status status = moi_choose(fn, plan, &choice, found, &few, &many);
  if (status) return status;
  pick->few = &moi_vk_kernels[few];
  pick->many = &moi_vk_kernels[many];
  return MOI_OK;
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
    case MOI_OP_PACK: return moi_fail(MOI_UNSUPPORTED, fn, "context: the Vulkan backend packs no weights; moi_pack does on the host");
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

/* Without buffer device addresses: weights that storage buffers cannot be (what a run's views cannot be besides is told
 * there), and those that are named by address. matrices: how many of them a GEMM reads. */
static moi_status check_weights(const char *fn, const moi_vk_traits *t, const char *what, uint32_t flags,
                                moi_format format, uint64_t n, uint64_t k, uint32_t n_experts, uint32_t matrices) {
  moi_format_sizes sizes;
  if (flags & MOI_EXPERTS_TABLES)
    return moi_fail(MOI_UNSUPPORTED, fn,
                    "%s: MOI_EXPERTS_TABLES are device addresses, and bufferDeviceAddress is not enabled on this device",
                    what);
  moi_format_size(format, n, k, &sizes);
  uint64_t whole = (uint64_t)sizes.data * n_experts, per = moi_vk_experts_of_part(t, 0, sizes.data);
  uint64_t parts = whole <= t->max_range ? 1 : per ? (n_experts + per - 1) / per : UINT32_MAX;
  if (parts * matrices > MOI_VK_STREAMS)
    return moi_fail(MOI_UNSUPPORTED, fn,
                    "%s: an expert of %llu bytes, %llu of all; without bufferDeviceAddress weights are whole experts in at "
                    "most %d storage buffers of %llu bytes (maxStorageBufferRange)",
                    what, (unsigned long long)sizes.data, (unsigned long long)whole, (int)MOI_VK_STREAMS / (int)matrices,
                    (unsigned long long)t->max_range);
  return MOI_OK;
}

static moi_status check_sets(const char *fn, const moi_plan *plan) {
  const moi_vk_traits *t = &((const moi_vulkan *)plan->context->state)->traits;
  const moi_gemm_desc *g = &plan->gemm;
  moi_status status = MOI_OK;
  if (!t->sets) return MOI_OK;
  if (plan->op == MOI_OP_GEMM) status = check_weights(fn, t, "gemm", g->flags, g->format, g->n, g->k, g->n_experts, 1);
  for (uint32_t i = 0; plan->has_experts && i < 1 + plan->has_shared; i++) {
    const moi_experts_desc *d = i ? &plan->shared : &plan->experts;
    const char *what = i ? "shared" : "experts";
    uint64_t both = d->gate_layout == MOI_GATE_CONCAT || d->gate_layout == MOI_GATE_INTERLEAVED;
    if (!status)
      status = check_weights(fn, t, what, d->flags, d->format, (uint64_t)d->intermediate << both, d->hidden, d->n_experts,
                             d->gate_layout == MOI_GATE_SPLIT ? 2 : 1);
    if (!status)
      status = check_weights(fn, t, what, d->flags, d->down_format, d->hidden, d->intermediate, d->n_experts, 1);
  }
  if (!status && plan->workspace > t->max_range)
    status = moi_fail(MOI_UNSUPPORTED, fn,
                      "max_tokens: a workspace of %zu bytes; without bufferDeviceAddress it is a storage buffer, of %llu "
                      "bytes at most (maxStorageBufferRange)",
                      plan->workspace, (unsigned long long)t->max_range);
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
  if (!status) status = check_sets(fn, plan);
  if (!status) status = moi_plan_say(plan, "workspace %zu bytes\n", plan->workspace);
  if (status) {
    moi_release(plan->context, state, sizeof *state);
    plan->state = NULL;
  }
  return status;
}

static void unplan_vulkan(moi_plan *plan) { moi_release(plan->context, plan->state, sizeof(moi_vk_plan)); }

/* ids or weights: the engine's view, or place `at` of the workspace. */
static uint64_t slots_address(const moi_vk_record *r, moi_buffer view, size_t at) {
  return view.handle ? moi_vk_address(r, view) : r->workspace_address + at;
}

static void record(const moi_plan *plan, const moi_run *run, moi_vk_slots *slots) {
  moi_vk_record r = moi_vk_begin(plan, run, slots);
  moi_carve carve = {NULL, 0, 0};
  if (plan->op == MOI_OP_ATTENTION) {
    moi_vk_attention_record(plan, run, &r, &carve);
    return;
  }
  if (plan->op == MOI_OP_GEMM) {
    moi_vk_bare_gemm_record(plan, run, &r, &carve);
    return;
  }
  moi_buffer ids = run->experts.args.ids, weights = run->experts.args.weights;
  size_t at_ids = 0, at_weights = 0;
  if (plan->has_route) {
    size_t slots_n = plan->has_experts ? (size_t)plan->experts.max_tokens * plan->experts.top_k
                                       : (size_t)plan->route.max_tokens * plan->route.top_k;
    at_ids = moi_take_at(&carve, slots_n, 4), at_weights = moi_take_at(&carve, slots_n, 4);
    ids = run->route.ids, weights = run->route.weights;
    moi_vk_route_record(plan, run, &r, &carve, slots_address(&r, ids, at_ids), slots_address(&r, weights, at_weights));
    if (!plan->has_experts) return;
    moi_vk_barrier(&r);
    moi_vk_forget(&r);
  }
  moi_vk_ffn_record(plan, run, &r, &carve, slots_address(&r, ids, at_ids), slots_address(&r, weights, at_weights));
}

static moi_status run_vulkan(const char *fn, const moi_plan *plan, const moi_run *run) {
  const moi_vulkan *v = plan->context->state;
  if (!run->queue.native)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "queue.native: is null, must be a VkCommandBuffer that is being recorded");
  if (!v->traits.sets) {
    record(plan, run, NULL);
    return MOI_OK;
  }
  /* nothing is recorded of a run that is refused */
  moi_vk_slots trial = {.trial = 1}, slots = {.trial = 0};
  record(plan, run, &trial);
  if (trial.exhausted) return moi_fail(MOI_INTERNAL, fn, "a run of more than %d views", (int)MOI_VK_COMMON);
  if (trial.too_many)
    return moi_fail(MOI_UNSUPPORTED, fn,
                    "weights: without bufferDeviceAddress those of a GEMM are at most %d storage buffers of %llu bytes "
                    "(maxStorageBufferRange)",
                    (int)MOI_VK_STREAMS, (unsigned long long)v->traits.max_range);
  if (trial.too_large)
    return moi_fail(MOI_UNSUPPORTED, fn,
                    "a view of %llu bytes at offset %llu: without bufferDeviceAddress a view is a storage buffer, of %llu "
                    "bytes at most (maxStorageBufferRange)",
                    (unsigned long long)trial.too_large, (unsigned long long)trial.too_large_at,
                    (unsigned long long)v->traits.max_range);
  record(plan, run, &slots);
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
