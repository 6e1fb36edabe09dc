/* How the emulated driver starts the kernels that are linked with it. */
#ifndef MOI_TESTS_EMULATED_MACHINE_H
#define MOI_TESTS_EMULATED_MACHINE_H

#include "emulated.h"

typedef struct moi_emulated_kernel {
  const char *name;
  void (*entry)(const void *args);
  size_t args_size;
  unsigned threads;
} moi_emulated_kernel;

const moi_emulated_kernel *moi_emulated_find(const char *name);
/* One block after another, on the calling thread. shared: bytes that MOI_SHARED_ASKED names. */
void moi_emulated_launch(const moi_emulated_kernel *kernel, const void *args, unsigned grid_x, unsigned grid_y,
                         unsigned threads, unsigned shared);

#endif
