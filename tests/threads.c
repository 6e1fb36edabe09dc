/* Plans are immutable and contexts free-threaded: many threads run one plan, others make and destroy plans beside them,
 * and every result has the bits of a run alone. */
#include "tests/support.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 6, ROUNDS = 10, T = 5, H = 160, I = 96, E = 8, K = 3 };

static float x[T * H], router[E * H], gate[E * I * H], up[E * I * H], down[E * H * I], shared_gate[H];
static moi_weights gate_w = MOI_WEIGHTS_INIT, up_w = MOI_WEIGHTS_INIT, down_w = MOI_WEIGHTS_INIT;
static moi_route_desc route = MOI_ROUTE_DESC_INIT;
static moi_experts_desc experts = MOI_EXPERTS_DESC_INIT, shared = MOI_EXPERTS_DESC_INIT;
static moi_moe_desc moe = MOI_MOE_DESC_INIT;

static int make_layer(void **state) {
  (void)state;
  layer_fill(x, T * H, 1);
  layer_fill(router, E * H, 2);
  layer_fill(gate, E * I * H, 3);
  layer_fill(up, E * I * H, 4);
  layer_fill(down, E * H * I, 5);
  layer_fill(shared_gate, H, 6);
  gate_w.data = VIEW(gate), up_w.data = VIEW(up), down_w.data = VIEW(down);
  route.max_tokens = experts.max_tokens = T;
  route.hidden = experts.hidden = H;
  route.n_experts = experts.n_experts = E;
  route.top_k = experts.top_k = K;
  experts.intermediate = I;
  experts.format = MOI_FORMAT_F32;
  shared = experts;
  shared.n_experts = shared.top_k = 1;
  moe.route = &route, moe.experts = &experts, moe.shared = &shared, moe.shared_gate = MOI_SHARED_SIGMOID;
  return 0;
}

/* What a thread owns: outputs and workspace. Asserts belong to the main thread, so it only counts what goes wrong. */
typedef struct worker {
  moi_context *context;
  const moi_plan *plan;
  uint32_t n_tokens, number;
  float y[T * H];
  int32_t ids[T * K], counts[E];
  int failures;
  char text[256];
} worker;

static moi_status run_once(worker *w, moi_buffer workspace) {
  moi_route_args r = MOI_ROUTE_ARGS_INIT;
  moi_experts_args a = MOI_EXPERTS_ARGS_INIT, s = MOI_EXPERTS_ARGS_INIT;
  moi_moe_args m = MOI_MOE_ARGS_INIT;
  r.n_tokens = a.n_tokens = w->n_tokens;
  r.hidden = a.input = VIEW(x);
  r.router = VIEW(router);
  r.ids = VIEW(w->ids);
  r.counts = VIEW(w->counts);
  a.output = VIEW(w->y);
  a.gate = s.gate = &gate_w, a.up = s.up = &up_w, a.down = s.down = &down_w;
  m.route = &r, m.experts = &a, m.shared = &s;
  m.shared_gate = VIEW(shared_gate);
  memset(w->y, 0xff, sizeof w->y);
  return moi_moe_run(w->plan, &m, workspace, no_queue);
}

static moi_buffer own_workspace(const moi_plan *plan) {
  size_t align, size = moi_plan_workspace(plan, &align);
  void *p = take_aligned(align, size);
  return moi_ptr(p, p ? size : 0);
}

static void *run_many(void *arg) {
  worker *w = arg;
  moi_buffer workspace = own_workspace(w->plan);
  worker first = *w;
  for (int i = 0; i < ROUNDS; i++) {
    w->n_tokens = 1 + (uint32_t)(w->number + (uint32_t)i) % T;
    w->failures += run_once(w, workspace) != MOI_OK;
    first.n_tokens = w->n_tokens;
    if (i >= T) continue;
    first.failures += run_once(&first, workspace) != MOI_OK; /* the same call again */
    w->failures += memcmp(first.y, w->y, w->n_tokens * H * 4) != 0 || first.failures;
  }
  w->n_tokens = T;
  w->failures += run_once(w, workspace) != MOI_OK;
  drop_aligned(workspace.ptr);
  return NULL;
}

/* Makes, runs and destroys plans of its own, good ones and refused ones, and looks at its own last error. */
static void *plan_many(void *arg) {
  worker *w = arg;
  for (uint32_t i = 0; i < ROUNDS; i++) {
    moi_plan *plan = NULL;
    moi_experts_desc bad = experts;
    bad.top_k = 1000 + w->number;
    char wanted[32];
    snprintf(wanted, sizeof wanted, "%u", bad.top_k);
    w->failures += moi_experts_plan(w->context, &bad, &plan) != MOI_INVALID_ARGUMENT || plan != NULL;
    w->failures += !strstr(moi_last_error(), wanted);
    if (moi_moe_plan(w->context, &moe, &plan)) {
      w->failures++;
      continue;
    }
    w->plan = plan;
    w->n_tokens = T;
    moi_buffer workspace = own_workspace(plan);
    w->failures += run_once(w, workspace) != MOI_OK;
    drop_aligned(workspace.ptr);
    char text[64];
    w->failures += moi_plan_describe(plan, text, sizeof text) == 0;
    w->failures += !strstr(moi_last_error(), wanted); /* success has not changed it */
    moi_plan_destroy(plan);
  }
  return NULL;
}

static void *context_many(void *arg) {
  worker *w = arg;
  for (int i = 0; i < ROUNDS / 5; i++) {
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.n_workers = 2;
    moi_context *context = NULL;
    w->failures += moi_context_create(&desc, &context) != MOI_OK;
    moi_context_destroy(context);
    moi_kernel_info row = MOI_KERNEL_INFO_INIT;
    w->failures += moi_kernel_get(MOI_BACKEND_CPU, 0, &row) != MOI_OK;
  }
  return NULL;
}

static void all_at_once(moi_context *context) {
  moi_plan *plan = NULL;
  passes(moi_moe_plan(context, &moe, &plan));
  static worker alone, workers[3 * THREADS];
  alone = (worker){.context = context, .plan = plan, .n_tokens = T};
  moi_buffer workspace = take_workspace(plan);
  passes(run_once(&alone, workspace));
  drop_aligned(workspace.ptr);
  pthread_t threads[3 * THREADS];
  int n = 0;
  for (uint32_t i = 0; i < THREADS + 3; i++, n++) {
    workers[n] = (worker){.context = context, .plan = plan, .number = i};
    void *(*body)(void *) = i < THREADS ? run_many : i < THREADS + 2 ? plan_many : context_many;
    assert_int_equal(pthread_create(&threads[n], NULL, body, &workers[n]), 0);
  }
  for (int i = 0; i < n; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
  for (int i = 0; i < n; i++) {
    assert_int_equal(workers[i].failures, 0);
    if (i >= THREADS + 2) continue; /* it ran nothing */
    assert_memory_equal(workers[i].y, alone.y, sizeof alone.y);
    assert_memory_equal(workers[i].ids, alone.ids, sizeof alone.ids);
    assert_memory_equal(workers[i].counts, alone.counts, sizeof alone.counts);
  }
  float sum = 0;
  for (int i = 0; i < T * H; i++) sum += alone.y[i] * alone.y[i];
  assert_true(sum > 0);
  moi_plan_destroy(plan);
}

static void test_one_worker(void **state) {
  (void)state;
  moi_context *context = open_cpu(1);
  all_at_once(context);
  moi_context_destroy(context);
}

static void test_default_pool(void **state) {
  (void)state;
  moi_context *context = open_cpu(3);
  all_at_once(context);
  moi_context_destroy(context);
}

/* An engine's threads: new ones for each call, so that the sanitizer sees who waits for whom. */
typedef struct share {
  void (*body)(void *, uint32_t);
  void *arg;
  uint32_t i;
} share;

static void *run_share(void *arg) {
  share *s = arg;
  s->body(s->arg, s->i);
  return NULL;
}

static void fork_and_join(void *user, uint32_t n, void (*body)(void *, uint32_t), void *arg) {
  share shares[4];
  pthread_t threads[4];
  int started[4] = {0};
  atomic_fetch_add((atomic_uint *)user, 1);
  for (uint32_t i = 0; i + 1 < n && i < 4; i++) {
    shares[i] = (share){body, arg, i};
    started[i] = !pthread_create(&threads[i], NULL, run_share, &shares[i]);
    if (!started[i]) body(arg, i);
  }
  body(arg, n - 1);
  for (uint32_t i = 0; i + 1 < n; i++)
    if (started[i]) pthread_join(threads[i], NULL);
}

static void test_threads_of_the_engine(void **state) {
  (void)state;
  atomic_uint calls = 0;
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.n_workers = 4;
  desc.parallel_for = fork_and_join;
  desc.parallel_for_user = &calls;
  moi_context *context = NULL;
  passes(moi_context_create(&desc, &context));
  all_at_once(context);
  assert_true(atomic_load(&calls) > 0);
  moi_context_destroy(context);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_one_worker),
      cmocka_unit_test(test_default_pool),
      cmocka_unit_test(test_threads_of_the_engine),
  };
  return cmocka_run_group_tests(tests, make_layer, NULL);
}
