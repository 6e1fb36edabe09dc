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
/* All blocks, shared among as many threads as there are processors; done when it returns. asked: bytes that
 * MOI_SHARED_ASKED names. */
void moi_emulated_launch(const moi_emulated_kernel *kernel, const void *args, unsigned grid_x, unsigned grid_y,
                         unsigned threads, unsigned asked);

/* The same of blocks that are all there at once, at most 64, and can meet at the barrier of the grid. */
void moi_emulated_launch_together(const moi_emulated_kernel *kernel, const void *args, unsigned grid_x, unsigned threads);

/* Ends the program with a text of the thread that runs. */
void moi_emulated_die(const char *what);
/* Says where in the running block's shared memory an address is. */
void moi_emulated_place(const void *p, char *text, size_t size);

#endif
