/* presets.def as static descs. */
#include <moiety.h>
#include <string.h>

#if defined(__GNUC__)
#define MOI_MAYBE_UNUSED __attribute__((unused)) /* a row without shared experts */
#else
#define MOI_MAYBE_UNUSED
#endif
#define UNWRAP(...) __VA_ARGS__
#define GATE_PLAIN MOI_SHARED_PLAIN
#define GATE_SIGMOID MOI_SHARED_SIGMOID

/* A row's own members come after the common ones and win over them. */
#if defined(__clang__)
#pragma clang diagnostic ignored "-Winitializer-overrides"
#elif defined(__GNUC__)
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#define PRESET(id, name, models, rule, note, layers, moe_layers, h, i, e, k, format_, route_, experts_, has_shared, shared_, \
               gate, scale)                                                                                            \
  static const moi_route_desc id##_route = {.struct_size = sizeof(moi_route_desc),                                     \
                                            .hidden = h,                                                               \
                                            .n_experts = e,                                                            \
                                            .top_k = k,                                                                \
                                            .input_type = MOI_FORMAT_BF16,                                             \
                                            .router_type = MOI_FORMAT_BF16,                                            \
                                            UNWRAP route_};                                                            \
  static const moi_experts_desc id##_experts = {.struct_size = sizeof(moi_experts_desc),                               \
                                                .hidden = h,                                                           \
                                                .intermediate = i,                                                     \
                                                .n_experts = e,                                                        \
                                                .top_k = k,                                                            \
                                                .format = MOI_FORMAT_##format_,                                        \
                                                .input_type = MOI_FORMAT_BF16,                                         \
                                                UNWRAP experts_};                                                      \
  MOI_MAYBE_UNUSED static const moi_experts_desc id##_shared = {.struct_size = sizeof(moi_experts_desc),                                \
                                               .hidden = h,                                                            \
                                               .n_experts = 1,                                                         \
                                               .top_k = 1,                                                             \
                                               .input_type = MOI_FORMAT_BF16,                                          \
                                               UNWRAP shared_};
#define ATTENTION(...)
#define NO_ATTENTION(id)
#include "core/presets.def"
#undef PRESET
#undef ATTENTION
#undef NO_ATTENTION

#define PRESET(...)
#define ATTENTION(id, ...)                                                                                             \
  static const moi_preset_attention id##_attention[] = {__VA_ARGS__};                                                  \
  enum { id##_n_attention = sizeof id##_attention / sizeof *id##_attention };
#define NO_ATTENTION(id)                                                                                               \
  static const moi_preset_attention id##_attention[1];                                                                 \
  enum { id##_n_attention = 0 };
#include "core/presets.def"
#undef PRESET
#undef ATTENTION
#undef NO_ATTENTION

#define SHARED_HAS(id) &id##_shared
#define SHARED_NONE(id) NULL
#define ATTENTION(...)
#define NO_ATTENTION(id)

static const moi_preset presets[] = {
#define PRESET(id, name, models, rule, note, layers, moe_layers, h, i, e, k, format_, route_, experts_, has_shared, shared_, \
               gate, scale)                                                                                            \
  {sizeof(moi_preset), name, models, rule, note, layers, moe_layers, &id##_route, &id##_experts,                       \
   SHARED_##has_shared(id), GATE_##gate, scale, id##_n_attention, id##_attention},
#include "core/presets.def"
#undef PRESET
};
enum { N_PRESETS = sizeof presets / sizeof presets[0] };

uint32_t moi_preset_count(void) { return N_PRESETS; }

const moi_preset *moi_preset_at(uint32_t index) { return index < N_PRESETS ? &presets[index] : NULL; }

const moi_preset *moi_preset_find(const char *name) {
  for (uint32_t i = 0; name && i < N_PRESETS; i++)
    if (!strcmp(presets[i].name, name)) return &presets[i];
  return NULL;
}
