#include "bench/rig/arena.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#endif

enum { PAGE = 4096, ZONE = 512, GUARD = 0xb5, HUGE_SIZE = 2 << 20 };

static void out_of_memory(size_t size, const char *name) {
  fprintf(stderr, "moiety: out of memory: %zu bytes for %s\n", size, name);
  exit(3);
}

/* Zeroed pages, some that nobody may touch, and their end. */
#if defined(_WIN32)
static uint8_t *map_pages(size_t size, const char *name) {
  void *p = VirtualAlloc(NULL, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (!p) out_of_memory(size, name);
  return p;
}
static int forbid(void *at, size_t size) {
  DWORD before;
  return !VirtualProtect(at, size, PAGE_NOACCESS, &before);
}
static void unmap(void *at, size_t size) {
  (void)size;
  VirtualFree(at, 0, MEM_RELEASE);
}
#else
static uint8_t *map_pages(size_t size, const char *name) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) out_of_memory(size, name);
  return p;
}
static int forbid(void *at, size_t size) { return mprotect(at, size, PROT_NONE); }
static void unmap(void *at, size_t size) { munmap(at, size); }
#endif

/* ---- guarded mappings of arenas that are gone, for those to come: making one takes a system longer than zeroing it */

#if defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#if defined(ASAN)
enum { KEPT = 0, KEPT_SIZE = 0 }; /* there, what is used after it was freed has to fault */
#else
enum { KEPT = 256, KEPT_SIZE = 64 << 20 };
#endif

static struct {
  struct {
    uint8_t *map;
    size_t size;
  } maps[KEPT + 1];
  size_t n, size;
} kept;

/* ---- every block there is, for moi_arena_find */

static struct {
  moi_block *blocks;
  size_t n, capacity;
} all;
static atomic_flag all_busy = ATOMIC_FLAG_INIT;

static void enter(void) {
  while (atomic_flag_test_and_set_explicit(&all_busy, memory_order_acquire)) continue;
}
static void leave(void) { atomic_flag_clear_explicit(&all_busy, memory_order_release); }

static uint8_t *take_kept(size_t size) {
  uint8_t *map = NULL;
  enter();
  for (size_t i = kept.n; i-- > 0;)
    if (kept.maps[i].size == size) {
      map = kept.maps[i].map;
      kept.maps[i] = kept.maps[--kept.n];
      kept.size -= size;
      break;
    }
  leave();
  return map;
}

static int keep(uint8_t *map, size_t size) {
  if (!KEPT || size > KEPT_SIZE) return 0;
  enter();
  while (kept.n == KEPT || kept.size + size > KEPT_SIZE) { /* some other makes room */
    unmap(kept.maps[0].map, kept.maps[0].size);
    kept.size -= kept.maps[0].size;
    kept.maps[0] = kept.maps[--kept.n];
  }
  kept.maps[kept.n].map = map;
  kept.maps[kept.n++].size = size;
  kept.size += size;
  leave();
  return 1;
}

static void remember(const moi_block *b) {
  enter();
  if (all.n == all.capacity) {
    all.capacity = all.capacity ? 2 * all.capacity : 256;
    all.blocks = realloc(all.blocks, all.capacity * sizeof *all.blocks);
    if (!all.blocks) out_of_memory(all.capacity * sizeof *all.blocks, "the list of buffers");
  }
  all.blocks[all.n++] = *b;
  leave();
}

static void forget(const moi_block *b) {
  enter();
  for (size_t i = all.n; i-- > 0;)
    if (all.blocks[i].map == b->map) {
      all.blocks[i] = all.blocks[--all.n];
      break;
    }
  if (!all.n) {
    free(all.blocks);
    all.blocks = NULL;
    all.capacity = 0;
  }
  leave();
}

int moi_arena_find(const void *p, moi_block *out) {
  const uint8_t *at = p;
  int found = 0;
  enter();
  for (size_t i = all.n; i-- > 0 && found < 2;) /* one that ends at p only if none begins there */
    if (at >= all.blocks[i].ptr && at <= all.blocks[i].ptr + all.blocks[i].size && !(found && at == all.blocks[i].ptr + all.blocks[i].size)) {
      *out = all.blocks[i];
      found = at < all.blocks[i].ptr + all.blocks[i].size ? 2 : 1;
    }
  leave();
  return found != 0;
}

void *moi_arena_take(moi_arena *arena, size_t size, size_t align, const char *name) {
  if (arena->n_blocks == arena->capacity) {
    arena->capacity = arena->capacity ? 2 * arena->capacity : 64;
    arena->blocks = realloc(arena->blocks, arena->capacity * sizeof *arena->blocks);
    if (!arena->blocks) out_of_memory(arena->capacity * sizeof *arena->blocks, "the list of buffers");
  }
  moi_block *b = &arena->blocks[arena->n_blocks++];
  memset(b, 0, sizeof *b);
  b->name = name;
  b->size = size;
  if (!(arena->flags & MOI_ARENA_GUARD)) {
    size_t slack = arena->flags & MOI_ARENA_HUGE && size >= HUGE_SIZE ? HUGE_SIZE : 0;
    b->map_size = (size + slack + PAGE - 1) & ~(size_t)(PAGE - 1);
    if (!b->map_size) b->map_size = PAGE;
    b->map = b->ptr = map_pages(b->map_size, name);
    if (slack) {
      b->ptr = (uint8_t *)(((uintptr_t)b->map + HUGE_SIZE - 1) & ~(uintptr_t)(HUGE_SIZE - 1));
#if defined(MADV_HUGEPAGE)
      (void)madvise(b->map, b->map_size, MADV_HUGEPAGE); /* only a wish */
#endif
    }
    remember(b);
    return b->ptr;
  }
  size_t body = (size + align - 1) & ~(align - 1);
  size_t pages = (body + ZONE + PAGE - 1) & ~(size_t)(PAGE - 1);
  b->map_size = pages + PAGE;
  b->map = take_kept(b->map_size);
  if (b->map) {
    memset(b->map, 0, pages);
  } else {
    b->map = map_pages(b->map_size, name);
    if (forbid(b->map + pages, PAGE)) out_of_memory(PAGE, "a guard page");
  }
  b->ptr = b->map + pages - body;
  b->tail = body - size;
  b->guard = ZONE;
  memset(b->ptr - ZONE, GUARD, ZONE);
  memset(b->ptr + size, GUARD, b->tail);
  remember(b);
  return b->ptr;
}

const char *moi_arena_damage(const moi_arena *arena, long long *offset) {
  if (!(arena->flags & MOI_ARENA_GUARD)) return NULL;
  for (size_t i = 0; i < arena->n_blocks; i++) {
    const moi_block *b = &arena->blocks[i];
    for (long long at = -(long long)ZONE; at < (long long)(b->size + b->tail); at++) {
      if (at == 0) at = (long long)b->size;
      if (at >= (long long)(b->size + b->tail)) break;
      if (b->ptr[at] == GUARD) continue;
      *offset = at;
      return b->name;
    }
  }
  return NULL;
}

void moi_arena_free(moi_arena *arena) {
  for (size_t i = 0; i < arena->n_blocks; i++) forget(&arena->blocks[i]);
  for (size_t i = 0; i < arena->n_blocks; i++) {
    const moi_block *b = &arena->blocks[i];
    if (!(arena->flags & MOI_ARENA_GUARD) || !keep(b->map, b->map_size)) unmap(b->map, b->map_size);
  }
  free(arena->blocks);
  arena->blocks = NULL;
  arena->n_blocks = arena->capacity = 0;
}

void moi_poison(moi_buffer buffer) {
  if (buffer.ptr) memset((uint8_t *)buffer.ptr + buffer.offset, MOI_POISON, buffer.size);
}
