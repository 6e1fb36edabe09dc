/* A barrier of all blocks of a launch, which must be a cooperative one: the driver starts its blocks only when the device
 * holds all of them at once, and brings the barrier's memory. In any other launch the kernel ends with an error.
 *
 *   moi_sync_grid()   all threads of all blocks; what was written before it is there for all of them */
#ifndef MOI_CUDA_GRID_H
#define MOI_CUDA_GRID_H

#include "cuda/device/thread.h"

#if !defined(MOI_EMULATED) /* else emulated.h has it */
#include <cooperative_groups.h>

MOI_DEVICE void moi_sync_grid(void) { cooperative_groups::this_grid().sync(); }

#endif

#endif
