/* What a backend fills, and what core gives it. */
#ifndef MOI_CORE_BACKEND_H
#define MOI_CORE_BACKEND_H

#include <moiety.h>

#include "core/status.h"

typedef struct moi_backend_ops moi_backend_ops;

struct moi_context {
  const moi_backend_ops *ops;
  moi_context_desc desc; /* defaults resolved by the backend; allocator always set */
  void *state;           /* the backend's */
};

/* Weights of one matrix for a run: views checked, strides resolved. */
typedef struct moi_operand {
  moi_weights w;
  uint32_t n, k;
} moi_operand;

/* What a run of an attention plan does. */
typedef enum moi_attention_task { MOI_ATTEND, MOI_KV_APPEND, MOI_ATTENTION_MERGE } moi_attention_task;

/* The args of a run after core has checked them against the plan. */
typedef struct moi_ffn_run {
  moi_experts_args args;
  moi_weights gate, up, down;
} moi_ffn_run;

typedef struct moi_run {
  uint32_t n_tokens; /* the host's bound; n_tokens_device is the backend's to read */
  moi_route_args route;
  moi_ffn_run experts, shared;
  moi_buffer shared_gate;
  moi_gemm_args gemm;
  moi_weights gemm_weights;
  moi_attention_task attention_task;
  moi_attention_args attention;
  moi_kv_append_args append;
  moi_attention_merge_args merge;
  moi_kv_cache cache; /* strides resolved; of attention and append */
  uint32_t max_kv;    /* the plan's, or fewer if the page table has fewer entries */
  moi_weights pack_src, pack_dst; /* strides resolved; streams that a format has not are absent */
  moi_buffer workspace;
  moi_queue queue;
} moi_run;

/* A plan: normalised descs (every default resolved, `kernel` valid only while the plan is made). */
struct moi_plan {
  moi_context *context;
  moi_op op;
  uint32_t has_route, has_experts, has_shared;
  moi_route_desc route;
  moi_experts_desc experts, shared;
  moi_gemm_desc gemm;
  moi_attention_desc attention;
  moi_pack_desc pack;
  moi_shared_gate shared_gate;
  moi_format shared_gate_type;
  float output_scale;
  uint32_t plan_flags;
  const char *kernel;
  size_t workspace, workspace_align; /* filled by the backend */
  char kernels[128];                 /* moi_plan_kernel's, filled through moi_plan_use */
  char *text;                        /* moi_plan_describe's, filled through moi_plan_say */
  size_t text_size, text_used;
  void *state; /* the backend's */
};

struct moi_backend_ops {
  const char *name;
  uint32_t by_handle; /* views name memory by handle; 0: by ptr */
  moi_status (*device_count)(uint32_t *count);
  moi_status (*device_get)(uint32_t index, moi_device_info *info);
  moi_status (*kernel_get)(uint32_t index, moi_kernel_info *info);
  moi_format (*pack_preferred)(moi_format format);
  moi_status (*open)(moi_context *context);
  void (*close)(moi_context *context);
  /* Chooses kernels, fills workspace and text. On failure leaves state NULL and owns nothing. */
  moi_status (*plan)(const char *function, moi_plan *plan);
  void (*unplan)(moi_plan *plan);
  moi_status (*run)(const char *function, const moi_plan *plan, const moi_run *run);
};

/* NULL and the reason in moi_last_error if the backend is not in this build. */
const moi_backend_ops *moi_backend_find(const char *function, moi_backend backend);

void *moi_allocate(const moi_context *context, size_t size);
void moi_release(const moi_context *context, void *ptr, size_t size);
void moi_log_line(const moi_context *context, moi_log_level level, const char *format, ...) MOI_PRINTF(3);

/* Appends to the plan's description; what does not fit or cannot be allocated is MOI_OUT_OF_MEMORY. */
moi_status moi_plan_say(moi_plan *plan, const char *format, ...) MOI_PRINTF(2);

/* Adds a row's name to moi_plan_kernel's text, once. */
void moi_plan_use(moi_plan *plan, const char *name);

/* The first format that moi_pack makes `format` of, or `format` itself. */
moi_format moi_pack_source(moi_format format);

/* Packs rows begin..end-1 of one expert on the host. The desc and the weights are those of a plan and its run: checked. */
void moi_pack_rows(const moi_pack_desc *desc, const moi_weights *src, const moi_weights *dst, uint32_t expert,
                   uint32_t begin, uint32_t end);

/* Address of a view's first byte. */
static inline void *moi_view(moi_buffer b) { return b.ptr ? (uint8_t *)b.ptr + b.offset : NULL; }

#endif
