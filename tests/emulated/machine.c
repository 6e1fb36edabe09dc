/* Blocks on fibers: see emulated.h. */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define ASAN 1
#else
#define ASAN 0
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

_Thread_local moi_emulated_thread moi_emulated_now;

enum { MAX_THREADS = 1024, STACK = 128 << 10, MAX_SHARED = 64, SHARED_LIMIT = 227 << 10, MAX_COPIES = 256 };

typedef enum fiber_state { READY, AT_BARRIER, AT_MEETING, DONE } fiber_state;

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
  fiber_state state;
  copy *copies; /* [MAX_COPIES], in the order of their making */
  unsigned n_copies;
} fiber;

typedef struct warp {
  unsigned lanes, arrived, generation;
  const char *what;
  unsigned char brought[2][32 * 64];
} warp;

typedef struct shared {
  const void *key;
  void *memory;
  size_t bytes;
} shared;

static _Thread_local struct machine {
  fiber fibers[MAX_THREADS], scheduler;
  const void *scheduler_stack;
  size_t scheduler_size;
  warp warps[MAX_THREADS / 32];
  shared shared[MAX_SHARED];
  unsigned n_shared, n, done, waiting, current, asked;
  const moi_emulated_kernel *kernel;
  const void *args;
} *m;

static void die(const char *what) {
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
  void **top = (void **)(void *)(f->stack + STACK);
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

static void go(fiber *from, fiber *to, int ends) {
#if ASAN
  const void *bottom = to == &m->scheduler ? m->scheduler_stack : to->stack;
  size_t size = to == &m->scheduler ? m->scheduler_size : STACK;
  __sanitizer_start_switch_fiber(ends ? NULL : &from->fake, bottom, size);
#endif
  (void)ends;
  change(from, to);
#if ASAN
  __sanitizer_finish_switch_fiber(from->fake, from == &m->scheduler ? NULL : &m->scheduler_stack,
                                  from == &m->scheduler ? NULL : &m->scheduler_size);
#endif
}

static void fiber_main(void) {
#if ASAN
  __sanitizer_finish_switch_fiber(NULL, &m->scheduler_stack, &m->scheduler_size);
#endif
  m->kernel->entry(m->args);
  fiber *self = &m->fibers[m->current];
  if (self->n_copies) die("ends while its copies are on their way");
  self->state = DONE;
  m->done++;
  go(self, &m->scheduler, 1);
  abort();
}

static void wait_for_others(fiber_state state) {
  fiber *self = &m->fibers[m->current];
  self->state = state;
  go(self, &m->scheduler, 0);
}

/* ---- what kernels call */

void *moi_emulated_shared(const void *key, size_t bytes) {
  for (unsigned i = 0; i < m->n_shared; i++)
    if (m->shared[i].key == key) {
      if (m->shared[i].bytes != bytes) die("shared memory of two sizes under one name");
      return m->shared[i].memory;
    }
  if (m->n_shared == MAX_SHARED) die("too many pieces of shared memory");
  size_t all = bytes;
  for (unsigned i = 0; i < m->n_shared; i++) all += m->shared[i].bytes;
  if (all > SHARED_LIMIT) die("more shared memory than any device has");
  void *memory = NULL;
  if (posix_memalign(&memory, 128, bytes)) die("out of memory");
  memset(memory, 0xff, bytes);
  m->shared[m->n_shared++] = (shared){key, memory, bytes};
  return memory;
}

void *moi_emulated_asked(void) {
  static const char key;
  if (!m->asked) die("shared memory that the launch does not ask for");
  return moi_emulated_shared(&key, m->asked);
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
    memset(c->to, 0, 16);
    memcpy(c->to, c->from, c->valid);
  }
  for (; n < self->n_copies; n++) self->copies[at++] = self->copies[n];
  self->n_copies = at;
}

void moi_emulated_sync(void) {
  m->waiting++;
  if (m->waiting + m->done == m->n) {
    for (unsigned i = 0; i < m->n; i++)
      if (m->fibers[i].state == AT_BARRIER) m->fibers[i].state = READY;
    m->waiting = 0;
    return;
  }
  wait_for_others(AT_BARRIER);
}

const unsigned char *moi_emulated_meet(const char *what, const void *value, size_t size) {
  unsigned lane = m->current & 31u, first = m->current & ~31u;
  warp *w = &m->warps[m->current >> 5];
  if (size > 64) die("an exchange of more than 64 bytes");
  if (!w->arrived) w->what = what;
  else if (strcmp(w->what, what)) die("lanes of a warp are at different exchanges");
  unsigned char *brought = w->brought[w->generation & 1];
  if (size) memcpy(brought + 64 * lane, value, size);
  if (++w->arrived < w->lanes) {
    wait_for_others(AT_MEETING);
    return brought;
  }
  w->arrived = 0;
  w->generation++;
  for (unsigned i = first; i < first + w->lanes; i++)
    if (m->fibers[i].state == AT_MEETING) m->fibers[i].state = READY;
  return brought;
}

/* ---- a block, a launch */

static void run_block(unsigned x, unsigned y, unsigned grid_x, unsigned grid_y) {
  m->done = m->waiting = 0;
  memset(m->warps, 0, sizeof m->warps);
  for (unsigned i = 0; i < m->n; i++) {
    m->warps[i >> 5].lanes++;
    m->fibers[i].state = READY;
    prepare(&m->fibers[i]);
  }
  moi_emulated_now = (moi_emulated_thread){0, x, y, grid_x, grid_y};
  while (m->done < m->n) {
    unsigned ran = 0;
    for (unsigned i = 0; i < m->n; i++) {
      if (m->fibers[i].state != READY) continue;
      m->current = moi_emulated_now.thread = i;
      go(&m->scheduler, &m->fibers[i], 0);
      ran++;
    }
    if (ran || m->done == m->n) continue;
    /* nobody can go on: those at the barrier wait for lanes that wait for each other, or for who has gone */
    if (m->waiting && m->waiting + m->done == m->n) { /* the last to be waited for has gone */
      for (unsigned i = 0; i < m->n; i++)
        if (m->fibers[i].state == AT_BARRIER) m->fibers[i].state = READY;
      m->waiting = 0;
      continue;
    }
    die("threads wait for each other at different places");
  }
  for (unsigned i = 0; i < m->n_shared; i++) free(m->shared[i].memory);
  m->n_shared = 0;
}

void moi_emulated_launch(const moi_emulated_kernel *kernel, const void *args, unsigned grid_x, unsigned grid_y,
                         unsigned threads, unsigned asked) {
  if (!m) {
    m = calloc(1, sizeof *m);
    if (!m) abort();
  }
  m->kernel = kernel;
  m->args = args;
  m->n = threads;
  m->asked = asked;
  for (unsigned i = 0; i < threads; i++)
    if (!m->fibers[i].stack && !(m->fibers[i].stack = malloc(STACK))) die("out of memory");
  for (unsigned y = 0; y < grid_y; y++)
    for (unsigned x = 0; x < grid_x; x++) run_block(x, y, grid_x, grid_y);
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
