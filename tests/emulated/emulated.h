/* The words of cuda/device/thread.h on a CPU: a block's threads are fibers of one thread, that meet at barriers and where
 * the lanes of a warp exchange values. Shared memory is allocated for each block, so that AddressSanitizer sees its ends,
 * and begins as NaN. What CUDA leaves undefined ends the program with a text: threads that wait at different things, lanes
 * missing from an exchange. */
#ifndef MOI_TESTS_EMULATED_H
#define MOI_TESTS_EMULATED_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct moi_emulated_thread {
  unsigned thread, block_x, block_y, grid_x, grid_y;
} moi_emulated_thread;
extern _Thread_local moi_emulated_thread moi_emulated_now;

/* name: of the kernel; entry takes its arguments */
void moi_emulated_register(const char *name, void (*entry)(const void *args), size_t args_size, unsigned threads);
void *moi_emulated_shared(const void *key, size_t bytes);
void moi_emulated_sync(void);
/* The lanes of a warp meet, each with `size` bytes (at most 64); returns what they brought, 64 bytes a lane, until the
 * next meeting. what: the kind of exchange, the same for all lanes. */
const unsigned char *moi_emulated_meet(const char *what, const void *value, size_t size);

#define MOI_DEVICE static inline __attribute__((unused))
#define MOI_KERNEL(name, threads, type) MOI_KERNEL_OF(name, threads, type)
#define MOI_KERNEL_OF(name, threads, type)                                                                             \
  static void name##_body(const type *a);                                                                              \
  static void name##_entry(const void *args) { name##_body((const type *)args); }                                     \
  __attribute__((constructor)) static void name##_register(void) {                                                     \
    moi_emulated_register(#name, name##_entry, sizeof(type), threads);                                                 \
  }                                                                                                                    \
  static void name##_body(const type *a)
#define MOI_SHARED(type, name, n)                                                                                      \
  static char name##_key;                                                                                              \
  type *const name = (type *)moi_emulated_shared(&name##_key, (n) * sizeof(type))
#define MOI_UNROLL
#define MOI_ROLLED

typedef struct moi_u4 { unsigned x, y, z, w; } __attribute__((aligned(16))) moi_u4;
typedef struct moi_f4 { float x, y, z, w; } __attribute__((aligned(16))) moi_f4;

MOI_DEVICE unsigned moi_thread(void) { return moi_emulated_now.thread; }
MOI_DEVICE unsigned moi_warp(void) { return moi_emulated_now.thread >> 5; }
MOI_DEVICE unsigned moi_lane(void) { return moi_emulated_now.thread & 31u; }
MOI_DEVICE unsigned moi_block_x(void) { return moi_emulated_now.block_x; }
MOI_DEVICE unsigned moi_block_y(void) { return moi_emulated_now.block_y; }
MOI_DEVICE unsigned moi_grid_x(void) { return moi_emulated_now.grid_x; }
MOI_DEVICE unsigned moi_grid_y(void) { return moi_emulated_now.grid_y; }
MOI_DEVICE void moi_sync(void) { moi_emulated_sync(); }
MOI_DEVICE void moi_sync_warp(void) { moi_emulated_meet("sync_warp", NULL, 0); }
MOI_DEVICE unsigned moi_from_u32(unsigned v, unsigned lane) {
  unsigned r;
  memcpy(&r, moi_emulated_meet("shuffle", &v, 4) + 64 * (lane & 31u), 4);
  return r;
}
MOI_DEVICE float moi_from_f32(float v, unsigned lane) {
  float r;
  memcpy(&r, moi_emulated_meet("shuffle", &v, 4) + 64 * (lane & 31u), 4);
  return r;
}
MOI_DEVICE unsigned moi_xor_u32(unsigned v, unsigned mask) { return moi_from_u32(v, moi_lane() ^ mask); }
MOI_DEVICE float moi_xor_f32(float v, unsigned mask) { return moi_from_f32(v, moi_lane() ^ mask); }
MOI_DEVICE unsigned moi_ballot(int condition) {
  unsigned char c = condition != 0;
  const unsigned char *all = moi_emulated_meet("ballot", &c, 1);
  unsigned r = 0;
  for (unsigned i = 0; i < 32; i++) r |= (unsigned)all[64 * i] << i;
  return r;
}
MOI_DEVICE void moi_keep_order(void) {}
MOI_DEVICE unsigned moi_max_u32(unsigned v) {
  const unsigned char *all = moi_emulated_meet("reduction", &v, 4);
  for (unsigned i = 0, other; i < 32; i++) {
    memcpy(&other, all + 64 * i, 4);
    if (other > v) v = other;
  }
  return v;
}
MOI_DEVICE unsigned moi_min_u32(unsigned v) { return ~moi_max_u32(~v); }
MOI_DEVICE unsigned moi_match(unsigned v) {
  const unsigned char *all = moi_emulated_meet("match", &v, 4);
  unsigned r = 0;
  for (unsigned i = 0; i < 32; i++) r |= (unsigned)!memcmp(all + 64 * i, &v, 4) << i;
  return r;
}
MOI_DEVICE unsigned moi_bits(unsigned v) { return (unsigned)__builtin_popcount(v); }
MOI_DEVICE unsigned moi_atomic_add(unsigned *p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }

#endif
