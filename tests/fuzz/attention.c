/* Attention: descs, caches, page tables, lengths and offsets, run where a plan is made. */
#include "tests/fuzz/bytes.h"

static uint64_t row_bytes(moi_format format, uint32_t n) {
  moi_format_sizes sizes;
  return n && !moi_format_size(format, 1, n, &sizes) ? sizes.data : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const moi_format caches[] = {0, MOI_FORMAT_F32, MOI_FORMAT_F16, MOI_FORMAT_BF16, MOI_FORMAT_FP8, MOI_FORMAT_Q8_0,
                                      MOI_FORMAT_Q4_K};
  bytes b = {data, data + size};
  moi_attention_desc d = MOI_ATTENTION_DESC_INIT;
  d.max_rows = count(&b, 24);
  d.max_seqs = count(&b, 6);
  d.max_kv = next8(&b) < 240 ? 1 + next8(&b) * (1 + below(&b, 5)) : next32(&b);
  d.n_kv_heads = count(&b, 4);
  d.n_heads = d.n_kv_heads * count(&b, 5);
  d.head_dim = next8(&b) < 128 ? 32 * (1 + below(&b, 6)) : count(&b, 130);
  d.v_head_dim = next8(&b) < 128 ? 0 : count(&b, 130);
  d.scale = real(&b);
  d.softcap = real(&b);
  d.mask = (moi_mask)(next8(&b) < 250 ? below(&b, 2) : 7);
  d.window = next8(&b) < 128 ? 0 : count(&b, 90);
  d.chunk = next8(&b) < 160 ? 0 : count(&b, 90);
  d.temperature = real(&b);
  d.temperature_floor = count(&b, 9);
  d.flags = below(&b, 5);
  d.page_size = count(&b, 20);
  d.k_format = caches[below(&b, 7)];
  d.v_format = caches[below(&b, 7)];
  d.input_type = dense_type(&b);
  d.output_type = dense_type(&b);
  d.plan_flags = below(&b, 9);
  d.kernel = any_kernel(&b);
  if (next8(&b) > 252) d.struct_size = next32(&b) % (sizeof d + 1);
  moi_plan *plan = NULL;
  moi_status status = moi_attention_plan(fuzz_context(), &d, &plan);
  told(status);
  if (status || moi_plan_workspace(plan, NULL) > (1u << 26)) {
    moi_plan_destroy(plan);
    return 0;
  }
  if (!d.v_head_dim) d.v_head_dim = d.head_dim;
  if (!d.k_format) d.k_format = MOI_FORMAT_F32;
  if (!d.v_format) d.v_format = d.k_format;
  uint32_t rows = count(&b, d.max_rows), seqs = count(&b, d.max_seqs);
  moi_kv_cache cache = MOI_KV_CACHE_INIT;
  cache.capacity = count(&b, d.page_size ? 12 : 200);
  uint64_t tokens = (uint64_t)cache.capacity * (d.page_size ? d.page_size : 1) * d.n_kv_heads;
  uint32_t pad = below(&b, 3) * 64;
  if (pad) { /* tokens further apart than dense */
    cache.k_token_stride = row_bytes(d.k_format, d.head_dim) * d.n_kv_heads + pad;
    cache.v_token_stride = row_bytes(d.v_format, d.v_head_dim) * d.n_kv_heads + pad;
    if (next8(&b) > 250) cache.k_page_stride = next32(&b);
  }
  cache.k = odd_view(&b, tokens * (row_bytes(d.k_format, d.head_dim) + pad));
  if (!(d.flags & MOI_ATTENTION_V_IN_K)) cache.v = odd_view(&b, tokens * (row_bytes(d.v_format, d.v_head_dim) + pad));
  uint64_t entries = d.page_size ? (d.max_kv - 1) / d.page_size + 1 : 0;
  if (d.page_size && next8(&b) > 200) entries = cache.page_table_stride = 1 + below(&b, 5);
  if (d.page_size) cache.page_table = indices(&b, seqs * entries, cache.capacity);
  else if (next8(&b) & 1) cache.start = indices(&b, seqs, 60);
  if (next8(&b) & 1) cache.k_scale = view(&b, (uint64_t)d.n_kv_heads * 4);
  if (next8(&b) & 1) cache.v_scale = view(&b, (uint64_t)d.n_kv_heads * 4);
  moi_attention_args a = MOI_ATTENTION_ARGS_INIT;
  a.n_rows = rows;
  a.n_seqs = seqs;
  a.q_head_stride = next8(&b) < 200 ? 0 : count(&b, 200);
  a.output_stride = next8(&b) < 200 ? 0 : d.n_heads * d.v_head_dim + below(&b, 9);
  uint32_t in = d.input_type == MOI_FORMAT_F32 || !d.input_type ? 4 : 2;
  uint64_t q_head = a.q_head_stride ? a.q_head_stride : d.head_dim;
  a.q = odd_view(&b, rows * (uint64_t)d.n_heads * q_head * in);
  a.output = odd_view(&b, rows * (uint64_t)(a.output_stride ? a.output_stride : d.n_heads * d.v_head_dim) * 4);
  if (next8(&b) & 1) a.lse = odd_view(&b, (uint64_t)rows * d.n_heads * 4);
  a.sinks = view(&b, (uint64_t)d.n_heads * 4);
  a.q_offsets = ascending(&b, (uint64_t)seqs + 1, rows);
  a.kv_lens = indices(&b, seqs, d.max_kv > 200 ? 200 : d.max_kv);
  if (next8(&b) & 1) a.q_start = indices(&b, seqs, 100);
  if (next8(&b) & 1) a.kv_begin = indices(&b, seqs, 40);
  a.cache = next8(&b) < 252 ? &cache : NULL;
  const moi_queue queue = {NULL};
  if (next8(&b) & 1) {
    moi_kv_append_args p = MOI_KV_APPEND_ARGS_INIT;
    p.n_rows = rows;
    p.n_seqs = seqs;
    p.k = odd_view(&b, rows * (uint64_t)d.n_kv_heads * d.head_dim * in);
    if (!(d.flags & MOI_ATTENTION_V_IN_K)) p.v = odd_view(&b, rows * (uint64_t)d.n_kv_heads * d.v_head_dim * in);
    p.q_offsets = a.q_offsets;
    p.kv_lens = a.kv_lens;
    p.q_start = a.q_start;
    p.cache = a.cache;
    told(moi_kv_append_run(plan, &p, queue));
  }
  told(moi_attention_run(plan, &a, workspace_of(plan), queue));
  if (next8(&b) & 1) {
    moi_attention_merge_args m = MOI_ATTENTION_MERGE_ARGS_INIT;
    m.n_rows = rows;
    m.n_parts = count(&b, 4);
    m.parts = odd_view(&b, (uint64_t)rows * m.n_parts * d.n_heads * d.v_head_dim * 4);
    m.part_lse = odd_view(&b, (uint64_t)rows * m.n_parts * d.n_heads * 4);
    m.output = view(&b, (uint64_t)rows * d.n_heads * d.v_head_dim * 4);
    m.lse = a.lse;
    told(moi_attention_merge_run(plan, &m, queue));
  }
  moi_plan_destroy(plan);
  drop_blocks();
  return 0;
}
