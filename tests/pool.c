/* The default pool: every task of a run once, one task of a lane at a time, whoever runs at the same time, with as many
 * threads as there are cores or more. */
#include "tests/support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "cpu/pool.h"

enum { CALLERS = 3, RUNS = 300, MOST = 70, WORKERS = 5 };

typedef struct caller {
  moi_context *context;
  uint32_t number, workers;
  uint32_t failures;
  atomic_uint begun[MOST], lanes[WORKERS];
  uint32_t plain[MOST]; /* written without atomics: a run's end orders them */
} caller;

static void task(void *arg, uint32_t lane, uint32_t i) {
  caller *c = arg;
  if (lane >= c->workers || atomic_fetch_add(&c->lanes[lane], 1)) abort();
  atomic_fetch_add(&c->begun[i], 1);
  c->plain[i]++;
  if (i % 16 == 3) usleep(50); /* others overtake it */
  atomic_fetch_sub(&c->lanes[lane], 1);
}

static void *call(void *arg) {
  caller *c = arg;
  uint32_t want[MOST] = {0};
  for (uint32_t r = 0; r < RUNS; r++) {
    uint32_t n = (r * 7 + c->number) % (MOST + 1);
    if (r % 50 == 0) usleep(500); /* the threads go to sleep */
    moi_pool_run(c->context, n, task, c);
    for (uint32_t i = 0; i < MOST; i++) {
      want[i] += i < n;
      c->failures += c->plain[i] != want[i] || atomic_load(&c->begun[i]) != want[i];
    }
  }
  return NULL;
}

static void runs(uint32_t workers) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.n_workers = workers;
  moi_context *context = NULL;
  passes(moi_context_create(&desc, &context));
  static caller callers[CALLERS];
  pthread_t threads[CALLERS];
  memset(callers, 0, sizeof callers);
  for (uint32_t i = 0; i < CALLERS; i++) {
    callers[i].context = context, callers[i].number = i, callers[i].workers = workers;
    assert_int_equal(pthread_create(&threads[i], NULL, call, &callers[i]), 0);
  }
  for (uint32_t i = 0; i < CALLERS; i++) {
    assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(callers[i].failures, 0);
  }
  moi_context_destroy(context);
}

static void test_as_many_as_cores(void **state) {
  (void)state;
  runs(2);
}

static void test_more_than_cores(void **state) {
  (void)state;
  runs(WORKERS);
}

/* Runs of few tasks and of many by turns: a thread that comes late to one meets the beginning of the next. */
static void nothing(void *arg, uint32_t lane, uint32_t i) {
  (void)lane;
  atomic_fetch_add_explicit((atomic_uint *)arg + i, 1, memory_order_relaxed);
}

static void test_runs_close_to_each_other(void **state) {
  (void)state;
  enum { MANY = 200000, LONG = 7 };
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.n_workers = WORKERS;
  moi_context *context = NULL;
  passes(moi_context_create(&desc, &context));
  atomic_uint begun[LONG];
  for (int i = 0; i < LONG; i++) atomic_init(&begun[i], 0);
  uint32_t want[LONG] = {0}, wrong = 0;
  for (uint32_t r = 0; r < MANY; r++) {
    uint32_t n = r % 2 ? LONG : 2;
    moi_pool_run(context, n, nothing, begun);
    for (uint32_t i = 0; i < LONG; i++) wrong += atomic_load(&begun[i]) != (want[i] += i < n);
  }
  assert_int_equal(wrong, 0);
  moi_context_destroy(context);
}

static void test_made_and_dropped(void **state) {
  (void)state;
  for (int i = 0; i < 50; i++) {
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.n_workers = 4;
    moi_context *context = NULL;
    passes(moi_context_create(&desc, &context));
    static caller c;
    memset(&c, 0, sizeof c);
    c.workers = 4;
    if (i % 2) moi_pool_run(context, 9, task, &c);
    for (int j = 0; j < 9; j++) assert_int_equal(c.plain[j], i % 2);
    moi_context_destroy(context);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_as_many_as_cores),
      cmocka_unit_test(test_more_than_cores),
      cmocka_unit_test(test_runs_close_to_each_other),
      cmocka_unit_test(test_made_and_dropped),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
