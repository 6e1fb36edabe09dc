/* Copies from global to shared memory that go on while the thread does: sm_80. A thread's copies up to a commit are a group;
 * what a wait has waited for can be read by the thread itself, and by others behind a barrier.
 *
 *   moi_copy16_async(to, from, valid)   16 bytes, of which `valid` (0..16) are read and the others 0; both multiples of 16
 *   moi_copy_commit()
 *   moi_copy_wait(n)                    until at most the last n groups are on their way; n is a constant */
#ifndef MOI_CUDA_COPY_H
#define MOI_CUDA_COPY_H

#include "cuda/device/thread.h"

#if !defined(MOI_EMULATED) /* else emulated.h has them */

MOI_DEVICE void moi_copy16_async(void *to, const void *from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"((unsigned)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(valid)
               : "memory");
}
MOI_DEVICE void moi_copy_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
#define moi_copy_wait(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

#endif

#endif
