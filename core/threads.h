/* Threads: of POSIX, or Windows' own. */
#ifndef MOI_CORE_THREADS_H
#define MOI_CORE_THREADS_H

#include <stdint.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
typedef HANDLE moi_thread;
#else
#include <pthread.h>
typedef pthread_t moi_thread;
#endif

/* Cores this process may use; at least 1. */
uint32_t moi_cores(void);

/* Starts a thread that runs body(arg) and takes signals of nobody's. 0 where the system gives none. body and arg have to
 * live until the thread was joined, which waits for its end. */
typedef struct moi_thread_body {
  void (*body)(void *arg);
  void *arg;
} moi_thread_body;
int moi_thread_start(moi_thread *thread, moi_thread_body *body);
void moi_thread_join(moi_thread thread);

/* For what takes long while a plan is made: body(arg, i) for each i < n, once each, by this thread and as many others as
 * there are cores, calls and `most` for; fewer where the system gives no more. They end before it returns. */
void moi_threads_run(uint32_t n, uint32_t most, void (*body)(void *arg, uint32_t i), void *arg);

#endif
