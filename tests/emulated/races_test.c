/* races.c against small kernels: each race is reported as what it is, and what is in order is not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/device/copy.h"
#include "cuda/device/grid.h"
#include "cuda/device/mma.h"
#include "machine.h"
#include "races.h"

enum { THREADS = 64 };

typedef struct race_args {
  unsigned *global; /* [4][THREADS] */
} race_args;

#define KERNEL(name) MOI_KERNEL(name, 64, race_args)
#define WORDS                                                                                                          \
  MOI_SHARED(unsigned, s, 4u * THREADS);                                                                               \
  unsigned t = moi_thread(), *g = a->global + moi_block_x() * THREADS;                                                 \
  (void)s, (void)g, (void)t;

/* ---- barriers */

KERNEL(no_barrier) {
  WORDS s[t] = t;
  g[t] = s[t ^ 32u];
}
KERNEL(barrier) {
  WORDS s[t] = t;
  moi_sync();
  g[t] = s[t ^ 32u];
}
KERNEL(one_barrier_of_a_loop) {
  WORDS unsigned sum = 0;
  for (unsigned i = 0; i < 2u; i++) {
    s[t] = t + i;
    moi_sync();
    sum += s[t ^ 32u];
  }
  g[t] = sum;
}
KERNEL(both_barriers_of_a_loop) {
  WORDS unsigned sum = 0;
  for (unsigned i = 0; i < 2u; i++) {
    s[t] = t + i;
    moi_sync();
    sum += s[t ^ 32u];
    moi_sync();
  }
  g[t] = sum;
}
/* warps 0 and 1 read, one lane of each writes: whoever comes last, the other warp has read too */
KERNEL(written_after_all_have_read) {
  WORDS s[t] = t;
  moi_sync();
  g[t] = s[3];
  moi_sync_warp();
  if (t == 7u || t == 40u) s[3] = 5u;
}

/* ---- warps */

KERNEL(no_warp_sync) {
  WORDS s[t] = t;
  g[t] = s[t ^ 1u];
}
KERNEL(exchange_for_warp_sync) {
  WORDS s[t] = t;
  g[t] = moi_xor_u32(t, 1u) + s[t ^ 1u];
}
KERNEL(warp_sync) {
  WORDS s[t] = t;
  moi_sync_warp();
  g[t] = s[t ^ 1u];
}
KERNEL(warp_sync_for_barrier) {
  WORDS s[t] = t;
  moi_sync_warp();
  g[t] = s[t ^ 32u];
}
/* lane 0's own write is the last, lane 1's older one is in no order with lane 2 */
KERNEL(two_warp_syncs_later) {
  WORDS s[t] = t;
  moi_sync_warp();
  g[t] = s[t ^ 1u];
  moi_sync_warp();
  s[t ^ 1u] = t;
}
KERNEL(read_before_warp_sync_written_by_a_lane) {
  WORDS g[t] = s[t & 32u];
  moi_sync_warp();
  if (t % 32u == 9u) s[t & 32u] = 1u;
}
KERNEL(read_and_written_by_a_lane) {
  WORDS g[t] = s[t & 32u];
  if (t % 32u == 9u) s[t & 32u] = 1u;
}

/* ---- bytes */

KERNEL(halves_of_a_word) {
  WORDS uint16_t *h = (uint16_t *)(void *)s;
  h[t] = (uint16_t)t;
  g[t] = h[t];
}
KERNEL(bytes_of_a_word) {
  WORDS uint8_t *b = (uint8_t *)s;
  b[t] = (uint8_t)t;
  g[t] = b[t];
}
KERNEL(half_of_another) {
  WORDS uint16_t *h = (uint16_t *)(void *)s;
  h[t] = (uint16_t)t;
  g[t] = h[t ^ 1u];
}
KERNEL(word_of_two_halves) {
  WORDS uint16_t *h = (uint16_t *)(void *)s;
  h[t] = (uint16_t)t;
  if (t % 2u == 0u) g[t] = s[t / 2u];
}
KERNEL(vectors) {
  WORDS moi_u4 *v = (moi_u4 *)(void *)s, mine = {t, t, t, t};
  v[t] = mine;
  moi_sync();
  g[t] = v[t ^ 32u].w;
}
KERNEL(a_word_of_vectors) {
  WORDS moi_u4 *v = (moi_u4 *)(void *)s, mine = {t, t, t, t};
  v[t] = mine;
  if (t == 40u) g[t] = s[4u * 3u + 3u];
}

/* ---- values, atomics */

KERNEL(all_write_one_value) {
  WORDS *s = 1u;
  moi_sync();
  g[t] = *s;
}
KERNEL(all_write_another_value) {
  WORDS *s = t;
  moi_sync();
  g[t] = *s;
}
KERNEL(read_while_one_value_is_written) {
  WORDS *s = 1u;
  g[t] = *(volatile unsigned *)s;
}
KERNEL(atomics) {
  WORDS if (t == 0u) *s = 0u;
  moi_sync();
  g[t] = moi_atomic_add(s, 1u);
}
KERNEL(read_beside_atomics) {
  WORDS if (t == 0u) *s = 0u;
  moi_sync();
  moi_atomic_add(s, 1u);
  g[t] = *s;
}
KERNEL(atomics_behind_no_barrier) {
  WORDS if (t == 0u) *s = 0u;
  g[t] = moi_atomic_add(s, 1u);
}

/* ---- asynchronous copies: a thread copies a line, another reads it */

#define COPY(line) moi_copy16_async(s + 4u * (line), a->global + 4u * (line), 16), moi_copy_commit()
KERNEL(copy) {
  WORDS COPY(t);
  moi_copy_wait(0);
  moi_sync();
  (void)*(volatile unsigned *)&s[4u * (t ^ 32u)];
}
KERNEL(copy_no_wait) {
  WORDS COPY(t);
  moi_sync();
  (void)*(volatile unsigned *)&s[4u * (t ^ 32u)];
  moi_copy_wait(0);
}
KERNEL(copy_no_wait_own) {
  WORDS COPY(t);
  (void)*(volatile unsigned *)&s[4u * t];
  moi_copy_wait(0);
}
KERNEL(copy_own) {
  WORDS COPY(t);
  moi_copy_wait(0);
  (void)*(volatile unsigned *)&s[4u * t];
}
KERNEL(copy_no_barrier) {
  WORDS COPY(t);
  moi_copy_wait(0);
  (void)*(volatile unsigned *)&s[4u * (t ^ 32u)];
}
KERNEL(copy_barrier_before_wait) {
  WORDS COPY(t);
  moi_sync();
  moi_copy_wait(0);
  (void)*(volatile unsigned *)&s[4u * (t ^ 32u)];
}
KERNEL(copy_one_group_of_two) {
  WORDS COPY(t);
  COPY(t ^ 1u);
  moi_copy_wait(1);
  moi_sync();
  (void)*(volatile unsigned *)&s[4u * t];
  moi_copy_wait(0);
}
KERNEL(copy_over_what_is_read) {
  WORDS s[4u * t] = t;
  moi_sync();
  (void)*(volatile unsigned *)&s[4u * (t ^ 32u)];
  COPY(t);
  moi_copy_wait(0);
}

/* ---- matrices */

KERNEL(matrix) {
  WORDS unsigned r[4];
  s[t] = s[t + 64u] = s[t + 128u] = s[t + 192u] = t;
  moi_sync();
  moi_ldmatrix_x4(r, s + 4u * t);
  g[t] = r[0];
}
KERNEL(matrix_no_barrier) {
  WORDS unsigned r[4];
  s[t] = s[t + 64u] = s[t + 128u] = s[t + 192u] = t;
  moi_sync_warp();
  moi_ldmatrix_x4(r, s + 4u * t);
  g[t] = r[0];
}

/* ---- global memory */

KERNEL(global_no_barrier) {
  WORDS g[t] = t;
  g[t ^ 32u] += 1u;
}
KERNEL(global_barrier) {
  WORDS g[t] = t;
  moi_sync();
  g[t ^ 32u] += 1u;
}
KERNEL(blocks_write_one_word) { WORDS a->global[t] = moi_block_x(); }
KERNEL(blocks_read_one_word) { WORDS g[t] = a->global[4u * THREADS]; }
KERNEL(block_reads_what_another_wrote) {
  WORDS g[t] = t;
  moi_sync();
  (void)*(volatile unsigned *)&a->global[t];
}
KERNEL(blocks_halves_of_a_word) { WORDS((uint16_t *)(void *)a->global)[moi_block_x()] = 1u; }
KERNEL(blocks_atomics) { WORDS moi_atomic_add(a->global, 1u); }

/* ---- the barrier of a grid */

KERNEL(grid_barrier) {
  WORDS g[t] = s[t] = t;
  moi_sync_grid();
  unsigned sum = a->global[t ^ 32u] + s[t ^ 32u];
  moi_sync_grid();
  g[t] = sum;
  moi_sync_grid();
  (void)*(volatile unsigned *)&a->global[t];
}
KERNEL(grid_barrier_before_both) {
  WORDS moi_sync_grid();
  g[t] = t;
  (void)*(volatile unsigned *)&a->global[t];
}
KERNEL(grid_barrier_of_one_block) {
  WORDS if (moi_block_x() == 0u) moi_sync_grid();
}
KERNEL(grid_barrier_of_one_warp) {
  WORDS if (t < 32u) moi_sync_grid();
  else moi_sync();
}
KERNEL(grid_barrier_of_a_warp_that_is_left) {
  WORDS if (t < 32u) moi_sync_grid();
}
KERNEL(grid_barrier_in_another_launch) { WORDS moi_sync_grid(); }

static const struct {
  const char *kernel, *report; /* null: none */
  int together;
} cases[] = {
    {"no_barrier", "a race at byte"},
    {"barrier", NULL},
    {"one_barrier_of_a_loop", "a race at byte"},
    {"both_barriers_of_a_loop", NULL},
    {"written_after_all_have_read", "a write after a read"},
    {"no_warp_sync", "a race at byte"},
    {"exchange_for_warp_sync", "a race at byte"},
    {"warp_sync", NULL},
    {"warp_sync_for_barrier", "a race at byte"},
    {"two_warp_syncs_later", NULL},
    {"read_before_warp_sync_written_by_a_lane", NULL},
    {"read_and_written_by_a_lane", "a race at byte"},
    {"halves_of_a_word", NULL},
    {"bytes_of_a_word", NULL},
    {"half_of_another", "a race at byte"},
    {"word_of_two_halves", "a race at byte"},
    {"vectors", NULL},
    {"a_word_of_vectors", "a race at byte 60 of shared memory \"s\""},
    {"all_write_one_value", NULL},
    {"all_write_another_value", "a write after a write"},
    {"read_while_one_value_is_written", "a race at byte 0"},
    {"atomics", NULL},
    {"read_beside_atomics", "an atomic operation"},
    {"atomics_behind_no_barrier", "an atomic operation"},
    {"copy", NULL},
    {"copy_no_wait", "a read after an asynchronous copy"},
    {"copy_no_wait_own", "a read after an asynchronous copy"},
    {"copy_own", NULL},
    {"copy_no_barrier", "a race at byte"},
    {"copy_barrier_before_wait", "a race at byte"},
    {"copy_one_group_of_two", "asynchronous copy"},
    {"copy_over_what_is_read", "a race at byte"},
    {"matrix", NULL},
    {"matrix_no_barrier", "a race at byte"},
    {"global_no_barrier", "a race at global memory"},
    {"global_barrier", NULL},
    {"blocks_write_one_word", "of another block"},
    {"blocks_read_one_word", NULL},
    {"block_reads_what_another_wrote", "of another block"},
    {"blocks_halves_of_a_word", NULL},
    {"blocks_atomics", NULL},
    {"blocks_write_one_word", "of another block", 1},
    {"grid_barrier", NULL, 1},
    {"grid_barrier_before_both", "of another block", 1},
    {"grid_barrier_of_one_block", "others that have ended", 1},
    {"grid_barrier_of_one_warp", "not all at the barrier of the grid", 1},
    {"grid_barrier_of_a_warp_that_is_left", "not all at the barrier of the grid", 1},
    {"grid_barrier_in_another_launch", "not cooperative"},
};

int main(void) {
  unsigned failures = 0, n = sizeof cases / sizeof *cases;
  race_args args = {moi_races_alloc(5 * THREADS * sizeof(unsigned))};
  if (!args.global) return 1;
  for (unsigned i = 0; i < n; i++) {
    char text[8192] = "";
    size_t length = 0;
    ssize_t got;
    int ends[2], status = 0;
    if (pipe(ends)) return 1;
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
      dup2(ends[1], 2);
      const moi_emulated_kernel *kernel = moi_emulated_find(cases[i].kernel);
      if (cases[i].together) moi_emulated_launch_together(kernel, &args, 4, THREADS);
      else moi_emulated_launch(kernel, &args, 4, 1, THREADS, 0);
      _exit(0);
    }
    close(ends[1]);
    while (length < sizeof text - 1 && (got = read(ends[0], text + length, sizeof text - 1 - length)) > 0)
      length += (size_t)got;
    close(ends[0]);
    waitpid(child, &status, 0);
    int right = cases[i].report ? WIFSIGNALED(status) && strstr(text, cases[i].report) != NULL : status == 0 && !length;
    if (!right)
      failures++, printf("%s: wanted %s, status %x\n%s", cases[i].kernel, cases[i].report, (unsigned)status, text);
  }
  printf("%u passed, %u failed\n", n - failures, failures);
  return failures ? 1 : 0;
}
