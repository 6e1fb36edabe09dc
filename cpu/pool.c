#include "cpu/pool.h"

#include <stdatomic.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "core/threads.h"
#include "cpu/cpu.h"

#define MAX_WORKERS 1024

/* One call of moi_pool_run. */
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

/* The system's threads. start: for n_workers with the caller's; NULL, or why not. run: lane_body(s, lane) on some of
 * the lanes < n, each on a thread of its own; returns when all of them have. */
#if defined(_WIN32)
/* Windows' own thread pool: threads of ours alone, as many as workers. */
struct moi_pool {
  TP_POOL *threads;
  TP_CALLBACK_ENVIRON environment;
  TP_WORK *work;
  SRWLOCK turn; /* one run at a time */
  stage *now;
  atomic_uint lanes;
};

static void CALLBACK one_lane(TP_CALLBACK_INSTANCE *instance, void *arg, TP_WORK *work) {
  (void)instance;
  (void)work;
  struct moi_pool *pool = arg;
  lane_body(pool->now, atomic_fetch_add(&pool->lanes, 1));
}

static const char *start(moi_pool *pool, uint32_t n_workers) {
  pool->threads = CreateThreadpool(NULL);
  if (!pool->threads) return "Windows gives no thread pool";
  SetThreadpoolThreadMaximum(pool->threads, n_workers - 1);
  InitializeThreadpoolEnvironment(&pool->environment);
  SetThreadpoolCallbackPool(&pool->environment, pool->threads);
  pool->work = NULL;
  if (SetThreadpoolThreadMinimum(pool->threads, n_workers - 1))
    pool->work = CreateThreadpoolWork(one_lane, pool, &pool->environment);
  if (!pool->work) {
    CloseThreadpool(pool->threads);
    return "Windows' thread pool starts no threads";
  }
  InitializeSRWLock(&pool->turn);
  return NULL;
}

static void stop(moi_pool *pool) {
  CloseThreadpoolWork(pool->work);
  CloseThreadpool(pool->threads);
}

static void run(moi_pool *pool, uint32_t n, stage *s) {
  AcquireSRWLockExclusive(&pool->turn);
  pool->now = s;
  atomic_store(&pool->lanes, 1);
  for (uint32_t i = 1; i < n; i++) SubmitThreadpoolWork(pool->work);
  lane_body(s, 0);
  WaitForThreadpoolWorkCallbacks(pool->work, TRUE); /* what no thread has begun is not needed any more */
  ReleaseSRWLockExclusive(&pool->turn);
}
#else
/* pthreadpool is loaded, not linked: an engine that brings its own threads needs nothing installed. */
struct moi_pool {
  void *library;
  void *threads;
  void (*parallelize)(void *threadpool, void (*task)(void *, size_t), void *context, size_t range, uint32_t flags);
  void (*destroy)(void *threadpool);
};

static void *load(void) {
  void *library = dlopen("libpthreadpool.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libpthreadpool.so", RTLD_NOW | RTLD_LOCAL);
#if defined(__APPLE__)
  if (!library) library = dlopen("libpthreadpool.dylib", RTLD_NOW | RTLD_LOCAL);
#endif
  return library;
}

static const char *start(moi_pool *pool, uint32_t n_workers) {
  pool->library = load();
  if (!pool->library) return "libpthreadpool is not installed";
  void *(*create)(size_t) = NULL;
  *(void **)&create = dlsym(pool->library, "pthreadpool_create");
  *(void **)&pool->parallelize = dlsym(pool->library, "pthreadpool_parallelize_1d");
  *(void **)&pool->destroy = dlsym(pool->library, "pthreadpool_destroy");
  pool->threads = create && pool->parallelize && pool->destroy ? create(n_workers) : NULL;
  if (pool->threads) return NULL;
  dlclose(pool->library);
  return "pthreadpool failed to start";
}

static void stop(moi_pool *pool) {
  pool->destroy(pool->threads);
  dlclose(pool->library);
}

static void lane_1d(void *arg, size_t lane) { lane_body(arg, (uint32_t)lane); }

static void run(moi_pool *pool, uint32_t n, stage *s) { pool->parallelize(pool->threads, lane_1d, s, n, 0); }
#endif

moi_status moi_pool_open(const char *fn, moi_context *context, moi_pool **out) {
  moi_context_desc *d = &context->desc;
  *out = NULL;
  if (d->n_workers > MAX_WORKERS)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->n_workers: %u, at most %u", d->n_workers, MAX_WORKERS);
  if (d->parallel_for) {
    if (!d->n_workers) return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->n_workers: 0, must be > 0 with parallel_for");
    return MOI_OK;
  }
  if (!d->n_workers) d->n_workers = moi_cores();
  if (d->n_workers > MAX_WORKERS) d->n_workers = MAX_WORKERS;
  if (d->n_workers == 1) return MOI_OK;
  moi_pool *pool = moi_allocate(context, sizeof *pool);
  if (!pool) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *pool);
  const char *why = start(pool, d->n_workers);
  if (why) {
    moi_log_line(context, MOI_LOG_WARNING, "%s, and no parallel_for was given: 1 worker instead of %u", why,
                 d->n_workers);
    moi_release(context, pool, sizeof *pool);
    d->n_workers = 1;
    return MOI_OK;
  }
  *out = pool;
  return MOI_OK;
}

void moi_pool_close(moi_context *context, moi_pool *pool) {
  if (!pool) return;
  stop(pool);
  moi_release(context, pool, sizeof *pool);
}

void moi_pool_run(const moi_context *context, uint32_t n_tasks, moi_task_fn task, void *arg) {
  const moi_context_desc *d = &context->desc;
  const moi_cpu *cpu = context->state;
  uint32_t lanes = n_tasks < d->n_workers ? n_tasks : d->n_workers;
  if (lanes <= 1) {
    for (uint32_t i = 0; i < n_tasks; i++) task(arg, 0, i);
    return;
  }
  stage s;
  s.task = task;
  s.arg = arg;
  s.n_tasks = n_tasks;
  /* next and done order the tasks after the caller and before the return: pthreadpool does so with futexes that
   * ThreadSanitizer does not see. */
  atomic_store_explicit(&s.done, 0, memory_order_relaxed);
  atomic_store_explicit(&s.next, 0, memory_order_release);
  if (d->parallel_for) d->parallel_for(d->parallel_for_user, lanes, lane_body, &s);
  else run(cpu->pool, lanes, &s);
  (void)atomic_load_explicit(&s.done, memory_order_acquire);
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
