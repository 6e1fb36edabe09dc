/* See races.h. Memory that is watched lies in one mapping: the device's, and behind it the shared memory of the block that
 * runs, then of those that meet. For each word of it, and for each byte of words that are touched by parts, there is a cell:
 * who has written, read, and touched it by an atomic, as far as that is not ordered before everything that comes.
 *
 * A moment of a block is its number and how many barriers it has passed. An access is ordered before the one at hand if it
 * is this thread's; or of this block and an earlier moment; or of this warp and before its last moi_sync_warp. A set keeps
 * two threads of the last moment, and that is enough: if they are of two warps, one of them is not ordered before whoever
 * comes; if there is one warp, its lanes since its last moi_sync_warp are what its own accesses can race with, and for
 * other warps one lane stands for all. A set with another block of the launch stays as it is: all blocks that come are not
 * ordered behind that. */
#define _GNU_SOURCE /* dladdr */
#include "races.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "machine.h"

enum kind { WRITE, READ, ATOMIC, N_KINDS };

#define DEVICE ((size_t)2 << 30)
#define SHARED ((size_t)256 << 10) /* of a block */
#define WATCHED (DEVICE + 65 * SHARED)
#define PAGE ((size_t)4096)
#define BARRIERS 24 /* bits of a moment that count them; above are the block's */

enum { NONE = 0xffff, FLYING = 0xfffe, THREAD = 0x3ff, WARP = 0x3e0, FAR = 0x400 }; /* FAR: of another warp or block */

typedef struct set {
  uint64_t moment;
  uint32_t warp_syncs;
  uint16_t first, second;
  int32_t where[2]; /* in the text of the library */
} set;

typedef struct cell {
  set sets[N_KINDS];
  uint64_t split; /* the launch in which its bytes have cells of their own */
} cell;

typedef struct byte_cell {
  set sets[N_KINDS];
} byte_cell;

static unsigned char *memory;
static cell *words;
static byte_cell *bytes;
static unsigned char *written; /* [pages] by a kernel */

static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER, allocating = PTHREAD_MUTEX_INITIALIZER;
static uint64_t launch, first_block, end_block = 1, moment;
static uint32_t warp_syncs[32];
static unsigned me;

/* Writes over other writes of this moment: races if they change what is there, which the next access shows. */
static struct pending {
  unsigned char *at;
  unsigned size, other;
  unsigned char before[4];
  int32_t where, other_where;
} pending[64];
static unsigned n_pending;

static void *map(size_t size) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p != MAP_FAILED) return p;
  fprintf(stderr, "emulated: no address space for the search for races\n");
  abort();
}

__attribute__((constructor)) static void start(void) {
  memory = map(WATCHED);
  words = map(WATCHED / 4 * sizeof *words);
  bytes = map(WATCHED * sizeof *bytes);
  written = map(WATCHED / PAGE);
}

/* ---- the text */

static int32_t where_of(const void *address) { return (int32_t)((intptr_t)address - (intptr_t)start); }

/* The line of a call, and those of the functions that it was inlined into. */
static void print_line(const char *head, unsigned thread, int32_t where) {
  const unsigned char *address = (const unsigned char *)(uintptr_t)start + where - 1;
  char command[4200], line[512];
  Dl_info info;
  fprintf(stderr, "  %s, thread %u\n", head, thread);
  if (!dladdr(address, &info) || !info.dli_fname) return;
  snprintf(command, sizeof command, "LD_LIBRARY_PATH= LD_PRELOAD= addr2line -i -f -s -p -e '%s' 0x%zx 2>&1",
           info.dli_fname, (size_t)(address - (const unsigned char *)info.dli_fbase));
  FILE *text = popen(command, "r");
  while (text && fgets(line, sizeof line, text)) fprintf(stderr, "    %s", line);
  if (text) pclose(text);
}

static void report(const unsigned char *at, const char *mine, int32_t where, const char *its, unsigned other,
                   int32_t other_where) {
  char place[128], text[256];
  size_t offset = (size_t)(at - memory);
  int far = offset < DEVICE && (other & FAR);
  if (offset < DEVICE) snprintf(place, sizeof place, "global memory %p", (const void *)at);
  else moi_emulated_place(at, place, sizeof place);
  snprintf(text, sizeof text, "a race at %s: %s after %s, which nothing orders%s", place, mine, its,
           far ? ", of another block" : "");
  fprintf(stderr, "emulated: the accesses of a race:\n");
  print_line(mine, me, where);
  print_line(its, other & THREAD, other_where);
  moi_emulated_die(text);
}

static const char *const names[N_KINDS] = {"a write", "a read", "an atomic operation"};

/* ---- sets */

/* Of another block of this launch, which nothing orders before this one. Blocks run one after another here. */
static int is_far(const set *s) {
  uint64_t block = s->moment >> BARRIERS;
  return block != moment >> BARRIERS && block >= first_block && block < end_block;
}

/* A thread of a set that is not ordered before this one, and its place; or NONE. */
static unsigned unordered(const set *s, int global, int32_t *where) {
  *where = s->where[0];
  if (s->second == FLYING) return s->first;
  if (s->moment != moment) return global && is_far(s) ? s->first | FAR : NONE;
  if ((s->first ^ me) & WARP) return s->first;
  if (s->second != NONE && ((s->second ^ me) & WARP)) {
    *where = s->where[1];
    return s->second;
  }
  if (s->warp_syncs != warp_syncs[me >> 5]) return NONE;
  if (s->first != me) return s->first;
  *where = s->where[1];
  return s->second; /* NONE, or another */
}

static void add(set *s, int global, int32_t where) {
  if (s->moment == moment) {
    if (s->second != NONE && ((s->first ^ s->second) & WARP)) return;
    int near = !((s->first ^ me) & WARP);
    if (!near || s->warp_syncs == warp_syncs[me >> 5]) {
      if (s->first == me || (near && s->second != NONE)) return;
      s->second = (uint16_t)me;
      s->where[1] = where;
      return;
    }
  } else if (global && is_far(s)) {
    return;
  }
  *s = (set){moment, warp_syncs[me >> 5], (uint16_t)me, NONE, {where, where}};
}

/* ---- accesses */

static void settle(void) {
  while (n_pending) {
    const struct pending *p = &pending[--n_pending];
    if (memcmp(p->at, p->before, p->size))
      report(p->at, names[WRITE], p->where, names[WRITE], p->other, p->other_where);
  }
}

static void touch(set *sets, unsigned char *at, unsigned size, enum kind kind, int global, int32_t where) {
  int32_t other_where;
  if (kind == READ && !global && sets[WRITE].moment != moment && sets[ATOMIC].moment != moment &&
      sets[WRITE].second != FLYING) {
    add(&sets[READ], 0, where); /* nearly all of them */
    return;
  }
  for (enum kind k = 0; k < N_KINDS; k++) {
    if (k == kind && k != WRITE) continue;
    unsigned other = sets[k].moment ? unordered(&sets[k], global, &other_where) : NONE;
    if (other == NONE) continue;
    if (sets[k].second == FLYING) report(at, names[kind], where, "an asynchronous copy", other, other_where);
    if (kind != WRITE || k != WRITE) report(at, names[kind], where, names[k], other, other_where);
    if (n_pending == sizeof pending / sizeof *pending) report(at, names[kind], where, names[k], other, other_where);
    struct pending *p = &pending[n_pending++];
    *p = (struct pending){at, size, other, {0}, where, other_where};
    memcpy(p->before, at, size);
  }
  add(&sets[kind], global, where);
}

/* Cells of an access: what(sets, first byte, how many). */
#define EACH_CELL(p, size, what)                                                                                       \
  for (size_t at_ = (size_t)((const unsigned char *)(p)-memory), end_ = at_ + (size), n_; at_ < end_; at_ += n_) {     \
    cell *c_ = &words[at_ / 4];                                                                                        \
    n_ = 4 - at_ % 4 < end_ - at_ ? 4 - at_ % 4 : end_ - at_;                                                          \
    if (n_ == 4 && c_->split != launch) {                                                                              \
      what(c_->sets, memory + at_, 4u);                                                                                \
      continue;                                                                                                        \
    }                                                                                                                  \
    if (c_->split != launch) {                                                                                         \
      for (size_t b_ = 0; b_ < 4; b_++) memcpy(&bytes[at_ / 4 * 4 + b_], c_->sets, sizeof c_->sets);                   \
      c_->split = launch;                                                                                              \
    }                                                                                                                  \
    for (size_t b_ = at_; b_ < at_ + n_; b_++) what(bytes[b_].sets, memory + b_, 1u);                                  \
  }

static void go_through(const unsigned char *p, size_t size, enum kind kind, int32_t where) {
  size_t at = (size_t)(p - memory);
  int global = at < DEVICE;
  if (global) {
    unsigned char *first = &written[at / PAGE], *last = &written[(at + size - 1) / PAGE];
    if (kind != READ) *first = *last = 1;
    else if (!*first && !*last) return;
  }
#define TOUCH(sets, byte, n) touch(sets, byte, n, kind, global, where)
  EACH_CELL(p, size, TOUCH)
}

static inline int is_watched(const void *p) { return (size_t)((const unsigned char *)p - memory) < WATCHED; }

static inline void access(const void *p, size_t size, enum kind kind, const void *caller) {
  if (!is_watched(p)) return;
  settle();
  go_through(p, size, kind, where_of(caller));
}

#define CALLER __builtin_return_address(0)
#define HOOKS(size)                                                                                                    \
  void __tsan_read##size(void *p);                                                                                     \
  void __tsan_read##size(void *p) { access(p, size, READ, CALLER); }                                                   \
  void __tsan_write##size(void *p);                                                                                    \
  void __tsan_write##size(void *p) { access(p, size, WRITE, CALLER); }                                                 \
  void __tsan_unaligned_read##size(void *p);                                                                           \
  void __tsan_unaligned_read##size(void *p) { access(p, size, READ, CALLER); }                                         \
  void __tsan_unaligned_write##size(void *p);                                                                          \
  void __tsan_unaligned_write##size(void *p) { access(p, size, WRITE, CALLER); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16) void __tsan_read_range(void *p, size_t size);
void __tsan_read_range(void *p, size_t size) { access(p, size, READ, CALLER); }
void __tsan_write_range(void *p, size_t size);
void __tsan_write_range(void *p, size_t size) { access(p, size, WRITE, CALLER); }
/* newer compilers': copies that are not split into accesses */
void *__tsan_memcpy(void *to, const void *from, size_t size);
void *__tsan_memcpy(void *to, const void *from, size_t size) {
  access(from, size, READ, CALLER);
  access(to, size, WRITE, CALLER);
  return memcpy(to, from, size);
}
void *__tsan_memmove(void *to, const void *from, size_t size);
void *__tsan_memmove(void *to, const void *from, size_t size) {
  access(from, size, READ, CALLER);
  access(to, size, WRITE, CALLER);
  return memmove(to, from, size);
}
void *__tsan_memset(void *to, int value, size_t size);
void *__tsan_memset(void *to, int value, size_t size) {
  access(to, size, WRITE, CALLER);
  return memset(to, value, size);
}
void __tsan_init(void);
void __tsan_init(void) {}
void __tsan_func_entry(void *caller);
void __tsan_func_entry(void *caller) { (void)caller; }
void __tsan_func_exit(void);
void __tsan_func_exit(void) {}

void moi_races_atomic(const void *p, size_t size, const void *caller) { access(p, size, ATOMIC, caller); }
void moi_races_read(const void *p, size_t size, const void *caller) { access(p, size, READ, caller); }

static void set_writer(set *sets, unsigned second, int32_t where) {
  sets[WRITE] = (set){moment, warp_syncs[me >> 5], (uint16_t)me, (uint16_t)second, {where, where}};
}
void moi_races_copy(const void *to, size_t size, const void *caller) {
  access(to, size, WRITE, caller);
  if (!is_watched(to)) return;
#define FLY(sets, byte, n) set_writer(sets, FLYING, where_of(caller))
  EACH_CELL(to, size, FLY)
}
void moi_races_landed(const void *to, size_t size) {
  if (!is_watched(to)) return;
#define LAND(sets, byte, n) set_writer(sets, NONE, sets[WRITE].where[0])
  EACH_CELL(to, size, LAND)
}

/* ---- the course of a launch */

void moi_races_begin(uint64_t blocks) {
  pthread_mutex_lock(&running);
  launch++;
  first_block = end_block;
  end_block = first_block + blocks;
  moment = (first_block - 1) << BARRIERS;
}
void moi_races_end(void) {
  settle();
  pthread_mutex_unlock(&running);
}
void moi_races_block(void) {
  settle();
  moment = ((moment >> BARRIERS) + 1) << BARRIERS;
  memset(warp_syncs, 0, sizeof warp_syncs);
}
void moi_races_thread(unsigned thread) {
  settle(); /* what the thread before has written is there now */
  me = thread;
}
void moi_races_sync(void) { moment++; }
void moi_races_sync_warp(unsigned warp) { warp_syncs[warp]++; }

/* ---- memory */

void *moi_races_shared(size_t block, size_t at, size_t size) {
  return at + size <= SHARED ? memory + DEVICE + block * SHARED + at : NULL;
}

static struct piece { size_t at, end; } pieces[4096]; /* by address */
static size_t n_pieces;

void *moi_races_alloc(size_t size) {
  void *p = NULL;
  size_t at = 0, i = 0, end;
  pthread_mutex_lock(&allocating);
  for (; i < n_pieces && pieces[i].at - at < size; i++) at = (pieces[i].end + PAGE - 1) / PAGE * PAGE;
  end = i < n_pieces ? pieces[i].at : DEVICE;
  if (size <= end - at && n_pieces < sizeof pieces / sizeof *pieces) {
    memmove(&pieces[i + 1], &pieces[i], (n_pieces++ - i) * sizeof *pieces);
    pieces[i] = (struct piece){at, at + size};
    memset(&written[at / PAGE], 0, (size + PAGE - 1) / PAGE);
    p = memory + at;
  }
  pthread_mutex_unlock(&allocating);
  return p;
}
void moi_races_free(void *p) {
  size_t at = (size_t)((unsigned char *)p - memory), i = 0;
  if (!p) return;
  pthread_mutex_lock(&allocating);
  while (i < n_pieces && pieces[i].at != at) i++;
  if (i < n_pieces) memmove(&pieces[i], &pieces[i + 1], (--n_pieces - i) * sizeof *pieces);
  pthread_mutex_unlock(&allocating);
}
