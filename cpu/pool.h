/* The threads of a CPU context: the engine's parallel_for, or the default pool. */
#ifndef MOI_CPU_POOL_H
#define MOI_CPU_POOL_H

#include "core/backend.h"

typedef struct moi_pool moi_pool;

/* Sets context->desc.n_workers and, without the engine's parallel_for, starts the default pool. */
moi_status moi_pool_open(const char *function, moi_context *context, moi_pool **out);
void moi_pool_close(moi_context *context, moi_pool *pool);

/* Runs task(arg, lane, i) for every i < n_tasks on up to n_workers lanes, which take the next i from a counter: `lane`
 * (< n_workers) names scratch that no other task uses at the same time. Returns when all are done. */
typedef void (*moi_task_fn)(void *arg, uint32_t lane, uint32_t i);
void moi_pool_run(const moi_context *context, uint32_t n_tasks, moi_task_fn task, void *arg);

/* The same, but in the caller's thread if all tasks together are `work` multiplications and that is less than waking
 * threads costs. */
void moi_pool_run_sized(const moi_context *context, uint64_t work, uint32_t n_tasks, moi_task_fn task, void *arg);

#endif
