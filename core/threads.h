/* Threads for what takes long while a plan is made. Runs have their backend's own. */
#ifndef MOI_CORE_THREADS_H
#define MOI_CORE_THREADS_H

#include <stdint.h>

/* Cores this process may use; at least 1. */
uint32_t moi_cores(void);

/* body(arg, i) for each i < n, once each, by this thread and as many others as there are cores, calls and `most` for;
 * fewer where the system gives no more. They take signals of nobody's and end before it returns. */
void moi_threads_run(uint32_t n, uint32_t most, void (*body)(void *arg, uint32_t i), void *arg);

#endif
