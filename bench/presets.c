/* moiety presets */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/options.h"
#include "bench/rig/operands.h"

static void formats(const moi_preset *p, char *out, size_t size) {
  const char *format = moi_format_name(p->experts->format);
  moi_format down = moi_or(p->experts->down_format, p->experts->format);
  if (down == p->experts->format) snprintf(out, size, "%s", format);
  else snprintf(out, size, "%s/%s", format, moi_format_name(down));
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
    cJSON_AddNumberToObject(o, "layer_bytes", (double)moi_ffn_weights_bytes(p->experts));
    cJSON_AddNumberToObject(o, "token_bytes", moi_preset_bytes(p));
    cJSON_AddNumberToObject(o, "token_flops", moi_preset_flops(p));
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
  static const moi_command command = {"presets", "the models whose MoE layers are built in", NULL, NULL};
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
  printf("\nMB/token and MFLOP: what one token reads and computes in one layer; model: all MoE layers' experts\n");
  return 0;
}
