/* What attention's shaders share: the run's arguments, sequences and what their rows see, places in the cache. */
#ifndef MOI_ATTENTION_GLSL
#define MOI_ATTENTION_GLSL

/* of moi_format, beside the dense types */
#define KV_FP8 17u
#define KV_Q8_0 64u

/* The mirror of `arguments` in attention.c. */
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Args {
  uvec2 q, y, lse, sinks, q_offsets, kv_lens, q_start, kv_begin;
  uvec2 k, v, places, k_scale, v_scale;
  uvec2 k_token, k_head, k_page, v_token, v_head, v_page;
  uvec2 zeros;              /* as many bytes of 0 as a row of the cache has at most */
  uvec2 seqs;               /* [n_seqs + 1] Seq */
  uvec2 few, many, now;     /* accumulators: [slot, KV head, row of the tile, v_head_dim] */
  uvec2 few_sums, many_sums, now_sums; /* max and sum: [slot, KV head, row of the tile, 2] */
  uvec2 few_calls, many_calls;         /* [pass, chunk of the tiles, 3]: workgroups of a dispatch */
  uint n_rows, n_seqs, q_stride, q_head_stride, y_stride;
  uint n_heads, n_kv_heads, head_dim, v_head_dim;
  uint input_type;
  uint max_kv, reach; /* reach: max_kv of the run */
  uint page_size, page_entries, capacity;
  uint causal, window, chunk, temperature_floor;
  float temperature, scale, softcap;
  uint has_sinks;
  uint few_rows, few_tile, many_tile; /* few_rows: rows of a sequence that count as few */
  uint segment, n_segments;           /* segment.h: its unit; few: a slot for each segment */
  uint pass_keys, few_passes, many_passes;
  uint few_chunk, few_chunks, many_chunk, many_chunks; /* tiles of a dispatch; how many such chunks */
};

/* Of Seq, words: */
#define SEQ_ROW 0u
#define SEQ_ROWS 1u
#define SEQ_POSITION 2u
#define SEQ_BEGIN 3u
#define SEQ_LEN 4u
#define SEQ_FEW 5u  /* tiles of few rows in the sequences before; behind the last sequence: all of them */
#define SEQ_MANY 6u
#define SEQ_WORDS 8u

uint seq_word(uvec2 seqs, uint s, uint word) { return Words(seqs).v[s * SEQ_WORDS + word]; }

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

/* Which page and token key j is; false if the cache has no such place. */
bool place_of(uvec2 places, uint page_size, uint page_entries, uint capacity, uint max_kv, uint seq, uint j,
              out uint page, out uint token) {
  if (page_size != 0u) {
    uint entry = j / page_size;
    token = j - entry * page_size;
    page = Words(moi_add(places, moi_mul(moi_mul(4u, page_entries), seq))).v[entry];
    return int(page) >= 0 && page < capacity;
  }
  page = 0u;
  uint start, high = 0u;
  if (moi_has(places)) start = Words(places).v[seq];
  else umulExtended(seq, max_kv, high, start);
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
