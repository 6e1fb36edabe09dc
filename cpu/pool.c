#include "cpu/pool.h"

#include <stdatomic.h>

#include "core/lock.h"
#include "core/threads.h"
#include "cpu/cpu.h"

#define MAX_WORKERS 1024
#define LINE 64           /* bytes that cores pass to each other */
#define CLOSED UINT32_MAX /* as the next task: there is none */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("isb" ::: "memory") /* waits tens of cycles; yield does nothing on most cores */
#else
#define RELAX() ((void)0)
#endif
/* About 50 us, until which a thread looks for what it waits for before it sleeps: longer than what lies between the parts
 * of a layer, shorter than waking up costs twice. */
#define ROUNDS 1500

/* ---- the default pool: threads that take tasks of a run one after another, as the caller does. A run is over when its
 * tasks are; nobody waits for a thread that has taken none: one whose core was taken away costs no time. */

typedef struct helper {
  moi_pool *pool;
  uint32_t lane;
  moi_thread thread;
  moi_thread_body body;
} helper;

struct moi_pool {
  moi_lock turn; /* one run at a time */
  uint32_t n_helpers, rounds;
  size_t size;
  /* Of the run. A thread reads them after `next` and takes a task by changing `next` from what it was then. Before they
   * change, `next` becomes one that no task can be taken from: what was read of two runs is not used. */
  _Atomic(moi_task_fn) task;
  _Atomic(void *) arg;
  atomic_uint n_tasks;
  moi_lock lock; /* with the signals */
  moi_signal begin, end;
  atomic_uint asleep;  /* helpers that wait for `begin` */
  atomic_uint awaited; /* the caller waits for `end` */
  atomic_uint stopping;
  char apart0[LINE];
  atomic_ullong next; /* the run's number << 32 | its next task */
  char apart1[LINE];
  atomic_uint done; /* tasks of the run */
  char apart2[LINE];
  helper helpers[];
};

static uint32_t run_of(uint64_t next) { return (uint32_t)(next >> 32); }

/* Takes tasks until there are none; the number of the run that it saw last. */
static uint32_t take(moi_pool *pool, uint32_t lane) {
  for (;;) {
    unsigned long long next = atomic_load_explicit(&pool->next, memory_order_acquire);
    moi_task_fn task = atomic_load_explicit(&pool->task, memory_order_acquire);
    void *arg = atomic_load_explicit(&pool->arg, memory_order_acquire);
    uint32_t n = atomic_load_explicit(&pool->n_tasks, memory_order_acquire), i = (uint32_t)next;
    if (i >= n) return run_of(next);
    if (!atomic_compare_exchange_weak_explicit(&pool->next, &next, next + 1, memory_order_acq_rel,
                                               memory_order_relaxed))
      continue;
    task(arg, lane, i);
    if (atomic_fetch_add(&pool->done, 1) + 1 == n && atomic_load(&pool->awaited)) {
      moi_lock_take(&pool->lock);
      moi_signal_one(&pool->end);
      moi_lock_give(&pool->lock);
    }
  }
}

/* Until there is another run than the one that was seen, or the end of the pool. */
static void await_run(moi_pool *pool, uint32_t seen) {
  for (uint32_t i = 0; i < pool->rounds; i++) {
    if (run_of(atomic_load_explicit(&pool->next, memory_order_relaxed)) != seen) return;
    RELAX();
  }
  moi_lock_take(&pool->lock);
  atomic_fetch_add(&pool->asleep, 1);
  while (run_of(atomic_load(&pool->next)) == seen && !atomic_load(&pool->stopping))
    moi_signal_wait(&pool->begin, &pool->lock);
  atomic_fetch_sub(&pool->asleep, 1);
  moi_lock_give(&pool->lock);
}

static void await_end(moi_pool *pool, uint32_t n) {
  for (uint32_t i = 0; i < pool->rounds; i++) {
    if (atomic_load_explicit(&pool->done, memory_order_acquire) == n) return;
    RELAX();
  }
  moi_lock_take(&pool->lock);
  atomic_store(&pool->awaited, 1);
  while (atomic_load(&pool->done) != n) moi_signal_wait(&pool->end, &pool->lock);
  atomic_store(&pool->awaited, 0);
  moi_lock_give(&pool->lock);
}

static void help(void *arg) {
  const helper *h = arg;
  uint32_t seen = 0;
  while (!atomic_load_explicit(&h->pool->stopping, memory_order_relaxed)) {
    await_run(h->pool, seen);
    seen = take(h->pool, h->lane);
  }
}

static void run(moi_pool *pool, uint32_t n_tasks, moi_task_fn task, void *arg) {
  moi_lock_take(&pool->turn);
  uint64_t before = run_of(atomic_load_explicit(&pool->next, memory_order_relaxed)), number = (uint32_t)(before + 1);
  /* a thread that sees one of these sees that `next` was closed before it */
  atomic_store_explicit(&pool->next, before << 32 | CLOSED, memory_order_relaxed);
  atomic_store_explicit(&pool->task, task, memory_order_release);
  atomic_store_explicit(&pool->arg, arg, memory_order_release);
  atomic_store_explicit(&pool->n_tasks, n_tasks, memory_order_release);
  atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
  atomic_store(&pool->next, number << 32);
  uint32_t asleep = atomic_load(&pool->asleep);
  if (asleep) {
    moi_lock_take(&pool->lock);
    if (n_tasks > asleep) moi_signal_all(&pool->begin);
    else
      for (uint32_t i = 1; i < n_tasks; i++) moi_signal_one(&pool->begin);
    moi_lock_give(&pool->lock);
  }
  take(pool, 0);
  await_end(pool, n_tasks);
  moi_lock_give(&pool->turn);
}

static void stop(moi_context *context, moi_pool *pool) {
  moi_lock_take(&pool->lock);
  atomic_store(&pool->stopping, 1);
  moi_signal_all(&pool->begin);
  moi_lock_give(&pool->lock);
  for (uint32_t i = 0; i < pool->n_helpers; i++) moi_thread_join(pool->helpers[i].thread);
  moi_signal_close(&pool->begin);
  moi_signal_close(&pool->end);
  moi_lock_close(&pool->lock);
  moi_lock_close(&pool->turn);
  moi_release(context, pool, pool->size);
}

moi_status moi_pool_open(const char *fn, moi_context *context, moi_pool **out) {
  moi_context_desc *d = &context->desc;
  *out = NULL;
  if (d->n_workers > MAX_WORKERS)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->n_workers: %u, at most %u", d->n_workers, MAX_WORKERS);
  if (d->parallel_for) {
    if (!d->n_workers) return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->n_workers: 0, must be > 0 with parallel_for");
    return MOI_OK;
  }
  uint32_t cores = moi_cores();
  if (!d->n_workers) d->n_workers = cores < MAX_WORKERS ? cores : MAX_WORKERS;
  if (d->n_workers == 1) return MOI_OK;
  size_t size = sizeof(moi_pool) + (d->n_workers - 1) * sizeof(helper);
  moi_pool *pool = moi_allocate(context, size);
  if (!pool) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", size);
  memset(pool, 0, size);
  pool->size = size;
  pool->rounds = d->n_workers <= cores ? ROUNDS : 0; /* more threads than cores: who waits gives its core away */
  moi_lock_open(&pool->turn);
  moi_lock_open(&pool->lock);
  moi_signal_open(&pool->begin);
  moi_signal_open(&pool->end);
  for (uint32_t i = 1; i < d->n_workers; i++) {
    helper *h = &pool->helpers[pool->n_helpers];
    h->pool = pool;
    h->lane = i;
    h->body = (moi_thread_body){help, h};
    if (!moi_thread_start(&h->thread, &h->body)) break;
    pool->n_helpers++;
  }
  if (pool->n_helpers + 1 < d->n_workers) {
    moi_log_line(context, MOI_LOG_WARNING, "the system gives no more threads: %u workers instead of %u",
                 pool->n_helpers + 1, d->n_workers);
    d->n_workers = pool->n_helpers + 1;
  }
  if (pool->n_helpers) *out = pool;
  else stop(context, pool);
  return MOI_OK;
}

void moi_pool_close(moi_context *context, moi_pool *pool) {
  if (pool) stop(context, pool);
}

/* ---- an engine's threads */

typedef struct stage {
  moi_task_fn task;
  void *arg;
  uint32_t n_tasks;
  atomic_uint next, done;
} stage;

static void lane_body(void *arg, uint32_t lane) {
  stage *s = arg;
  for (;;) {
    uint32_t i = atomic_fetch_add_explicit(&s->next, 1, memory_order_acq_rel);
    if (i >= s->n_tasks) break;
    s->task(s->arg, lane, i);
  }
  atomic_fetch_add_explicit(&s->done, 1, memory_order_release);
}

static void run_on_engine(const moi_context_desc *d, uint32_t lanes, uint32_t n_tasks, moi_task_fn task, void *arg) {
  stage s;
  s.task = task;
  s.arg = arg;
  s.n_tasks = n_tasks;
  /* next and done order the tasks after the caller and before the return, whatever the engine's threads wait with. */
  atomic_store_explicit(&s.done, 0, memory_order_relaxed);
  atomic_store_explicit(&s.next, 0, memory_order_release);
  d->parallel_for(d->parallel_for_user, lanes, lane_body, &s);
  (void)atomic_load_explicit(&s.done, memory_order_acquire);
}

void moi_pool_run(const moi_context *context, uint32_t n_tasks, moi_task_fn task, void *arg) {
  const moi_context_desc *d = &context->desc;
  const moi_cpu *cpu = context->state;
  uint32_t lanes = n_tasks < d->n_workers ? n_tasks : d->n_workers;
  if (lanes > 1 && d->parallel_for) run_on_engine(d, lanes, n_tasks, task, arg);
  else if (lanes > 1) run(cpu->pool, n_tasks, task, arg);
  else
    for (uint32_t i = 0; i < n_tasks; i++) task(arg, 0, i);
}

/* some microseconds on one core */
#define WORTH_WAKING 100000

void moi_pool_run_sized(const moi_context *context, uint64_t work, uint32_t n_tasks, moi_task_fn task, void *arg) {
  if (work >= WORTH_WAKING) {
    moi_pool_run(context, n_tasks, task, arg);
    return;
  }
  for (uint32_t i = 0; i < n_tasks; i++) task(arg, 0, i);
}
