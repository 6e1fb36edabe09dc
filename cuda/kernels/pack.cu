/* Weights into another layout: the bytes that core/pack.c makes. Memory is read and written along its rows; what lies
 * across goes through shared memory. Streams that have no alignment of their own are stored by bytes where they begin
 * inside a word. */
#define MOI_BLOCKS 3 /* every architecture has the registers for that many */
#include "cuda/device/convert.h"

#define THREADS 256u
#define SIDE ((unsigned)MOI_CU_PACK_SIDE)
#define ROWS ((unsigned)MOI_CU_PACK_N)
#define WORDS ((unsigned)MOI_CU_PACK_K / 8u)
#define BLOCKS ((unsigned)MOI_CU_PACK_CODES / 32u)

/* a row more than a tile has: what is read across lies in different banks */
#define SIDE_PITCH (SIDE + 2u)
#define WORDS_PITCH (WORDS + 1u)

typedef struct streams {
  uint8_t *d, *s, *z;
} streams;

/* The block's expert. */
MOI_DEVICE streams expert_of(const moi_cu_pack_side *side) {
  uint64_t e = moi_block_y();
  streams m;
  m.d = side->data + side->data_stride * e;
  m.s = side->scales + side->scales_stride * e;
  m.z = side->zeros + side->zeros_stride * e;
  return m;
}

MOI_DEVICE int at_words(const void *p) { return ((uintptr_t)p & 3u) == 0u; }
MOI_DEVICE int at_vectors(const void *p) { return ((uintptr_t)p & 15u) == 0u; }

MOI_DEVICE void put_word(uint8_t *p, unsigned w, int aligned) {
  if (aligned) {
    *(unsigned *)(void *)p = w;
    return;
  }
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++) p[i] = (uint8_t)(w >> (8u * i));
}

/* ---- transposes */

/* What is transposed: elements of 2 bytes; zero points, from words of 8 along n to bytes. */
enum { HALVES, GPTQ_ZEROS, AWQ_ZEROS };

/* n: of the element, or any with the same place in its word */
MOI_DEVICE unsigned element(int what, const uint8_t *p, unsigned n) {
  if (what == HALVES) return *(const uint16_t *)(const void *)p;
  unsigned word = *(const unsigned *)(const void *)p;
  return what == AWQ_ZEROS ? moi_awq_nibble(word, n) : moi_gptq_zero(word, n);
}

/* A tile of [K, N] to [N, K]. */
MOI_DEVICE void transpose(int what, const uint8_t *from, uint8_t *to, unsigned k0, unsigned n0, unsigned K, unsigned N,
                          uint16_t *tile) {
  unsigned along = moi_thread() % SIDE, first = moi_thread() / SIDE, size = what == HALVES ? 2u : 1u;
  uint64_t from_row = what == HALVES ? 2u * (uint64_t)N : N / 8u * 4u, to_row = (uint64_t)K * size;
  uint16_t v[SIDE * SIDE / THREADS];
  from += (k0 + first) * from_row + (what == HALVES ? 2u * (uint64_t)(n0 + along) : (n0 + along) / 8u * 4u);
  to += (n0 + first) * to_row + (uint64_t)(k0 + along) * size;
  MOI_UNROLL
  for (unsigned i = 0; i < SIDE * SIDE / THREADS; i++) {
    unsigned k = i * (THREADS / SIDE);
    int inside = k0 + first + k < K && n0 + along < N;
    v[i] = inside ? (uint16_t)element(what, from + k * from_row, along) : (uint16_t)0;
  }
  MOI_UNROLL
  for (unsigned i = 0; i < SIDE * SIDE / THREADS; i++)
    tile[(first + i * (THREADS / SIDE)) * SIDE_PITCH + along] = v[i];
  moi_sync();
  MOI_UNROLL
  for (unsigned i = 0; i < SIDE * SIDE / THREADS; i++) {
    unsigned n = first + i * (THREADS / SIDE), q = tile[along * SIDE_PITCH + n];
    uint8_t *p = to + i * (THREADS / SIDE) * to_row;
    if (n0 + n >= N || k0 + along >= K) continue;
    if (what == HALVES) *(uint16_t *)(void *)p = (uint16_t)q;
    else *p = (uint8_t)q;
  }
}

MOI_KERNEL(pack_kn, 256, moi_cu_pack_args) {
  MOI_SHARED(uint16_t, tile, SIDE * SIDE_PITCH);
  unsigned n_tile = moi_block_x() / a->k_tiles, k_tile = moi_block_x() - n_tile * a->k_tiles;
  streams from = expert_of(&a->src), to = expert_of(&a->dst);
  transpose(HALVES, from.d, to.d, k_tile * SIDE, n_tile * SIDE, a->k, a->n, tile);
}

/* ---- GPTQ and AWQ to INT4Z: a word is 8 k of a row there */

/* words[row][word of k] to memory */
MOI_DEVICE void put_words(const unsigned *words, uint8_t *to, unsigned n0, unsigned w0, unsigned N, unsigned W) {
  unsigned along = moi_thread() % WORDS, first = moi_thread() / WORDS;
  uint64_t step = 4u * (THREADS / WORDS);
  to += ((uint64_t)(n0 + first) * W + w0 + along) * 4u;
  int aligned = at_words(to);
  MOI_UNROLL
  for (unsigned i = 0; i < ROWS * WORDS / THREADS; i++) {
    unsigned n = first + i * (THREADS / WORDS);
    if (n0 + n < N && w0 + along < W) put_word(to + i * step * W, words[n * WORDS_PITCH + along], aligned);
  }
}

/* GPTQ's words are INT4Z's: they are transposed. */
MOI_DEVICE void gptq_words(const unsigned *from, unsigned *words, unsigned n0, unsigned w0, unsigned N, unsigned W) {
  unsigned along = moi_thread() % ROWS, first = moi_thread() / ROWS;
  uint64_t step = THREADS / ROWS;
  unsigned v[ROWS * WORDS / THREADS];
  from += (uint64_t)(w0 + first) * N + n0 + along;
  MOI_UNROLL
  for (unsigned i = 0; i < ROWS * WORDS / THREADS; i++) {
    unsigned w = first + i * (THREADS / ROWS);
    v[i] = w0 + w < W && n0 + along < N ? from[i * step * N] : 0u;
  }
  MOI_UNROLL
  for (unsigned i = 0; i < ROWS * WORDS / THREADS; i++)
    words[along * WORDS_PITCH + first + i * (THREADS / ROWS)] = v[i];
}

/* AWQ's words are 8 n of a k: a thread takes 8 by 8 codes. */
MOI_DEVICE void awq_words(const unsigned *from, unsigned *words, unsigned n0, unsigned w0, unsigned N, unsigned W) {
  unsigned octet = moi_thread() % (ROWS / 8u), w = moi_thread() / (ROWS / 8u);
  if (n0 + 8u * octet >= N || w0 + w >= W) return;
  unsigned q[8];
  MOI_UNROLL
  for (unsigned j = 0; j < 8u; j++) q[j] = from[((uint64_t)(w0 + w) * 8u + j) * (N / 8u) + n0 / 8u + octet];
  MOI_UNROLL
  for (unsigned i = 0; i < 8u; i++) {
    unsigned word = 0u;
    MOI_UNROLL
    for (unsigned j = 0; j < 8u; j++) word |= moi_awq_nibble(q[j], i) << (4u * j);
    words[(8u * octet + i) * WORDS_PITCH + w] = word;
  }
}

MOI_DEVICE void to_int4z(const moi_cu_pack_args *a, int awq, unsigned *words, uint16_t *tile) {
  unsigned N = a->n, W = a->k / 8u, G = a->k / a->group, at = moi_block_x();
  streams from = expert_of(&a->src), to = expert_of(&a->dst);
  if (at < a->data_tiles) {
    unsigned n_tile = at / a->k_tiles, k_tile = at - n_tile * a->k_tiles;
    const unsigned *codes = (const unsigned *)(const void *)from.d;
    if (awq) awq_words(codes, words, n_tile * ROWS, k_tile * WORDS, N, W);
    else gptq_words(codes, words, n_tile * ROWS, k_tile * WORDS, N, W);
    moi_sync();
    put_words(words, to.d, n_tile * ROWS, k_tile * WORDS, N, W);
    return;
  }
  at -= a->data_tiles;
  int is_zeros = at >= a->scale_tiles;
  if (is_zeros) at -= a->scale_tiles;
  unsigned n_tile = at / a->group_tiles, g_tile = at - n_tile * a->group_tiles;
  if (is_zeros) transpose(awq ? AWQ_ZEROS : GPTQ_ZEROS, from.z, to.z, g_tile * SIDE, n_tile * SIDE, G, N, tile);
  else transpose(HALVES, from.s, to.s, g_tile * SIDE, n_tile * SIDE, G, N, tile);
}

MOI_KERNEL(pack_gptq, 256, moi_cu_pack_args) {
  MOI_SHARED(unsigned, words, ROWS * WORDS_PITCH);
  to_int4z(a, 0, words, (uint16_t *)(void *)words);
}

MOI_KERNEL(pack_awq, 256, moi_cu_pack_args) {
  MOI_SHARED(unsigned, words, ROWS * WORDS_PITCH);
  to_int4z(a, 1, words, (uint16_t *)(void *)words);
}

/* ---- MXFP4: a thread takes 32 codes, which are 16 bytes, or 17 with the scale before them */

#define BLOCK 17u
#define TILE_BYTES (BLOCKS * BLOCK)
#define BYTE(q, i) (((q)[(i) / 4u] >> (8u * ((i) % 4u))) & 255u)

/* n <= TILE_BYTES bytes, by all threads; one of the two is shared memory. */
MOI_DEVICE void copy(uint8_t *to, const uint8_t *from, unsigned n) {
  unsigned words = at_words(to) && at_words(from) ? n / 4u : 0u;
  unsigned v[(TILE_BYTES / 4u + THREADS - 1u) / THREADS];
  MOI_UNROLL
  for (unsigned i = 0; i < sizeof v / 4u; i++) {
    unsigned w = moi_thread() + i * THREADS;
    v[i] = w < words ? ((const unsigned *)(const void *)from)[w] : 0u;
  }
  MOI_UNROLL
  for (unsigned i = 0; i < sizeof v / 4u; i++) {
    unsigned w = moi_thread() + i * THREADS;
    if (w < words) ((unsigned *)(void *)to)[w] = v[i];
  }
  MOI_ROLLED
  for (unsigned i = 4u * words + moi_thread(); i < n; i += THREADS) to[i] = from[i];
}

MOI_DEVICE void load16(const uint8_t *p, unsigned *q) {
  if (at_vectors(p)) {
    moi_u4 v = *(const moi_u4 *)(const void *)p;
    q[0] = v.x, q[1] = v.y, q[2] = v.z, q[3] = v.w;
    return;
  }
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++) {
    const uint8_t *w = p + 4u * i;
    q[i] = at_words(p) ? *(const unsigned *)(const void *)w
                       : (unsigned)w[0] | (unsigned)w[1] << 8 | (unsigned)w[2] << 16 | (unsigned)w[3] << 24;
  }
}

MOI_DEVICE void put16(uint8_t *p, const unsigned *q) {
  if (at_vectors(p)) {
    moi_u4 v = {q[0], q[1], q[2], q[3]};
    *(moi_u4 *)(void *)p = v;
    return;
  }
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++) put_word(p + 4u * i, q[i], at_words(p));
}

MOI_KERNEL(pack_to_gguf, 256, moi_cu_pack_args) {
  MOI_SHARED(uint8_t, tile, TILE_BYTES);
  unsigned first = moi_block_x() * BLOCKS, n = a->n * (a->k / 32u) - first;
  if (n > BLOCKS) n = BLOCKS;
  streams from = expert_of(&a->src), to = expert_of(&a->dst);
  if (moi_thread() < n) {
    uint64_t b = (uint64_t)first + moi_thread();
    uint8_t *out = tile + moi_thread() * BLOCK;
    unsigned q[4];
    load16(from.d + 16u * b, q);
    out[0] = from.s[b];
    MOI_UNROLL
    for (unsigned j = 0; j < 16u; j++)
      out[1u + j] =
          (uint8_t)(moi_nibble_even_odd(BYTE(q, j / 2u), j) | moi_nibble_even_odd(BYTE(q, j / 2u + 8u), j) << 4);
  }
  moi_sync();
  copy(to.d + (uint64_t)first * BLOCK, tile, n * BLOCK);
}

MOI_KERNEL(pack_from_gguf, 256, moi_cu_pack_args) {
  MOI_SHARED(uint8_t, tile, TILE_BYTES);
  unsigned first = moi_block_x() * BLOCKS, n = a->n * (a->k / 32u) - first;
  if (n > BLOCKS) n = BLOCKS;
  streams from = expert_of(&a->src), to = expert_of(&a->dst);
  copy(tile, from.d + (uint64_t)first * BLOCK, n * BLOCK);
  moi_sync();
  if (moi_thread() < n) {
    uint64_t b = (uint64_t)first + moi_thread();
    const uint8_t *in = tile + moi_thread() * BLOCK;
    unsigned q[4] = {0u, 0u, 0u, 0u};
    to.s[b] = in[0];
    MOI_UNROLL
    for (unsigned j = 0; j < 32u; j++) q[j / 8u] |= moi_nibble_half(in[1u + (j & 15u)], j) << (4u * (j & 7u));
    put16(to.d + 16u * b, q);
  }
}
