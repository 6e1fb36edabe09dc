/* Attention over a paged KV cache: two sequences, a prefill, a decode step, then both kinds of rows in one batch.
 *
 * The rows of q, k and v stand for an engine's projections after norm and RoPE. */
#include <moiety.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 8, KV_HEADS = 2, DIM = 64, PAGE = 16, PAGES = 8, PAGES_OF_ONE = 4, MAX_ROWS = 32, SEQS = 2 };

static float q[MAX_ROWS][HEADS][DIM], k[MAX_ROWS][KV_HEADS][DIM], v[MAX_ROWS][KV_HEADS][DIM];
static float output[MAX_ROWS][HEADS][DIM];
static uint16_t k_cache[PAGES][PAGE][KV_HEADS][DIM], v_cache[PAGES][PAGE][KV_HEADS][DIM]; /* f16 */
static int32_t page_table[SEQS][PAGES_OF_ONE] = {{3, 0, 5, 6}, {1, 7, 2, 4}};

static void fill(float *x, size_t n) {
  static uint32_t state = 1;
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
  }
}

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, moi_last_error());
  return 1;
}

/* One step: rows_of[s] new rows of each sequence, whose cache then holds kv_lens[s] keys. */
static int step(const moi_plan *plan, moi_buffer workspace, const int32_t *rows_of, const int32_t *kv_lens) {
  const moi_queue queue = {NULL};
  int32_t offsets[SEQS + 1] = {0};
  for (int s = 0; s < SEQS; s++) offsets[s + 1] = offsets[s] + rows_of[s];
  const uint32_t n_rows = (uint32_t)offsets[SEQS];
  fill(&q[0][0][0], sizeof q / sizeof(float));
  fill(&k[0][0][0], sizeof k / sizeof(float));
  fill(&v[0][0][0], sizeof v / sizeof(float));

  moi_kv_cache cache = MOI_KV_CACHE_INIT;
  cache.capacity = PAGES;
  cache.k = moi_ptr(k_cache, sizeof k_cache);
  cache.v = moi_ptr(v_cache, sizeof v_cache);
  cache.page_table = moi_ptr(page_table, sizeof page_table);

  moi_kv_append_args append = MOI_KV_APPEND_ARGS_INIT;
  append.n_rows = n_rows;
  append.n_seqs = SEQS;
  append.k = moi_ptr(k, sizeof k);
  append.v = moi_ptr(v, sizeof v);
  append.q_offsets = moi_ptr(offsets, sizeof offsets);
  append.kv_lens = moi_ptr(kv_lens, SEQS * sizeof *kv_lens);
  append.cache = &cache;
  if (moi_kv_append_run(plan, &append, queue)) return failed("append");

  moi_attention_args args = MOI_ATTENTION_ARGS_INIT;
  args.n_rows = n_rows;
  args.n_seqs = SEQS;
  args.q = moi_ptr(q, sizeof q);
  args.output = moi_ptr(output, sizeof output);
  args.q_offsets = append.q_offsets;
  args.kv_lens = append.kv_lens;
  args.cache = &cache;
  if (moi_attention_run(plan, &args, workspace, queue)) return failed("attention");
  printf("%2u rows: first output %+.4f, last %+.4f\n", n_rows, (double)output[0][0][0],
         (double)output[n_rows - 1][HEADS - 1][DIM - 1]);
  return 0;
}

int main(void) {
  moi_context_desc context_desc = MOI_CONTEXT_DESC_INIT;
  moi_context *context;
  if (moi_context_create(&context_desc, &context)) return failed("context");

  moi_attention_desc desc = MOI_ATTENTION_DESC_INIT;
  desc.max_rows = MAX_ROWS;
  desc.max_seqs = SEQS;
  desc.max_kv = PAGE * PAGES_OF_ONE;
  desc.n_heads = HEADS;
  desc.n_kv_heads = KV_HEADS;
  desc.head_dim = DIM;
  desc.page_size = PAGE;
  desc.k_format = MOI_FORMAT_F16;
  moi_plan *plan;
  if (moi_attention_plan(context, &desc, &plan)) return failed("plan");
  char text[1024];
  moi_plan_describe(plan, text, sizeof text);
  printf("%s", text);

  size_t size = moi_plan_workspace(plan, NULL);
  void *memory = NULL;
#if defined(_WIN32)
  memory = _aligned_malloc(size, 64);
#else
  memory = aligned_alloc(64, (size + 63) / 64 * 64);
#endif
  if (!memory) return 1;
  const moi_buffer workspace = moi_ptr(memory, size);

  const int32_t prefill[] = {20, 7}, after_prefill[] = {20, 7};
  const int32_t decode[] = {1, 1}, after_decode[] = {21, 8};
  const int32_t mixed[] = {1, 12}, after_mixed[] = {22, 20}; /* one sequence decodes, the other goes on with its prompt */
  int bad = step(plan, workspace, prefill, after_prefill) || step(plan, workspace, decode, after_decode) ||
            step(plan, workspace, mixed, after_mixed);

#if defined(_WIN32)
  _aligned_free(memory);
#else
  free(memory);
#endif
  moi_plan_destroy(plan);
  moi_context_destroy(context);
  return bad;
}
