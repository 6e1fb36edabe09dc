/* A lock, for what contexts make on the way: POSIX threads, or Windows' own. */
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
#else
#include <pthread.h>
typedef pthread_mutex_t moi_lock;
static inline void moi_lock_open(moi_lock *l) { pthread_mutex_init(l, NULL); }
static inline void moi_lock_close(moi_lock *l) { pthread_mutex_destroy(l); }
static inline void moi_lock_take(moi_lock *l) { pthread_mutex_lock(l); }
static inline void moi_lock_give(moi_lock *l) { pthread_mutex_unlock(l); }
#endif

#endif
