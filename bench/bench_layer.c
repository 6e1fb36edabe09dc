#include "bench/bench_layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/checkpoint/layer.h"
#include "bench/dump.h"
#include "bench/rig/case.h"
#include "bench/rig/device.h"
#include "core/backend.h"

enum { MAX_SETS = 16, MAX_VARIANTS = 64, MAX_CHECKED = 4 };
#define COLD_BYTES ((uint64_t)2 << 30)

/* One copy of the layer's weights. */
typedef struct weight_set {
  moi_ffn_weights weights, shared;
  moi_route_args route; /* router and all that belongs to it */
  moi_buffer shared_gate;
} weight_set;

struct moi_bench_layer {
  char name[96], format[48], text[256];
  moi_case proto; /* the descs, as a moe */
  uint32_t n_sets;
  weight_set sets[MAX_SETS];
  moi_arena arena;
  int filled, users;
  moi_checkpoint *checkpoint; /* NULL: random weights */
  moi_layer file;
  /* results of the reference for the first tokens of variant 0, by op */
  moi_arena reference_arena;
  moi_outputs reference[8];
  uint32_t n_checked[8];
};

struct moi_bench_row {
  moi_bench_layer *layer;
  moi_context *context, *reference;
  moi_op op;
  int from_logits;
  uint32_t tokens, n_variants, n_sets;
  moi_plan *plan;
  char kernel[128], serving[64], needs[32];
  moi_arena arena;
  moi_case variants[MAX_VARIANTS];
  double bytes[MAX_VARIANTS], flops[MAX_VARIANTS];
  moi_outputs outputs;
  moi_buffer workspace;
  double error, allowed; /* of the check */
  const char *dump;      /* folder, or NULL */
  int launches;          /* each run is to be launched by itself */
  moi_device *recorded;  /* what runs are recorded on, or NULL */
};

static void *allocate(size_t size) {
  void *p = calloc(1, size);
  if (p) return p;
  fprintf(stderr, "moiety: out of memory: %zu bytes\n", size);
  exit(3);
}

/* ---- layers */

static double gigabytes(uint64_t bytes) { return (double)bytes / 1e9; }

static void describe(moi_bench_layer *l) {
  const moi_experts_desc *d = &l->proto.experts;
  moi_format down = moi_or(d->down_format, d->format);
  if (down == d->format) snprintf(l->format, sizeof l->format, "%s", moi_format_name(d->format));
  else snprintf(l->format, sizeof l->format, "%s+%s", moi_format_name(d->format), moi_format_name(down));
}

moi_bench_layer *moi_bench_layer_of_preset(const moi_preset *preset, moi_format format, uint64_t memory, char *error,
                                           size_t error_size) {
  moi_bench_layer *l = allocate(sizeof *l);
  moi_case_of_preset(preset, MOI_OP_MOE, format, 1, 1, &l->proto);
  moi_experts_desc *d = &l->proto.experts;
  snprintf(l->name, sizeof l->name, "%s", preset->name);
  describe(l);
  uint64_t all = moi_ffn_weights_bytes(d), each = all / d->n_experts;
  uint64_t shared = l->proto.has_shared ? moi_ffn_weights_bytes(&l->proto.shared) : 0;
  if (!each || (l->proto.has_shared && !shared)) {
    snprintf(error, error_size, "%s in %s: %s", preset->name, l->format, moi_last_error());
    free(l);
    return NULL;
  }
  uint32_t groups = l->proto.route.n_group > 1 ? l->proto.route.n_group : 1, before = d->n_experts;
  uint32_t top_groups = groups > 1 ? l->proto.route.topk_group : 1;
  while (each * d->n_experts + shared > memory) {
    if (d->n_experts <= groups || (d->n_experts - groups) / groups * top_groups < d->top_k) {
      snprintf(error, error_size, "%s in %s: top_k experts alone take %.2f GB, %.2f GB may be used", preset->name,
               l->format, gigabytes(each * d->top_k + shared), gigabytes(memory));
      free(l);
      return NULL;
    }
    d->n_experts -= groups;
  }
  l->proto.route.n_experts = d->n_experts;
  uint64_t set = each * d->n_experts + shared;
  l->n_sets = (uint32_t)((COLD_BYTES + set - 1) / set);
  if (l->n_sets > memory / set) l->n_sets = (uint32_t)(memory / set);
  if (l->n_sets > MAX_SETS) l->n_sets = MAX_SETS;
  snprintf(l->text, sizeof l->text, "%s in %s: %u x %.2f GB of random weights, %u of %u experts%s", l->name, l->format,
           l->n_sets, gigabytes(set), d->n_experts, before,
           d->n_experts < before ? " (memory is short: routing goes among these)" : "");
  return l;
}

const char *moi_act_quant_name(moi_act_quant quant) {
  static const char *const names[] = {"none", "fp8_128", "fp8_128_pow2", "int8_32"};
  return (unsigned)quant < sizeof names / sizeof names[0] ? names[quant] : NULL;
}

void moi_bench_layer_quantise(moi_bench_layer *l, moi_act_quant quant) {
  size_t n = strlen(l->format);
  l->proto.experts.act_quant = l->proto.shared.act_quant = quant;
  snprintf(l->format + n, sizeof l->format - n, ":%s", moi_act_quant_name(quant));
}

moi_bench_layer *moi_bench_layer_of_file(const char *path, uint32_t index, char *error, size_t error_size) {
  moi_bench_layer *l = allocate(sizeof *l);
  moi_load_error reason = {""};
  l->checkpoint = moi_checkpoint_open(path, &reason);
  if (!l->checkpoint || !moi_layer_open(l->checkpoint, index, &l->file, &reason)) {
    snprintf(error, error_size, "%s: %s", path, reason.text);
    moi_checkpoint_close(l->checkpoint);
    free(l);
    return NULL;
  }
  const moi_layer *f = &l->file;
  moi_case *p = &l->proto;
  p->op = MOI_OP_MOE;
  p->n_tokens = 1;
  p->seed = 1;
  p->route = f->route;
  p->experts = f->experts;
  p->shared = f->shared;
  p->has_route = 1;
  p->has_shared = f->has_shared;
  p->moe = (moi_moe_desc)MOI_MOE_DESC_INIT;
  p->moe.shared_gate = f->shared_kind;
  p->moe.shared_gate_type = f->shared_gate_type;
  p->moe.output_scale = f->output_scale;
  l->n_sets = 1;
  snprintf(l->name, sizeof l->name, "%s-layer%u", f->architecture, f->index);
  describe(l);
  snprintf(l->text, sizeof l->text, "%s, layer %u: %s, %u experts in %s, %.2f GB%s%s", path, index, f->architecture,
           f->experts.n_experts, l->format, gigabytes(moi_ffn_weights_bytes(&f->experts)), f->note[0] ? "; " : "",
           f->note);
  return l;
}

/* The optional operands of a route that no file brings: ids of tokens. */
static void add_route_extras(moi_bench_layer *l, weight_set *s) {
  moi_route_desc d = l->proto.route;
  moi_route_args made;
  d.max_tokens = 1;
  if (l->checkpoint) d.hidden = 0; /* the router is the file's */
  d.flags &= l->checkpoint ? ~(uint32_t)MOI_ROUTE_INPUT_NORM : ~0u;
  moi_make_route(&l->arena, &d, 1, MOI_LOGITS_RANDOM, 0, (uint64_t)(s - l->sets) + 77, &made);
  if (!l->checkpoint) {
    s->route = made;
    return;
  }
  const moi_layer *f = &l->file;
  s->route = (moi_route_args)MOI_ROUTE_ARGS_INIT;
  s->route.router = f->router;
  s->route.router_bias = f->router_bias;
  s->route.select_bias = f->select_bias;
  s->route.expert_scale = f->expert_scale;
  s->route.norm_weight = f->norm_weight;
  s->route.hash_table = f->hash_table;
}

static void fill(moi_bench_layer *l) {
  if (l->filled) return;
  l->filled = 1;
  l->arena.flags = MOI_ARENA_HUGE;
  fprintf(stderr, "moiety bench: %s\n", l->text);
  for (uint32_t i = 0; i < l->n_sets; i++) {
    weight_set *s = &l->sets[i];
    memset(s, 0, sizeof *s);
    add_route_extras(l, s);
    if (l->checkpoint) {
      s->weights = (moi_ffn_weights){l->file.gate, l->file.up, l->file.down};
      s->shared = (moi_ffn_weights){l->file.shared_gate, l->file.shared_up, l->file.shared_down};
      s->shared_gate = l->file.shared_gate_vector;
      continue;
    }
    moi_make_ffn_weights(&l->arena, &l->proto.experts, 1000 + i, &s->weights);
    if (l->proto.has_shared) moi_make_ffn_weights(&l->arena, &l->proto.shared, 2000 + i, &s->shared);
    if (l->proto.moe.shared_gate == MOI_SHARED_SIGMOID) {
      moi_format type = moi_or(l->proto.moe.shared_gate_type, MOI_FORMAT_F32);
      uint32_t element = moi_element_bytes(type);
      s->shared_gate = moi_arena_view(&l->arena, l->proto.experts.hidden * (size_t)element, element, "shared gate");
      moi_experts_desc one = l->proto.experts; /* a row of activations serves as the vector */
      one.n_experts = one.top_k = 1;
      one.input_type = type;
      one.hidden = l->proto.experts.hidden;
      moi_buffer row = moi_make_output(&l->arena, type, 1, one.hidden, one.hidden, 3000 + i);
      memcpy(s->shared_gate.ptr, row.ptr, s->shared_gate.size);
    }
  }
}

void moi_bench_layer_drop(moi_bench_layer *l) {
  moi_arena_free(&l->arena);
  moi_arena_free(&l->reference_arena);
  memset(l->n_checked, 0, sizeof l->n_checked);
  l->filled = 0;
}

void moi_bench_layer_free(moi_bench_layer *l) {
  if (!l) return;
  moi_bench_layer_drop(l);
  if (l->checkpoint) {
    moi_layer_close(&l->file);
    moi_checkpoint_close(l->checkpoint);
  }
  free(l);
}

const char *moi_bench_layer_text(const moi_bench_layer *l) { return l->text; }
const char *moi_bench_layer_name(const moi_bench_layer *l) { return l->name; }
const char *moi_bench_layer_format(const moi_bench_layer *l) { return l->format; }
uint64_t moi_bench_layer_expert_bytes(const moi_bench_layer *l) {
  return moi_ffn_weights_bytes(&l->proto.experts) / l->proto.experts.n_experts;
}

/* ---- rows */

/* The first "what: NAME[ for up to ..., OTHER for more]" line of the plan. */
static void read_kernels(moi_bench_row *row, moi_backend backend) {
  char text[1024], first[64] = "plan", second[64] = "";
  moi_plan_describe(row->plan, text, sizeof text);
  const char *colon = strstr(text, ": ");
  if (colon) {
    const char *name = colon + 2;
    snprintf(first, sizeof first, "%.*s", (int)strcspn(name, " ,;\n"), name);
    const char *end = strchr(name, '\n'), *many = strstr(name, " for more");
    if (many && (!end || many < end)) {
      const char *start = many;
      while (start > name && start[-1] != ' ') start--;
      snprintf(second, sizeof second, "%.*s", (int)(many - start), start);
    }
  }
  if (!strncmp(text, "kernel ref", 10)) snprintf(first, sizeof first, "ref");
  snprintf(row->kernel, sizeof row->kernel, "%s%s%s", first, second[0] ? "+" : "", second);
  const char *up_to = strstr(text, " for up to ");
  uint64_t few = up_to ? strtoull(up_to + 11, NULL, 10) : 8;
  const moi_experts_desc *d = &row->layer->proto.experts;
  const uint64_t slots = (uint64_t)row->tokens * (row->op == MOI_OP_GEMM ? 1 : d->top_k);
  const int many = second[0] && slots > few * (row->op == MOI_OP_GEMM ? 1 : d->n_experts);
  snprintf(row->serving, sizeof row->serving, "%s", many ? second : first);
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  for (uint32_t i = 0; !moi_kernel_get(backend, i, &info); i++)
    if (!strcmp(info.name, row->serving)) snprintf(row->needs, sizeof row->needs, "%s", info.needs);
}

static uint32_t up_rows(const moi_experts_desc *d) {
  return d->gate_layout == MOI_GATE_SPLIT || d->gate_layout == MOI_GATE_NONE ? d->intermediate : 2 * d->intermediate;
}

/* A bare GEMM is one expert's product of up, with what lies beside it. */
static moi_gemm_desc gemm_of(const moi_experts_desc *d) {
  moi_gemm_desc g = MOI_GEMM_DESC_INIT;
  g.n = up_rows(d), g.k = d->hidden, g.n_experts = 1;
  g.format = d->format, g.bias_type = d->bias_type, g.input_type = d->input_type, g.act_quant = d->act_quant;
  return g;
}

static void set_tokens(moi_case *c, moi_op op, uint32_t tokens) {
  c->op = op;
  c->n_tokens = tokens;
  c->has_route = op == MOI_OP_ROUTE || op == MOI_OP_MOE;
  if (op != MOI_OP_MOE) c->has_shared = 0;
  if (op == MOI_OP_GEMM) c->gemm = gemm_of(&c->experts);
  c->operands.route.n_tokens = c->operands.experts.n_tokens = c->gemm_args.n_rows = tokens;
}

static void take_logits(moi_case *c) {
  c->route.hidden = 0;
  c->route.flags &= ~(uint32_t)MOI_ROUTE_INPUT_NORM;
}

moi_status moi_bench_row_open(moi_bench_layer *layer, moi_op op, int from_logits, uint32_t tokens, moi_context *context,
                              moi_context *reference, const char *kernel, moi_bench_row **out) {
  moi_bench_row *row = allocate(sizeof *row);
  moi_case c = layer->proto;
  if (from_logits) take_logits(&c);
  set_tokens(&c, op, tokens);
  row->layer = layer;
  row->context = context;
  row->reference = reference;
  row->op = op;
  row->from_logits = from_logits;
  row->tokens = tokens;
  moi_status status = moi_case_plan(&c, context, kernel, 0, &row->plan);
  if (status) {
    free(row);
    *out = NULL;
    return status;
  }
  read_kernels(row, context->desc.backend);
  *out = row;
  return MOI_OK;
}

void moi_bench_row_free(moi_bench_row *row) {
  if (!row) return;
  moi_bench_row_release(row);
  moi_plan_destroy(row->plan);
  free(row);
}

const char *moi_bench_row_kernel(const moi_bench_row *row) { return row->kernel; }
const char *moi_bench_row_serving(const moi_bench_row *row) { return row->serving; }
const char *moi_bench_row_needs(const moi_bench_row *row) { return row->needs; }
void moi_bench_row_size(const moi_bench_row *row, uint32_t *n, uint32_t *k) {
  const moi_gemm_desc g = gemm_of(&row->layer->proto.experts);
  *n = g.n, *k = g.k;
}

static double matrix_bytes(const moi_bench_row *row) { return (double)moi_bench_layer_expert_bytes(row->layer); }

static double ffn_flops(const moi_experts_desc *d) {
  return 2.0 * d->hidden * d->intermediate * (d->gate_layout == MOI_GATE_NONE ? 2 : 3);
}

/* Bytes and operations of a variant, from the ids that it routes to. */
static void account(moi_bench_row *row, uint32_t v, const int32_t *ids) {
  const moi_case *c = &row->variants[v];
  const moi_route_desc *r = &c->route;
  double t = row->tokens, bytes = 0, flops = 0;
  uint32_t n = c->experts.n_experts, k = c->experts.top_k;
  if (row->op == MOI_OP_GEMM) {
    const moi_gemm_desc *g = &c->gemm;
    const moi_weights *w = &c->gemm_weights;
    row->bytes[v] = (double)(w->data.size + w->scales.size + w->zeros.size) +
                    t * ((double)g->k + g->n) * moi_element_bytes(moi_or(g->input_type, MOI_FORMAT_F32));
    row->flops[v] = 2 * t * g->n * g->k;
    return;
  }
  if (row->op != MOI_OP_ROUTE) {
    uint8_t *used = allocate(n);
    for (size_t s = 0; s < (size_t)row->tokens * k; s++) {
      if (ids[s] < 0 || (uint32_t)ids[s] >= n) continue;
      if (!used[ids[s]]) bytes += matrix_bytes(row);
      used[ids[s]] = 1;
      flops += ffn_flops(&c->experts);
    }
    free(used);
    bytes += t * c->experts.hidden *
             (moi_element_bytes(c->experts.input_type) +
              moi_element_bytes(moi_or(c->experts.output_type, c->experts.input_type)));
  }
  if (row->op != MOI_OP_EXPERTS) {
    double classes = r->n_experts + r->n_identity;
    bytes += (double)r->hidden * classes * moi_element_bytes(r->router_type);
    double row_in = (r->hidden ? r->hidden : classes) * moi_element_bytes(moi_or(r->input_type, MOI_FORMAT_F32));
    bytes += row->op == MOI_OP_ROUTE ? t * (row_in + 8.0 * r->top_k) : 0;
    flops += 2.0 * t * r->hidden * classes;
  }
  if (c->has_shared) {
    bytes += (double)moi_ffn_weights_bytes(&c->shared);
    flops += t * ffn_flops(&c->shared);
  }
  row->bytes[v] = bytes;
  row->flops[v] = flops;
}

/* Expert e's part of a stream. stride 0: `size`. */
static moi_buffer part_of(moi_buffer all, uint64_t stride, uint64_t size, uint32_t e) {
  if (!all.ptr) return all;
  all.offset += e * (stride ? stride : size);
  all.size = size;
  return all;
}

/* The operands of a bare GEMM, of those of the experts. */
static void make_gemm(moi_bench_row *row, moi_case *c, uint32_t e) {
  const moi_gemm_desc *g = &c->gemm;
  const moi_weights *all = c->operands.experts.up;
  moi_weights *w = &c->gemm_weights;
  moi_format_sizes sizes = {0, 0, 0};
  moi_format_size(g->format, g->n, g->k, &sizes); /* the plan has checked it */
  *w = (moi_weights)MOI_WEIGHTS_INIT;
  w->data = part_of(all->data, all->data_stride, sizes.data, e);
  w->scales = part_of(all->scales, all->scales_stride, sizes.scales, e);
  w->zeros = part_of(all->zeros, all->zeros_stride, sizes.zeros, e);
  w->global_scale = part_of(all->global_scale, 4, 4, e);
  w->bias = part_of(all->bias, all->bias_stride, (uint64_t)g->n * moi_element_bytes(moi_or(g->bias_type, MOI_FORMAT_F32)), e);
  c->gemm_args = (moi_gemm_args)MOI_GEMM_ARGS_INIT;
  c->gemm_args.n_rows = row->tokens;
  c->gemm_args.input = c->operands.experts.input;
  c->gemm_args.offsets = moi_arena_view(&row->arena, 8, 4, "offsets");
  ((int32_t *)c->gemm_args.offsets.ptr)[0] = 0;
  ((int32_t *)c->gemm_args.offsets.ptr)[1] = (int32_t)row->tokens;
  c->gemm_args.weights = w;
}

static void make_variant(moi_bench_row *row, uint32_t v) {
  moi_bench_layer *l = row->layer;
  weight_set *s = &l->sets[v % row->n_sets];
  moi_case *c = &row->variants[v];
  *c = l->proto;
  if (row->from_logits) take_logits(c);
  moi_moe_operands *o = &c->operands;
  moi_make_experts(&row->arena, &c->experts, row->tokens, MOI_TRAFFIC_RANDOM, 0, 10 + v, &s->weights, &o->experts);
  o->route = s->route;
  if (c->route.hidden == c->experts.hidden &&
      moi_or(c->route.input_type, MOI_FORMAT_F32) == moi_or(c->experts.input_type, MOI_FORMAT_F32)) {
    o->route.hidden = o->experts.input;
  } else {
    moi_experts_desc wide = c->experts; /* another vector, as wide as the router */
    wide.hidden = c->route.hidden ? c->route.hidden : c->route.n_experts + c->route.n_identity;
    wide.input_type = c->route.input_type;
    moi_experts_args other;
    moi_make_experts(&row->arena, &wide, row->tokens, MOI_TRAFFIC_RANDOM, 0, 500 + v, &s->weights, &other);
    if (c->route.hidden) o->route.hidden = other.input;
    else o->route.logits = other.input;
  }
  if (c->route.flags & MOI_ROUTE_HASH) {
    o->route.token_ids = moi_arena_view(&row->arena, (size_t)row->tokens * 4, 4, "token ids");
    for (uint32_t t = 0; t < row->tokens; t++)
      ((int32_t *)o->route.token_ids.ptr)[t] = (int32_t)((t * 7919u + v * 104729u) % c->route.vocab);
  }
  o->shared = (moi_experts_args)MOI_EXPERTS_ARGS_INIT;
  o->shared.gate = c->shared.gate_layout == MOI_GATE_SPLIT ? &s->shared.gate : NULL;
  o->shared.up = &s->shared.up;
  o->shared.down = &s->shared.down;
  o->args = (moi_moe_args)MOI_MOE_ARGS_INIT;
  set_tokens(c, row->op, row->tokens);
  if (row->op == MOI_OP_GEMM) make_gemm(row, c, v / row->n_sets % c->experts.n_experts);
  if (c->has_route) o->args.route = &o->route;
  o->args.experts = &o->experts;
  if (c->has_shared) o->args.shared = &o->shared;
  o->args.shared_gate = s->shared_gate;
}

/* Rows of one kind have the same results; ops count from 1. */
static int kind_of(const moi_bench_row *row) { return row->from_logits ? 0 : (int)row->op; }

/* The reference on the first tokens of variant 0, once for each kind of a layer's rows. */
static int make_reference(moi_bench_row *row, char *error, size_t error_size) {
  moi_bench_layer *l = row->layer;
  uint32_t want = MAX_CHECKED;
  double active = ffn_flops(&l->proto.experts) / 2 * l->proto.experts.top_k;
  while (want > 1 && row->op != MOI_OP_ROUTE && active * want > 2e8) want--; /* the reference is slow */
  if (want > row->tokens) want = row->tokens;
  if (l->n_checked[kind_of(row)] >= want) return 0;
  moi_case c = row->variants[0];
  set_tokens(&c, row->op, want);
  if (c.operands.args.route) c.operands.args.route = &c.operands.route;
  moi_outputs out = moi_case_outputs(&c, &l->reference_arena);
  out.route.n_tokens = want;
  moi_plan *plan = NULL;
  moi_status status = moi_case_plan(&c, row->reference, "ref", 0, &plan);
  if (!status) {
    moi_arena arena = {0};
    size_t align, size = moi_plan_workspace(plan, &align);
    status = moi_case_run(&c, plan, &out, moi_arena_view(&arena, size, align ? align : 1, "workspace"));
    moi_arena_free(&arena);
  }
  moi_plan_destroy(plan);
  if (status) {
    snprintf(error, error_size, "the reference refuses: %s", moi_last_error());
    return 1;
  }
  l->reference[kind_of(row)] = out;
  l->n_checked[kind_of(row)] = want;
  return 0;
}

/* What variant 0 is made of and what came of it. */
static int write_operands(const moi_bench_row *row, const moi_outputs *out, char *error, size_t error_size) {
  const moi_case *c = &row->variants[0];
  const moi_experts_desc *d = &c->experts;
  const moi_route_desc *r = &c->route;
  const moi_moe_operands *o = &c->operands;
  const uint32_t t = row->tokens, k = d->top_k, h = d->hidden, i = d->intermediate, e = d->n_experts;
  const uint32_t classes = r->n_experts + r->n_identity, width = r->hidden ? r->hidden : classes;
  const moi_format input = moi_or(d->input_type, MOI_FORMAT_F32), output = moi_or(d->output_type, input);
  const moi_format routed = moi_or(r->input_type, MOI_FORMAT_F32), down = moi_or(d->down_format, d->format);
  const moi_dump dump = {row->dump, error, error_size};
#define WRITE(name, type, view, ...)                                                                                   \
  if (moi_dump_write(&dump, name, type, view, (const uint32_t[3]){__VA_ARGS__})) return 1
  if (row->op == MOI_OP_GEMM) {
    WRITE("up", d->format, c->gemm_weights.data, c->gemm.n, h);
    WRITE("input", input, c->gemm_args.input, t, h);
    WRITE("output", input, out->output, t, c->gemm.n);
    return 0;
  }
  if (row->op != MOI_OP_ROUTE) {
    if (o->experts.gate) WRITE("gate", d->format, o->experts.gate->data, e, i, h);
    WRITE("up", d->format, o->experts.up->data, e, up_rows(d), h);
    WRITE("down", down, o->experts.down->data, e, h, i);
    WRITE("input", input, o->experts.input, t, h);
    WRITE("output", output, out->output, t, h);
  }
  if (row->op == MOI_OP_EXPERTS) {
    WRITE("ids", MOI_FORMAT_NONE, o->experts.ids, t, k);
    WRITE("weights", MOI_FORMAT_F32, o->experts.weights, t, k);
  } else {
    WRITE("hidden", routed, r->hidden ? o->route.hidden : o->route.logits, t, width);
    WRITE("router", moi_or(r->router_type, MOI_FORMAT_F32), o->route.router, classes, r->hidden);
    WRITE("ids", MOI_FORMAT_NONE, out->route.ids, t, k);
    WRITE("weights", MOI_FORMAT_F32, out->route.weights, t, k);
  }
#undef WRITE
  return 0;
}

static int verify(moi_bench_row *row, char *error, size_t error_size) {
  moi_bench_layer *l = row->layer;
  uint32_t n = l->n_checked[kind_of(row)] < row->tokens ? l->n_checked[kind_of(row)] : row->tokens;
  moi_arena arena = {0};
  moi_outputs out = moi_case_outputs(&row->variants[0], &arena);
  if (moi_case_run(&row->variants[0], row->plan, &out, row->workspace)) {
    snprintf(error, error_size, "%s", moi_last_error());
    moi_arena_free(&arena);
    return 1;
  }
  moi_case c = row->variants[0];
  set_tokens(&c, row->op, n);
  c.moe.route = c.has_route ? &c.route : NULL;
  c.moe.experts = &c.experts;
  c.moe.shared = c.has_shared ? &c.shared : NULL;
  /* these cover more tokens than were checked */
  memset(&out.route.counts, 0, sizeof out.route.counts);
  memset(&out.route.offsets, 0, sizeof out.route.offsets);
  memset(&out.route.permutation, 0, sizeof out.route.permutation);
  moi_verdict v = moi_case_compare(&c, row->context->desc.backend, row->kernel, &out, &l->reference[kind_of(row)]);
  row->error = v.error;
  row->allowed = v.allowed;
  if (!v.ok) snprintf(error, error_size, "wrong result: %s", v.text);
  const int bad = !v.ok || (row->dump && write_operands(row, &out, error, error_size));
  moi_arena_free(&arena);
  return bad;
}

/* The ids that a moe variant will compute: they say which weights it reads. */
static int route_variants(moi_bench_row *row, char *error, size_t error_size) {
  moi_status status = MOI_OK;
  moi_plan *plan = NULL;
  moi_arena arena = {0};
  moi_buffer workspace = {0};
  const moi_buffer ids = moi_arena_view(&arena, (size_t)row->tokens * row->layer->proto.experts.top_k * 4, 4, "ids");
  for (uint32_t v = 0; v < row->n_variants && !status; v++) {
    moi_case c = row->variants[v];
    if (row->op == MOI_OP_EXPERTS) {
      account(row, v, c.operands.experts.ids.ptr);
      continue;
    }
    if (row->op == MOI_OP_ROUTE || row->op == MOI_OP_GEMM) {
      account(row, v, NULL);
      continue;
    }
    set_tokens(&c, MOI_OP_ROUTE, row->tokens);
    if (!plan) {
      status = moi_case_plan(&c, row->context, NULL, 0, &plan);
      size_t align, size = moi_plan_workspace(plan, &align);
      workspace = moi_arena_view(&arena, size, align ? align : 1, "workspace");
    }
    moi_outputs out = {.route = c.operands.route};
    size_t slots = (size_t)row->tokens * c.route.top_k * 4;
    out.route.ids = ids;
    out.route.weights = moi_arena_view(&arena, slots, 4, "weights");
    out.route.counts = out.route.offsets = out.route.permutation = out.route.logits_out = (moi_buffer){0};
    if (!status) status = moi_case_run(&c, plan, &out, workspace);
    if (!status) account(row, v, ids.ptr);
  }
  if (status) snprintf(error, error_size, "routing: %s", moi_last_error());
  moi_plan_destroy(plan);
  moi_arena_free(&arena);
  return status != MOI_OK;
}

/* Copies of the weights that rows go through: those there are, or that half of the device's memory holds. */
static uint32_t sets_for(const moi_bench_row *row) {
  const moi_context *c = row->context;
  const moi_case *p = &row->layer->proto;
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  if (!c->ops->by_handle || moi_device_get(c->desc.backend, c->desc.device, &info)) return row->layer->n_sets;
  uint64_t set = moi_ffn_weights_bytes(&p->experts) + (p->has_shared ? moi_ffn_weights_bytes(&p->shared) : 0);
  uint64_t n = set ? info.memory / 2 / set : 1;
  return n < 1 ? 1 : n < row->layer->n_sets ? (uint32_t)n : row->layer->n_sets;
}

int moi_bench_row_prepare(moi_bench_row *row, char *error, size_t error_size) {
  moi_bench_layer *l = row->layer;
  fill(l);
  row->n_variants = row->tokens <= 4 ? MAX_VARIANTS : row->tokens <= 16 ? 32 : row->tokens <= 64 ? 8 : 2;
  if (row->op == MOI_OP_GEMM && row->tokens > 16 && row->tokens <= 4096) row->n_variants = 32; /* of one matrix each */
  row->n_sets = sets_for(row);
  if (row->n_variants < row->n_sets) row->n_variants = row->n_sets;
  for (uint32_t v = 0; v < row->n_variants; v++) make_variant(row, v);
  size_t align, size = moi_plan_workspace(row->plan, &align);
  row->workspace = moi_arena_view(&row->arena, size, align > 4096 ? 4096 : align ? align : 1, "workspace");
  row->outputs = moi_case_outputs(&row->variants[0], &row->arena);
  /* what engines ask for */
  memset(&row->outputs.route.logits_out, 0, sizeof row->outputs.route.logits_out);
  if (make_reference(row, error, error_size) || verify(row, error, error_size) ||
      route_variants(row, error, error_size))
    return 1;
  moi_status status;
  moi_device *device = moi_device_of(row->context, &status);
  if (!device) return 0;
  moi_device_keep(device, 1); /* weights and operands go to the device before the clock runs */
  for (uint32_t v = 0; v < row->n_variants; v++)
    if (moi_bench_row_run(row, v)) {
      snprintf(error, error_size, "%s", moi_last_error());
      return 1;
    }
  if (row->launches || !moi_device_records(device)) return 0;
  for (uint32_t v = 0; v < row->n_variants; v++) {
    moi_device_record(device);
    if (moi_bench_row_run(row, v)) {
      snprintf(error, error_size, "%s", moi_last_error());
      return 1;
    }
  }
  row->recorded = device;
  return 0;
}

moi_status moi_bench_row_run(moi_bench_row *row, uint64_t iteration) {
  if (row->recorded) return moi_device_replay(row->recorded, iteration % row->n_variants);
  const moi_case *c = &row->variants[iteration % row->n_variants];
  moi_outputs out = row->outputs;
  out.route = c->operands.route;
  if (row->op == MOI_OP_ROUTE) {
    out.route.ids = row->outputs.route.ids;
    out.route.weights = row->outputs.route.weights;
    out.route.counts = row->outputs.route.counts;
    out.route.offsets = row->outputs.route.offsets;
    out.route.permutation = row->outputs.route.permutation;
  } else {
    out.route.ids = out.route.weights = out.route.counts = out.route.offsets = (moi_buffer){0};
    out.route.permutation = (moi_buffer){0};
  }
  out.route.logits_out = (moi_buffer){0};
  return moi_case_run(c, row->plan, &out, row->workspace);
}

void moi_bench_row_checked(const moi_bench_row *row, double *error, double *allowed) {
  *error = row->error;
  *allowed = row->allowed;
}

void moi_bench_row_dump(moi_bench_row *row, const char *folder) { row->dump = folder; }
void moi_bench_row_launch(moi_bench_row *row) { row->launches = 1; }

double moi_bench_row_bytes(const moi_bench_row *row, uint64_t iteration) {
  return row->bytes[iteration % row->n_variants];
}
double moi_bench_row_flops(const moi_bench_row *row, uint64_t iteration) {
  return row->flops[iteration % row->n_variants];
}

void moi_bench_row_release(moi_bench_row *row) {
  moi_status status;
  moi_device *device = moi_device_of(row->context, &status);
  if (device) moi_device_keep(device, 0);
  row->recorded = NULL;
  moi_arena_free(&row->arena);
}
