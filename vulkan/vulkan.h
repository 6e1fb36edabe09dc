/* The Vulkan backend's own state, and what its files give each other. */
#ifndef MOI_VULKAN_VULKAN_H
#define MOI_VULKAN_VULKAN_H

#include <moiety_vulkan.h>
#include <string.h>

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES
#endif
#include <vulkan/vulkan_core.h>

#include "core/backend.h"
#include "core/workspace.h"
#include "vulkan/kernel.h"

/* ---- functions. A table for each device, not volk: its globals hold one device, and clash with an engine's own volk. */

#define MOI_VK_INSTANCE_FUNCTIONS(X)                                                                                   \
  X(DestroyInstance) X(EnumeratePhysicalDevices) X(GetPhysicalDeviceProperties) X(GetPhysicalDeviceProperties2)        \
  X(GetPhysicalDeviceFeatures2) X(GetPhysicalDeviceMemoryProperties) X(GetPhysicalDeviceQueueFamilyProperties)         \
  X(EnumerateDeviceExtensionProperties) X(CreateDevice) X(GetDeviceProcAddr)

#define MOI_VK_DEVICE_FUNCTIONS(X)                                                                                     \
  X(DestroyDevice) X(GetDeviceQueue) X(CreateShaderModule) X(DestroyShaderModule) X(CreatePipelineLayout)              \
  X(DestroyPipelineLayout) X(CreatePipelineCache) X(DestroyPipelineCache) X(GetPipelineCacheData)                      \
  X(CreateComputePipelines) X(DestroyPipeline) X(CreateDescriptorSetLayout) X(DestroyDescriptorSetLayout)               \
  X(GetBufferDeviceAddress) X(CmdBindPipeline) X(CmdPushConstants)        \
  X(CmdDispatch) X(CmdDispatchIndirect) X(CmdPipelineBarrier) X(CmdUpdateBuffer)

typedef struct moi_vk_functions {
  PFN_vkGetInstanceProcAddr GetInstanceProcAddr;
#define X(name) PFN_vk##name name;
  MOI_VK_INSTANCE_FUNCTIONS(X)
  MOI_VK_DEVICE_FUNCTIONS(X)
#undef X
  PFN_vkCmdPushDescriptorSetKHR CmdPushDescriptorSetKHR; /* where traits.sets */
} moi_vk_functions;

/* What kernels are chosen by. */
typedef struct moi_vk_traits {
  uint32_t is_cpu;        /* a software device, lavapipe */
  uint32_t subgroup;      /* subgroupSize: a power of two, 4 to 128 */
  uint32_t exact;         /* no pipeline is compiled for subgroups of another size, or none that asks for it */
  uint32_t size_control;  /* pipelines may ask: the feature is enabled */
  uint32_t dot, fast_dot; /* integer dot products: the feature is enabled; four signed bytes are accelerated */
  uint32_t scalar_loads;  /* what all lanes read of one address is one scalar load, in loops too: lavapipe from Mesa 26 on */
  uint32_t max_threads;   /* of a workgroup along x; at least 128 */
  uint32_t shared_memory; /* bytes of a workgroup */
  uint32_t max_groups[3]; /* maxComputeWorkGroupCount */
  uint32_t sets;          /* no buffer device addresses: memory by descriptors (moi_vk_slots) */
  uint64_t max_range;     /* bytes of a storage buffer, if sets */
  uint64_t range_align;   /* of its begin: a power of two, at least 16 */
} moi_vk_traits;

typedef struct moi_vk_pipeline moi_vk_pipeline; /* pipelines.c */
typedef struct moi_vk_wants moi_vk_wants;

/* a context's state */
typedef struct moi_vulkan {
  moi_vk_functions vk;
  VkInstance instance;
  VkPhysicalDevice physical;
  VkDevice device;
  VkQueue queue; /* of a device of its own */
  uint32_t family, owns;
  moi_vk_traits traits;
  VkDescriptorSetLayout set; /* if traits.sets */
  VkPipelineLayout layout;   /* push constants, and that set */
  VkPipelineCache cache;
  struct moi_vk_pipelines *pipelines;
} moi_vulkan;

extern const moi_backend_ops moi_vulkan_ops;

/* The moi_status of a VkResult, with the text of what was tried. */
moi_status moi_vk_fail(const char *function, const char *what, VkResult result);

/* ---- device.c */
moi_status moi_vk_device_count(uint32_t *count);
moi_status moi_vk_device_get(uint32_t index, moi_device_info *info);
moi_status moi_vk_open(moi_context *context);
void moi_vk_close(moi_context *context);

/* ---- pipelines.c */
#define MOI_VK_PUSH_BYTES 128
/* cache: what an earlier context gave, or none */
moi_status moi_vk_pipelines_open(const char *function, moi_context *context, const void *cache, size_t cache_size);
void moi_vk_pipelines_close(moi_context *context);
/* Asks for the pipeline of a shader (the name of its file, or <file>_<format> for those that are compiled for each format)
 * with its specialization constants 0..n-1: once the plan's pipelines are made it is in *out, which lies in its state. A
 * context makes each once and keeps it. */
moi_status moi_vk_pipeline_want(const char *function, const moi_plan *plan, const char *shader,
                                const uint32_t *constants, uint32_t n, VkPipeline *out);
/* A row's pipeline: the same, with subgroups of subgroupSize where it is WHOLE. */
moi_status moi_vk_row_want(const char *function, const moi_plan *plan, const moi_vk_kernel *row,
                           const uint32_t *constants, uint32_t n, VkPipeline *out);
/* Makes what was asked for, several at a time: the most of a plan's time is the driver's compiler. */
moi_status moi_vk_pipelines_make(const char *function, const moi_plan *plan);
/* 1 if the build has this shader for the device: with traits.sets, its variant for them. */
int moi_vk_shader_exists(const moi_vulkan *v, const char *shader);

/* ---- recording (record.c) */

/* Without buffer device addresses: the storage buffers that a dispatch reaches, pushed before it. An address is then
 * slot << 32 | offset, the slot's number being the index in common.glsl's moi_memory: the first are given to the views as they
 * come, those of one VkBuffer share one where its range allows it; the rest are the streams of a GEMM's matrices, bound for
 * that GEMM alone. 0 is never given: an address of 0 is an absent view. */
enum {
  MOI_VK_BINDINGS = 24,
  MOI_VK_COMMON = 16,    /* views of a run, at most */
  MOI_VK_FFN_COMMON = 8, /* of one with such matrices */
  MOI_VK_STREAMS = MOI_VK_BINDINGS - 1 - MOI_VK_FFN_COMMON
};
typedef struct moi_vk_slots {
  VkDescriptorBufferInfo list[MOI_VK_BINDINGS];
  uint32_t used;      /* of the common ones */
  uint32_t changed;   /* since they were pushed */
  uint32_t trial;     /* 1: nothing is recorded, the views are looked at */
  uint32_t since;     /* what was recorded since the last barrier (record.c) */
  uint32_t next;      /* slot of a stream */
  uint32_t exhausted; /* a run of more views than there are slots */
  uint32_t too_many;  /* ... of streams */
  uint64_t too_large, too_large_at; /* size and offset of a view that no storage buffer can be; 0: none */
} moi_vk_slots;

/* A run being recorded. */
typedef struct moi_vk_record {
  const moi_vulkan *v;
  VkCommandBuffer commands;
  VkBuffer workspace; /* with its offset and address */
  uint64_t workspace_offset, workspace_address;
  moi_vk_slots *slots; /* NULL: addresses are the device's */
} moi_vk_record;

/* Begins a run: the entry barrier. slots: zeroed, or NULL where device addresses are there. */
moi_vk_record moi_vk_begin(const moi_plan *plan, const moi_run *run, moi_vk_slots *slots);
/* Address of a view's first byte; 0 if it is absent. */
uint64_t moi_vk_address(const moi_vk_record *r, moi_buffer view);
/* Forgets the views but the workspace: their addresses are no longer valid. */
void moi_vk_forget(const moi_vk_record *r);
/* Address of the next stream of a GEMM's matrices, valid in dispatches behind moi_vk_bind_streams with the same matrices in
 * the same order, from moi_vk_first_stream on. Where a stream of experts is larger than a storage buffer it is cut into
 * several, and *stride says how (gemm.glsl). */
void moi_vk_first_stream(const moi_vk_record *r);
uint64_t moi_vk_next_stream(const moi_vk_record *r, moi_buffer view, uint64_t *stride);
void moi_vk_bind_streams(const moi_vk_record *r, const moi_weights *const matrices[2]);
/* Experts of `stride` bytes that fit a storage buffer, if the first begins `skip` bytes behind its begin. */
uint64_t moi_vk_experts_of_part(const moi_vk_traits *t, uint64_t skip, uint64_t stride);
/* What came before is finished and seen by what comes after: compute, indirect counts, transfers. */
void moi_vk_barrier(const moi_vk_record *r);
/* Writes arguments (a multiple of 4 bytes) to workspace + at; a barrier must follow before a shader reads them. Returns
 * their address. */
uint64_t moi_vk_args(const moi_vk_record *r, size_t at, const void *args, size_t size);
/* Arguments of several dispatches that go to the device in one piece, at workspace + at. */
typedef struct moi_vk_block {
  size_t at;
  uint32_t used;
  uint8_t bytes[4096];
} moi_vk_block;
/* Adds a struct, and returns the address that it will have. */
uint64_t moi_vk_put(const moi_vk_record *r, moi_vk_block *block, const void *args, size_t size);
void moi_vk_flush(const moi_vk_record *r, const moi_vk_block *block);
/* push: at most MOI_VK_PUSH_BYTES, a multiple of 4. A dimension of 0 dispatches nothing. */
void moi_vk_dispatch(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size, uint32_t x, uint32_t y,
                     uint32_t z);
/* x, y, z are three uint at workspace + at. */
void moi_vk_dispatch_indirect(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size, size_t at);

/* ---- sorting and products, which ops share (grouped.c) */

/* Rows of activations in the workspace are fp32, this many floats apart, zero behind k. */
static inline uint32_t moi_vk_kp(uint32_t k) { return (k + 31) & ~31u; }

/* Slots by class, then by number: moi_route_args' counts, offsets and permutation. All addresses but n_tokens_device must
 * be there. Slots of tokens from min(n_tokens, *n_tokens_device) on, and ids outside 0..n_class-1, are in no class; the
 * permutation's entries behind the last are -1. The barrier that its arguments need also serves what came before. */
typedef struct moi_vk_sort {
  uint64_t ids, n_tokens_device, counts, offsets, permutation;
  uint32_t n_tokens, top_k, n_class;
} moi_vk_sort;
moi_status moi_vk_sort_plan(const char *function, const moi_plan *plan, VkPipeline *out);
size_t moi_vk_sort_count(moi_carve *carve, uint32_t n_class); /* where its arguments lie */
void moi_vk_sort_record(const moi_vk_record *r, VkPipeline pipeline, size_t at, const moi_vk_sort *sort);

/* y[r, 0..n-1] = x[r] W^T, fp32, for rows 0..min(n_rows, *n_rows_device)-1 and one dense matrix W[n, k] (F32, F16, BF16).
 * The barrier that its arguments need also serves what came before; one after it is the caller's. */
typedef struct moi_vk_product {
  uint64_t x, w, y, n_rows_device; /* x: rows of moi_vk_kp(k) floats; y: rows of n floats */
  uint32_t n_rows, n, k;
} moi_vk_product;
typedef struct moi_vk_gemm_state moi_vk_gemm_state;
size_t moi_vk_product_count(moi_carve *carve, uint32_t max_rows);
void moi_vk_product_record(const moi_vk_record *r, const moi_vk_gemm_state *gemm, size_t at, uint32_t max_rows,
                           const moi_vk_product *product);

/* ---- plans. Every op has: _plan, which chooses rows, asks for pipelines and counts its workspace with `carve`; _run, which
 * records with the same carve. State is embedded in moi_vk_plan. */

/* The rows of one weight matrix: `few` serves experts with at most few->m_max rows, `many` the others; may be the same. */
typedef struct moi_vk_pick {
  const moi_vk_kernel *few, *many;
} moi_vk_pick;

/* Chooses among kernels.def; texts and warnings as the CPU backend's. *found is set if `forced` named one that serves. */
moi_status moi_vk_choose(const char *function, moi_plan *plan, moi_op op, const char *what, moi_format format,
                         const char *forced, int *found, moi_vk_pick *pick);

/* How a grouped GEMM reads x. 0: floats. Else integers in their place (codes.glsl: Digits), for each 32 k:
 *   2   d = max|x| / 32639, x = d * q with q rounded to nearest, as two signed bytes: q = 256 hi + lo. As the CPU's I8X2:
 *       16 bits, not 8, since what a kernel computes is not to depend on how
 *   1   MOI_ACT_QUANT_INT8_32's scale and codes, one byte
 * | MOI_VK_EVEN_ODD: of each 8 k the even ones first, for formats whose words are nibbles of eight consecutive k. */
typedef uint32_t moi_vk_form;
#define MOI_VK_EVEN_ODD 4u

struct moi_vk_gemm_state { /* one grouped GEMM */
  moi_vk_pick pick;
  moi_vk_form form; /* of both rows */
  VkPipeline pipeline[2][2]; /* [few, many][streams begin anywhere, at words] */
};
/* Chooses rows for a weight matrix and asks for their pipelines. gate_up: 1: two matrices and an activation. */
moi_status moi_vk_gemm_choose(const char *function, moi_plan *plan, const char *what, moi_format format, int gate_up,
                              moi_act_quant act_quant, const char *forced, int *found, moi_vk_gemm_state *out);

typedef struct moi_vk_route_state {
  const moi_vk_kernel *select;
  moi_vk_gemm_state router; /* if hidden > 0 */
  VkPipeline prepare, select_pipeline, sort;
} moi_vk_route_state;

typedef struct moi_vk_ffn_state {
  moi_vk_gemm_state up, down;
} moi_vk_ffn_state;

/* Rows of the cache begin anywhere; at words; and keys at 16 bytes, and are multiples of them. */
#define MOI_VK_CACHE_ALIGNMENTS 3

typedef struct moi_vk_attention_state {
  moi_vk_pick pick;
  VkPipeline prepare, merge, few[MOI_VK_CACHE_ALIGNMENTS], many[MOI_VK_CACHE_ALIGNMENTS];
  VkPipeline finish[2], append_k[2], append_v[2]; /* [rows begin anywhere, at words] */
  uint32_t few_rows, few_tile, many_tile; /* rows of a sequence that count as few; query rows of a workgroup */
  uint32_t segment, n_segments;           /* core/shared/segment.h: its unit */
  uint32_t pass_keys;                     /* keys of a dispatch */
} moi_vk_attention_state;

typedef struct moi_vk_plan {
  moi_vk_route_state route;
  moi_vk_ffn_state ffn[2]; /* routed, shared */
  moi_vk_gemm_state gemm;
  VkPipeline sort, prepare, combine, store;
  moi_vk_attention_state attention;
  moi_vk_wants *wants; /* while it is made */
} moi_vk_plan;

/* ids [t, top_k] and weights [t, top_k]: device addresses, always written; n_tokens_device as the run says. */
moi_status moi_vk_route_plan(const char *function, moi_plan *plan, const char *forced, int *found);
void moi_vk_route_count(const moi_plan *plan, moi_carve *carve);
void moi_vk_route_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *carve, uint64_t ids,
                         uint64_t weights);

moi_status moi_vk_ffn_plan(const char *function, moi_plan *plan, const char *forced, int *found);
void moi_vk_ffn_count(const moi_plan *plan, moi_carve *carve);
void moi_vk_ffn_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *carve, uint64_t ids,
                       uint64_t weights);

moi_status moi_vk_gemm_plan(const char *function, moi_plan *plan, const char *forced, int *found);
void moi_vk_gemm_count(const moi_plan *plan, moi_carve *carve);
void moi_vk_bare_gemm_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *carve);

moi_status moi_vk_attention_plan(const char *function, moi_plan *plan, const char *forced, int *found);
void moi_vk_attention_count(const moi_plan *plan, moi_carve *carve);
void moi_vk_attention_record(const moi_plan *plan, const moi_run *run, const moi_vk_record *r, moi_carve *carve);

#endif
