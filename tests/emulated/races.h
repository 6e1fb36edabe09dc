/* Races between a launch's threads: two accesses to one byte of shared or global memory, at least one of them a write, that
 * nothing orders. The library of the folder races is built with it: kernels are compiled with -fsanitize=thread, whose calls
 * before each access races.c takes in place of ThreadSanitizer, and every launch runs on one thread. In the other library
 * these words do nothing.
 *
 * What orders: a thread's own program; moi_sync_grid, all threads; moi_sync, a block's; moi_sync_warp, a warp's lanes.
 * Nothing else: exchanges within a warp meet, but order no memory, as in CUDA. Atomics order nothing, and do not race with
 * each other. Writes of the value that is there already do not race with other writes. An asynchronous copy writes from its
 * issue until its thread waits for it.
 * Global memory of a launch that no kernel has written before is not watched while it is only read. */
#ifndef MOI_TESTS_EMULATED_RACES_H
#define MOI_TESTS_EMULATED_RACES_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(MOI_EMULATED_RACES)
enum { MOI_RACES = 1 };
void moi_races_begin(uint64_t blocks); /* of a launch, or from one barrier of the grid on; until moi_races_end others wait */
void moi_races_end(void);
void moi_races_block(void);             /* the next block of the launch */
void moi_races_thread(unsigned thread); /* that runs from now on */
void moi_races_sync(void);              /* all threads of the block have met */
void moi_races_sync_warp(unsigned warp);
void moi_races_atomic(const void *p, size_t size, const void *caller);
void moi_races_read(const void *p, size_t size, const void *caller);
void moi_races_copy(const void *to, size_t size, const void *caller); /* is issued by the thread */
void moi_races_landed(const void *to, size_t size);                   /* has been waited for */
/* block: 1 .. 64 of those that meet, else 0; null: more than there is */
void *moi_races_shared(size_t block, size_t at, size_t size);
void *moi_races_alloc(size_t size);                                   /* a device's memory; null: none is left */
void moi_races_free(void *p);
#else
enum { MOI_RACES = 0 };
static inline void moi_races_begin(uint64_t blocks) { (void)blocks; }
static inline void moi_races_end(void) {}
static inline void moi_races_block(void) {}
static inline void moi_races_thread(unsigned thread) { (void)thread; }
static inline void moi_races_sync(void) {}
static inline void moi_races_sync_warp(unsigned warp) { (void)warp; }
static inline void moi_races_atomic(const void *p, size_t size, const void *caller) {
  (void)p, (void)size, (void)caller;
}
static inline void moi_races_read(const void *p, size_t size, const void *caller) { (void)p, (void)size, (void)caller; }
static inline void moi_races_copy(const void *to, size_t size, const void *caller) {
  (void)to, (void)size, (void)caller;
}
static inline void moi_races_landed(const void *to, size_t size) { (void)to, (void)size; }
static inline void *moi_races_shared(size_t block, size_t at, size_t size) {
  void *p = NULL;
  (void)block, (void)at;
  return posix_memalign(&p, 128, size) ? NULL : p;
}
static inline void *moi_races_alloc(size_t size) {
  void *p = NULL;
  return posix_memalign(&p, 512, size) ? NULL : p;
}
static inline void moi_races_free(void *p) { free(p); }
#endif

#endif
