/* Sequences as the other passes read them: rows clamped, keys clamped, tiles counted. One workgroup. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention.glsl"

const uint THREADS = 64u;
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { uvec2 args; };

shared uint shared_end[THREADS], shared_few[THREADS], shared_many[THREADS];
shared uint longest_few, longest_many; /* keys of sequences with rows */

uint clamp_to(uint v, uint low, uint high) { return int(v) < 0 || v < low ? low : min(v, high); }

/* Workgroups of each pass and chunk of `tiles`: none where the keys have ended. */
void calls(uvec2 to, uint passes, uint chunks, uint chunk, uint tiles, uint keys, uint pass_keys, uint y, uint z) {
  for (uint at = gl_LocalInvocationID.x; at < passes * chunks; at += THREADS) {
    uint pass = at / chunks, first = (at - pass * chunks) * chunk;
    bool some = pass * pass_keys < keys && first < tiles;
    WORD(to, 3u * at) = some ? min(tiles - first, chunk) : 0u;
    WORD(to, 3u * at + 1u) = some ? y : 0u;
    WORD(to, 3u * at + 2u) = some ? z : 0u;
  }
}

void main() {
  Args a = MOI_ARGS_AT(Args, args);
  uint i = gl_LocalInvocationID.x, n_seqs = a.n_seqs, n_rows = a.n_rows, reach = a.reach;
  uint few_rows = a.few_rows, group = a.n_heads / a.n_kv_heads, few_tile = a.few_tile, many_tile = a.many_tile;
  uvec2 offsets = a.q_offsets, lens = a.kv_lens, starts = a.q_start, begins = a.kv_begin;
  uvec2 seqs = a.seqs, zeros = a.zeros;
  for (uint at = i; at < 1024u; at += THREADS) WORD(zeros, at) = 0u;

  if (i == 0u) longest_few = longest_many = 0u;

  /* each thread has some sequences; where they begin is the largest end before them */
  uint each = (n_seqs + THREADS - 1u) / THREADS, first = min(i * each, n_seqs), last = min(first + each, n_seqs);
  uint end = 0u;
  for (uint s = first; s < last; s++) end = max(end, clamp_to(WORD(offsets, s + 1u), 0u, n_rows));
  shared_end[i] = end;
  barrier();
  uint row = n_seqs > 0u ? clamp_to(WORD_OR(offsets, 0u, 0u), 0u, n_rows) : n_rows;
  for (uint before = 0u; before < i; before++) row = max(row, shared_end[before]);
  uint few = 0u, many = 0u, begin = row;
  for (uint s = first; s < last; s++) {
    end = max(row, clamp_to(WORD(offsets, s + 1u), 0u, n_rows));
    uint rows = end - row;
    if (rows > few_rows) many += (rows * group + many_tile - 1u) / many_tile;
    else few += (rows * group + few_tile - 1u) / few_tile;
    row = end;
  }
  shared_few[i] = few;
  shared_many[i] = many;
  barrier();
  few = many = 0u;
  for (uint before = 0u; before < i; before++) {
    few += shared_few[before];
    many += shared_many[before];
  }
  barrier();
  row = begin;
  uint keys_few = 0u, keys_many = 0u;
  for (uint s = first; s < last; s++) {
    end = max(row, clamp_to(WORD(offsets, s + 1u), 0u, n_rows));
    uint rows = end - row, len = clamp_to(WORD(lens, s), 0u, reach), at = s * SEQ_WORDS;
    WORD(seqs, at + SEQ_ROW) = row;
    WORD(seqs, at + SEQ_ROWS) = rows;
    WORD(seqs, at + SEQ_POSITION) = WORD_OR(starts, s, len - rows);
    WORD(seqs, at + SEQ_BEGIN) = clamp_to(WORD_OR(begins, s, 0u), 0u, len);
    WORD(seqs, at + SEQ_LEN) = len;
    WORD(seqs, at + SEQ_FEW) = few;
    WORD(seqs, at + SEQ_MANY) = many;
    if (rows > few_rows) many += (rows * group + many_tile - 1u) / many_tile;
    else few += (rows * group + few_tile - 1u) / few_tile;
    if (rows > few_rows) keys_many = max(keys_many, len);
    else if (rows > 0u) keys_few = max(keys_few, len);
    row = end;
  }
  atomicMax(longest_few, keys_few);
  atomicMax(longest_many, keys_many);
  if (i == THREADS - 1u) {
    WORD(seqs, n_seqs * SEQ_WORDS + SEQ_FEW) = few;
    WORD(seqs, n_seqs * SEQ_WORDS + SEQ_MANY) = many;
    shared_few[0] = few;
    shared_many[0] = many;
  }
  barrier();
  keys_few = longest_few;
  keys_many = longest_many;
  uint segments = keys_few > 0u ? moi_segment_of(keys_few - 1u, a.segment) + 1u : 0u, pass_keys = a.pass_keys, n_kv_heads = a.n_kv_heads;
  calls(a.few_calls, a.few_passes, a.few_chunks, a.few_chunk, shared_few[0], keys_few, pass_keys, n_kv_heads, segments);
  calls(a.many_calls, a.many_passes, a.many_chunks, a.many_chunk, shared_many[0], keys_many, pass_keys, n_kv_heads, 1u);
}
