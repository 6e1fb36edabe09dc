/* moiety presets */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/options.h"
#include "bench/rig/attention.h"
#include "bench/rig/operands.h"

static void formats(const moi_preset *p, char *out, size_t size) {
  const char *format = moi_format_name(p->experts->format);
  moi_format down = moi_or(p->experts->down_format, p->experts->format);
  if (down == p->experts->format) snprintf(out, size, "%s", format);
  else snprintf(out, size, "%s/%s", format, moi_format_name(down));
}

static double scale_of(const moi_attention_desc *d) { return d->scale != 0 ? d->scale : 1 / sqrt(d->head_dim); }

static void add_attention(cJSON *preset, const moi_preset *p) {
  cJSON *list = cJSON_AddArrayToObject(preset, "attention");
  for (uint32_t i = 0; i < p->n_attention; i++) {
    const moi_attention_desc *d = p->attention[i].desc;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "kind", p->attention[i].kind);
    cJSON_AddNumberToObject(o, "layers", p->attention[i].layers);
    cJSON_AddNumberToObject(o, "heads", d->n_heads);
    cJSON_AddNumberToObject(o, "kv_heads", d->n_kv_heads);
    cJSON_AddNumberToObject(o, "head_dim", d->head_dim);
    cJSON_AddNumberToObject(o, "v_head_dim", d->v_head_dim);
    cJSON_AddNumberToObject(o, "scale", scale_of(d));
    cJSON_AddNumberToObject(o, "softcap", d->softcap);
    cJSON_AddNumberToObject(o, "window", d->window);
    cJSON_AddNumberToObject(o, "chunk", d->chunk);
    cJSON_AddNumberToObject(o, "temperature", d->temperature);
    cJSON_AddNumberToObject(o, "temperature_floor", d->temperature_floor);
    cJSON_AddBoolToObject(o, "sinks", (d->flags & MOI_ATTENTION_SINKS) != 0);
    cJSON_AddBoolToObject(o, "v_in_k", (d->flags & MOI_ATTENTION_V_IN_K) != 0);
    cJSON_AddNumberToObject(o, "kv_token_bytes", (double)moi_kv_token_bytes(d));
    cJSON_AddItemToArray(list, o);
  }
}

static const char *activation_of(const moi_experts_desc *d) {
  static const char *const names[] = {"swiglu", "swiglu_oai", "geglu_tanh", "geglu_erf", "situ", "relu2"};
  return (unsigned)d->activation < sizeof names / sizeof *names ? names[d->activation] : "";
}

/* What an engine's graph of the layer needs (bench/peers); the activation's own defaults, as moiety.h has them. */
static void add_experts(cJSON *preset, const moi_experts_desc *d) {
  static const char *const places[] = {"output", "input", "activation"};
  const int oai = d->activation == MOI_ACT_SWIGLU_OAI;
  cJSON_AddStringToObject(preset, "activation", activation_of(d));
  cJSON_AddNumberToObject(preset, "act_alpha", d->act_alpha != 0 ? d->act_alpha : oai ? 1.702 : 0);
  cJSON_AddNumberToObject(preset, "act_limit", d->act_limit != 0 ? d->act_limit : oai ? 7 : 0);
  cJSON_AddStringToObject(preset, "weight_on", (unsigned)d->weight_on < 3 ? places[d->weight_on] : "");
  cJSON_AddBoolToObject(preset, "gated", d->gate_layout != MOI_GATE_NONE);
  cJSON_AddStringToObject(preset, "bias", d->bias_type ? moi_format_name(d->bias_type) : "");
}

static void add_route(cJSON *preset, const moi_route_desc *d) {
  static const char *const scores[] = {"softmax",      "sigmoid",      "sqrt_softplus",
                                       "topk_softmax", "topk_sigmoid", "sparsemixer"};
  static const char *const renorms[] = {"", "sum", "max"};
  cJSON *o = cJSON_AddObjectToObject(preset, "route");
  cJSON_AddStringToObject(o, "score", (unsigned)d->score < 6 ? scores[d->score] : "");
  cJSON_AddStringToObject(o, "renorm", (unsigned)d->renorm < 3 ? renorms[d->renorm] : "");
  cJSON_AddNumberToObject(o, "renorm_eps", d->renorm_eps);
  cJSON_AddNumberToObject(o, "scale", d->scale != 0 ? d->scale : 1);
  cJSON_AddNumberToObject(o, "groups", d->n_group);
  cJSON_AddNumberToObject(o, "top_groups", d->topk_group);
  cJSON_AddStringToObject(o, "group_score", d->group_score == MOI_GROUP_MAX ? "max" : "top2_sum");
  cJSON_AddNumberToObject(o, "logit_softcap", d->logit_softcap);
  cJSON_AddBoolToObject(o, "bias", (d->flags & MOI_ROUTE_BIAS) != 0);
  cJSON_AddBoolToObject(o, "select_bias", (d->flags & MOI_ROUTE_SELECT_BIAS) != 0);
  cJSON_AddBoolToObject(o, "expert_scale", (d->flags & MOI_ROUTE_EXPERT_SCALE) != 0);
}

/* "window 128, sinks" */
static void rules_of(const moi_attention_desc *d, char *out, size_t size) {
  const struct {
    int there;
    const char *name;
    double value; /* 0: the name says all */
  } rules[] = {{d->window > 0, "window", d->window},
               {d->chunk > 0, "chunk", d->chunk},
               {(d->flags & MOI_ATTENTION_SINKS) != 0, "sinks", 0},
               {d->softcap > 0, "softcap", (double)d->softcap},
               {d->temperature_floor > 0, "temperature", (double)d->temperature},
               {d->scale != 0, "scale", (double)d->scale},
               {(d->flags & MOI_ATTENTION_V_IN_K) != 0, "V in K", 0}};
  size_t at = 0;
  out[0] = 0;
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
    char value[24] = "";
    if (!rules[i].there) continue;
    if (rules[i].value != 0) snprintf(value, sizeof value, " %g", rules[i].value);
    at += (size_t)snprintf(out + at, at < size ? size - at : 0, "%s%s%s", at ? ", " : "", rules[i].name, value);
  }
}

static void print_attention(void) {
  printf("%-24s %-13s %6s %6s %8s %9s %9s  %s\n", "preset", "attention", "layers", "heads", "KV heads", "head_dim",
         "KV bytes", "rules");
  for (uint32_t i = 0; i < moi_preset_count(); i++) {
    const moi_preset *p = moi_preset_at(i);
    for (uint32_t k = 0; k < p->n_attention; k++) {
      const moi_attention_desc *d = p->attention[k].desc;
      char dims[32], rules[128];
      if (d->v_head_dim != d->head_dim) snprintf(dims, sizeof dims, "%u/%u", d->head_dim, d->v_head_dim);
      else snprintf(dims, sizeof dims, "%u", d->head_dim);
      rules_of(d, rules, sizeof rules);
      printf("%-24s %-13s %6u %6u %8u %9s %9llu  %s\n", k ? "" : p->name, p->attention[k].kind, p->attention[k].layers,
             d->n_heads, d->n_kv_heads, dims, (unsigned long long)moi_kv_token_bytes(d), rules);
    }
    if (!p->n_attention) printf("%-24s %-13s\n", p->name, "(none here)");
  }
  printf("\nKV bytes: of a token in one layer, bf16. mla is the plain form, for prompts, mla-absorbed the same layers\n"
         "over the latent cache. --json has what is left out, as \"note\".\n");
}

static int print_json(void) {
  cJSON *list = cJSON_CreateArray();
  for (uint32_t i = 0; i < moi_preset_count(); i++) {
    const moi_preset *p = moi_preset_at(i);
    cJSON *o = cJSON_CreateObject();
    char format[48];
    formats(p, format, sizeof format);
    cJSON_AddStringToObject(o, "name", p->name);
    cJSON_AddStringToObject(o, "models", p->models);
    cJSON_AddStringToObject(o, "rule", p->rule);
    cJSON_AddStringToObject(o, "note", p->note);
    cJSON_AddNumberToObject(o, "layers", p->layers);
    cJSON_AddNumberToObject(o, "moe_layers", p->moe_layers);
    cJSON_AddNumberToObject(o, "hidden", p->experts->hidden);
    cJSON_AddNumberToObject(o, "intermediate", p->experts->intermediate);
    cJSON_AddNumberToObject(o, "experts", p->experts->n_experts);
    cJSON_AddNumberToObject(o, "identity_experts", p->experts->n_identity);
    cJSON_AddNumberToObject(o, "top_k", p->experts->top_k);
    cJSON_AddNumberToObject(o, "shared_intermediate", p->shared ? p->shared->intermediate : 0);
    cJSON_AddStringToObject(o, "format", format);
    add_experts(o, p->experts);
    add_route(o, p->route);
    cJSON_AddNumberToObject(o, "layer_bytes", (double)moi_ffn_weights_bytes(p->experts));
    cJSON_AddNumberToObject(o, "token_bytes", moi_preset_bytes(p));
    cJSON_AddNumberToObject(o, "token_flops", moi_preset_flops(p));
    add_attention(o, p);
    cJSON_AddItemToArray(list, o);
  }
  char *text = cJSON_Print(list);
  cJSON_Delete(list);
  if (!text) return 1;
  printf("%s\n", text);
  free(text);
  return 0;
}

int moi_command_presets(int argc, char **argv) {
  static const moi_command command = {"presets", "the models whose MoE and attention layers are built in", NULL, NULL};
  int json = 0, n_positional;
  moi_option options[] = {{"--json", MOI_OPTION_FLAG, &json, NULL, "all numbers as JSON", 0}};
  int status = moi_options_parse(&command, options, 1, argc, argv, &n_positional);
  if (status >= 0) return status;
  if (json) return print_json();
  printf("%-24s %-4s %-11s %6s %6s %7s %5s %6s  %9s %9s %9s %9s\n", "preset", "rule", "format", "hidden", "inter",
         "experts", "top_k", "shared", "MB/token", "MFLOP", "layer GB", "model GB");
  for (uint32_t i = 0; i < moi_preset_count(); i++) {
    const moi_preset *p = moi_preset_at(i);
    char format[48], experts[32];
    double layer =
        (double)moi_ffn_weights_bytes(p->experts) + (p->shared ? (double)moi_ffn_weights_bytes(p->shared) : 0);
    formats(p, format, sizeof format);
    if (p->experts->n_identity)
      snprintf(experts, sizeof experts, "%u+%u", p->experts->n_experts, p->experts->n_identity);
    else snprintf(experts, sizeof experts, "%u", p->experts->n_experts);
    printf("%-24s %-4s %-11s %6u %6u %7s %5u %6u  %9.1f %9.1f %9.2f %9.1f\n", p->name, p->rule, format,
           p->experts->hidden, p->experts->intermediate, experts, p->experts->top_k,
           p->shared ? p->shared->intermediate : 0, moi_preset_bytes(p) / 1e6, moi_preset_flops(p) / 1e6, layer / 1e9,
           layer * p->moe_layers / 1e9);
  }
  printf("\nMB/token and MFLOP: what one token reads and computes in one layer; model: all MoE layers' experts\n\n");
  print_attention();
  return 0;
}
