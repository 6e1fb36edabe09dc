#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "core/threads.h"

#include <stdatomic.h>

#if !defined(_WIN32)
#include <signal.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif
#endif

/* Drivers' compilers recurse over what they compile: threads of musl and macOS have less than they need by default. */
enum { MAX_THREADS = 64, STACK = 8 << 20 };

uint32_t moi_cores(void) {
#if defined(_WIN32)
  DWORD_PTR ours = 0, all;
  uint32_t n = 0;
  if (GetActiveProcessorGroupCount() == 1 && GetProcessAffinityMask(GetCurrentProcess(), &ours, &all))
    for (; ours; ours &= ours - 1) n++;
  if (!n) n = GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
  return n ? n : 1;
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
static DWORD WINAPI begin(void *arg) {
  const moi_thread_body *b = arg;
  b->body(b->arg);
  return 0;
}

int moi_thread_start(moi_thread *t, moi_thread_body *body) {
  *t = CreateThread(NULL, STACK, begin, body, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
  return *t != NULL;
}

void moi_thread_join(moi_thread t) {
  WaitForSingleObject(t, INFINITE);
  CloseHandle(t);
}
#else
static void *begin(void *arg) {
  const moi_thread_body *b = arg;
  b->body(b->arg);
  return NULL;
}

int moi_thread_start(moi_thread *t, moi_thread_body *body) {
  pthread_attr_t attributes;
  sigset_t all, before;
  if (pthread_attr_init(&attributes)) return 0;
  sigfillset(&all);
  int failed = pthread_attr_setstacksize(&attributes, STACK) || pthread_sigmask(SIG_SETMASK, &all, &before);
  if (!failed) {
    failed = pthread_create(t, &attributes, begin, body);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  pthread_attr_destroy(&attributes);
  return !failed;
}

void moi_thread_join(moi_thread t) { pthread_join(t, NULL); }
#endif

typedef struct work {
  void (*body)(void *arg, uint32_t i);
  void *arg;
  uint32_t n;
  atomic_uint next;
} work;

static void take(void *arg) {
  work *w = arg;
  for (uint32_t i; (i = atomic_fetch_add(&w->next, 1)) < w->n;) w->body(w->arg, i);
}

void moi_threads_run(uint32_t n, uint32_t most, void (*body)(void *arg, uint32_t i), void *arg) {
  work w = {.body = body, .arg = arg, .n = n};
  moi_thread_body threads_body = {take, &w};
  moi_thread threads[MAX_THREADS];
  uint32_t cores = n > 1 ? moi_cores() : 1, started = 0;
  atomic_init(&w.next, 0);
  if (most > cores) most = cores;
  if (most > n) most = n;
  if (most > MAX_THREADS) most = MAX_THREADS;
  while (started + 1 < most && moi_thread_start(&threads[started], &threads_body)) started++;
  take(&w);
  while (started) moi_thread_join(threads[--started]);
}
