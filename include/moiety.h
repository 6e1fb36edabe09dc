/* moiety: Mixture-of-Experts kernels behind one C ABI.
 *
 *     y[t] = sum_k w[t,k] * D_e( act(G_e x[t], U_e x[t]) ),   e = ids[t,k]
 *
 * Letters, here and everywhere: t tokens, e experts, k experts per token (top_k), h hidden width, i expert
 * intermediate width; a GEMM speaks m n k. Matrices are row-major, a row of an activation is a token. A weight matrix
 * W[n,k] computes y = x W^T.
 *
 * A PLAN is an op with all that does not change between calls: bounds, formats, rules, device. Making one validates
 * everything and chooses the kernels. A RUN names memory through VIEWS (moi_buffer) and only enqueues: it allocates
 * nothing, and on a device queue it waits for nothing.
 *
 * Structs. Set `struct_size` to sizeof the struct (the MOI_*_INIT macros do) and leave unknown members 0: 0 is the
 * default of every member. A smaller struct_size than the library's is accepted (the missing tail reads as 0); a larger
 * one only if the unknown tail is all zero, else MOI_VERSION_MISMATCH. `next` chains backend-specific structs
 * (moiety_cuda.h, moiety_vulkan.h); the CPU backend takes none.
 *
 * Errors. Every fallible call returns a moi_status; moi_last_error() holds the text: function, argument, value, limit.
 * The library never aborts, exits, prints or throws, and on error it has changed nothing but the outputs of a run.
 *
 * Ownership. The caller owns data, workspace, queue, threads and device. A desc and the args of a run need live only
 * during the call (on a device queue the memory they name must live until the queue has passed the work). A context
 * outlives its plans. destroy(NULL) is a no-op.
 *
 * Threads. Contexts are free-threaded. Plans are immutable: any number of threads may run one plan at once, each with
 * its own workspace and outputs.
 *
 * Environment. One variable, MOI_DEBUG, caps what the backends use so that one machine tests the lesser paths:
 * MOI_DEBUG=cpu=scalar|avx2|avxvnni|avx512|avx512vnni|avx512bf16, on AArch64 cpu=scalar|neon|dotprod|i8mm|neonbf16 (read
 * at context creation; what is not a level of this architecture is not understood and warns); MOI_DEBUG=vulkan=sets: a
 * Vulkan context that makes its own device does so without bufferDeviceAddress. */
#ifndef MOIETY_H
#define MOIETY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOI_VERSION_MAJOR 0
#define MOI_VERSION_MINOR 1
#define MOI_VERSION_PATCH 0
#define MOI_VERSION ((MOI_VERSION_MAJOR << 16) | (MOI_VERSION_MINOR << 8) | MOI_VERSION_PATCH)

#if defined(_WIN32) && defined(MOI_SHARED)
#  ifdef MOI_BUILD
#    define MOI_API __declspec(dllexport)
#  else
#    define MOI_API __declspec(dllimport)
#  endif
#elif defined(__GNUC__)
#  define MOI_API __attribute__((visibility("default")))
#else
#  define MOI_API
#endif

/* Version of the library in use, MOI_VERSION of the header it was built with. */
MOI_API uint32_t moi_version(void);

/* ------------------------------------------------------------------------------------------------ status and errors */

/* X(NAME, value, text). Values are for ever. */
#define MOI_STATUS_MAP(X)                                                                                              \
  X(OK, 0, "success")                                                                                                  \
  X(INVALID_ARGUMENT, 1, "an argument is null, misaligned, out of range or contradicts another")                       \
  X(UNSUPPORTED, 2, "valid, but this build, backend or device has no kernel for it")                                   \
  X(OUT_OF_MEMORY, 3, "the allocator, or the device, had no memory left")                         \
  X(VERSION_MISMATCH, 4, "the caller's struct is newer than the library and its unknown tail is not zero")             \
  X(NO_DEVICE, 5, "no such device, or its driver could not be loaded")                                                 \
  X(DEVICE_ERROR, 6, "the device or its driver reported an error")                                                     \
  X(INTERNAL, 7, "a defect in moiety")

typedef enum moi_status {
#define MOI_X(name, value, text) MOI_##name = value,
  MOI_STATUS_MAP(MOI_X)
#undef MOI_X
  MOI_STATUS_FORCE_32 = 0x7fffffff
} moi_status;

/* One line for a status value; never NULL. */
MOI_API const char *moi_status_text(moi_status status);

/* Text of this thread's last failed call: "function: argument: value, limit". Empty before the first failure and
 * unchanged by success. Valid until this thread's next failing call. Never NULL. */
MOI_API const char *moi_last_error(void);

/* --------------------------------------------------------------------------------------------------- weight formats */

/* X(NAME, value, "name", order, block_n, block_k, block_bytes, scale_n, scale_k, scale_bytes, zero_bits)
 *
 * The bytes of one expert's matrix W[n,k], exactly as they lie in the checkpoint:
 *   order        N: rows of blocks along k; block (n/block_n, k/block_k) is number (n/block_n)*ceil(k/block_k) + ...
 *                K: the transpose of that order: block number (k/block_k)*(n/block_n) + ..., n contiguous
 *                R: N's order, of blocks whose block_n rows lie interleaved, their scales side by side in the order of
 *                blocks; n is a multiple of block_n. moi_pack makes it for the CPU; plans of the other backends refuse it
 *   block_*      a block of the `data` stream holds block_n x block_k elements in block_bytes bytes
 *   scale_*      the `scales` stream has one scale of scale_bytes bytes for scale_n x scale_k elements, in the same
 *                order (ragged edges have their own scale); 0: no stream, scales lie in the blocks or do not exist
 *   zero_bits    the `zeros` stream has one zero point of so many bits for each scale; 0: no stream
 *
 * F32, F16, BF16   IEEE binary32, binary16, bfloat16
 * BF16_KN          bfloat16 stored transposed, [k,n]: Llama 4's experts.gate_up_proj and down_proj in safetensors
 * FP8              E4M3FN; no scale but the expert's `global_scale` (per-tensor fp8), and in a KV cache its k_scale, v_scale
 * FP8_B128         E4M3FN, fp32 scale (weight_scale_inv) for each 128x128 tile: DeepSeek V3, Kimi K2, Qwen FP8, MiniMax
 * MXFP4            E2M1, low nibble = even k; E8M0 scale byte for 32 k: gpt-oss (safetensors), Kimi K3, DeepSeek V4
 * NVFP4            E2M1, low nibble = even k; E4M3 scale for 16 k; one fp32 `global_scale` for each expert (ModelOpt)
 * FP4_G16          E2M1, low nibble = even k; E8M0 scale byte for 16 k: DeepSeek V4.1
 * INT4_G*          offset-binary nibble q+8, low nibble = even k; bf16 scale for G k; w = (nibble-8)*scale:
 *                  compressed-tensors pack-quantized (Kimi K2-Thinking, K2.5)
 * INT4Z_G*         nibble, low nibble = even k; f16 scale and 8-bit zero point for G k; w = (nibble-zero)*scale:
 *                  moi_pack makes it of GPTQ and AWQ
 * GPTQ_G*          int32 words of 8 k, [k/8,n]; f16 scales [k/G,n]; zeros int32 [k/G,n/8] that store z-1 (GPTQ v1),
 *                  no act-order
 * AWQ_G*           int32 words of 8 n (order 0 2 4 6 1 3 5 7), [k,n/8]; f16 scales [k/G,n]; zeros int32 [k/G,n/8], the
 *                  same nibble order
 * Q*, IQ*, *_GGUF  the blocks of GGUF files
 * *_R16            the blocks of 16 rows in pieces of 64 bytes: piece j has at 4 * (n % 16) bytes 4j .. 4j+3 of row n's GGUF
 *                  block; but for Q4_K its bytes of codes alone, and the scales (f16; MXFP4's E8M0) make the `scales` stream.
 *                  Best aligned to 64 bytes */
#define MOI_FORMAT_MAP(X)                                                                                              \
  X(F32, 1, "f32", N, 1, 1, 4, 0, 0, 0, 0)                                                                             \
  X(F16, 2, "f16", N, 1, 1, 2, 0, 0, 0, 0)                                                                             \
  X(BF16, 3, "bf16", N, 1, 1, 2, 0, 0, 0, 0)                                                                           \
  X(BF16_KN, 4, "bf16_kn", K, 1, 1, 2, 0, 0, 0, 0)                                                                     \
  X(FP8, 17, "fp8", N, 1, 1, 1, 0, 0, 0, 0)                                                                            \
  X(FP8_B128, 16, "fp8_b128", N, 1, 1, 1, 128, 128, 4, 0)                                                              \
  X(MXFP4, 32, "mxfp4", N, 1, 32, 16, 1, 32, 1, 0)                                                                     \
  X(NVFP4, 33, "nvfp4", N, 1, 16, 8, 1, 16, 1, 0)                                                                      \
  X(FP4_G16, 34, "fp4_g16", N, 1, 16, 8, 1, 16, 1, 0)                                                                  \
  X(INT4_G32, 48, "int4_g32", N, 1, 32, 16, 1, 32, 2, 0)                                                               \
  X(INT4_G128, 49, "int4_g128", N, 1, 128, 64, 1, 128, 2, 0)                                                           \
  X(INT4Z_G32, 50, "int4z_g32", N, 1, 32, 16, 1, 32, 2, 8)                                                             \
  X(INT4Z_G128, 51, "int4z_g128", N, 1, 128, 64, 1, 128, 2, 8)                                                         \
  X(GPTQ_G32, 52, "gptq_g32", K, 1, 8, 4, 1, 32, 2, 4)                                                                 \
  X(GPTQ_G128, 53, "gptq_g128", K, 1, 8, 4, 1, 128, 2, 4)                                                              \
  X(AWQ_G32, 54, "awq_g32", K, 8, 1, 4, 1, 32, 2, 4)                                                                   \
  X(AWQ_G128, 55, "awq_g128", K, 8, 1, 4, 1, 128, 2, 4)                                                                \
  X(Q8_0, 64, "q8_0", N, 1, 32, 34, 0, 0, 0, 0)                                                                        \
  X(Q4_0, 65, "q4_0", N, 1, 32, 18, 0, 0, 0, 0)                                                                        \
  X(Q4_K, 66, "q4_k", N, 1, 256, 144, 0, 0, 0, 0)                                                                      \
  X(Q5_K, 67, "q5_k", N, 1, 256, 176, 0, 0, 0, 0)                                                                      \
  X(Q6_K, 68, "q6_k", N, 1, 256, 210, 0, 0, 0, 0)                                                                      \
  X(MXFP4_GGUF, 69, "mxfp4_gguf", N, 1, 32, 17, 0, 0, 0, 0)                                                            \
  X(IQ4_NL, 70, "iq4_nl", N, 1, 32, 18, 0, 0, 0, 0)                                                                    \
  X(MXFP4_R16, 80, "mxfp4_r16", R, 16, 32, 256, 1, 32, 1, 0)                                                           \
  X(Q4_0_R16, 81, "q4_0_r16", R, 16, 32, 256, 1, 32, 2, 0)                                                             \
  X(IQ4_NL_R16, 82, "iq4_nl_r16", R, 16, 32, 256, 1, 32, 2, 0)                                                         \
  X(Q8_0_R16, 83, "q8_0_r16", R, 16, 32, 512, 1, 32, 2, 0)                                                             \
  X(Q4_K_R16, 84, "q4_k_r16", R, 16, 256, 2304, 0, 0, 0, 0)

typedef enum moi_format {
  MOI_FORMAT_NONE = 0,
#define MOI_X(NAME, value, ...) MOI_FORMAT_##NAME = value,
  MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
  MOI_FORMAT_FORCE_32 = 0x7fffffff
} moi_format;

/* Name of a format ("q4_k"), NULL for a value that is none; and the format of a name, MOI_FORMAT_NONE if there is none. */
MOI_API const char *moi_format_name(moi_format format);
MOI_API moi_format moi_format_from_name(const char *name);
/* The formats one after another: index 0, 1, ... gives a format, past the last MOI_FORMAT_NONE. */
MOI_API moi_format moi_format_at(uint32_t index);

/* Bytes of the three streams of one expert's W[n,k]. */
typedef struct moi_format_sizes {
  uint64_t data, scales, zeros;
} moi_format_sizes;

/* Fills `out` for W[n,k]. MOI_INVALID_ARGUMENT if the format does not exist, n or k is 0, or n, k are not multiples of
 * the format's block (k of 32 for Q4_0, of 256 for Q4_K; n of 8 for AWQ and GPTQ, of 16 for *_R16), or one matrix exceeds 4 GiB or 2^32
 * elements. */
MOI_API moi_status moi_format_size(moi_format format, uint32_t n, uint32_t k, moi_format_sizes *out);

/* ------------------------------------------------------------------------------------------------- memory and queues */

/* A view: names memory, never owns it. CPU and CUDA use ptr (+ offset), Vulkan handle (a VkBuffer) + offset.
 * size: bytes from offset on that belong to the view; checked against what an op needs. All 0 = absent. */
typedef struct moi_buffer {
  void *ptr;
  uint64_t handle;
  uint64_t offset;
  uint64_t size;
} moi_buffer;

/* A view of host memory or of a CUDA pointer. Inputs are never written, whatever the type says. */
static inline moi_buffer moi_ptr(const void *ptr, uint64_t size) {
  moi_buffer b;
  b.ptr = (void *)(uintptr_t)ptr;
  b.handle = 0;
  b.offset = 0;
  b.size = size;
  return b;
}

/* Where the work goes: NULL for the CPU (the call returns when the work is done), a cudaStream_t, a VkCommandBuffer. */
typedef struct moi_queue {
  void *native;
} moi_queue;

/* A member of a `next` chain. */
typedef struct moi_chain {
  uint32_t type;
  uint32_t reserved;
  const struct moi_chain *next;
} moi_chain;

/* ------------------------------------------------------------------------------------------------------------ context */

typedef enum moi_backend {
  MOI_BACKEND_CPU = 0,
  MOI_BACKEND_CUDA = 1,
  MOI_BACKEND_VULKAN = 2,
  MOI_BACKEND_COUNT = 3,
  MOI_BACKEND_FORCE_32 = 0x7fffffff
} moi_backend;

typedef enum moi_log_level {
  MOI_LOG_ERROR = 0,
  MOI_LOG_WARNING = 1, /* a slower kernel than the best one was chosen, a default pool is missing, ... */
  MOI_LOG_INFO = 2,
  MOI_LOG_FORCE_32 = 0x7fffffff
} moi_log_level;

/* Host memory of contexts and plans. allocate returns `size` bytes aligned to `align` (a power of two), or NULL.
 * Both or neither must be set. May be called from any thread that creates or destroys objects; never by a run. */
typedef void *(*moi_allocate_fn)(void *user, size_t size, size_t align);
typedef void (*moi_free_fn)(void *user, void *ptr, size_t size);
/* One line of text, no newline; the text lives during the call. */
typedef void (*moi_log_fn)(void *user, moi_log_level level, const char *text);
/* Calls body(arg, i) once for each i in 0..n-1, on any threads in any order, and returns when all have returned.
 * n <= n_workers. Running them one after another is correct too. */
typedef void (*moi_parallel_for_fn)(void *user, uint32_t n, void (*body)(void *arg, uint32_t i), void *arg);

typedef struct moi_context_desc {
  size_t struct_size;
  const moi_chain *next;
  moi_backend backend;
  uint32_t device;    /* index in moi_device_get's order */
  uint32_t n_workers; /* CPU: threads of the default pool (0: one for each core this process may use), or, with
                         parallel_for, how many bodies may run at once (must be > 0); at most 1024 */
  uint32_t reserved;
  moi_parallel_for_fn parallel_for; /* CPU: the engine's threads; NULL: the default pool: threads of the context's
                                       own, which spin for some 50 us after a run and then sleep; fewer of them, and
                                       a warning, where the system gives no more */
  void *parallel_for_user;
  moi_allocate_fn allocate; /* NULL: malloc and free */
  moi_free_fn free;
  void *allocator_user;
  moi_log_fn log; /* NULL: silent */
  void *log_user;
} moi_context_desc;
#define MOI_CONTEXT_DESC_INIT { sizeof(moi_context_desc) }

typedef struct moi_context moi_context;

/* Opens a device of a backend. *out is NULL on failure. MOI_UNSUPPORTED: the backend is not in this build;
 * MOI_NO_DEVICE: no such device or no driver. */
MOI_API moi_status moi_context_create(const moi_context_desc *desc, moi_context **out);
/* Frees a context. Its plans must be gone. */
MOI_API void moi_context_destroy(moi_context *context);

typedef struct moi_device_info {
  size_t struct_size;
  moi_backend backend;
  uint32_t index;
  char name[128];
  char driver[128];    /* driver and its version; for the CPU the instruction set in use */
  char features[512];  /* words separated by spaces */
  uint64_t memory;     /* bytes of the device's memory */
  uint64_t cache;      /* bytes of the last-level cache, 0 if unknown */
  uint32_t n_workers;  /* cores or multiprocessors */
  uint32_t reserved;
} moi_device_info;
#define MOI_DEVICE_INFO_INIT { sizeof(moi_device_info) }

/* "cpu", "cuda", "vulkan"; NULL for another value. */
MOI_API const char *moi_backend_name(moi_backend backend);
/* How many devices a backend has. On MOI_UNSUPPORTED or MOI_NO_DEVICE, *count is 0 and moi_last_error() says what is
 * missing and why. */
MOI_API moi_status moi_device_count(moi_backend backend, uint32_t *count);
MOI_API moi_status moi_device_get(moi_backend backend, uint32_t index, moi_device_info *info);

/* --------------------------------------------------------------------------------------------------------------- plans */

typedef enum moi_op {
  MOI_OP_ROUTE = 1,
  MOI_OP_EXPERTS = 2,
  MOI_OP_GEMM = 3,
  MOI_OP_MOE = 4,
  MOI_OP_ATTENTION = 5,
  MOI_OP_PACK = 6,
  MOI_OP_FORCE_32 = 0x7fffffff
} moi_op;

/* Demands on the kernels of a plan, `plan_flags` of every desc. A demand that no kernel meets is MOI_UNSUPPORTED. */
#define MOI_NO_FALLBACK 0x1u     /* fail rather than use the generic or the reference kernel */
#define MOI_DETERMINISTIC 0x2u   /* the same call gives the same bits, run after run, whatever the number of workers */
#define MOI_BATCH_INVARIANT 0x4u /* a token's bits do not depend on the other tokens of the call */

typedef struct moi_plan moi_plan;

/* Frees a plan; no run of it may be under way. */
MOI_API void moi_plan_destroy(moi_plan *plan);
/* Bytes of workspace that a run needs, and its alignment (align may be NULL). Depends only on the plan. 0 for NULL. */
MOI_API size_t moi_plan_workspace(const moi_plan *plan, size_t *align);
/* Writes what was chosen, and why each better kernel was refused, as lines of text with a final 0, cut at `size`.
 * Returns the length without cutting; text may be NULL if size is 0. */
MOI_API size_t moi_plan_describe(const moi_plan *plan, char *text, size_t size);

/* Names of the rows that the plan runs on, joined by "+" ("q4_0-avx512vnni+q4_0-avx512"): those of its main matrices, for a
 * route plan of the selection, none for a pack plan. Lives as long as the plan; "" for NULL. */
MOI_API const char *moi_plan_kernel(const moi_plan *plan);

/* One row of a backend's kernel list. Lists are in order of preference, the reference last. */
typedef struct moi_kernel_info {
  size_t struct_size;
  const char *name;     /* what a desc's `kernel` takes */
  moi_op op;            /* MOI_OP_ROUTE, MOI_OP_ATTENTION, or MOI_OP_GEMM for kernels that serve experts, gemm and moe */
  moi_format format;    /* MOI_FORMAT_NONE: every format */
  const char *needs;    /* instruction set or feature, "" for none */
  uint32_t plan_flags;  /* which of the demands above it meets */
  uint32_t runs_here;   /* 1: this machine, under MOI_DEBUG, can run it */
} moi_kernel_info;
#define MOI_KERNEL_INFO_INIT { sizeof(moi_kernel_info) }

/* Row `index` of a backend's list. MOI_INVALID_ARGUMENT past the last row; MOI_UNSUPPORTED if the backend is absent. */
MOI_API moi_status moi_kernel_get(moi_backend backend, uint32_t index, moi_kernel_info *info);

/* --------------------------------------------------------------------------------------------------------------- route */

/* How logits become scores. The steps are those of the models' published code (docs/routing.md names each). */
typedef enum moi_score {
  MOI_SCORE_SOFTMAX = 0,       /* softmax over all experts, then top-k: Qwen3, Mixtral, OLMoE, DeepSeek V2, ERNIE */
  MOI_SCORE_SIGMOID = 1,       /* sigmoid, then top-k: DeepSeek V3, Kimi K2, GLM, MiniMax, Nemotron 3 */
  MOI_SCORE_SQRT_SOFTPLUS = 2, /* sqrt(log(1+exp(l))), then top-k: DeepSeek V4 */
  MOI_SCORE_TOPK_SOFTMAX = 3,  /* top-k of the logits, softmax over the k: gpt-oss, Granite */
  MOI_SCORE_TOPK_SIGMOID = 4,  /* top-k of the logits, sigmoid of each: Llama 4 */
  MOI_SCORE_SPARSEMIXER = 5,   /* Phi-3.5-MoE, top_k = 2, `jitter` */
  MOI_SCORE_FORCE_32 = 0x7fffffff
} moi_score;

typedef enum moi_group_score {
  MOI_GROUP_TOP2_SUM = 0, /* sum of the two largest biased scores of the group: DeepSeek V3, Ling */
  MOI_GROUP_MAX = 1,      /* largest score of the group: DeepSeek V2 */
  MOI_GROUP_FORCE_32 = 0x7fffffff
} moi_group_score;

typedef enum moi_renorm {
  MOI_RENORM_NONE = 0,
  MOI_RENORM_SUM = 1, /* w /= sum(w) + renorm_eps */
  MOI_RENORM_MAX = 2, /* w /= max(sum(w), renorm_eps): ERNIE (1e-12), Hunyuan */
  MOI_RENORM_FORCE_32 = 0x7fffffff
} moi_renorm;

/* `flags` of a route desc: which optional operands the args bring. */
#define MOI_ROUTE_BIAS 0x1u            /* router_bias [e] is added to the logits: gpt-oss */
#define MOI_ROUTE_SELECT_BIAS 0x2u     /* select_bias [e] is added to the scores for selection only */
#define MOI_ROUTE_SELECT_BIAS_ALT 0x4u /* and select_bias_alt [e] instead, for tokens whose alt_mask byte is not 0 */
#define MOI_ROUTE_EXPERT_SCALE 0x8u    /* expert_scale [e] multiplies the final weights: Gemma 4 */
#define MOI_ROUTE_INPUT_NORM 0x10u     /* the router sees x * rsqrt(mean(x^2) + norm_eps) * norm_weight * norm_scale */
#define MOI_ROUTE_HASH 0x20u           /* ids come from hash_table[token_ids[t]]: the first layers of DeepSeek V4 */

/* Expert routing: hidden states or logits -> ids, weights, counts, offsets, permutation.
 *   1. l = x Wr^T (fp32 accumulation) [+ router_bias], rounded to logits_type; l *= logit_scale;
 *      with logit_softcap c: l = c*tanh(l/c)
 *   2. s = score(l); selection value v = s [+ select_bias]
 *   3. n_group > 1: only the topk_group groups with the largest group score stay
 *   4. ids = top_k of v; w = s[ids] (unbiased); renorm; w *= scale [* expert_scale]; w rounded to weight_type
 * Ties: the lower expert index wins. An expert whose logit is NaN or -inf is never chosen; +inf counts as the largest
 * finite float. A slot that no expert can fill gets id -1 and weight 0; a zero sum in a renormalisation gives weight 0.
 * The k slots are in descending order of v (with MOI_ROUTE_HASH: in the table's order). */
typedef struct moi_route_desc {
  size_t struct_size;
  const moi_chain *next;
  uint32_t max_tokens; /* bound of n_tokens of every run, > 0 */
  uint32_t hidden;     /* h; 0: the engine brings logits */
  uint32_t n_experts;  /* e, experts with weights, 1..65536 */
  uint32_t n_identity; /* further classes e, e+1, ... whose expert is the identity: LongCat */
  uint32_t top_k;      /* 1..64, <= n_experts + n_identity */
  moi_score score;
  uint32_t n_group;    /* 0 and 1: no groups; at most 1024; divides n_experts */
  uint32_t topk_group;
  moi_group_score group_score;
  moi_renorm renorm;
  float renorm_eps;
  float scale;         /* 0: 1 */
  float logit_scale;   /* 0: 1 */
  float logit_softcap; /* 0: none; Grok: 30 */
  float jitter;        /* sparsemixer's router_jitter_noise, 0: 0.01 */
  float norm_eps;
  float norm_scale;    /* 0: 1; Gemma 4: hidden^-0.5 */
  uint32_t flags;      /* MOI_ROUTE_* */
  uint32_t vocab;      /* rows of hash_table */
  moi_format input_type;  /* F32 (also 0), F16, BF16: of hidden, or of logits */
  moi_format router_type; /* F32 (also 0), F16, BF16: of router, router_bias and norm_weight */
  moi_format logits_type; /* rounding of the logits: F32 (also 0), F16, BF16 */
  moi_format weight_type; /* rounding of the weights: F32 (also 0), F16, BF16; they are stored as f32 */
  uint32_t plan_flags;
  const char *kernel;  /* force a row of the kernel list; NULL: choose */
} moi_route_desc;
#define MOI_ROUTE_DESC_INIT { sizeof(moi_route_desc) }

/* n_class = n_experts + n_identity below. Views of [t,...] hold n_tokens rows. */
typedef struct moi_route_args {
  size_t struct_size;
  const moi_chain *next;
  uint32_t n_tokens;          /* 0 is legal */
  uint32_t hidden_stride;     /* elements between rows of hidden (or logits); 0: dense */
  moi_buffer n_tokens_device; /* optional u32 in device memory; min(it, n_tokens) tokens are run */
  moi_buffer hidden;          /* [t, h] input_type, if the desc has hidden > 0 */
  moi_buffer router;          /* [n_class, h] router_type */
  moi_buffer logits;          /* in: [t, n_class] input_type, if the desc has hidden = 0 */
  moi_buffer router_bias;     /* [n_class] router_type */
  moi_buffer select_bias;     /* [n_class] f32 */
  moi_buffer select_bias_alt; /* [n_class] f32 */
  moi_buffer alt_mask;        /* [t] u8 */
  moi_buffer expert_scale;    /* [n_class] f32 */
  moi_buffer norm_weight;     /* [h] router_type */
  moi_buffer hash_table;      /* [vocab, top_k] i32 */
  moi_buffer token_ids;       /* [t] i32; one out of range routes the token nowhere (-1) */
  moi_buffer ids;             /* out: [t, top_k] i32, 0..n_class-1 or -1 */
  moi_buffer weights;         /* out: [t, top_k] f32 */
  moi_buffer counts;          /* out, optional: [n_class] i32, slots of each class */
  moi_buffer offsets;         /* out, optional: [n_class + 1] i32, running sum of counts, first 0 */
  moi_buffer permutation;     /* out, optional: [t * top_k] i32: the slots t*top_k+j sorted by class, then by number;
                                 entries from offsets[n_class] on are -1 */
  moi_buffer logits_out;      /* out, optional: [t, n_class] f32, l after step 1 */
} moi_route_args;
#define MOI_ROUTE_ARGS_INIT { sizeof(moi_route_args) }

MOI_API moi_status moi_route_plan(moi_context *context, const moi_route_desc *desc, moi_plan **out);
MOI_API moi_status moi_route_run(const moi_plan *plan, const moi_route_args *args, moi_buffer workspace,
                                 moi_queue queue);

/* ------------------------------------------------------------------------------------------------------------- experts */

/* a = act(g, u), computed in fp32. */
typedef enum moi_activation {
  MOI_ACT_SWIGLU = 0,       /* silu(g) * u; with act_limit L > 0 (DeepSeek V4): g = min(g,L), u = clamp(u,-L,L) */
  MOI_ACT_SWIGLU_OAI = 1,   /* g = min(g,L), u = clamp(u,-L,L); g*sigmoid(alpha*g)*(u+1): gpt-oss; 0: alpha 1.702, L 7 */
  MOI_ACT_GEGLU_TANH = 2,   /* gelu_tanh(g) * u: Gemma 4, Grok */
  MOI_ACT_GEGLU_ERF = 3,    /* gelu(g) * u with erf */
  MOI_ACT_SITU = 4,         /* 4*tanh(g/4)*sigmoid(g) * 25*tanh(u/25): Kimi K3 (alpha 4, limit 25 by default) */
  MOI_ACT_RELU2 = 5,        /* max(0,u)^2, no gate: Nemotron 3 */
  MOI_ACT_FORCE_32 = 0x7fffffff
} moi_activation;

typedef enum moi_gate_layout {
  MOI_GATE_SPLIT = 0,       /* args.gate [i,h] and args.up [i,h] */
  MOI_GATE_CONCAT = 1,      /* args.up [2i,h]: i rows of gate, then i rows of up */
  MOI_GATE_INTERLEAVED = 2, /* args.up [2i,h]: row 2j gate_j, row 2j+1 up_j: gpt-oss */
  MOI_GATE_NONE = 3,        /* args.up [i,h], no gate (MOI_ACT_RELU2) */
  MOI_GATE_FORCE_32 = 0x7fffffff
} moi_gate_layout;

/* What a token's routing weight multiplies. */
typedef enum moi_weight_on {
  MOI_WEIGHT_ON_OUTPUT = 0,     /* the expert's output (bias included): most models */
  MOI_WEIGHT_ON_INPUT = 1,      /* the expert's input: Llama 4 */
  MOI_WEIGHT_ON_ACTIVATION = 2, /* the activation, before the down projection: DeepSeek V4 */
  MOI_WEIGHT_ON_FORCE_32 = 0x7fffffff
} moi_weight_on;

/* Online quantisation of the GEMM inputs: the FP8 kinds are part of a model; INT8_32 is a caller's choice of speed. Never a
 * kernel's choice: what is computed is defined here, and every backend computes it. Groups begin at k = 0. */
typedef enum moi_act_quant {
  MOI_ACT_QUANT_NONE = 0,
  MOI_ACT_QUANT_FP8_128 = 1,      /* E4M3 for each 128 k: a = max(|x|,1e-4), s = a/448, q = e4m3(clamp(x/s)): DeepSeek V3 */
  MOI_ACT_QUANT_FP8_128_POW2 = 2, /* s = 2^ceil(log2(a/448)): DeepSeek V3.1, V3.2, V4 */
  MOI_ACT_QUANT_INT8_32 = 3, /* INT8 for each 32 k: s = max(max|x| / 127, 2^-126), q = x/s rounded to the nearest integer,
                                ties to even; a group with an infinity or a NaN becomes NaN. Integer dot products then take
                                one digit: the arithmetic of ggml's Q8_0 activations, but for its f16 scale */
  MOI_ACT_QUANT_FORCE_32 = 0x7fffffff
} moi_act_quant;

/* `flags` of an experts desc. */
#define MOI_EXPERTS_ACCUMULATE 0x1u /* y += instead of y =: the residual stream (MOI_FORMAT of output, added in fp32) */
#define MOI_EXPERTS_TABLES 0x2u     /* data, scales, zeros and bias of moi_weights are each an array of e addresses (u64
                                       in memory the device reads), one for each expert: separately mapped or offloaded
                                       experts. On the CPU a null address of an expert that a token uses is an error */

/* Grouped expert FFN. Steps for each slot (t, j) with e = ids[t,j]; values are rounded only where a type says so:
 *   x = input[t]  (weight_on INPUT: x *= w, rounded to input_type);  x = act_quant(x)
 *   g = G_e x [+ bias], u = U_e x [+ bias], fp32;  a = act(g, u)  (weight_on ACTIVATION: a *= w)
 *   a is rounded to mid_type;  a = act_quant(a)
 *   o = D_e a [+ bias], fp32;  y[t] = output_scale * sum_j w*o  [+ y[t]], summed in ascending order of e, fp32
 * ids >= n_experts and < n_experts + n_identity add w*x (identity experts); any other id, and -1, adds nothing.
 * A token whose slots are all -1 gets 0. */
typedef struct moi_experts_desc {
  size_t struct_size;
  const moi_chain *next;
  uint32_t max_tokens;   /* bound of n_tokens of every run, > 0 */
  uint32_t hidden;       /* h */
  uint32_t intermediate; /* i */
  uint32_t n_experts;    /* e, 1..65536 */
  uint32_t n_identity;
  uint32_t top_k;        /* slots for each token, 1..64 */
  moi_activation activation;
  float act_alpha, act_limit; /* 0: the activation's defaults */
  moi_gate_layout gate_layout;
  moi_weight_on weight_on;
  moi_act_quant act_quant;
  moi_format format;      /* of gate and up */
  moi_format down_format; /* of down; 0: format. GGUF mixes (Q4_K_M) differ here */
  moi_format bias_type;   /* 0: no biases; F32, F16, BF16: all of gate, up and down have one */
  moi_format input_type;  /* F32 (also 0), F16, BF16 */
  moi_format mid_type;    /* rounding of the activation; 0: input_type */
  moi_format output_type; /* 0: input_type */
  float output_scale;     /* 0: 1 */
  uint32_t flags;         /* MOI_EXPERTS_* */
  uint32_t plan_flags;
  const char *kernel;     /* force a row of the kernel list; NULL: choose */
} moi_experts_desc;
#define MOI_EXPERTS_DESC_INIT { sizeof(moi_experts_desc) }

/* The weights of all experts for one matrix. Streams as moi_format says; expert e starts at e * stride.
 * Alignment: data and scales 4 bytes for formats with 4-byte elements, 2 for 2-byte ones, else 1. */
typedef struct moi_weights {
  size_t struct_size;
  const moi_chain *next;
  moi_buffer data;
  moi_buffer scales;
  moi_buffer zeros;
  moi_buffer global_scale; /* [e] f32, multiplies the expert's products: NVFP4's second scale; absent: 1 */
  moi_buffer bias;         /* [e, n] bias_type */
  uint64_t data_stride, scales_stride, zeros_stride, bias_stride; /* bytes between experts; 0: dense */
} moi_weights;
#define MOI_WEIGHTS_INIT { sizeof(moi_weights) }

typedef struct moi_experts_args {
  size_t struct_size;
  const moi_chain *next;
  uint32_t n_tokens;
  uint32_t input_stride, output_stride; /* elements between rows; 0: dense (h) */
  uint32_t reserved;
  moi_buffer n_tokens_device; /* optional u32 in device memory; min(it, n_tokens) tokens are run */
  moi_buffer input;           /* [t, h] input_type */
  moi_buffer ids;             /* [t, top_k] i32 */
  moi_buffer weights;         /* [t, top_k] f32 */
  moi_buffer output;          /* [t, h] output_type; may not overlap an input */
  const moi_weights *gate, *up, *down;
} moi_experts_args;
#define MOI_EXPERTS_ARGS_INIT { sizeof(moi_experts_args) }

MOI_API moi_status moi_experts_plan(moi_context *context, const moi_experts_desc *desc, moi_plan **out);
MOI_API moi_status moi_experts_run(const moi_plan *plan, const moi_experts_args *args, moi_buffer workspace,
                                   moi_queue queue);

/* -------------------------------------------------------------------------------------------------- bare grouped GEMM */

/* y[r] = x[r] W_e^T [+ bias_e] for the rows r in offsets[e] .. offsets[e+1]-1 of every expert e (cumulative ends, empty
 * groups allowed). With n_experts = 1 an ordinary GEMM on quantised weights. */
typedef struct moi_gemm_desc {
  size_t struct_size;
  const moi_chain *next;
  uint32_t max_rows;  /* bound of the rows of every run */
  uint32_t n, k;
  uint32_t n_experts;
  moi_format format;
  moi_format bias_type;   /* 0: no bias */
  moi_format input_type;  /* F32 (also 0), F16, BF16 */
  moi_format output_type; /* 0: input_type */
  moi_act_quant act_quant;
  uint32_t flags;         /* MOI_EXPERTS_ACCUMULATE, MOI_EXPERTS_TABLES */
  uint32_t plan_flags;
  const char *kernel;
} moi_gemm_desc;
#define MOI_GEMM_DESC_INIT { sizeof(moi_gemm_desc) }

typedef struct moi_gemm_args {
  size_t struct_size;
  const moi_chain *next;
  uint32_t n_rows;
  uint32_t input_stride, output_stride;
  uint32_t reserved;
  moi_buffer input;   /* [n_rows, k] */
  moi_buffer offsets; /* [e + 1] i32, not descending, first >= 0, last <= n_rows; rows outside get 0 (or, with
                         ACCUMULATE, stay). Values out of order are clamped: no out-of-bounds access */
  moi_buffer output;  /* [n_rows, n] */
  const moi_weights *weights;
} moi_gemm_args;
#define MOI_GEMM_ARGS_INIT { sizeof(moi_gemm_args) }

MOI_API moi_status moi_gemm_plan(moi_context *context, const moi_gemm_desc *desc, moi_plan **out);
MOI_API moi_status moi_gemm_run(const moi_plan *plan, const moi_gemm_args *args, moi_buffer workspace, moi_queue queue);

/* ----------------------------------------------------------------------------------------------------------------- moe */

typedef enum moi_shared_gate {
  MOI_SHARED_PLAIN = 0,   /* y += Shared(x): DeepSeek, Kimi, GLM, Llama 4 */
  MOI_SHARED_SIGMOID = 1, /* y += sigmoid(x . shared_gate) * Shared(x): Qwen */
  MOI_SHARED_FORCE_32 = 0x7fffffff
} moi_shared_gate;

/* Routing, routed experts and shared experts in one op:
 *   y = output_scale * ( experts(x, route(r)) + gate * shared(x') ) [+ y]
 * r, x and x' are route's, experts' and shared's own inputs: Gemma 4 routes on another vector than it computes on. */
typedef struct moi_moe_desc {
  size_t struct_size;
  const moi_chain *next;
  const moi_route_desc *route;     /* NULL: the engine brings ids and weights (args.experts) */
  const moi_experts_desc *experts; /* max_tokens, n_experts, n_identity and top_k must agree with route's */
  const moi_experts_desc *shared;  /* NULL: none. n_experts = top_k = 1; hidden as experts'; several shared experts are
                                      one of their summed width, as checkpoints store them */
  moi_shared_gate shared_gate;
  moi_format shared_gate_type; /* F32 (also 0), F16, BF16 */
  float output_scale;          /* 0: 1; Grok 2: 1/sqrt(2) */
  uint32_t plan_flags;
  const char *kernel;
} moi_moe_desc;
#define MOI_MOE_DESC_INIT { sizeof(moi_moe_desc) }

typedef struct moi_moe_args {
  size_t struct_size;
  const moi_chain *next;
  const moi_route_args *route;     /* outputs optional here; n_tokens must equal experts' */
  const moi_experts_args *experts; /* with a route, ids and weights are ignored */
  const moi_experts_args *shared;  /* gate, up, down; input if it differs from experts' input; the rest is ignored */
  moi_buffer shared_gate;          /* [h] shared_gate_type */
} moi_moe_args;
#define MOI_MOE_ARGS_INIT { sizeof(moi_moe_args) }

MOI_API moi_status moi_moe_plan(moi_context *context, const moi_moe_desc *desc, moi_plan **out);
MOI_API moi_status moi_moe_run(const moi_plan *plan, const moi_moe_args *args, moi_buffer workspace, moi_queue queue);

/* ----------------------------------------------------------------------------------------------------------- attention */

/* Attention of query rows over a KV cache: prefill, decode, chunked prefill and any mix of them in one call (an engine's
 * continuous batch), grouped-query (GQA, MQA) or latent (MLA).
 *
 *   l[j] = scale * tau(p) * (q . k[j]) * k_scale;  with softcap c: l = c * tanh(l / c)
 *   o    = sum_j exp(l[j]) v[j] * v_scale / ( sum_j exp(l[j]) [+ exp(sink)] ),  over the keys j that position p may see
 *
 * Query head h reads KV head h / (n_heads / n_kv_heads). A query at position p sees key j if all of these hold:
 *   kv_begin <= j < kv_len;   j <= p (MOI_MASK_CAUSAL);   j > p - window, if window > 0;
 *   j / chunk == p / chunk (rounded down), if chunk > 0 (Llama 4)
 * A query that sees no key gets 0, and a log-sum-exp of -inf (of its sink, if there is one). Logits, sums and outputs are
 * computed in fp32 or better, but a kernel may round exp(l) to its operand type where its name says so (bf16). Keys that a
 * query does not see never reach its result, whatever their bits are; NaN in one that it sees makes that head NaN.
 *
 * MLA. Plain form (prefill): an ordinary MHA with head_dim = nope + rope (192) and v_head_dim (128). Absorbed form
 * (decode over the latent cache): n_kv_heads = 1, head_dim = 512 + 64, v_head_dim = 512 and MOI_ATTENTION_V_IN_K; the
 * engine's q is [W_kb^T q_nope | q_rope], its scale that of the plain form. */
typedef enum moi_mask {
  MOI_MASK_CAUSAL = 0,
  MOI_MASK_NONE = 1, /* every key of the sequence (window must be 0) */
  MOI_MASK_FORCE_32 = 0x7fffffff
} moi_mask;

/* `flags` of an attention desc. */
#define MOI_ATTENTION_SINKS 0x1u  /* a learned logit for each head in the denominator, not scaled: gpt-oss, MiMo */
#define MOI_ATTENTION_V_IN_K 0x2u /* v[j] is the first v_head_dim elements of k[j]: absorbed MLA, DeepSeek V4 */

typedef struct moi_attention_desc {
  size_t struct_size;
  const moi_chain *next;
  uint32_t max_rows;   /* bound of the query rows of every run, > 0 */
  uint32_t max_seqs;   /* bound of the sequences of every run, > 0 */
  uint32_t max_kv;     /* bound of a sequence's keys, 1..2^28; a longer kv_len counts as this */
  uint32_t n_heads;    /* query heads, a multiple of n_kv_heads, at most 1024 */
  uint32_t n_kv_heads;
  uint32_t head_dim;   /* of q and k, 1..1024 */
  uint32_t v_head_dim; /* 0: head_dim; at most 1024; with V_IN_K at most head_dim */
  float scale;         /* 0: head_dim^-0.5 */
  float softcap;       /* 0: none; Grok 30, Gemma 2 50 */
  moi_mask mask;
  uint32_t window;     /* keys that a query sees, itself included; 0: no bound */
  uint32_t chunk;      /* 0: no chunks; Llama 4: 8192 */
  float temperature;   /* a in tau(p) = 1 + a * ln(1 + floor((p + 1) / temperature_floor)); 0: tau = 1; Llama 4's layers
                          without RoPE: 0.1 */
  uint32_t temperature_floor; /* > 0 if temperature is not 0; Llama 4: 8192 */
  uint32_t flags;      /* MOI_ATTENTION_* */
  uint32_t page_size;  /* tokens of a page, 1..2^28; 0: the cache is contiguous */
  moi_format k_format; /* F32 (also 0), F16, BF16, FP8, Q8_0 (head_dim a multiple of 32) */
  moi_format v_format; /* 0: k_format */
  moi_format input_type;  /* of q, and of the k and v that are appended: F32 (also 0), F16, BF16 */
  moi_format output_type; /* 0: input_type */
  uint32_t plan_flags;
  const char *kernel; /* force a row of the kernel list; NULL: choose */
} moi_attention_desc;
#define MOI_ATTENTION_DESC_INIT { sizeof(moi_attention_desc) }

/* One layer's KV cache, and where each sequence's keys lie in it. A token of one KV head is a row of head_dim (v_head_dim)
 * elements of k_format (v_format), as moi_format_size has it for n = 1.
 *   contiguous   key j of sequence s is token start[s] + j of k and v
 *   paged        it is token j % page_size of page page_table[s][j / page_size]
 * A token is at page * page_stride + token * token_stride + head * head_stride. The dense default is the order
 * [page, token, head, element]; strides make it [page, head, token, element], K and V in one buffer, and so on. A cache
 * [sequence, head, token, element] is a paged one of one page for each sequence.
 * A page id outside 0..capacity-1, or a token outside 0..capacity-1 of a contiguous cache, reads as zeros and is not
 * written. Table entries of pages that no query sees are not read. */
typedef struct moi_kv_cache {
  size_t struct_size;
  const moi_chain *next;
  uint32_t capacity;          /* pages that k and v hold; contiguous: tokens */
  uint32_t page_table_stride; /* entries between sequences; 0: max_kv / page_size, rounded up. If it is less than that, a
                                 kv_len beyond its pages counts as that many keys */
  moi_buffer k;
  moi_buffer v;               /* absent with V_IN_K */
  uint64_t k_token_stride, k_head_stride, k_page_stride; /* bytes; 0: dense */
  uint64_t v_token_stride, v_head_stride, v_page_stride;
  moi_buffer page_table;      /* [n_seqs, page_table_stride] i32, if paged */
  moi_buffer start;           /* optional: [n_seqs] i32, if contiguous; absent: s * max_kv */
  moi_buffer k_scale;         /* optional: [n_kv_heads] f32, multiply what is stored; absent: 1 */
  moi_buffer v_scale;
} moi_kv_cache;
#define MOI_KV_CACHE_INIT { sizeof(moi_kv_cache) }

/* The rows of sequence s are q_offsets[s] .. q_offsets[s+1]-1, at positions q_start[s], q_start[s]+1, ...; offsets out of
 * order are clamped, rows of no sequence get 0. kv_lens counts the keys in the cache, those of these rows included. */
typedef struct moi_attention_args {
  size_t struct_size;
  const moi_chain *next;
  uint32_t n_rows;        /* 0 is legal */
  uint32_t n_seqs;
  uint32_t q_stride;      /* elements between rows; 0: n_heads * q_head_stride */
  uint32_t q_head_stride; /* elements between heads; 0: head_dim */
  uint32_t output_stride; /* elements between rows; 0: n_heads * v_head_dim. Heads are dense */
  uint32_t reserved;
  moi_buffer q;           /* [n_rows, n_heads, head_dim] input_type */
  moi_buffer output;      /* out: [n_rows, n_heads, v_head_dim] output_type; may not overlap an input */
  moi_buffer lse;         /* out, optional: [n_rows, n_heads] f32, ln of the denominator */
  moi_buffer sinks;       /* [n_heads] f32, with MOI_ATTENTION_SINKS */
  moi_buffer q_offsets;   /* [n_seqs + 1] i32 */
  moi_buffer kv_lens;     /* [n_seqs] i32; < 0 counts as 0 */
  moi_buffer q_start;     /* optional: [n_seqs] i32; absent: kv_len minus the sequence's rows. A causal row at a
                             position < 0 sees nothing; without a mask it sees what window and
                             chunk leave it */
  moi_buffer kv_begin;    /* optional: [n_seqs] i32; absent: 0. For parts of a split, and prefixes that were evicted */
  const moi_kv_cache *cache;
} moi_attention_args;
#define MOI_ATTENTION_ARGS_INIT { sizeof(moi_attention_args) }

MOI_API moi_status moi_attention_plan(moi_context *context, const moi_attention_desc *desc, moi_plan **out);
MOI_API moi_status moi_attention_run(const moi_plan *plan, const moi_attention_args *args, moi_buffer workspace,
                                     moi_queue queue);

/* Writes new keys and values into the cache: the row i of sequence s to the place of key q_start[s] + i. The plan is an
 * attention plan; no workspace. What is stored is x / scale rounded to the format: FP8 to nearest even, saturating at
 * +-448; Q8_0 as ggml does it (d = max|x| / 127, q = x * (1 / d) rounded half away from zero, d stored as f16). A
 * position outside 0..max_kv-1 is not written. Two rows of a call may not name the same place. */
typedef struct moi_kv_append_args {
  size_t struct_size;
  const moi_chain *next;
  uint32_t n_rows;
  uint32_t n_seqs;
  uint32_t k_stride, k_head_stride; /* elements between rows, heads; 0: dense */
  uint32_t v_stride, v_head_stride;
  moi_buffer k;         /* [n_rows, n_kv_heads, head_dim] input_type */
  moi_buffer v;         /* [n_rows, n_kv_heads, v_head_dim] input_type; absent with V_IN_K */
  moi_buffer q_offsets; /* as in moi_attention_args */
  moi_buffer kv_lens;
  moi_buffer q_start;
  const moi_kv_cache *cache; /* k and v are written */
} moi_kv_append_args;
#define MOI_KV_APPEND_ARGS_INIT { sizeof(moi_kv_append_args) }

MOI_API moi_status moi_kv_append_run(const moi_plan *plan, const moi_kv_append_args *args, moi_queue queue);

/* Merges attention over parts of the keys (split KV, a shared prefix, parts on several devices) into one:
 *   o = sum_i exp(lse_i - L) o_i,  L = ln sum_i exp(lse_i)
 * The parts are outputs of plans with output_type F32 over disjoint keys; a sink belongs into one of them. The plan is an
 * attention plan of the same heads, its output_type that of the result; no workspace. Parts whose lse is -inf add
 * nothing; a row where all are gets 0. */
typedef struct moi_attention_merge_args {
  size_t struct_size;
  const moi_chain *next;
  uint32_t n_rows;
  uint32_t n_parts;       /* 1..4096 */
  uint32_t output_stride; /* as in moi_attention_args */
  uint32_t reserved;
  moi_buffer parts;       /* [n_parts, n_rows, n_heads, v_head_dim] f32 */
  moi_buffer part_lse;    /* [n_parts, n_rows, n_heads] f32 */
  moi_buffer output;      /* out: [n_rows, n_heads, v_head_dim] output_type */
  moi_buffer lse;         /* out, optional: [n_rows, n_heads] f32 */
} moi_attention_merge_args;
#define MOI_ATTENTION_MERGE_ARGS_INIT { sizeof(moi_attention_merge_args) }

MOI_API moi_status moi_attention_merge_run(const moi_plan *plan, const moi_attention_merge_args *args, moi_queue queue);

/* ------------------------------------------------------------------------------------------------------ weight packing */

/* Every format runs as it lies in the file; some layouts run faster after a lossless re-ordering into another format:
 *   BF16_KN -> BF16,  GPTQ_G* -> INT4Z_G*,  AWQ_G* -> INT4Z_G*,  MXFP4_GGUF <-> MXFP4,
 *   Q4_0 <-> Q4_0_R16,  IQ4_NL <-> IQ4_NL_R16,  Q8_0 <-> Q8_0_R16,  Q4_K <-> Q4_K_R16,
 *   MXFP4 <-> MXFP4_R16 <-> MXFP4_GGUF (n a multiple of 16)
 * The result is plain bytes: it can be written to disk and mapped again. The bytes are the same from every backend. */
typedef struct moi_pack_desc {
  size_t struct_size;
  const moi_chain *next;
  moi_format from, to;
  uint32_t n, k, n_experts;
} moi_pack_desc;
#define MOI_PACK_DESC_INIT { sizeof(moi_pack_desc) }

/* The packed format that kernels of this backend prefer over `format`, or `format` itself. For the CPU: of this machine, with
 * MOI_DEBUG's cap; where it is one of order R and n is no multiple of its rows, moi_format_size and moi_pack say so and
 * `format` is to be kept. */
MOI_API moi_format moi_pack_preferred(moi_backend backend, moi_format format);
/* Converts all experts on the host. dst's views must hold n_experts matrices of moi_format_size(to, n, k) (its strides
 * apply) and may not overlap src's, gaps between experts included. MOI_UNSUPPORTED for a pair that is not listed. bias and
 * global_scale are not touched, gaps neither. Views may begin at any byte. */
MOI_API moi_status moi_pack(const moi_pack_desc *desc, const moi_weights *src, const moi_weights *dst);
/* The same where the context computes: on the CPU by its workers, on CUDA in the device's memory on the caller's stream,
 * which a graph may capture. The plan is the caller's to destroy and needs no workspace; the weights stay the caller's. Views
 * and strides are aligned as moi_weights says: MOI_INVALID_ARGUMENT where they are not, are absent or too small, or
 * overlap. MOI_UNSUPPORTED: a pair that is not listed, order R on CUDA, and Vulkan. */
MOI_API moi_status moi_pack_plan(moi_context *context, const moi_pack_desc *desc, moi_plan **out);
MOI_API moi_status moi_pack_run(const moi_plan *plan, const moi_weights *src, const moi_weights *dst, moi_queue queue);

/* ------------------------------------------------------------------------------------------------------------- presets */

/* One kind of attention that a model's layers have. */
typedef struct moi_preset_attention {
  const char *kind;   /* "full", "window", "chunked", "nope", "mla" (plain, for prefill), "mla-absorbed" */
  uint32_t layers;    /* how many layers are of it */
  uint32_t reserved;
  const moi_attention_desc *desc; /* max_rows, max_seqs, max_kv and page_size 0, types BF16 */
} moi_preset_attention;

/* A model's MoE and attention layers as numbers: for tests, benches and as a start for a desc. Never needed to run a shape.
 * The descs have max_tokens = 0 and input types BF16: copy, then set. */
typedef struct moi_preset {
  size_t struct_size;
  const char *name;   /* "qwen3-30b-a3b" */
  const char *models; /* the models with this layer */
  const char *rule;   /* "R1", ...: docs/routing.md */
  const char *note;   /* what the preset leaves to the engine; "" if nothing */
  uint32_t layers, moe_layers;
  const moi_route_desc *route;
  const moi_experts_desc *experts;
  const moi_experts_desc *shared; /* NULL: none */
  moi_shared_gate shared_gate;
  float output_scale;
  uint32_t n_attention;
  const moi_preset_attention *attention; /* [n_attention], what most layers have first; linear and sparse attention, which
                                            this version has not, is left out and named in `note` */
} moi_preset;

MOI_API uint32_t moi_preset_count(void);
/* NULL past the last one; static storage. */
MOI_API const moi_preset *moi_preset_at(uint32_t index);
/* NULL if there is none of that name. */
MOI_API const moi_preset *moi_preset_find(const char *name);

#ifdef __cplusplus
}
#endif

#endif
