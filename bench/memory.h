/* What the machine has left. */
#ifndef MOI_BENCH_MEMORY_H
#define MOI_BENCH_MEMORY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that can be taken without pushing anything out; half of the memory where the system does not say. */
uint64_t moi_memory_available(void);

#ifdef __cplusplus
}
#endif
#endif
