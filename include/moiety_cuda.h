/* moiety on CUDA, inside the engine's own context and stream.
 *
 * Two ways to a context:
 *   the engine's       moi_cuda_context in the context desc's `next` chain names its CUcontext.
 *   the device's       without that struct, `device` of the context desc counts the driver's devices, and the context is
 *                      the device's primary one: the one that CUDA's runtime API (cudaMalloc, cudaStream_t) works in.
 * moiety finds the driver (libcuda.so.1, nvcuda.dll) at run time and needs nothing else of CUDA: no toolkit, no runtime
 * library, no compiler. Devices of compute capability 7.5 (Turing) and newer. cuBLAS is looked for if a desc's `kernel` names
 * a row of it ("bf16-cublas"), or moi_kernel_get is asked about one; its first run is not to be captured.
 *
 * Views name memory by `ptr`, an address on the device: cudaMalloc, cuMemAlloc, managed, or mapped host memory. Tables of
 * MOI_EXPERTS_TABLES hold such addresses; an expert whose entry is 0 adds nothing. moi_queue.native is the CUstream, which
 * is the cudaStream_t; NULL is the context's default stream.
 *
 * Runs launch kernels on that stream and do nothing else: they allocate nothing, wait for nothing and read nothing back,
 * and can be captured into a CUDA graph, which may be launched again with new contents in the same memory. Whatever
 * context was current before a call is current after it. A launch that the driver refuses is MOI_DEVICE_ERROR; what
 * happens on the device later is reported by the engine's next call, as ever in CUDA.
 *
 * Threads: contexts and plans as moiety.h says; many threads may run one plan on streams of their own. */
#ifndef MOIETY_CUDA_H
#define MOIETY_CUDA_H

#include <moiety.h>

#ifdef __cplusplus
extern "C" {
#endif

/* `type` of the struct below in a context desc's chain. */
#define MOI_CHAIN_CUDA_CONTEXT 0x200u

/* The engine's context. It outlives moiety's. */
typedef struct moi_cuda_context {
  moi_chain chain; /* { MOI_CHAIN_CUDA_CONTEXT, 0, NULL } */
  void *context;   /* CUcontext */
} moi_cuda_context;
#define MOI_CUDA_CONTEXT_INIT { { MOI_CHAIN_CUDA_CONTEXT, 0, NULL } }

/* What a context works in. */
typedef struct moi_cuda_handles_out {
  size_t struct_size;
  void *context;   /* CUcontext, alive as long as the moi_context */
  int32_t device;  /* CUdevice */
  uint32_t capability; /* 75: compute capability 7.5 */
} moi_cuda_handles_out;
#define MOI_CUDA_HANDLES_INIT { sizeof(moi_cuda_handles_out) }

/* MOI_INVALID_ARGUMENT if the context is not of MOI_BACKEND_CUDA. */
MOI_API moi_status moi_cuda_handles(const moi_context *context, moi_cuda_handles_out *out);

#ifdef __cplusplus
}
#endif

#endif
