/* The CUDA backend's face to core: devices, kernel list, plans, runs. */
#include "core/choose.h"
#include "cuda/cublas.h"

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
  if (!(row->flags & MOI_ROW_FALLBACK)) info->plan_flags |= MOI_NO_FALLBACK;
  uint32_t here = capability_here();
  info->runs_here = (row->flags & MOI_CU_ROW_MX ? here == row->needs : here >= row->needs) &&
                    (!(row->flags & MOI_CU_ROW_CUBLAS) || !moi_cublas_missing());
  return MOI_OK;
}

/* Rows along k are what `stream` reads. */
static moi_format pack_preferred(moi_format format) {
  switch (format) {
    case MOI_FORMAT_BF16_KN: return MOI_FORMAT_BF16;
    case MOI_FORMAT_GPTQ_G32:
    case MOI_FORMAT_AWQ_G32: return MOI_FORMAT_INT4Z_G32;
    case MOI_FORMAT_GPTQ_G128:
    case MOI_FORMAT_AWQ_G128: return MOI_FORMAT_INT4Z_G128;
    default: return format;
  }
}

/* ---- choice */

static moi_row row_of(uint32_t i) {
  const moi_cu_kernel *r = &moi_cu_kernels[i];
  return (moi_row){r->name, r->op, r->format, r->m_max, r->flags};
}

/* The same for products whose rows are floats and nothing else. */
static moi_row row_of_floats(uint32_t i) {
  moi_row row = row_of(i);
  if (moi_cu_kernels[i].form != MOI_CU_FLOATS) row.op = (moi_op)0;
  return row;
}

/* Whether int8 products, or the fp32 instructions beside them, take less time than 16-bit ones, in cycles for 16 x 8 x 32:
 * four sums of a thread become floats and are added up in 4 instructions each with two digits, 3 with one, once for each
 * group of a scale, and a minimum takes one more. docs/cuda.md has the table. */
static int int8_pays(const moi_cu_traits *t, moi_format format, const moi_cu_activations *x) {
  uint32_t digits = moi_cu_digits_of(MOI_CU_INT8, x), floats = digits == 1 ? 12 : 16;
  switch (format) {
    case MOI_FORMAT_Q6_K:
    case MOI_FORMAT_NVFP4:
    case MOI_FORMAT_FP4_G16: floats *= 2; break;
    case MOI_FORMAT_Q4_K:
    case MOI_FORMAT_Q5_K:
    case MOI_FORMAT_INT4Z_G32:
    case MOI_FORMAT_INT4Z_G128: floats += 4; break;
    default: break;
  }
  uint32_t products = digits * t->cycles_8, beside = floats * t->cycles_f32;
  uint32_t digits_16 = moi_cu_digits_of(t->sm >= 80 ? MOI_CU_DIGITS : MOI_CU_DIGITS_F16, x);
  return (products > beside ? products : beside) < digits_16 * t->cycles_16;
}

/* A call of cuBLAS's has its numbers of rows from the host. */
static const char *cublas_refusal(const moi_plan *plan, const moi_cu_activations *x, int asked) {
  if (!asked) return "to be asked for by name";
  if (x && (plan->op != MOI_OP_GEMM || plan->gemm.n_experts != 1))
    return "a bare GEMM of one expert: how many rows others have is known on the device alone";
  if (x && plan->gemm.flags & MOI_EXPERTS_TABLES) return "weights whose address the host has, no table of them";
  return moi_cublas_missing();
}

static const char *needs(const moi_plan *plan, uint32_t i, int asked, const void *user) {
  const moi_cuda *c = plan->context->state;
  const moi_cu_kernel *row = &moi_cu_kernels[i];
  const moi_cu_activations *x = user;
  if (row->image && !moi_cu_image_exists(row->image)) return "a kernel that this build has not";
  if (row->needs > c->traits.sm || (row->flags & MOI_CU_ROW_MX && row->needs != c->traits.sm)) return needs_text(row->needs);
  if (row->flags & MOI_CU_ROW_MX && x->act_quant != MOI_ACT_QUANT_FP8_128_POW2)
    return "an act_quant of FP8 whose scales are powers of two";
  if (row->form == MOI_CU_E4M3 && x->act_quant != MOI_ACT_QUANT_FP8_128 && x->act_quant != MOI_ACT_QUANT_FP8_128_POW2)
    return "an act_quant of FP8";
  if (row->form == MOI_CU_INT8 && !asked && !int8_pays(&c->traits, row->format, x))
    return "a card whose int8 products are faster than 16-bit ones";
  if (row->flags & MOI_CU_ROW_CUBLAS) return cublas_refusal(plan, x, asked);
  return row->op == MOI_OP_ATTENTION ? moi_cu_attention_refusal(row, plan) : NULL;
}

moi_status moi_cu_choose_of(const char *fn, moi_plan *plan, moi_op op, const char *what, moi_format format,
                            const moi_cu_activations *x, const char *forced, int *found, moi_cu_pick *pick) {
  moi_choice choice = {"CUDA", what, op, format, forced, moi_cu_kernel_count, x ? row_of : row_of_floats, needs, x};
  uint32_t few, many;
  moi_status status = moi_choose(fn, plan, &choice, found, &few, &many);
  if (status) return status;
  pick->few = &moi_cu_kernels[few];
  pick->many = &moi_cu_kernels[many];
  return MOI_OK;
}

moi_status moi_cu_choose(const char *fn, moi_plan *plan, moi_op op, const char *what, moi_format format,
                         const char *forced, int *found, moi_cu_pick *pick) {
  return moi_cu_choose_of(fn, plan, op, what, format, NULL, forced, found, pick);
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
    case MOI_OP_PACK: return;
    default: break;
  }
  if (plan->has_route) {
    moi_take(carve, slots_of(plan), 4); /* ids and weights where the engine wants none */
    moi_take(carve, slots_of(plan), 4);
  }
  if (plan->has_experts) moi_cu_ffn_count(plan, carve);
  if (plan->has_route) moi_cu_route_count(plan, carve);
}

static moi_status plan_op(const char *fn, moi_plan *plan) {
  int found = 0;
  moi_status status = MOI_OK;
  const char *forced = plan->kernel;
  switch (plan->op) {
    case MOI_OP_ATTENTION: status = moi_cu_attention_plan(fn, plan, forced, &found); break;
    case MOI_OP_GEMM: status = moi_cu_gemm_plan(fn, plan, forced, &found); break;
    case MOI_OP_PACK: return moi_cu_pack_plan(fn, plan);
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
  if (plan->op == MOI_OP_PACK) {
    moi_cu_pack_run(plan, run, r);
    return;
  }
  int32_t *ids = moi_view(run->experts.args.ids);
  float *weights = moi_view(run->experts.args.weights);
  if (plan->has_route) {
    int32_t *own_ids = moi_take(carve, slots_of(plan), 4);
    float *own_weights = moi_take(carve, slots_of(plan), 4);
    ids = run->route.ids.ptr ? moi_view(run->route.ids) : own_ids;
    weights = run->route.weights.ptr ? moi_view(run->route.weights) : own_weights;
  }
  if (plan->has_experts) moi_cu_ffn_run(plan, run, r, carve, ids, weights);
  else moi_cu_route_run(plan, run, r, carve, ids, weights, NULL);
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
