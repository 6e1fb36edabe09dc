#include "bench/checkpoint/layer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/checkpoint/parts.h"
#include "bench/checkpoint/store.h"

/* --------------------------------------------------------------------------------------------------------- plumbing */

typedef struct owned_block {
  struct owned_block *next;
  uint64_t bytes[]; /* aligned for addresses and floats */
} owned_block;

void *moi_layer_own(moi_layer_reader *r, uint64_t count, size_t size) {
  uint64_t bytes;
  owned_block *block = NULL;
  if (moi_multiply(count, size, &bytes) && bytes < SIZE_MAX - sizeof *block)
    block = calloc(1, sizeof *block + (size_t)bytes);
  if (!block) {
    moi_load_fail(r->error, "out of memory");
    return NULL;
  }
  block->next = r->layer->owned;
  r->layer->owned = block;
  return block->bytes;
}

void moi_layer_close(moi_layer *layer) {
  if (!layer) return;
  for (owned_block *block = layer->owned, *next; block; block = next) {
    next = block->next;
    free(block);
  }
  memset(layer, 0, sizeof *layer);
}

const moi_tensor *moi_layer_tensor(const moi_layer_reader *r, const char *format, ...) {
  char name[MOI_LAYER_NAME * 2];
  int prefix = snprintf(name, sizeof name, "%s", r->block);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(name + prefix, sizeof name - (size_t)prefix, format, arguments);
  va_end(arguments);
  return moi_checkpoint_find(r->checkpoint, name);
}

static const moi_tensor *first_tensor(const moi_layer_reader *r, const char *const *names) {
  for (; *names; names++) {
    const moi_tensor *t = moi_layer_tensor(r, "%s", *names);
    if (t) return t;
  }
  return NULL;
}

/* ---------------------------------------------------------------------------------------------------------- routing */

/* The router names the block: what stands before it is what every other tensor of the block begins with. */
static const moi_tensor *find_router(moi_layer_reader *r, uint32_t index) {
  static const char *const prefixes[] = {"model.layers.",
                                         "model.language_model.layers.",
                                         "language_model.model.layers.",
                                         "language_model.layers.",
                                         "layers.",
                                         NULL};
  static const char *const blocks[] = {"mlp.", "block_sparse_moe.", "feed_forward.", "ffn.", "", NULL};
  static const char *const routers[] = {"gate.weight",
                                        "router.weight",
                                        "router.layer.weight",
                                        "gate.wg.weight",
                                        "router.proj.weight",
                                        "router.classifier.weight",
                                        NULL};
  if (moi_checkpoint_get_kind(r->checkpoint) == MOI_CHECKPOINT_GGUF) {
    snprintf(r->block, sizeof r->block, "blk.%u.", index);
    return moi_layer_tensor(r, "ffn_gate_inp.weight");
  }
  for (const char *const *prefix = prefixes; *prefix; prefix++)
    for (const char *const *block = blocks; *block; block++) {
      snprintf(r->block, sizeof r->block, "%s%u.%s", *prefix, index, *block);
      const moi_tensor *t = first_tensor(r, routers);
      if (t) return t;
    }
  return NULL;
}

bool moi_layer_is_moe(const moi_checkpoint *checkpoint, uint32_t index) {
  moi_layer_reader r = {.checkpoint = checkpoint};
  return find_router(&r, index) != NULL;
}

/* DeepSeek V4: int64 ids [vocab, top_k] become int32. */
static bool read_hash(moi_layer_reader *r, const moi_tensor *t) {
  moi_route_desc *d = &r->layer->route;
  uint32_t bytes = moi_is_type(t, "I64") ? 8 : moi_is_type(t, "I32") ? 4 : 0;
  if (!bytes || t->n_dims != 2 || t->dims[1] != d->top_k || !t->dims[0] || t->dims[0] > INT32_MAX)
    return moi_layer_fail_tensor(r, t, "is no table of expert ids [vocab, top_k]");
  uint64_t count = moi_tensor_elements(t);
  int32_t *ids = moi_layer_own(r, count, sizeof *ids);
  if (!ids) return false;
  for (uint64_t i = 0; i < count; i++) {
    int64_t id = 0;
    memcpy(&id, t->data + i * bytes, bytes); /* little-endian: an int32 fills the low half */
    if (id < 0 || id >= d->n_experts) return moi_layer_fail_tensor(r, t, "holds an id that is no expert");
    ids[i] = (int32_t)id;
  }
  d->flags |= MOI_ROUTE_HASH;
  d->vocab = (uint32_t)t->dims[0];
  r->layer->hash_table = moi_ptr(ids, count * sizeof *ids);
  return true;
}

static bool read_route(moi_layer_reader *r, const moi_tensor *router) {
  static const char *const biases[] = {"ffn_gate_inp.bias", "router.bias", "gate.bias", NULL};
  static const char *const select_biases[] = {"exp_probs_b.bias",
                                              "exp_probs_b",
                                              "gate.e_score_correction_bias",
                                              "e_score_correction_bias",
                                              "moe_statics.e_score_correction_bias",
                                              "router.e_score_correction_bias",
                                              "gate.expert_bias",
                                              "gate.bias",
                                              NULL};
  static const char *const norms[] = {"ffn_gate_inp.scale", "router.scale", NULL};
  static const char *const scales[] = {"ffn_down_exps.scale", "router.per_expert_scale", NULL};
  moi_layer *l = r->layer;
  moi_route_desc *d = &l->route;
  uint32_t flags = r->rule->flags;
  uint64_t classes = (uint64_t)d->n_experts + d->n_identity;
  if (router->n_dims != 2 || router->dims[0] != classes || !router->dims[1] || router->dims[1] > INT32_MAX) {
    char what[96];
    snprintf(what, sizeof what, "is no router of %llu experts, as the metadata say", (unsigned long long)classes);
    return moi_layer_fail_tensor(r, router, what);
  }
  uint64_t h = router->dims[1];
  d->hidden = (uint32_t)h;
  bool own_bias = !strcmp(r->rule->model_types, "deepseek_v4");
  const moi_tensor *select_bias = NULL, *bias = NULL, *norm = NULL;
  select_bias = first_tensor(r, select_biases);
  if (!own_bias) bias = first_tensor(r, biases);
  if (!(flags & MOI_RULE_SELECT_BIAS) && select_bias && select_bias != bias)
    return moi_layer_fail_tensor(r, select_bias, "is a selection bias, which the rule of this architecture lacks");
  if (!(flags & MOI_RULE_SELECT_BIAS)) select_bias = NULL;
  if (bias && bias == select_bias)
    return moi_layer_fail_tensor(r, bias, "may be a bias of the logits or of the selection: the rule does not say");
  if (flags & MOI_RULE_INPUT_NORM) {
    norm = first_tensor(r, norms);
    const moi_tensor *scale = first_tensor(r, scales);
    if (!norm || !scale)
      return moi_load_fail(r->error, "%s*: the router's scale or the experts' scales are missing", r->block);
    d->flags |= MOI_ROUTE_INPUT_NORM | MOI_ROUTE_EXPERT_SCALE;
    d->norm_scale = (float)(1 / sqrt((double)h));
    if (!moi_layer_numbers(r, scale, classes, MOI_FORMAT_F32, &l->expert_scale)) return false;
  }
  moi_format type = router->format; /* one for all three */
  if ((bias && bias->format != type) || (norm && norm->format != type)) type = MOI_FORMAT_F32;
  d->router_type = type;
  if (!moi_layer_numbers(r, router, classes * h, type, &l->router)) return false;
  if (norm && !moi_layer_numbers(r, norm, h, type, &l->norm_weight)) return false;
  if (bias) {
    d->flags |= MOI_ROUTE_BIAS;
    if (!moi_layer_numbers(r, bias, classes, type, &l->router_bias)) return false;
  }
  if (select_bias) {
    d->flags |= MOI_ROUTE_SELECT_BIAS;
    if (!moi_layer_numbers(r, select_bias, classes, MOI_FORMAT_F32, &l->select_bias)) return false;
  }
  const moi_tensor *table = flags & MOI_RULE_HASH ? moi_layer_tensor(r, "gate.tid2eid") : NULL;
  return !table || read_hash(r, table);
}

/* ---------------------------------------------------------------------------------------------------------- experts */

/* The three matrices of one FFN; gate.format is NONE if up holds both. */
typedef struct ffn {
  moi_experts_desc *desc;
  moi_weights *gate, *up, *down;
  moi_part gate_part, up_part, down_part;
} ffn;

static bool place(moi_layer_reader *r, const moi_part *p, uint32_t n_experts, moi_weights *w) {
  *w = (moi_weights)MOI_WEIGHTS_INIT;
  if ((p->e ? p->e : 1) != n_experts)
    return moi_load_fail(r->error, "%s: holds %u experts, the metadata say %u", p->name, p->e, n_experts);
  w->data = moi_ptr(p->data, p->sizes.data * n_experts);
  if (p->scales) w->scales = moi_ptr(p->scales, p->sizes.scales * n_experts);
  if (p->zeros) w->zeros = moi_ptr(p->zeros, p->sizes.zeros * n_experts);
  if (p->format == MOI_FORMAT_NVFP4) {
    if (n_experts != 1) return moi_load_fail(r->error, "%s: fused nvfp4 experts are not supported", p->name);
    float *global = moi_layer_own(r, 1, sizeof *global);
    if (!global) return false;
    *global = p->global;
    w->global_scale = moi_ptr(global, sizeof *global);
  }
  return true;
}

/* "experts.%u.gate_proj" for every expert, through tables of addresses. ABSENT: the first expert has none. */
static moi_found place_table(moi_layer_reader *r, const char *pattern, uint32_t n_experts, moi_part *p,
                             moi_weights *w) {
  *w = (moi_weights)MOI_WEIGHTS_INIT;
  uint64_t *data = NULL, *scales = NULL, *zeros = NULL;
  float *global = NULL;
  for (uint32_t e = 0; e < n_experts; e++) {
    char base[MOI_LAYER_NAME * 2];
    const char *number = strstr(pattern, "%u");
    snprintf(base, sizeof base, "%s%.*s%u%s", r->block, (int)(number - pattern), pattern, e, number + 2);
    moi_part one;
    moi_found found = moi_part_find(r, base, &one);
    if (found == MOI_BAD || (found == MOI_ABSENT && !e)) return found;
    if (found == MOI_ABSENT) {
      moi_load_fail(r->error, "%s: is missing (of %u experts; a shard of the checkpoint?)", base, n_experts);
      return MOI_BAD;
    }
    char bias[MOI_LAYER_NAME * 2 + 8];
    snprintf(bias, sizeof bias, "%s.bias", base);
    if (moi_checkpoint_find(r->checkpoint, bias)) {
      moi_load_fail(r->error, "%s: biases of separate experts are not supported", bias);
      return MOI_BAD;
    }
    if (one.e) {
      moi_load_fail(r->error, "%s: one expert is no matrix", one.name);
      return MOI_BAD;
    }
    if (!e) {
      *p = one;
      if (!(data = moi_layer_own(r, n_experts, sizeof *data)) ||
          (one.scales && !(scales = moi_layer_own(r, n_experts, sizeof *scales))) ||
          (one.zeros && !(zeros = moi_layer_own(r, n_experts, sizeof *zeros))) ||
          (one.format == MOI_FORMAT_NVFP4 && !(global = moi_layer_own(r, n_experts, sizeof *global))))
        return MOI_BAD;
    } else if (one.format != p->format || one.n != p->n || one.k != p->k) {
      moi_load_fail(r->error, "%s: differs in format or shape from expert 0", one.name);
      return MOI_BAD;
    }
    data[e] = (uint64_t)(uintptr_t)one.data;
    if (scales) scales[e] = (uint64_t)(uintptr_t)one.scales;
    if (zeros) zeros[e] = (uint64_t)(uintptr_t)one.zeros;
    if (global) global[e] = one.global;
  }
  w->data = moi_ptr(data, n_experts * sizeof *data);
  if (scales) w->scales = moi_ptr(scales, n_experts * sizeof *scales);
  if (zeros) w->zeros = moi_ptr(zeros, n_experts * sizeof *zeros);
  if (global) w->global_scale = moi_ptr(global, n_experts * sizeof *global);
  return MOI_FOUND;
}

/* [e,n,k] bf16 may be stored transposed; only one reading of both shapes fits h. */
static bool transpose(moi_layer_reader *r, moi_part *gate_up, moi_part *down, uint32_t h) {
  if (gate_up->k == h && down->n == h && (uint64_t)down->k * 2 == gate_up->n) return true;
  if (gate_up->n != h || down->k != h || (uint64_t)down->n * 2 != gate_up->k) return true; /* describe() complains */
  moi_part *both[] = {gate_up, down};
  for (int i = 0; i < 2; i++) {
    moi_part *p = both[i];
    if (p->format != MOI_FORMAT_BF16)
      return moi_load_fail(r->error, "%s: is stored transposed, which is supported for BF16 only", p->name);
    uint32_t n = p->n;
    p->n = p->k;
    p->k = n;
    p->format = MOI_FORMAT_BF16_KN;
  }
  return true;
}

/* The desc out of the three matrices, checked against each other. */
static bool describe(moi_layer_reader *r, ffn *f, uint32_t h, bool fused) {
  moi_experts_desc *d = f->desc;
  const moi_part *g = &f->gate_part, *u = &f->up_part, *w = &f->down_part;
  uint32_t i = fused ? u->n / 2 : u->n;
  if (u->k != h || w->n != h || w->k != i || (fused && u->n % 2) || (!fused && (g->n != i || g->k != h)))
    return moi_load_fail(r->error, "%s [%u,%u] and %s [%u,%u]: are no FFN on a hidden width of %u", u->name, u->n, u->k,
                         w->name, w->n, w->k, h);
  if (!fused && g->format != u->format)
    return moi_load_fail(r->error, "%s: is %s, but up is %s: one format for both is needed", g->name,
                         moi_format_name(g->format), moi_format_name(u->format));
  d->hidden = h;
  d->intermediate = i;
  d->format = u->format;
  d->down_format = w->format == u->format ? MOI_FORMAT_NONE : w->format;
  d->gate_layout = !fused                                  ? MOI_GATE_SPLIT
                   : r->rule->flags & MOI_RULE_INTERLEAVED ? MOI_GATE_INTERLEAVED
                                                           : MOI_GATE_CONCAT;
  if (u->format == MOI_FORMAT_FP8_B128) {
    double a, b;
    if (moi_checkpoint_number(r->checkpoint, "quantization_config.weight_block_size", 0, &a) &&
        moi_checkpoint_number(r->checkpoint, "quantization_config.weight_block_size", 1, &b) && (a != 128 || b != 128))
      return moi_load_fail(r->error, "weight_block_size: %g x %g, fp8 is supported with 128 x 128", a, b);
  }
  const char *scale = moi_checkpoint_text(r->checkpoint, "quantization_config.scale_fmt");
  if (r->rule->flags & MOI_RULE_WEIGHT_ON_ACTIVATION) d->act_quant = MOI_ACT_QUANT_FP8_128_POW2;
  else if (u->format == MOI_FORMAT_FP8_B128)
    d->act_quant = scale && !strcmp(scale, "ue8m0") ? MOI_ACT_QUANT_FP8_128_POW2 : MOI_ACT_QUANT_FP8_128;
  return true;
}

static const moi_tensor *find_bias(const moi_layer_reader *r, const char *base) {
  const moi_tensor *t = moi_layer_tensor(r, "%s.bias", base);
  return t ? t : moi_layer_tensor(r, "%s_bias", base);
}

/* Biases: none, or of every matrix. names: gate (NULL if fused), up, down. */
static bool read_biases(moi_layer_reader *r, ffn *f, const char *const names[3]) {
  const moi_tensor *bias[3] = {NULL, NULL, NULL};
  moi_weights *weights[3] = {f->gate, f->up, f->down};
  const moi_part *parts[3] = {&f->gate_part, &f->up_part, &f->down_part};
  uint32_t wanted = 0, found = 0;
  moi_format type = MOI_FORMAT_NONE;
  for (int i = 0; i < 3; i++) {
    if (!names[i]) continue;
    wanted++;
    if (!(bias[i] = find_bias(r, names[i]))) continue;
    type = !found || bias[i]->format == type ? bias[i]->format : MOI_FORMAT_F32;
    found++;
  }
  if (!found) return true;
  if (found != wanted) return moi_load_fail(r->error, "%s%s: not all of its matrices have a bias", r->block, names[2]);
  f->desc->bias_type = type;
  for (int i = 0; i < 3; i++)
    if (bias[i] && !moi_layer_numbers(r, bias[i], (uint64_t)f->desc->n_experts * parts[i]->n, type, &weights[i]->bias))
      return false;
  return true;
}

/* Contiguous tensors: names of gate, up, down; gate NULL if up holds both. */
static moi_found read_whole(moi_layer_reader *r, ffn *f, const char *const names[3], uint32_t h) {
  moi_part *parts[3] = {&f->gate_part, &f->up_part, &f->down_part};
  moi_weights *weights[3] = {f->gate, f->up, f->down};
  for (int i = 0; i < 3; i++) {
    if (!names[i]) continue;
    char base[MOI_LAYER_NAME * 2];
    snprintf(base, sizeof base, "%s%s", r->block, names[i]);
    moi_found found = moi_part_find(r, base, parts[i]);
    if (found == MOI_ABSENT && (i == 2 || (i == 1 && names[0]))) {
      moi_load_fail(r->error, "%s: is missing", base);
      return MOI_BAD;
    }
    if (found != MOI_FOUND) return found;
  }
  bool ok = true;
  if (!names[0]) ok = transpose(r, parts[1], parts[2], h);
  for (int i = 0; i < 3 && ok; i++)
    if (names[i]) ok = place(r, parts[i], f->desc->n_experts, weights[i]);
  return ok && describe(r, f, h, !names[0]) && read_biases(r, f, names) ? MOI_FOUND : MOI_BAD;
}

static moi_found read_tables(moi_layer_reader *r, ffn *f, const char *const patterns[3], uint32_t h) {
  moi_part *parts[3] = {&f->gate_part, &f->up_part, &f->down_part};
  moi_weights *weights[3] = {f->gate, f->up, f->down};
  for (int i = 0; i < 3; i++) {
    moi_found found = place_table(r, patterns[i], f->desc->n_experts, parts[i], weights[i]);
    if (found == MOI_ABSENT && i) {
      moi_load_fail(r->error, "%s%s: is missing", r->block, patterns[i]);
      return MOI_BAD;
    }
    if (found != MOI_FOUND) return found;
  }
  f->desc->flags |= MOI_EXPERTS_TABLES;
  return describe(r, f, h, false) ? MOI_FOUND : MOI_BAD;
}

typedef const char *const triple[3];

static bool read_experts(moi_layer_reader *r, uint32_t h) {
  static triple whole[] = {{"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"},
                           {NULL, "ffn_gate_up_exps", "ffn_down_exps"},
                           {NULL, "experts.gate_up_proj", "experts.down_proj"},
                           {"experts.gate_proj", "experts.up_proj", "experts.down_proj"},
                           {NULL, "input_linear", "output_linear"}};
  static triple tables[] = {{"experts.%u.gate_proj", "experts.%u.up_proj", "experts.%u.down_proj"},
                            {"experts.%u.w1", "experts.%u.w3", "experts.%u.w2"},
                            {"ffn_gate.%u", "ffn_up.%u", "ffn_down.%u"}};
  moi_layer *l = r->layer;
  ffn f = {.desc = &l->experts, .gate = &l->gate, .up = &l->up, .down = &l->down};
  for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
    moi_found found = read_whole(r, &f, whole[i], h);
    if (found != MOI_ABSENT) return found == MOI_FOUND;
  }
  for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
    moi_found found = read_tables(r, &f, tables[i], h);
    if (found != MOI_ABSENT) return found == MOI_FOUND;
  }
  return moi_load_fail(r->error, "%s*: no expert tensors of a known name", r->block);
}

static bool read_shared(moi_layer_reader *r, uint32_t h) {
  static triple names[] = {{"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"},
                           {"shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj"},
                           {"shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj"},
                           {"shared_mlp.gate_proj", "shared_mlp.up_proj", "shared_mlp.down_proj"},
                           {"shared_experts.w1", "shared_experts.w3", "shared_experts.w2"},
                           {NULL, "shared_mlp.input_linear", "shared_mlp.output_linear"}};
  static triple dense = {"ffn_gate", "ffn_up", "ffn_down"};
  static const char *const gates[] = {"ffn_gate_inp_shexp.weight", "shared_expert_gate.weight", NULL};
  moi_layer *l = r->layer;
  l->shared = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  l->shared.n_experts = l->shared.top_k = 1;
  l->shared.activation = l->experts.activation;
  l->shared.act_limit = l->experts.act_limit;
  l->shared.input_type = l->experts.input_type;
  ffn f = {.desc = &l->shared, .gate = &l->shared_gate, .up = &l->shared_up, .down = &l->shared_down};
  moi_found found = MOI_ABSENT;
  for (size_t i = 0; i < sizeof names / sizeof *names && found == MOI_ABSENT; i++)
    found = read_whole(r, &f, names[i], h);
  if (found == MOI_ABSENT) { /* Granite's shared expert is a neighbour of the block */
    char block[MOI_LAYER_NAME];
    char *end = strstr(r->block, "block_sparse_moe.");
    memcpy(block, r->block, sizeof block);
    if (end) {
      *end = 0;
      found = read_whole(r, &f, names[5], h);
      memcpy(r->block, block, sizeof block);
    }
  }
  if (found == MOI_ABSENT && r->rule->flags & MOI_RULE_DENSE_SHARED) {
    found = read_whole(r, &f, dense, h);
    if (found == MOI_FOUND) l->output_scale = 0.70710678f; /* the mean of both, times sqrt(2) */
  }
  if (found == MOI_BAD) return false;
  if (found == MOI_ABSENT) {
    double v;
    if (moi_layer_number(r, "expert_shared_count n_shared_experts num_shared_experts", &v) && v > 0)
      return moi_load_fail(
          r->error, "%s*: the metadata say %g shared experts, but there are no tensors of a known name", r->block, v);
    memset(&l->shared, 0, sizeof l->shared);
    return true;
  }
  l->has_shared = true;
  const moi_tensor *gate = first_tensor(r, gates);
  if (l->shared_kind == MOI_SHARED_SIGMOID) {
    if (!gate) return moi_load_fail(r->error, "%s*: the gate of the shared expert is missing", r->block);
    l->shared_gate_type = gate->format;
    return moi_layer_numbers(r, gate, h, gate->format, &l->shared_gate_vector);
  }
  return !gate || moi_layer_fail_tensor(r, gate, "gates the shared expert, which the rule of this architecture lacks");
}

bool moi_layer_open(const moi_checkpoint *checkpoint, uint32_t index, moi_layer *layer, moi_load_error *error) {
  if (error) error->text[0] = 0;
  memset(layer, 0, sizeof *layer);
  moi_layer_reader r = {.checkpoint = checkpoint, .layer = layer, .error = error};
  layer->index = index;
  layer->route = (moi_route_desc)MOI_ROUTE_DESC_INIT;
  layer->experts = (moi_experts_desc)MOI_EXPERTS_DESC_INIT;
  layer->gate = layer->up = layer->down = (moi_weights)MOI_WEIGHTS_INIT;
  layer->shared_gate = layer->shared_up = layer->shared_down = (moi_weights)MOI_WEIGHTS_INIT;
  const moi_tensor *router = NULL;
  bool ok = (r.rule = moi_rule_find(checkpoint, error, layer->architecture)) != NULL;
  if (ok && !(router = find_router(&r, index)))
    ok = moi_load_fail(error, "layer %u: has no router of a known name; it is dense, or there is no such layer", index);
  ok = ok && moi_rule_apply(&r) && read_route(&r, router) && read_experts(&r, layer->route.hidden) &&
       read_shared(&r, layer->route.hidden);
  if (!ok) moi_layer_close(layer);
  return ok;
}
