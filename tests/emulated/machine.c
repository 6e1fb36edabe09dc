/* Blocks on fibers: see emulated.h. */
#include "machine.h"

#include "races.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ASAN 1
#else
#define ASAN 0
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define CALLER __builtin_return_address(0)

_Thread_local moi_emulated_thread moi_emulated_now;

enum { MAX_TOGETHER = 64 }; /* blocks of a launch that meet */
enum { MAX_THREADS = 1024, STACK = 128 << 10, MAX_SHARED = 64, SHARED_LIMIT = 227 << 10, MAX_COPIES = 256, NOBODY = MAX_THREADS };

/* One copy of 16 bytes, or the end of a group. */
typedef struct copy {
  unsigned char *to; /* null: the end */
  const unsigned char *from;
  unsigned valid;
} copy;

typedef struct fiber {
#if defined(__x86_64__)
  void *sp;
#else
  ucontext_t context;
#endif
  unsigned char *stack;
  void *fake; /* AddressSanitizer's */
  copy *copies; /* [MAX_COPIES], in the order of their making */
  unsigned n_copies;
} fiber;

typedef struct warp {
  unsigned lanes, arrived, generation;
  uint32_t ready, at_barrier, at_meeting; /* a bit for each lane */
  const char *what;
  unsigned char brought[2][32 * 64];
} warp;

typedef struct shared {
  const char *name; /* its address is the key */
  unsigned char *memory;
  size_t bytes;
} shared;

/* A block's. Blocks that meet have one each, others use a thread's one after the other. */
static _Thread_local struct machine {
  struct machine *next;
  moi_emulated_thread place;
  fiber fibers[MAX_THREADS], scheduler;
  const fiber *before; /* whose turn was before this one's */
  const void *scheduler_stack;
  size_t scheduler_size;
  warp warps[MAX_THREADS / 32];
  shared shared[MAX_SHARED];
  size_t shared_end;
  unsigned n_shared, n, done, waiting, at_grid, together, current, asked; /* together: 1 + its number among those that meet */
  struct {
    unsigned first, from, to, parts; /* of the part from..to is still to come, and `parts` after it */
    int backwards;
  } pass;
  unsigned long long random;
  const moi_emulated_kernel *kernel;
  const void *args;
} *m;

static const char sync_warp[] = "sync_warp";

static void die(const char *what) { moi_emulated_die(what); }

void moi_emulated_die(const char *what) {
  fprintf(stderr, "emulated: kernel %s, block %u %u, thread %u: %s\n", m->kernel->name, moi_emulated_now.block_x,
          moi_emulated_now.block_y, moi_emulated_now.thread, what);
  abort();
}

/* ---- the switch from one stack to another */

static void fiber_main(void);

#if defined(__x86_64__)
void moi_emulated_switch(void **save, void *load);
__asm__(".text\n.globl moi_emulated_switch\n.hidden moi_emulated_switch\n.type moi_emulated_switch,@function\n"
        "moi_emulated_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
        ".size moi_emulated_switch, . - moi_emulated_switch\n");

static void prepare(fiber *f) {
  /* tops at the same place of a page would all want the same lines of a cache */
  unsigned char *end = f->stack + STACK - (size_t)(f - m->fibers) * 320 % 4096;
#if ASAN
  __asan_unpoison_memory_region(end - 4096, 4096); /* frames of the thread that ended here, which nobody has left */
#endif
  void **top = (void **)(void *)end;
  *--top = NULL; /* the return address of fiber_main, and the alignment that a call leaves */
  *--top = (void *)(uintptr_t)fiber_main;
  for (int i = 0; i < 6; i++) *--top = NULL;
  f->sp = top;
}
static void change(fiber *from, fiber *to) { moi_emulated_switch(&from->sp, to->sp); }
#else
static void prepare(fiber *f) {
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack;
  f->context.uc_stack.ss_size = STACK;
  f->context.uc_link = NULL;
  makecontext(&f->context, fiber_main, 0);
}
static void change(fiber *from, fiber *to) { swapcontext(&from->context, &to->context); }
#endif

static void arrive(void *fake) {
#if ASAN
  const void *bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake, &bottom, &size);
  if (m->before == &m->scheduler) m->scheduler_stack = bottom, m->scheduler_size = size;
#endif
  (void)fake;
}

static void go(fiber *from, fiber *to, int ends) {
#if ASAN
  const void *bottom = to == &m->scheduler ? m->scheduler_stack : to->stack;
  size_t size = to == &m->scheduler ? m->scheduler_size : STACK;
  __sanitizer_start_switch_fiber(ends ? NULL : &from->fake, bottom, size);
#endif
  (void)ends;
  m->before = from;
  change(from, to);
  arrive(from->fake);
}

/* ---- whose turn it is */

static unsigned random_below(unsigned n) { /* the same numbers in every run of the program */
  m->random = m->random * 6364136223846793005ull + 1442695040888963407ull;
  return (unsigned)((m->random >> 33) % n);
}

/* The first, or the last, that is ready in from..to. */
static unsigned find_ready(unsigned from, unsigned to, int backwards) {
  if (from >= to) return NOBODY;
  unsigned first = from >> 5, last = (to - 1) >> 5;
  for (unsigned turn = first; turn <= last; turn++) {
    unsigned w = backwards ? last - (turn - first) : turn;
    uint32_t ready = m->warps[w].ready;
    if (w == first) ready &= UINT32_MAX << (from & 31u);
    if (w == last) ready &= UINT32_MAX >> (31u - ((to - 1) & 31u));
    if (ready) return w * 32 + (unsigned)(backwards ? 31 - __builtin_clz(ready) : __builtin_ctz(ready));
  }
  return NOBODY;
}

/* Threads take turns in ever other orders: what is right only if one comes before another does not stay unseen. */
static void begin_pass(void) {
  m->pass.first = random_below(m->n);
  m->pass.backwards = (int)random_below(2);
  m->pass.from = m->pass.backwards ? 0 : m->pass.first;
  m->pass.to = m->pass.backwards ? m->pass.first : m->n;
  m->pass.parts = 1;
}

static unsigned next_turn(void) {
  for (int fresh = 0;; fresh = 1) {
    for (;;) {
      unsigned i = find_ready(m->pass.from, m->pass.to, m->pass.backwards);
      if (i != NOBODY) {
        if (m->pass.backwards) m->pass.to = i;
        else m->pass.from = i + 1;
        return i;
      }
      if (!m->pass.parts) break;
      m->pass.parts = 0;
      m->pass.from = m->pass.backwards ? m->pass.first : 0;
      m->pass.to = m->pass.backwards ? m->n : m->pass.first;
    }
    if (fresh) return NOBODY;
    begin_pass();
  }
}

/* To the next that is ready, or to the scheduler if nobody is. */
static void go_on(fiber *self, int ends) {
  unsigned i = next_turn();
  if (i == NOBODY) {
    if (self != &m->scheduler) go(self, &m->scheduler, ends);
    return;
  }
  m->warps[i >> 5].ready &= ~(1u << (i & 31u));
  moi_races_thread(i);
  m->current = moi_emulated_now.thread = i;
  go(self, &m->fibers[i], ends);
}

static void fiber_main(void) {
  arrive(NULL);
  m->kernel->entry(m->args);
  fiber *self = &m->fibers[m->current];
  if (self->n_copies) die("ends while its copies are on their way");
  m->done++;
  go_on(self, 1);
  abort();
}

/* ---- what kernels call */

void *moi_emulated_shared(const char *name, size_t bytes) {
  for (unsigned i = 0; i < m->n_shared; i++)
    if (m->shared[i].name == name) {
      if (m->shared[i].bytes != bytes) die("shared memory of two sizes under one name");
      return m->shared[i].memory;
    }
  if (m->n_shared == MAX_SHARED) die("too many pieces of shared memory");
  size_t all = bytes;
  for (unsigned i = 0; i < m->n_shared; i++) all += m->shared[i].bytes;
  if (all > SHARED_LIMIT) die("more shared memory than any device has");
  unsigned char *memory = moi_races_shared(m->together, m->shared_end, bytes);
  if (!memory) die("out of memory");
  m->shared_end = (m->shared_end + bytes + 127) & ~(size_t)127;
  memset(memory, 0xff, bytes);
  m->shared[m->n_shared++] = (shared){name, memory, bytes};
  return memory;
}

void moi_emulated_place(const void *p, char *text, size_t size) {
  for (unsigned i = 0; i < m->n_shared; i++) {
    size_t at = (size_t)((const unsigned char *)p - m->shared[i].memory);
    if (at < m->shared[i].bytes) snprintf(text, size, "byte %zu of shared memory \"%s\"", at, m->shared[i].name);
  }
}

void *moi_emulated_asked(void) {
  static const char name[] = "asked for";
  if (!m->asked) die("shared memory that the launch does not ask for");
  return moi_emulated_shared(name, m->asked);
}

void moi_emulated_aligned(const char *what, const void *p, size_t alignment) {
  char text[80];
  if (!((uintptr_t)p & (alignment - 1))) return;
  snprintf(text, sizeof text, "%s at an address that is no multiple of %zu", what, alignment);
  die(text);
}

static copy *copy_new(void) {
  fiber *self = &m->fibers[m->current];
  if (!self->copies && !(self->copies = malloc(MAX_COPIES * sizeof *self->copies))) die("out of memory");
  if (self->n_copies == MAX_COPIES) die("too many copies on their way");
  return &self->copies[self->n_copies++];
}

void moi_emulated_copy16(void *to, const void *from, int valid) {
  moi_emulated_aligned("an asynchronous copy to", to, 16);
  moi_emulated_aligned("an asynchronous copy from", from, 16);
  if (valid < 0 || valid > 16) die("an asynchronous copy of more than 16 bytes");
  *copy_new() = (copy){to, from, (unsigned)valid};
  if (valid) moi_races_read(from, (size_t)valid, CALLER);
  moi_races_copy(to, 16, CALLER);
  memset(to, 0xff, 16);
}

void moi_emulated_copy_commit(void) { *copy_new() = (copy){NULL, NULL, 0}; }

void moi_emulated_copy_wait(unsigned groups) {
  fiber *self = &m->fibers[m->current];
  unsigned ends = 0, n = 0, at = 0;
  for (unsigned i = 0; i < self->n_copies; i++) ends += !self->copies[i].to;
  for (; ends > groups; n++) {
    const copy *c = &self->copies[n];
    if (!c->to) {
      ends--;
      continue;
    }
    moi_races_landed(c->to, 16);
    memset(c->to, 0, 16);
    memcpy(c->to, c->from, c->valid);
  }
  for (; n < self->n_copies; n++) self->copies[at++] = self->copies[n];
  self->n_copies = at;
}

static void open_barrier(void) {
  if (m->at_grid && m->at_grid < m->n) die("threads of a block are not all at the barrier of the grid");
  m->at_grid = 0;
  for (unsigned i = 0; i < m->n; i += 32) {
    warp *w = &m->warps[i >> 5];
    w->ready |= w->at_barrier;
    w->at_barrier = 0;
  }
  m->waiting = 0;
  moi_races_sync();
}

void moi_emulated_read(const void *p, size_t size) { moi_races_read(p, size, CALLER); }

unsigned moi_emulated_atomic_add(unsigned *p, unsigned v) {
  moi_races_atomic(p, sizeof *p, CALLER);
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

void moi_emulated_sync(void) {
  m->waiting++;
  if (m->waiting + m->done == m->n) {
    open_barrier();
    return;
  }
  m->warps[m->current >> 5].at_barrier |= 1u << (m->current & 31u);
  go_on(&m->fibers[m->current], 0);
}

/* The last of the block waits too: its scheduler goes on with another block. */
void moi_emulated_sync_grid(void) {
  if (!m->together) die("a barrier of the grid in a launch that is not cooperative");
  m->waiting++;
  m->at_grid++;
  m->warps[m->current >> 5].at_barrier |= 1u << (m->current & 31u);
  go_on(&m->fibers[m->current], 0);
}

void moi_emulated_sync_warp(void) { moi_emulated_meet(sync_warp, NULL, 0); }

const unsigned char *moi_emulated_meet(const char *what, const void *value, size_t size) {
  unsigned lane = m->current & 31u;
  warp *w = &m->warps[m->current >> 5];
  if (size > 64) die("an exchange of more than 64 bytes");
  if (!w->arrived) w->what = what;
  else if (w->what != what && strcmp(w->what, what)) die("lanes of a warp are at different exchanges");
  unsigned char *brought = w->brought[w->generation & 1];
  if (size) memcpy(brought + size * lane, value, size);
  if (++w->arrived < w->lanes) {
    w->at_meeting |= 1u << lane;
    go_on(&m->fibers[m->current], 0);
    return brought;
  }
  w->arrived = 0;
  w->generation++;
  if (what == sync_warp) moi_races_sync_warp(m->current >> 5);
  w->ready |= w->at_meeting;
  w->at_meeting = 0;
  return brought;
}

/* ---- a block, a launch */

static void begin_block(unsigned x, unsigned y, unsigned grid_x, unsigned grid_y) {
  m->done = m->waiting = m->at_grid = 0;
  memset(m->warps, 0, sizeof m->warps);
  for (unsigned i = 0; i < m->n; i++) {
    m->warps[i >> 5].lanes++;
    m->warps[i >> 5].ready |= 1u << (i & 31u);
    prepare(&m->fibers[i]);
  }
  m->place = (moi_emulated_thread){0, x, y, grid_x, grid_y};
}

/* Until the block has ended: 1, or all of it is at the barrier of the grid: 0. */
static int run_on(void) {
  moi_races_block();
  moi_emulated_now = m->place;
  begin_pass();
  for (;;) {
    go_on(&m->scheduler, 0); /* until nobody is ready */
    if (m->done == m->n) return 1;
    if (m->at_grid == m->n) return 0;
    /* those at the barrier wait for lanes that wait for each other, or for who has gone */
    if (!m->waiting || m->waiting + m->done != m->n) die("threads wait for each other at different places");
    open_barrier(); /* the last to be waited for has gone */
  }
}

static void end_block(void) {
  for (unsigned i = 0; i < m->n_shared && !MOI_RACES; i++) free(m->shared[i].memory);
  m->n_shared = 0;
  m->shared_end = 0;
}

static void run_block(unsigned x, unsigned y, unsigned grid_x, unsigned grid_y) {
  begin_block(x, y, grid_x, grid_y);
  run_on();
  end_block();
}

/* A launch that several threads share: each takes the next block. */
static struct {
  pthread_mutex_t turn, lock; /* turn: of the launch that has the helpers */
  pthread_cond_t work, done;
  const moi_emulated_kernel *kernel;
  const void *args;
  unsigned grid_x, grid_y, threads, asked, helpers, busy, round;
  _Atomic uint64_t next;
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

/* All there are: LeakSanitizer does not find what such a thread-local pointer holds. */
static struct machine *machines;
static pthread_mutex_t machines_lock = PTHREAD_MUTEX_INITIALIZER;

static void new_machine(void) {
  m = calloc(1, sizeof *m);
  if (!m) abort();
  pthread_mutex_lock(&machines_lock);
  m->next = machines;
  machines = m;
  pthread_mutex_unlock(&machines_lock);
}

static void be_machine(const moi_emulated_kernel *kernel, const void *args, unsigned threads, unsigned asked) {
  if (!m) new_machine();
  m->kernel = kernel;
  m->args = args;
  m->n = threads;
  m->asked = asked;
  for (unsigned i = 0; i < threads; i++)
    if (!m->fibers[i].stack && !(m->fibers[i].stack = malloc(STACK))) die("out of memory");
}

static void share_blocks(void) {
  be_machine(pool.kernel, pool.args, pool.threads, pool.asked);
  uint64_t n = (uint64_t)pool.grid_x * pool.grid_y, i;
  while ((i = pool.next++) < n)
    run_block((unsigned)(i % pool.grid_x), (unsigned)(i / pool.grid_x), pool.grid_x, pool.grid_y);
}

static void *helper(void *arg) {
  unsigned seen = 0;
  (void)arg;
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    while (pool.round == seen) pthread_cond_wait(&pool.work, &pool.lock);
    seen = pool.round;
    pthread_mutex_unlock(&pool.lock);
    share_blocks();
    pthread_mutex_lock(&pool.lock);
    if (!--pool.busy) pthread_cond_signal(&pool.done);
  }
  return NULL;
}

static void start_helpers(void) {
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  while (pool.helpers + 1 < (unsigned)n && pool.helpers < 15) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, helper, NULL)) break;
    pthread_detach(thread);
    pool.helpers++;
  }
}

void moi_emulated_launch(const moi_emulated_kernel *kernel, const void *args, unsigned grid_x, unsigned grid_y,
                         unsigned threads, unsigned asked) {
  uint64_t n = (uint64_t)grid_x * grid_y;
  if (MOI_RACES || n < 4 || pthread_mutex_trylock(&pool.turn)) { /* little to share, or another launch has the helpers */
    be_machine(kernel, args, threads, asked);
    moi_races_begin(n);
    for (unsigned y = 0; y < grid_y; y++)
      for (unsigned x = 0; x < grid_x; x++) run_block(x, y, grid_x, grid_y);
    moi_races_end();
    return;
  }
  pthread_mutex_lock(&pool.lock);
  if (!pool.helpers) start_helpers();
  pool.kernel = kernel, pool.args = args, pool.threads = threads, pool.asked = asked, pool.grid_x = grid_x, pool.grid_y = grid_y;
  pool.next = 0;
  pool.busy = pool.helpers;
  pool.round++;
  pthread_cond_broadcast(&pool.work);
  pthread_mutex_unlock(&pool.lock);
  share_blocks();
  pthread_mutex_lock(&pool.lock);
  while (pool.busy) pthread_cond_wait(&pool.done, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
  pthread_mutex_unlock(&pool.turn);
}

/* By this thread alone: each block up to the barrier of the grid, and when all are there, each from there on. */
void moi_emulated_launch_together(const moi_emulated_kernel *kernel, const void *args, unsigned grid_x, unsigned threads) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static struct machine *blocks[MAX_TOGETHER];
  struct machine *mine = m;
  if (grid_x > MAX_TOGETHER) abort();
  pthread_mutex_lock(&lock);
  for (unsigned i = 0; i < grid_x; i++) {
    m = blocks[i];
    be_machine(kernel, args, threads, 0);
    blocks[i] = m;
    m->together = 1 + i;
    begin_block(i, 0, grid_x, 1);
  }
  for (unsigned turn = 0, ended = 0; !ended; turn++) {
    moi_races_begin(grid_x); /* a barrier of the grid orders as the end of a launch does */
    for (unsigned i = 0; i < grid_x; i++) {
      m = blocks[turn % 2 ? grid_x - 1 - i : i];
      if (turn) open_barrier();
      ended += (unsigned)run_on();
    }
    if (ended && ended < grid_x) die("blocks wait for this or others that have ended");
    moi_races_end();
  }
  for (unsigned i = 0; i < grid_x; i++) {
    m = blocks[i];
    end_block();
  }
  pthread_mutex_unlock(&lock);
  m = mine;
}

/* ---- the kernels that are linked in */

static moi_emulated_kernel kernels[1024];
static unsigned n_kernels;

void moi_emulated_register(const char *name, void (*entry)(const void *args), size_t args_size, unsigned threads) {
  if (n_kernels == sizeof kernels / sizeof *kernels || threads > MAX_THREADS || threads % 32) abort();
  kernels[n_kernels++] = (moi_emulated_kernel){name, entry, args_size, threads};
}

const moi_emulated_kernel *moi_emulated_find(const char *name) {
  for (unsigned i = 0; i < n_kernels; i++)
    if (!strcmp(kernels[i].name, name)) return &kernels[i];
  return NULL;
}
