/* What a kernel is written in: threads, blocks, shared memory, barriers, exchange within a warp. Kernels are C that nvcc
 * takes for CUDA, and that a host compiler takes with MOI_EMULATED, where emulated.h (of the tests) defines the same words
 * and runs a block's threads on the CPU. Whatever touches the hardware goes through the words of this folder.
 *
 *   MOI_DEVICE                        prefix of a function
 *   MOI_KERNEL(name, threads, type)   begins a kernel of `threads` threads a block; its arguments are `a`, a const type *.
 *                                     Its threads wait, before anything else, for the end of the launch before it: from
 *                                     sm_90 on a launch may be made ready while that one runs
 *   MOI_BLOCKS                        of a multiprocessor at once that a file's kernels leave registers for: it may define
 *                                     it before it includes this one
 *   MOI_SHARED(type, name, n)         shared memory of the block, `type *name`; its contents begin undefined
 *   MOI_SHARED_ASKED(name)            `unsigned char *name`: the bytes that the launch asks for, a multiple of 128
 *   moi_thread(), moi_warp(), moi_lane(), moi_block_x(), moi_block_y(), moi_grid_x(), moi_grid_y()
 *   moi_sync()                        barrier of the block, all threads of it
 *   moi_sync_warp()                   of the warp, all 32 lanes of it, as all that follow:
 *   moi_xor_f32(v, mask), moi_from_f32(v, lane), moi_xor_u32(v, mask), moi_from_u32(v, lane), moi_ballot(condition)
 *   moi_max_u32(v), moi_min_u32(v)    over the warp, for every lane
 *   moi_match(v)                      the lanes that have this lane's v, a bit each
 *   moi_bits(v)                       bits that are set; of one thread alone
 *   moi_atomic_add(p, v)              on uint, in shared or global memory; returns the old value
 *   moi_global(p)                     p, which is in global memory: for addresses that come out of memory
 *   moi_keep_order()                  the compiler moves no load across it, and so holds fewer registers
 *   moi_u4, moi_f4, moi_u2, moi_f2    16 and 8 bytes, loaded and stored at once from multiples of their size
 *   MOI_UNROLL, MOI_ROLLED            before a loop of fixed length; before one that must stay a loop
 *   moi_fresh(v)                      v, for the compiler another number each time: what is computed from it is not kept in
 *                                     registers from turn to turn of a loop
 *   moi_fresh_address(p)              the same of an address
 *   moi_fresh_grid_x(), moi_fresh_grid_y()   moi_grid_x() and moi_grid_y(), read again each time
 */
#ifndef MOI_CUDA_THREAD_H
#define MOI_CUDA_THREAD_H

#if defined(MOI_EMULATED)
#include "emulated.h"
#else

#ifndef MOI_BLOCKS
#define MOI_BLOCKS 1
#endif

#define MOI_DEVICE static __device__ __forceinline__
#define MOI_KERNEL(name, threads, type) MOI_KERNEL_OF(name, threads, type) /* a name may be a macro */
#define MOI_KERNEL_OF(name, threads, type)                                                                             \
  MOI_DEVICE void name##_body(const type *a);                                                                          \
  extern "C" __global__ void __launch_bounds__(threads, MOI_BLOCKS) name(const __grid_constant__ type args) {          \
    moi_begin();                                                                                                       \
    name##_body(&args);                                                                                                \
  }                                                                                                                    \
  MOI_DEVICE void name##_body(const type *a)
#define MOI_SHARED(type, name, n) __shared__ __align__(16) type name[n]
#define MOI_SHARED_ASKED(name) extern __shared__ __align__(128) unsigned char name[]
#define MOI_UNROLL _Pragma("unroll")
#define MOI_ROLLED _Pragma("unroll 1")

typedef struct __align__(16) moi_u4 { unsigned x, y, z, w; } moi_u4;
typedef struct __align__(16) moi_f4 { float x, y, z, w; } moi_f4;
typedef struct __align__(8) moi_u2 { unsigned x, y; } moi_u2;
typedef struct __align__(8) moi_f2 { float x, y; } moi_f2;

/* Lets the next launch come as soon as all blocks of this one have begun, and waits for the launch before it, with all
 * that it wrote; by which all before that one have ended too. Nothing where launches follow one another anyway. */
MOI_DEVICE void moi_begin(void) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

MOI_DEVICE unsigned moi_fresh(unsigned v) {
  asm volatile("" : "+r"(v));
  return v;
}
MOI_DEVICE const void *moi_fresh_address(const void *p) {
  asm volatile("" : "+l"(p));
  return p;
}
MOI_DEVICE unsigned moi_fresh_grid_x(void) {
  unsigned v;
  asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(v));
  return v;
}
MOI_DEVICE unsigned moi_fresh_grid_y(void) {
  unsigned v;
  asm volatile("mov.u32 %0, %%nctaid.y;" : "=r"(v));
  return v;
}
MOI_DEVICE unsigned moi_thread(void) { return threadIdx.x; }
MOI_DEVICE unsigned moi_warp(void) { return threadIdx.x >> 5; }
MOI_DEVICE unsigned moi_lane(void) { return threadIdx.x & 31u; }
MOI_DEVICE unsigned moi_block_x(void) { return blockIdx.x; }
MOI_DEVICE unsigned moi_block_y(void) { return blockIdx.y; }
MOI_DEVICE unsigned moi_grid_x(void) { return gridDim.x; }
MOI_DEVICE unsigned moi_grid_y(void) { return gridDim.y; }
MOI_DEVICE void moi_sync(void) { __syncthreads(); }
MOI_DEVICE void moi_sync_warp(void) { __syncwarp(); }
MOI_DEVICE float moi_xor_f32(float v, unsigned mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
MOI_DEVICE float moi_from_f32(float v, unsigned lane) { return __shfl_sync(0xffffffffu, v, lane); }
MOI_DEVICE unsigned moi_xor_u32(unsigned v, unsigned mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
MOI_DEVICE unsigned moi_from_u32(unsigned v, unsigned lane) { return __shfl_sync(0xffffffffu, v, lane); }
MOI_DEVICE unsigned moi_ballot(int condition) { return __ballot_sync(0xffffffffu, condition); }
MOI_DEVICE void moi_keep_order(void) { asm volatile("" ::: "memory"); }
MOI_DEVICE unsigned moi_max_u32(unsigned v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, v);
#else
  MOI_UNROLL
  for (unsigned step = 16u; step > 0u; step >>= 1) v = max(v, moi_xor_u32(v, step));
  return v;
#endif
}
MOI_DEVICE unsigned moi_min_u32(unsigned v) { return ~moi_max_u32(~v); }
MOI_DEVICE unsigned moi_match(unsigned v) { return __match_any_sync(0xffffffffu, v); }
MOI_DEVICE unsigned moi_bits(unsigned v) { return (unsigned)__popc(v); }
MOI_DEVICE unsigned moi_atomic_add(unsigned *p, unsigned v) { return atomicAdd(p, v); }
MOI_DEVICE const void *moi_global(const void *p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

#endif

#endif
