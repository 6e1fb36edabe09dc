/* What attention's shaders share: the run's arguments, sequences and what their rows see, places in the cache. */
#ifndef MOI_ATTENTION_GLSL
#define MOI_ATTENTION_GLSL

/* of moi_format, beside the dense types */
#define KV_FP8 17u
#define KV_Q8_0 64u

/* The mirror of `arguments` in attention.c. */
#define ATTENTION_ARGS(P, P2, U, U2, F, M)                                                                             \
  P(q) P(y) P(lse) P(sinks) P(q_offsets) P(kv_lens) P(q_start) P(kv_begin)                                             \
  P(k) P(v) P(places) P(k_scale) P(v_scale)                                                                            \
  P(k_token) P(k_head) P(k_page) P(v_token) P(v_head) P(v_page)                                                        \
  P(zeros)                 /* as many bytes of 0 as a row of the cache has at most */                                  \
  P(seqs)                  /* [n_seqs + 1] Seq */                                                                      \
  P(few) P(many) P(now)    /* accumulators: [slot, KV head, row of the tile, v_head_dim] */                            \
  P(few_sums) P(many_sums) P(now_sums) /* max and sum: [slot, KV head, row of the tile, 2] */                          \
  P(few_calls) P(many_calls) /* [pass, chunk of the tiles, 3]: workgroups of a dispatch */                             \
  U(n_rows) U(n_seqs) U(q_stride) U(q_head_stride) U(y_stride)                                                         \
  U(n_heads) U(n_kv_heads) U(head_dim) U(v_head_dim)                                                                   \
  U(input_type)                                                                                                        \
  U(max_kv) U(reach) /* reach: max_kv of the run */                                                                    \
  U(page_size) U(page_entries) U(capacity)                                                                             \
  U(causal) U(window) U(chunk) U(temperature_floor)                                                                    \
  F(temperature) F(scale) F(softcap)                                                                                   \
  U(has_sinks)                                                                                                         \
  U(few_rows) U(few_tile) U(many_tile) /* few_rows: rows of a sequence that count as few */                            \
  U(segment) U(n_segments) /* segment.h: its unit; few: a slot for each segment */                                     \
  U(pass_keys) U(few_passes) U(many_passes)                                                                            \
  U(few_chunk) U(few_chunks) U(many_chunk) U(many_chunks) /* tiles of a dispatch; how many such chunks */
MOI_ARGS(Args, ATTENTION_ARGS)

/* Of Seq, words: */
#define SEQ_ROW 0u
#define SEQ_ROWS 1u
#define SEQ_POSITION 2u
#define SEQ_BEGIN 3u
#define SEQ_LEN 4u
#define SEQ_FEW 5u  /* tiles of few rows in the sequences before; behind the last sequence: all of them */
#define SEQ_MANY 6u
#define SEQ_WORDS 8u

uint seq_word(uvec2 seqs, uint s, uint word) { return WORD(seqs, s * SEQ_WORDS + word); }

/* The last sequence whose word is not above x. */
uint seq_find(uvec2 seqs, uint n_seqs, uint word, uint x) {
  uint low = 0u, high = n_seqs;
  while (high - low > 1u) {
    uint middle = low + (high - low) / 2u;
    if (seq_word(seqs, middle, word) <= x) low = middle;
    else high = middle;
  }
  return low;
}

/* Row i of a sequence whose first row is at `position`: one more than its own position, 0 for those below 0. */
uint position_after(uint position, uint i) {
  bool below = int(position) < 0 && 0u - position > i;
  return below ? 0u : position + i + 1u;
}

/* The keys x <= j < y that a row sees; x == y if there is none. */
uvec2 visible(uint after, uint begin, uint end, uint causal, uint window, uint chunk) {
  if (causal != 0u) end = min(end, after);
  if (window != 0u && after > window) begin = max(begin, after - window);
  if (chunk != 0u) {
    uint first = after == 0u ? 0u : (after - 1u) / chunk * chunk;
    begin = max(begin, first);
    if (after == 0u) end = 0u;
    else if (end > first && end - first > chunk) end = first + chunk;
  }
  return uvec2(min(begin, end), end);
}

/* tau of a row's position */
float temperature_at(float temperature, uint temperature_floor, uint after) {
  if (temperature == 0.0 || after == 0u) return 1.0;
  return 1.0 + temperature * moi_log(float(after / temperature_floor + 1u));
}

/* Which page and token key j is; false if the cache has no such place. readable: any address that may be read. */
bool place_of(uvec2 places, uvec2 readable, uint page_size, uint page_entries, uint capacity, uint max_kv, uint seq, uint j,
              out uint page, out uint token) {
  if (page_size != 0u) {
    uint entry = j / page_size;
    token = j - entry * page_size;
    page = WORD(moi_add(places, moi_mul(moi_mul(4u, page_entries), seq)), entry);
    return int(page) >= 0 && page < capacity;
  }
  page = 0u;
  uint start, high = 0u;
  umulExtended(seq, max_kv, high, start);
  start = moi_word_or(places, readable, seq, start);
  token = start + j;
  /* a start that is given is signed */
  bool inside = moi_has(places) ? int(start) >= 0 || int(token) >= 0 : high == 0u && token >= start;
  return inside && token < capacity;
}

uvec2 row_at(uvec2 base, uvec2 page_stride, uvec2 token_stride, uint page, uint token) {
  return moi_add(moi_add(base, moi_mul(page_stride, page)), moi_mul(token_stride, token));
}

/* ln of a denominator m + ln s; NaN stays */
float log_sum(float m, float s) { return s == 0.0 ? -MOI_INFINITY : moi_is_nan(s) ? s : m + moi_log(s); }

/* exp(from - to) for to >= from; 1 if both are the same, infinite ones too */
float shrink(float from, float to) { return from == to ? 1.0 : moi_exp(from - to); }

/* What has been seen, and then more: the factors of both accumulators. A sum is 0 where nothing was, or NaN. */
void join(inout float m, inout float s, float more_m, float more_s, out float keep, out float add) {
  keep = 1.0;
  add = 0.0;
  if (more_s == 0.0) return;
  float most = more_m <= m ? m : more_m;
  keep = s == 0.0 ? 0.0 : shrink(m, most);
  add = shrink(more_m, most);
  precise float sum = fma(s, keep, more_s * add);
  m = most;
  s = sum;
}

#endif
