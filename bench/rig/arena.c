#include "bench/rig/arena.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(_WIN32)
#include <sys/mman.h>
#endif

enum { PAGE = 4096, ZONE = 512, PATTERN = 0xb5, HUGE_SIZE = 2 << 20 };

static void out_of_memory(size_t size, const char *name) {
  fprintf(stderr, "moiety: out of memory: %zu bytes for %s\n", size, name);
  exit(3);
}

#if !defined(_WIN32)
static uint8_t *map_pages(size_t size, const char *name) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) out_of_memory(size, name);
  return p;
}
#endif

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
#if defined(_WIN32)
  b->map_size = size + 2 * ZONE + align;
  b->map = calloc(1, b->map_size);
  if (!b->map) out_of_memory(size, name);
  b->ptr = (uint8_t *)(((uintptr_t)b->map + ZONE + align - 1) & ~(uintptr_t)(align - 1));
  b->tail = ZONE;
#else
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
    return b->ptr;
  }
  size_t body = (size + align - 1) & ~(align - 1);
  size_t pages = (body + ZONE + PAGE - 1) & ~(size_t)(PAGE - 1);
  b->map_size = pages + PAGE;
  b->map = map_pages(b->map_size, name);
  if (mprotect(b->map + pages, PAGE, PROT_NONE)) out_of_memory(PAGE, "a guard page");
  b->ptr = b->map + pages - body;
  b->tail = body - size;
#endif
  memset(b->ptr - ZONE, PATTERN, ZONE);
  memset(b->ptr + size, PATTERN, b->tail);
  return b->ptr;
}

const char *moi_arena_damage(const moi_arena *arena, long long *offset) {
  if (!(arena->flags & MOI_ARENA_GUARD)) return NULL;
  for (size_t i = 0; i < arena->n_blocks; i++) {
    const moi_block *b = &arena->blocks[i];
    for (long long at = -(long long)ZONE; at < (long long)(b->size + b->tail); at++) {
      if (at == 0) at = (long long)b->size;
      if (at >= (long long)(b->size + b->tail)) break;
      if (b->ptr[at] == PATTERN) continue;
      *offset = at;
      return b->name;
    }
  }
  return NULL;
}

void moi_arena_free(moi_arena *arena) {
  for (size_t i = 0; i < arena->n_blocks; i++) {
#if defined(_WIN32)
    free(arena->blocks[i].map);
#else
    munmap(arena->blocks[i].map, arena->blocks[i].map_size);
#endif
  }
  free(arena->blocks);
  arena->blocks = NULL;
  arena->n_blocks = arena->capacity = 0;
}

void moi_poison(moi_buffer buffer) {
  if (buffer.ptr) memset((uint8_t *)buffer.ptr + buffer.offset, MOI_POISON, buffer.size);
}
