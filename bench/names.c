/* Names that options give, and what a preset costs. */
#include <string.h>

#include "bench/commands.h"
#include "bench/options.h"
#include "bench/rig/operands.h"

int moi_find_preset(const char *command, const char *name, const moi_preset **out) {
  const char *names[128];
  int n = 0;
  *out = moi_preset_find(name);
  if (*out) return 0;
  for (; n < 128 && moi_preset_at((uint32_t)n); n++) names[n] = moi_preset_at((uint32_t)n)->name;
  const char *near = moi_nearest(name, names, n);
  return near ? moi_usage_error(command, "--preset: no '%s'; did you mean %s?", name, near)
              : moi_usage_error(command, "--preset: no '%s'; moiety presets lists them", name);
}

int moi_find_format(const char *command, const char *name, moi_format *out) {
  const char *names[128];
  int n = 0;
  *out = moi_format_from_name(name);
  if (*out) return 0;
  for (; n < 128 && moi_format_at((uint32_t)n); n++) names[n] = moi_format_name(moi_format_at((uint32_t)n));
  const char *near = moi_nearest(name, names, n);
  return near ? moi_usage_error(command, "--format: no '%s'; did you mean %s?", name, near)
              : moi_usage_error(command, "--format: no '%s'; moiety tables --support lists them", name);
}

int moi_find_backend(const char *command, const char *name, moi_backend *out) {
  const char *names[MOI_BACKEND_COUNT];
  for (int i = 0; i < MOI_BACKEND_COUNT; i++) {
    names[i] = moi_backend_name((moi_backend)i);
    if (strcmp(names[i], name)) continue;
    *out = (moi_backend)i;
    return 0;
  }
  const char *near = moi_nearest(name, names, MOI_BACKEND_COUNT);
  return near ? moi_usage_error(command, "--backend: no '%s'; did you mean %s?", name, near)
              : moi_usage_error(command, "--backend: no '%s'; there are cpu, cuda, vulkan", name);
}

static double ffn_macs(const moi_experts_desc *d) {
  return (double)d->hidden * d->intermediate * (d->gate_layout == MOI_GATE_NONE ? 2 : 3);
}

double moi_preset_flops(const moi_preset *p) {
  double classes = p->route->n_experts + p->route->n_identity;
  /* identity experts cost nothing: the average share of slots that are real ones */
  double active = p->experts->top_k * (double)p->route->n_experts / classes;
  double macs = active * ffn_macs(p->experts) + (double)p->route->hidden * classes;
  if (p->shared) macs += ffn_macs(p->shared);
  return 2 * macs;
}

double moi_preset_bytes(const moi_preset *p) {
  double classes = p->route->n_experts + p->route->n_identity;
  double active = p->experts->top_k * (double)p->route->n_experts / classes;
  double bytes = active * (double)moi_ffn_weights_bytes(p->experts) / p->experts->n_experts;
  bytes += (double)p->route->hidden * classes * moi_element_bytes(p->route->router_type);
  if (p->shared) bytes += (double)moi_ffn_weights_bytes(p->shared);
  return bytes;
}
