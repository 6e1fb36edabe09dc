/* Random bytes and mutated valid structs as descs and args: every call returns a status and touches nothing that it was
 * not given. Meant for the sanitizer builds.
 *
 *   fuzz_desc              some seconds
 *   fuzz_desc --soak N     N seconds
 *   fuzz_desc --seed S     another start
 *
 * Pointers cannot be checked by any library, so views keep pointing at memory that is there: a mutation makes them
 * absent, smaller or misaligned, never longer than what they name. */
#include "tests/support.h"

#include <time.h>

static uint64_t random_state;
static double seconds = 4;

static uint64_t bits(void) {
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
static uint32_t below(uint32_t n) { return (uint32_t)((bits() >> 32) * n >> 32); }

/* A number that finds edges more often than a uniform one. */
static uint32_t odd_number(void) {
  static const uint32_t odd[] = {0,          1,          2,          3,          7,          8,          15,
                                 16,         31,         32,         33,         63,         64,         65,
                                 127,        128,        255,        256,        1023,       1024,       1025,
                                 65535,      65536,      65537,      0x00ffffff, 0x01000000, 0x7fffffff, 0x80000000,
                                 0x80000001, 0xfffffff8, 0xffffffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x3f800000,
                                 0xbf800000, 0x00000001, 0x7f7fffff};
  switch (below(4)) {
  case 0:
    return (uint32_t)bits();
  case 1:
    return below(80);
  default:
    return odd[below(sizeof odd / sizeof odd[0])];
  }
}

/* Which bytes of a struct are pointers or views, which mutation has to know. */
typedef struct shape {
  size_t size, pointers[4];
  int n_pointers;
  size_t first_view;
  int n_views;
} shape;

#define DESC(type, ...)                                                                                                \
  { sizeof(type), {__VA_ARGS__}, (int)(sizeof(size_t[]){__VA_ARGS__} / sizeof(size_t)), 0, 0 }
static const shape route_desc = DESC(moi_route_desc, offsetof(moi_route_desc, next), offsetof(moi_route_desc, kernel));
static const shape experts_desc =
    DESC(moi_experts_desc, offsetof(moi_experts_desc, next), offsetof(moi_experts_desc, kernel));
static const shape gemm_desc = DESC(moi_gemm_desc, offsetof(moi_gemm_desc, next), offsetof(moi_gemm_desc, kernel));
static const shape route_args = {
    sizeof(moi_route_args), {offsetof(moi_route_args, next)}, 1, offsetof(moi_route_args, n_tokens_device), 18};
static const shape experts_args = {sizeof(moi_experts_args),
                                   {offsetof(moi_experts_args, next), offsetof(moi_experts_args, gate),
                                    offsetof(moi_experts_args, up), offsetof(moi_experts_args, down)},
                                   4,
                                   offsetof(moi_experts_args, n_tokens_device),
                                   5};
static const shape gemm_args = {sizeof(moi_gemm_args),
                                {offsetof(moi_gemm_args, next), offsetof(moi_gemm_args, weights)},
                                2,
                                offsetof(moi_gemm_args, input),
                                3};
static const shape weights = {sizeof(moi_weights), {offsetof(moi_weights, next)}, 1, offsetof(moi_weights, data), 5};

static int is_at(const shape *s, size_t offset) {
  for (int i = 0; i < s->n_pointers; i++)
    if (offset / 8 == s->pointers[i] / 8) return 1;
  return s->n_views && offset >= s->first_view && offset < s->first_view + (size_t)s->n_views * sizeof(moi_buffer);
}

static void mutate_view(moi_buffer *b) {
  switch (below(8)) {
  case 0:
    memset(b, 0, sizeof *b);
    break;
  case 1:
    b->ptr = NULL;
    break;
  case 2:
    b->ptr = NULL, b->handle = bits();
    break;
  case 3:
    b->size = below(2) ? b->size / 2 : b->size - (b->size > 0);
    break;
  case 4:
    b->size = 0;
    break;
  case 5:
    if (b->ptr && b->size) b->offset++, b->size--;
    break;
  case 6:
    if (b->ptr && b->size) b->ptr = (uint8_t *)b->ptr + 1, b->size--;
    break;
  default:
    b->handle = bits();
    break;
  }
}

/* Changes some members; `tail` bytes lie behind the struct in the same memory. */
static void mutate(void *p, const shape *s) {
  uint8_t *bytes = p;
  for (uint32_t n = 1 + below(3); n > 0; n--) {
    if (s->n_views && below(3) == 0) {
      mutate_view((moi_buffer *)(void *)(bytes + s->first_view) + below((uint32_t)s->n_views));
      continue;
    }
    if (below(12) == 0) {
      static const int64_t off[] = {-8, -4, -1, 0, 1, 8, 64};
      size_t size = below(4) ? s->size + (size_t)off[below(7)] : below(2) ? (size_t)bits() : below(400);
      memcpy(bytes, &size, sizeof size);
      continue;
    }
    if (below(20) == 0) { /* next: refused, so never followed */
      uintptr_t next = (uintptr_t)bits();
      memcpy(bytes + sizeof(size_t), &next, sizeof next);
      continue;
    }
    size_t at = 16 + 4 * (size_t)below((uint32_t)(s->size - 16) / 4);
    uint32_t value = odd_number();
    if (!is_at(s, at)) memcpy(bytes + at, &value, 4);
  }
}

/* Only random bytes; pointers null. struct_size stays, or the rest would never be looked at. */
static void scramble(void *p, const shape *s, uint32_t percent) {
  uint8_t *bytes = p;
  for (size_t at = 16; at + 4 <= s->size; at += 4) {
    uint32_t value = odd_number();
    if (!is_at(s, at) && below(100) < percent) memcpy(bytes + at, &value, 4);
  }
}

static layer l;
static moi_context *context;
static unsigned long n_calls, n_ok;

/* A status of the table, and a text if it is a failure. */
static int known(moi_status status) {
  n_calls++;
  n_ok += status == MOI_OK;
  int ok = (status == MOI_OK || (status <= MOI_NO_DEVICE && moi_last_error()[0])) && status >= 0;
  if (!ok) print_error("status %d: %s\n", (int)status, moi_last_error());
  return ok;
}

/* Structs are handed over in memory of the largest size that struct_size may have, as a newer caller's would be. */
enum { ROOM = 1 << 16 };
static uint64_t rooms[6][ROOM / 8 + 16];
static void *in_room(int i, const void *s, size_t size) {
  memset(rooms[i], 0, 1024);
  memcpy(rooms[i], s, size);
  return rooms[i];
}

static void run_mutated(moi_op op, const moi_plan *plan) {
  size_t align, size = moi_plan_workspace(plan, &align);
  if (size > (size_t)64 << 20) return;
  moi_buffer workspace = moi_ptr(NULL, 0);
  uint8_t *memory = NULL;
  if (size) {
    memory = take_aligned(align, size);
    assert_non_null(memory);
    workspace = moi_ptr(memory, size);
  }
  for (int round = 0; round < 6; round++) {
    moi_buffer given = workspace;
    if (below(16) == 0) mutate_view(&given);
    moi_queue queue = {below(32) ? NULL : &l};
    moi_weights *w[3] = {in_room(0, &l.gate_w, sizeof l.gate_w), in_room(1, &l.up_w, sizeof l.up_w),
                         in_room(2, &l.down_w, sizeof l.down_w)};
    if (round && below(2)) mutate(w[below(3)], &weights);
    moi_route_args *r = in_room(3, &l.route_args, sizeof l.route_args);
    moi_experts_args *x = in_room(4, &l.experts_args, sizeof l.experts_args);
    x->gate = below(30) ? w[0] : NULL, x->up = below(30) ? w[1] : NULL, x->down = below(30) ? w[2] : NULL;
    moi_gemm_args *g = in_room(5, &l.gemm_args, sizeof l.gemm_args);
    g->weights = w[1];
    for (int i = 0; i < LAYER_T * LAYER_K; i++) /* bad ids are data, not an error */
      if (below(8) == 0) l.ids[i] = (int32_t)odd_number();
    if (below(4) == 0) l.groups[below(LAYER_E + 1)] = (int32_t)odd_number();
    moi_status status;
    if (op == MOI_OP_ROUTE) {
      if (round) mutate(r, &route_args);
      status = moi_route_run(plan, r, given, queue);
    } else if (op == MOI_OP_EXPERTS) {
      if (round) mutate(x, &experts_args);
      status = moi_experts_run(plan, x, given, queue);
    } else if (op == MOI_OP_GEMM) {
      if (round) mutate(g, &gemm_args);
      status = moi_gemm_run(plan, g, given, queue);
    } else {
      if (round) mutate(r, &route_args), mutate(x, &experts_args);
      moi_moe_args m = l.moe_args;
      m.route = below(20) ? r : NULL;
      m.experts = below(20) ? x : NULL;
      m.shared = below(20) ? &l.shared_args : NULL;
      if (below(4) == 0) mutate_view(&m.shared_gate);
      status = moi_moe_run(plan, &m, given, queue);
    }
    if (!known(status)) fail();
  }
  drop_aligned(memory);
}

static void one_desc(uint32_t percent) {
  static const char *const names[] = {"ref", "generic", "select-f32", "bf16-avx512", "", "x"};
  layer_make(&l);
  moi_op op = layer_ops[below(4)];
  moi_route_desc *r = in_room(0, &l.route, sizeof l.route);
  moi_experts_desc *x = in_room(1, &l.experts, sizeof l.experts), *s = in_room(2, &l.shared, sizeof l.shared);
  moi_gemm_desc *g = in_room(3, &l.gemm, sizeof l.gemm);
  moi_moe_desc m = l.moe;
  if (percent) {
    scramble(r, &route_desc, percent);
    scramble(x, &experts_desc, percent);
    scramble(g, &gemm_desc, percent);
  } else {
    mutate(r, &route_desc);
    mutate(x, &experts_desc);
    if (below(2)) mutate(s, &experts_desc);
    mutate(g, &gemm_desc);
  }
  /* the addresses in a table are the caller's word, as all pointers */
  x->flags &= ~MOI_EXPERTS_TABLES, s->flags &= ~MOI_EXPERTS_TABLES, g->flags &= ~MOI_EXPERTS_TABLES;
  if (below(3) == 0) r->kernel = x->kernel = g->kernel = names[below(6)];
  m.route = below(8) ? r : NULL;
  m.experts = below(30) ? x : NULL;
  m.shared = below(4) ? s : NULL;
  if (below(2)) m.shared_gate = (moi_shared_gate)below(2);
  if (below(8) == 0) m.shared_gate_type = (moi_format)odd_number();
  if (below(8) == 0) m.plan_flags = odd_number();
  if (below(8) == 0) m.kernel = names[below(6)];
  moi_plan *plan = (moi_plan *)&l;
  moi_status status = op == MOI_OP_ROUTE     ? moi_route_plan(context, r, &plan)
                      : op == MOI_OP_EXPERTS ? moi_experts_plan(context, x, &plan)
                      : op == MOI_OP_GEMM    ? moi_gemm_plan(context, g, &plan)
                                             : moi_moe_plan(context, &m, &plan);
  if (!known(status)) fail();
  if (status) {
    assert_null(plan);
    return;
  }
  char text[200];
  moi_plan_describe(plan, text, below(sizeof text + 1));
  run_mutated(op, plan);
  moi_plan_destroy(plan);
}

static void other_calls(void) {
  moi_format_sizes sizes;
  known(moi_format_size((moi_format)(below(2) ? below(80) : odd_number()), odd_number(), odd_number(), &sizes));
  moi_format_name((moi_format)odd_number());
  moi_status_text((moi_status)odd_number());
  moi_preset_at(odd_number());
  moi_pack_preferred((moi_backend)below(5), (moi_format)odd_number());
  moi_kernel_info *kernel = in_room(0, &(moi_kernel_info)MOI_KERNEL_INFO_INIT, sizeof *kernel);
  if (below(4) == 0) kernel->struct_size = odd_number();
  known(moi_kernel_get((moi_backend)below(5), odd_number(), kernel));
  static uint8_t memory[2][4096];
  moi_weights *w[2];
  for (int i = 0; i < 2; i++) {
    moi_weights v = MOI_WEIGHTS_INIT;
    v.data = v.scales = v.zeros = VIEW(memory[i]);
    w[i] = in_room(1 + i, &v, sizeof v);
    if (below(2)) mutate(w[i], &weights);
  }
  static const moi_format formats[] = {MOI_FORMAT_BF16_KN,    MOI_FORMAT_BF16,    MOI_FORMAT_GPTQ_G32,
                                       MOI_FORMAT_INT4Z_G32,  MOI_FORMAT_AWQ_G32, MOI_FORMAT_MXFP4,
                                       MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_Q4_K};
  moi_pack_desc pack = MOI_PACK_DESC_INIT;
  pack.from = formats[below(8)], pack.to = formats[below(8)];
  pack.n = below(2) ? 8 : odd_number(), pack.k = below(2) ? 32 : odd_number(),
  pack.n_experts = below(2) ? 1 + below(3) : odd_number();
  known(moi_pack(&pack, w[0], w[1]));
  moi_plan *plan = NULL;
  if (known(moi_pack_plan(context, &pack, &plan)) && plan) known(moi_pack_run(plan, w[0], w[1], no_queue));
  moi_plan_destroy(plan);
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = (moi_backend)(below(2) ? 0 : odd_number());
  desc.device = below(2) ? 0 : odd_number();
  desc.n_workers = below(8) ? 1 : 2000 + odd_number() / 2; /* no thousand threads */
  moi_context *c = (moi_context *)&l;
  if (!known(moi_context_create(&desc, &c))) fail();
  moi_context_destroy(c);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void test_fuzz(void **state) {
  (void)state;
  print_message("seed %llu\n", (unsigned long long)random_state);
  context = open_cpu(1);
  double end = now() + seconds;
  for (uint32_t i = 0; i < 200 || now() < end; i++) {
    one_desc(i % 4 ? 0 : 1 + below(100));
    if (i % 8 == 0) other_calls();
  }
  moi_context_destroy(context);
  print_message("%lu calls, %lu of them succeeded\n", n_calls, n_ok);
  assert_true(n_ok > n_calls / 50); /* a fuzzer whose input is always refused at the door tests the door only */
}

int main(int argc, char **argv) {
  random_state = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--soak")) seconds = atof(argv[i + 1]);
    else if (!strcmp(argv[i], "--seed")) random_state = strtoull(argv[i + 1], NULL, 0);
  }
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_fuzz)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
