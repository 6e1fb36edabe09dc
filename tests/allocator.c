/* Memory: what goes through the engine's allocator, that a run takes none, and what happens when there is none left. */
#include "tests/support.h"

#include <errno.h>
#include <stdatomic.h>

/* This program's own malloc and its kin count their calls, so that an allocation anywhere inside a run is seen, also in
 * the thread pool or in libc. glibc's are reached by the names it exports for that; sanitizers bring their own. */
#if defined(__GLIBC__) && !SANITIZED
#define COUNTS_MALLOC 1
static atomic_uint mallocs;
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);
void *malloc(size_t size) {
  atomic_fetch_add(&mallocs, 1);
  return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
  atomic_fetch_add(&mallocs, 1);
  return __libc_calloc(n, size);
}
void *realloc(void *p, size_t size) {
  atomic_fetch_add(&mallocs, 1);
  return __libc_realloc(p, size);
}
void *memalign(size_t align, size_t size) {
  atomic_fetch_add(&mallocs, 1);
  return __libc_memalign(align, size);
}
void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }
int posix_memalign(void **out, size_t align, size_t size) {
  *out = memalign(align, size);
  return *out ? 0 : ENOMEM;
}
#else
#define COUNTS_MALLOC 0
static atomic_uint mallocs;
#endif

/* An allocator that knows its blocks: sizes given back are those asked for, alignment is kept, call number `fail_at`
 * (from 1 on) gets NULL. */
typedef struct ledger {
  unsigned calls, fail_at, open;
  size_t bytes;
} ledger;

typedef struct header {
  size_t size, offset;
} header;

static void *ledger_allocate(void *user, size_t size, size_t align) {
  ledger *l = user;
  assert_true(size > 0);
  assert_true(align && !(align & (align - 1)));
  if (++l->calls == l->fail_at) return NULL;
  size_t pad = align > sizeof(header) ? align : sizeof(header);
  uint8_t *p = malloc(size + 2 * pad);
  assert_non_null(p);
  uint8_t *at = p + pad + (align - (uintptr_t)(p + pad) % align) % align;
  header h = {size, (size_t)(at - p)};
  memcpy(at - sizeof h, &h, sizeof h);
  memset(at, 0xee, size); /* new memory is not zero */
  l->open++;
  l->bytes += size;
  return at;
}

static void ledger_free(void *user, void *ptr, size_t size) {
  ledger *l = user;
  assert_non_null(ptr);
  header h;
  memcpy(&h, (uint8_t *)ptr - sizeof h, sizeof h);
  assert_int_equal(h.size, size);
  memset(ptr, 0xdd, size); /* and freed memory is not used */
  l->open--;
  l->bytes -= size;
  free((uint8_t *)ptr - h.offset);
}

static layer l;

static int make_layer(void **state) {
  (void)state;
  layer_make(&l);
  return 0;
}

static moi_status open_ledger(ledger *book, uint32_t n_workers, moi_context **out) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.n_workers = n_workers;
  desc.allocate = ledger_allocate;
  desc.free = ledger_free;
  desc.allocator_user = book;
  return moi_context_create(&desc, out);
}

static void test_everything_is_given_back(void **state) {
  (void)state;
  for (uint32_t workers = 1; workers <= 2; workers++) {
    ledger book = {0};
    moi_context *context = NULL;
    passes(open_ledger(&book, workers, &context));
    unsigned of_context = book.open;
    assert_true(of_context > 0);
    for (size_t i = 0; i < 4; i++) {
      moi_plan *plan = NULL;
      passes(layer_plan(&l, layer_ops[i], context, &plan));
      assert_true(book.open > of_context);
      moi_plan_destroy(plan);
      assert_int_equal(book.open, of_context);
      l.gemm.format = l.experts.format = MOI_FORMAT_Q4_K; /* refused: k is no multiple of 256 */
      l.route.top_k = 0;
      assert_int_not_equal(layer_plan(&l, layer_ops[i], context, &plan), MOI_OK);
      assert_int_equal(book.open, of_context);
      layer_make(&l);
      l.route.kernel = l.experts.kernel = l.gemm.kernel = l.moe.kernel = "no such kernel"; /* refused later */
      assert_int_equal(layer_plan(&l, layer_ops[i], context, &plan), MOI_UNSUPPORTED);
      assert_int_equal(book.open, of_context);
      layer_make(&l);
    }
    moi_context_destroy(context);
    assert_int_equal(book.open, 0);
    assert_int_equal(book.bytes, 0);
  }
}

static void test_out_of_memory(void **state) {
  (void)state;
  for (uint32_t workers = 1; workers <= 2; workers++) {
    unsigned n = 0;
    for (unsigned fail_at = 1;; fail_at++) { /* contexts */
      ledger book = {.fail_at = fail_at};
      moi_context *context = (moi_context *)&l;
      moi_status status = open_ledger(&book, workers, &context);
      if (!status) {
        moi_context_destroy(context);
        assert_int_equal(book.open, 0);
        break;
      }
      refused(status, MOI_OUT_OF_MEMORY, "moi_context_create");
      assert_null(context);
      assert_int_equal(book.open, 0);
      n++;
    }
    assert_true(n > 0);
    for (size_t i = 0; i < 4; i++) { /* plans */
      ledger book = {0};
      moi_context *context = NULL;
      passes(open_ledger(&book, workers, &context));
      unsigned of_context = book.open;
      for (n = 0;; n++) {
        moi_plan *plan = (moi_plan *)&l;
        book.calls = 0;
        book.fail_at = n + 1;
        moi_status status = layer_plan(&l, layer_ops[i], context, &plan);
        if (!status) {
          moi_plan_destroy(plan);
          break;
        }
        refused(status, MOI_OUT_OF_MEMORY, "moi_");
        assert_null(plan);
        assert_int_equal(book.open, of_context);
      }
      assert_true(n > 1);
      book.fail_at = 0;
      moi_context_destroy(context);
      assert_int_equal(book.open, 0);
    }
  }
}

static void in_turn(void *user, uint32_t n, void (*body)(void *, uint32_t), void *arg) {
  (void)user;
  for (uint32_t i = 0; i < n; i++) body(arg, i);
}

static void test_runs_allocate_nothing(void **state) {
  (void)state;
  static const char *const kernels[] = {NULL, "ref"};
  for (int threads = 0; threads < 3; threads++) {
    ledger book = {0};
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.n_workers = threads == 0 ? 1 : 2;
    desc.allocate = ledger_allocate;
    desc.free = ledger_free;
    desc.allocator_user = &book;
    if (threads == 2) desc.parallel_for = in_turn;
    moi_context *context = NULL;
    passes(moi_context_create(&desc, &context));
    for (size_t i = 0; i < 4; i++)
      for (int k = 0; k < 2; k++) {
        layer_make(&l);
        l.route.kernel = l.experts.kernel = l.gemm.kernel = l.moe.kernel = kernels[k];
        moi_plan *plan = NULL;
        passes(layer_plan(&l, layer_ops[i], context, &plan));
        moi_buffer workspace = take_workspace(plan);
        unsigned calls = book.calls, before = atomic_load(&mallocs);
        moi_status status = MOI_OK;
        for (int n = 0; n < 20 && !status; n++) status = layer_run(&l, layer_ops[i], plan, workspace);
        unsigned after = atomic_load(&mallocs);
        passes(status);
        assert_int_equal(book.calls, calls);
        assert_int_equal(after - before, 0);
        drop_aligned(workspace.ptr);
        moi_plan_destroy(plan);
      }
    moi_context_destroy(context);
    assert_int_equal(book.open, 0);
  }
}

/* That the counting above sees something at all. */
static void test_malloc_is_counted(void **state) {
  (void)state;
  if (!COUNTS_MALLOC) skip();
  unsigned before = atomic_load(&mallocs);
  void *volatile p = malloc(10);
  free(p);
  p = take_aligned(64, 64);
  drop_aligned(p);
  assert_int_equal(atomic_load(&mallocs) - before, 2);
  moi_context *context = open_cpu(1); /* the default allocator is malloc, called from inside the library */
  assert_true(atomic_load(&mallocs) - before > 2);
  moi_context_destroy(context);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_everything_is_given_back, make_layer),
      cmocka_unit_test_setup(test_out_of_memory, make_layer),
      cmocka_unit_test_setup(test_runs_allocate_nothing, make_layer),
      cmocka_unit_test_setup(test_malloc_is_counted, make_layer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
