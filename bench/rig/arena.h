/* Memory of a case: buffers with guard zones, freed together. Running out of memory ends the program. */
#ifndef MOI_BENCH_RIG_ARENA_H
#define MOI_BENCH_RIG_ARENA_H

#include <moiety.h>

/* Every buffer ends at (or, for its alignment, just before) an unreadable page, and a pattern lies on both sides. */
#define MOI_ARENA_GUARD 0x1u
/* Huge pages where the system gives them: for weights by the gigabyte. */
#define MOI_ARENA_HUGE 0x2u

typedef struct moi_block {
  const char *name;
  uint8_t *map, *ptr;
  size_t map_size, size;
  size_t tail;  /* pattern bytes after the buffer */
  size_t guard; /* and before it */
} moi_block;

typedef struct moi_arena {
  uint32_t flags;
  moi_block *blocks;
  size_t n_blocks, capacity;
} moi_arena;

/* size bytes aligned to align (a power of two up to 4096), zeroed by the system. name must outlive the arena. */
void *moi_arena_take(moi_arena *arena, size_t size, size_t align, const char *name);
static inline moi_buffer moi_arena_view(moi_arena *arena, size_t size, size_t align, const char *name) {
  return moi_ptr(moi_arena_take(arena, size, align, name), size);
}

/* NULL, or the name of a buffer whose guard zone was written to; *offset: of the first such byte from its start. */
const char *moi_arena_damage(const moi_arena *arena, long long *offset);
void moi_arena_free(moi_arena *arena);

/* 1 and the block of a living arena that holds `p` (or ends there); 0 if none does. */
int moi_arena_find(const void *p, moi_block *out);

/* What an output holds before a run: no result is likely to be this. */
#define MOI_POISON 0xfd
void moi_poison(moi_buffer buffer);

#endif
