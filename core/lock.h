/* A lock, for what contexts make on the way, a signal to wait for under it, and what is done once for the process: POSIX
 * threads, or Windows' own. A wait may end without a signal. */
#ifndef MOI_CORE_LOCK_H
#define MOI_CORE_LOCK_H

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
typedef SRWLOCK moi_lock;
static inline void moi_lock_open(moi_lock *l) { InitializeSRWLock(l); }
static inline void moi_lock_close(moi_lock *l) { (void)l; }
static inline void moi_lock_take(moi_lock *l) { AcquireSRWLockExclusive(l); }
static inline void moi_lock_give(moi_lock *l) { ReleaseSRWLockExclusive(l); }
typedef CONDITION_VARIABLE moi_signal;
static inline void moi_signal_open(moi_signal *s) { InitializeConditionVariable(s); }
static inline void moi_signal_close(moi_signal *s) { (void)s; }
static inline void moi_signal_wait(moi_signal *s, moi_lock *l) { SleepConditionVariableSRW(s, l, INFINITE, 0); }
static inline void moi_signal_one(moi_signal *s) { WakeConditionVariable(s); }
static inline void moi_signal_all(moi_signal *s) { WakeAllConditionVariable(s); }
typedef INIT_ONCE moi_once;
#define MOI_ONCE_INIT INIT_ONCE_STATIC_INIT
static inline void moi_once_do(moi_once *once, void (*what)(void)) {
  BOOL first;
  if (!InitOnceBeginInitialize(once, 0, &first, NULL) || !first) return;
  what();
  InitOnceComplete(once, 0, NULL);
}
#else
#include <pthread.h>
typedef pthread_mutex_t moi_lock;
static inline void moi_lock_open(moi_lock *l) { pthread_mutex_init(l, NULL); }
static inline void moi_lock_close(moi_lock *l) { pthread_mutex_destroy(l); }
static inline void moi_lock_take(moi_lock *l) { pthread_mutex_lock(l); }
static inline void moi_lock_give(moi_lock *l) { pthread_mutex_unlock(l); }
typedef pthread_cond_t moi_signal;
static inline void moi_signal_open(moi_signal *s) { pthread_cond_init(s, NULL); }
static inline void moi_signal_close(moi_signal *s) { pthread_cond_destroy(s); }
static inline void moi_signal_wait(moi_signal *s, moi_lock *l) { pthread_cond_wait(s, l); }
static inline void moi_signal_one(moi_signal *s) { pthread_cond_signal(s); }
static inline void moi_signal_all(moi_signal *s) { pthread_cond_broadcast(s); }
typedef pthread_once_t moi_once;
#define MOI_ONCE_INIT PTHREAD_ONCE_INIT
static inline void moi_once_do(moi_once *once, void (*what)(void)) { pthread_once(once, what); }
#endif

#endif
