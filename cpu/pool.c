#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "cpu/pool.h"

#include <stdatomic.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>
#endif

#include "cpu/cpu.h"

#define MAX_WORKERS 1024

/* pthreadpool is loaded, not linked: an engine that brings its own threads needs nothing installed. */
typedef void (*task_1d)(void *, size_t);
struct moi_pool {
  void *library;
  void *threads;
  void (*parallelize)(void *threadpool, task_1d task, void *context, size_t range, uint32_t flags);
  void (*destroy)(void *threadpool);
};

uint32_t moi_cpu_cores(void) {
#if defined(_WIN32)
  SYSTEM_INFO info;
  GetSystemInfo(&info);
  return info.dwNumberOfProcessors;
#else
#if defined(__linux__)
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) return (uint32_t)CPU_COUNT(&set);
#endif
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? (uint32_t)n : 1;
#endif
}

#if defined(_WIN32)
static void *load(void) { return (void *)LoadLibraryA("pthreadpool.dll"); }
static void *find(void *library, const char *name) { return (void *)(uintptr_t)GetProcAddress((HMODULE)library, name); }
static void unload(void *library) { FreeLibrary((HMODULE)library); }
#else
static void *load(void) {
  void *library = dlopen("libpthreadpool.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libpthreadpool.so", RTLD_NOW | RTLD_LOCAL);
#if defined(__APPLE__)
  if (!library) library = dlopen("libpthreadpool.dylib", RTLD_NOW | RTLD_LOCAL);
#endif
  return library;
}
static void *find(void *library, const char *name) { return dlsym(library, name); }
static void unload(void *library) { dlclose(library); }
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
  if (!d->n_workers) d->n_workers = moi_cpu_cores();
  if (d->n_workers > MAX_WORKERS) d->n_workers = MAX_WORKERS;
  if (d->n_workers == 1) return MOI_OK;
  moi_pool *pool = moi_allocate(context, sizeof *pool);
  if (!pool) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *pool);
  pool->library = load();
  void *(*create)(size_t) = NULL;
  if (pool->library) {
    *(void **)&create = find(pool->library, "pthreadpool_create");
    *(void **)&pool->parallelize = find(pool->library, "pthreadpool_parallelize_1d");
    *(void **)&pool->destroy = find(pool->library, "pthreadpool_destroy");
  }
  pool->threads = create && pool->parallelize && pool->destroy ? create(d->n_workers) : NULL;
  if (!pool->threads) {
    moi_log_line(context, MOI_LOG_WARNING, "%s, and no parallel_for was given: 1 worker instead of %u",
                 pool->library ? "pthreadpool failed to start" : "libpthreadpool is not installed", d->n_workers);
    if (pool->library) unload(pool->library);
    moi_release(context, pool, sizeof *pool);
    d->n_workers = 1;
    return MOI_OK;
  }
  *out = pool;
  return MOI_OK;
}

void moi_pool_close(moi_context *context, moi_pool *pool) {
  if (!pool) return;
  pool->destroy(pool->threads);
  unload(pool->library);
  moi_release(context, pool, sizeof *pool);
}

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

static void lane_1d(void *arg, size_t lane) { lane_body(arg, (uint32_t)lane); }

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
  else cpu->pool->parallelize(cpu->pool->threads, lane_1d, &s, lanes, 0);
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
