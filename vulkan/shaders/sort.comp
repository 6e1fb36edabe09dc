/* Slots sorted by class, or groups of rows as offsets give them, and the work items of the grouped GEMMs: one workgroup,
 * one dispatch, whatever the sizes. The permutation is stable: a slot's place follows from its class and its number. */
#version 460
#extension GL_GOOGLE_include_directive : require
#define MOI_COHERENT coherent
#include "common.glsl"

#define THREADS 128u /* every device has as many */
layout(local_size_x = 128) in;

layout(constant_id = 0) const uint OFFSETS = 0u; /* 1: rows lie sorted, groups come as offsets */

/* As moi_vk_sort_args of grouped.c. */
#define SORT_ARGS(P, P2, U, U2, F, M)                                                                                  \
  P(ids) P(n_tokens_device) P(counts) P(offsets) P(permutation) P(cursor)                                              \
  P2(items)    /* for few rows and for many; absent: none are wanted */                                                \
  P2(dispatch) /* each: x, y, z of n_dispatch indirect dispatches, of which y is written here */                       \
  P(ends)      /* OFFSETS: first and end row of all groups */                                                          \
  U(n_tokens) U(top_k) U(n_class) U(n_experts) U(m_max) U2(m_tile) U(n_dispatch)
MOI_ARGS(SortArgs, SORT_ARGS)

layout(push_constant) uniform Push { uvec2 args; };

shared uint partial[THREADS * 3u];

void all_seen() {
  memoryBarrierBuffer();
  memoryBarrierShared();
  barrier();
}

/* partial[t * 3 + 0..2] become the sums (max: of element 0 the maxima) over the threads before t; returns the totals */
uvec3 scan(uint thread, bool largest) {
  all_seen();
  for (uint step = 1u; step < THREADS; step *= 2u) {
    uvec3 before = uvec3(0u);
    if (thread >= step)
      before = uvec3(partial[(thread - step) * 3u], partial[(thread - step) * 3u + 1u], partial[(thread - step) * 3u + 2u]);
    all_seen();
    partial[thread * 3u] = largest ? max(partial[thread * 3u], before.x) : partial[thread * 3u] + before.x;
    partial[thread * 3u + 1u] += before.y;
    partial[thread * 3u + 2u] += before.z;
    all_seen();
  }
  return uvec3(partial[THREADS * 3u - 3u], partial[THREADS * 3u - 2u], partial[THREADS * 3u - 1u]);
}
uvec3 before(uint thread) {
  return thread == 0u ? uvec3(0u)
                      : uvec3(partial[thread * 3u - 3u], partial[thread * 3u - 2u], partial[thread * 3u - 1u]);
}

shared uint ids_of[THREADS];

void main() {
  SortArgs a = MOI_ARGS_AT(SortArgs, args);
  uint thread = gl_LocalInvocationIndex, n_tokens = a.n_tokens, n_class = a.n_class;
  n_tokens = min(n_tokens, WORD_OR(a.n_tokens_device, 0u, n_tokens));
  uint n_slots = n_tokens * a.top_k, all_slots = a.n_tokens * a.top_k;
  uvec2 counts = a.counts, offsets = a.offsets, cursor = a.cursor;
  uint each = (n_class + THREADS - 1u) / THREADS, c0 = min(thread * each, n_class), c1 = min(c0 + each, n_class);

  if (OFFSETS == 0u) {
    for (uint c = c0; c < c1; c++) SEEN(counts, c) = 0u;
    all_seen();
    for (uint s = thread; s < n_slots; s += THREADS) {
      uint id = WORD(a.ids, s);
      if (id < n_class) atomicAdd(SEEN(counts, id), 1u);
    }
    all_seen();
  } else { /* cursor[c] = min(max(offset, 0), rows), then group c is [max over 0..c, max over 0..c+1) */
    uint most = 0u;
    for (uint c = c0; c < c1; c++) {
      int from = INT(a.ids, c), to = INT(a.ids, c + 1u);
      most = max(most, max(uint(max(from, 0)), uint(max(to, 0))));
    }
    partial[thread * 3u] = min(most, n_slots);
    partial[thread * 3u + 1u] = partial[thread * 3u + 2u] = 0u;
    uint end = scan(thread, true).x, at = before(thread).x;
    if (thread == 0u) {
      uint first = min(uint(max(INT(a.ids, 0), 0)), n_slots);
      WORD(a.ends, 0) = first;
      WORD(a.ends, 1) = end;
    }
    for (uint c = c0; c < c1; c++) {
      uint from = max(at, min(uint(max(INT(a.ids, c), 0)), n_slots));
      at = max(from, min(uint(max(INT(a.ids, c + 1u), 0)), n_slots));
      SEEN(offsets, c) = from;
      SEEN(counts, c) = at - from;
    }
    all_seen();
  }

  /* where each class begins, and its items */
  uvec3 sum = uvec3(0u);
  for (uint c = c0; c < c1; c++) {
    uint n = SEEN(counts, c);
    sum.x += n;
    if (c < a.n_experts) {
      if (n <= a.m_max) sum.y += (n + a.m_tile[0] - 1u) / a.m_tile[0];
      else sum.z += (n + a.m_tile[1] - 1u) / a.m_tile[1];
    }
  }
  all_seen();
  partial[thread * 3u] = sum.x, partial[thread * 3u + 1u] = sum.y, partial[thread * 3u + 2u] = sum.z;
  uvec3 total = scan(thread, false), at = before(thread);
  for (uint c = c0; c < c1; c++) {
    uint n = SEEN(counts, c), first = at.x;
    if (OFFSETS == 0u) {
      SEEN(offsets, c) = first;
      SEEN(cursor, c) = first;
    } else {
      first = SEEN(offsets, c);
    }
    at.x += n;
    if (c >= a.n_experts || !moi_has(a.items[0])) continue;
    uint which = n <= a.m_max ? 0u : 1u, tile = a.m_tile[which];
    for (uint row = 0u; row < n; row += tile) {
      uint i = which == 0u ? at.y++ : at.z++;
      uvec2 item = moi_add(a.items[which], moi_mul(12u, i + 1u));
      WORD(item, 0) = c;
      WORD(item, 1) = first + row;
      WORD(item, 2) = min(tile, n - row);
    }
  }
  if (thread == 0u && OFFSETS == 0u) SEEN(offsets, n_class) = total.x;
  if (moi_has(a.items[0])) {
    if (thread == 0u) WORD(a.items[0], 0) = total.y, WORD(a.items[1], 0) = total.z;
    for (uint d = thread; d < a.n_dispatch; d += THREADS) {
      WORD(a.dispatch[0], 3u * d + 1u) = min(total.y, 65535u);
      WORD(a.dispatch[1], 3u * d + 1u) = min(total.z, 65535u);
    }
  }
  if (OFFSETS != 0u) return;

  /* the slots, a workgroup's width at a time, each behind those of its class before it */
  for (uint s0 = 0u; s0 < n_slots; s0 += THREADS) {
    uint s = s0 + thread, id = s < n_slots ? WORD(a.ids, s) : 0xffffffffu;
    if (id >= n_class) id = 0xffffffffu;
    ids_of[thread] = id;
    all_seen();
    uint rank = 0u, later = 0u;
    for (uint t0 = 0u; t0 < THREADS; t0 += 64u) { /* llvmpipe leaves loops after 65535 rounds, those of all of them added up */
      [[unroll]] for (uint i = 0u; i < 32u; i++) {
        [[unroll]] for (uint t = t0 + i; t < t0 + 64u; t += 32u) {
          uint same = ids_of[t] == id ? 1u : 0u;
          rank += t < thread ? same : 0u;
          later += t > thread ? same : 0u;
        }
      }
    }
    uint place = 0u;
    if (id != 0xffffffffu) {
      place = SEEN(cursor, id) + rank;
      WORD(a.permutation, place) = s;
    }
    all_seen();
    if (id != 0xffffffffu && later == 0u) SEEN(cursor, id) = place + 1u;
  }
  for (uint s = total.x + thread; s < all_slots; s += THREADS) WORD(a.permutation, s) = 0xffffffffu;
}
