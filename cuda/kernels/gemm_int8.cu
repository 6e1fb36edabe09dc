/* Grouped GEMM for many rows on int8 tensor cores: up to 128 rows x 128 columns a block (64 of a gate and an up), 32 k at a
 * time, two stages. W comes as signed bytes with its scales beside them, x as one or two digits of a byte (args.h) and a
 * scale for each 32 k. Both go through registers, loaded while the stage before is multiplied. Eight warps: 2 by rows, in
 * tiles of 16 that alternate between them, so that tiles without rows cost little; 4 by columns, 32 each.
 *
 * The integer sums of a group, of each digit by itself, are exact; they become floats once for each group, and the sums
 * of groups are fp32. A product begins at MAGIC, the bits of 1.5 * 2^23, and ends as the bits of that float plus the sum,
 * which is below 2^20 by magnitude: an addition takes the 1.5 * 2^23 off again, where a conversion has a quarter of the
 * rate. The scale of two digits is a power of two, so that
 *     sum_low * s = fma(low + 1.5 * 2^23, s, -1.5 * 2^23 * s)
 * is exact too: of two digits four instructions, of one three. */
#include "cuda/device/mma.h"
#include "cuda/kernels/gemm.h"

#if !defined(MOI_FORMAT_F32) && !defined(MOI_FORMAT_F16) && !defined(MOI_FORMAT_BF16) && !defined(MOI_FORMAT_BF16_KN) &&   \
    !defined(MOI_FORMAT_FP8) && !defined(MOI_FORMAT_FP8_B128) /* of whole numbers alone */
#include "cuda/kernels/codes_int8.h"

#define THREADS 256
#define M_TILE 128
#define CHUNK 32
#define LINES 128 /* of W: columns of one product, or by eights of up and gate */
#define GROUPS (CHUNK / MOI_INT8_GROUP)
#define PLANE ((int)MOI_CU_INT8_PLANE)
#define OUT_PITCH 40u /* floats */
#define MAGIC 0x4b400000
#define MAGIC_F32 12582912.0f

/* Where 16 bytes of k lie in a plane of rows of 32 bytes: eight rows of one segment are in all banks. */
MOI_DEVICE unsigned at(unsigned row, unsigned segment) { return row * 32u + ((segment ^ ((row >> 2) & 1u)) << 4); }

/* acc[tile][column group] += x W of a stage. x: planes of digits. rows: of the item. */
MOI_DEVICE void multiply(const unsigned char *w, const unsigned char *x, const float *scales, const float *minima,
                         const moi_f2 *x_scales, unsigned rows, const int digits, float *acc) {
  unsigned lane = moi_lane(), wm = moi_warp() & 1u, line0 = (moi_warp() >> 1) * 32u;
  unsigned b[2][4]; /* two column groups each */
  MOI_UNROLL
  for (unsigned c = 0; c < 2u; c++)
    moi_ldmatrix_x4(b[c], w + at(line0 + c * 16u + (lane >> 4) * 8u + (lane & 7u), (lane >> 3) & 1u));
  moi_f2 s[GROUPS][4], low[4];
  MOI_UNROLL
  for (unsigned c = 0; c < 4u; c++) {
    unsigned line = line0 + c * 8u + 2u * (lane & 3u);
    MOI_UNROLL
    for (unsigned group = 0; group < GROUPS; group++) s[group][c] = *(const moi_f2 *)(const void *)(scales + group * LINES + line);
    if (MOI_INT8_MINIMUM) low[c] = *(const moi_f2 *)(const void *)(minima + line);
  }
  MOI_UNROLL
  for (unsigned tile = 0; tile < 4u; tile++) {
    unsigned row0 = tile * 32u + wm * 16u;
    if (row0 >= rows) continue;
    unsigned a[2][4];
    MOI_UNROLL
    for (int digit = 0; digit < digits; digit++)
      moi_ldmatrix_x4(a[digit], x + digit * PLANE + at(row0 + (lane & 15u), lane >> 4));
    moi_f2 of_x[2]; /* of rows g and g + 8: scale, and scale times the sum of the digits */
    of_x[0] = x_scales[row0 + (lane >> 2)];
    of_x[1] = x_scales[row0 + (lane >> 2) + 8u];
    MOI_UNROLL
    for (unsigned c = 0; c < 4u; c++) {
      const unsigned *columns = b[c >> 1] + 2u * (c & 1u);
      float *to = acc + (tile * 4u + c) * 4u;
      MOI_UNROLL
      for (unsigned group = 0; group < GROUPS; group++) {
        int sum[2][4];
        MOI_UNROLL
        for (int digit = 0; digit < digits; digit++) {
          if (GROUPS == 1) moi_mma_s8_16832(sum[digit], a[digit], columns, MAGIC);
          else moi_mma_s8_16816(sum[digit], a[digit] + 2u * group, columns + group, MAGIC);
        }
        MOI_UNROLL
        for (int i = 0; i < 4; i++) {
          float scale = of_x[i >> 1].x, v = moi_bits_f32((unsigned)sum[0][i]) - MAGIC_F32;
          if (digits == 1) v = v * scale;
          else v = fmaf(v, 256.0f * scale, fmaf(moi_bits_f32((unsigned)sum[1][i]), scale, -MAGIC_F32 * scale));
          to[i] = fmaf(v, i & 1 ? s[group][c].y : s[group][c].x, to[i]);
        }
      }
      MOI_UNROLL
      for (int i = 0; i < 4 && MOI_INT8_MINIMUM; i++) to[i] = fmaf(-of_x[i >> 1].y, i & 1 ? low[c].y : low[c].x, to[i]);
    }
  }
  (void)minima, (void)low;
}

/* Columns j and j + 1 of a slot's row; j is even. */
MOI_DEVICE void put_pair(const moi_cu_gemm_args *a, const int gate_up, const moi_streams *su, const moi_streams *sg,
                         unsigned slot, unsigned j, const float *u, const float *g) {
  unsigned end = moi_columns_of(a, gate_up);
  uint64_t row = (uint64_t)slot * a->ldy;
  if (j + 1u >= end || (row & 1u)) {
    moi_finish(a, gate_up, su, sg, slot, j, u[0], g[0]);
    moi_finish(a, gate_up, su, sg, slot, j + 1u, u[1], g[1]);
    return;
  }
  moi_f2 v;
  v.x = j < a->n ? moi_result(a, gate_up, su, sg, slot, j, u[0], g[0]) : 0.0f;
  v.y = j + 1u < a->n ? moi_result(a, gate_up, su, sg, slot, j + 1u, u[1], g[1]) : 0.0f;
  if (!gate_up || !a->y_digits) {
    *(moi_f2 *)(void *)(a->y + row + j) = v;
    return;
  }
  uint16_t *to = (uint16_t *)(void *)(a->y + row) + j;
  unsigned high = moi_bf16x2(v.x, v.y);
  *(unsigned *)(void *)to = high;
  if (a->y_digits > 1u)
    *(unsigned *)(void *)(to + a->ldy) = moi_bf16x2(v.x - moi_bf16_low_f32(high), v.y - moi_bf16_high_f32(high));
}

/* A warp's sums to y, 16 rows at a time through its part of shared memory: once behind all products, so that the text of
 * the activations is there once, and lanes side by side write columns side by side. */
MOI_DEVICE void finish(const moi_cu_gemm_args *a, const int gate_up, unsigned i, int two, unsigned j0, float *shared,
                       float *acc) {
  unsigned n_rows; /* read again, as what follows: no register holds it through the products */
  moi_item_count(a, &n_rows);
  moi_cu_item item = moi_item_at(a, i, n_rows);
  unsigned lane = moi_lane(), wm = moi_warp() & 1u, line0 = (moi_warp() >> 1) * 32u;
  moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
  if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
  float *own = shared + moi_warp() * 16u * OUT_PITCH;
  MOI_ROLLED
  for (unsigned row0 = wm * 16u; row0 < item.rows; row0 += 32u) {
    MOI_UNROLL
    for (unsigned c = 0; c < 4u; c++) {
      MOI_UNROLL
      for (unsigned r = 0; r < 2u; r++) {
        moi_f2 v;
        v.x = acc[c * 4u + 2u * r], v.y = acc[c * 4u + 2u * r + 1u];
        *(moi_f2 *)(void *)(own + (r * 8u + (lane >> 2)) * OUT_PITCH + c * 8u + 2u * (lane & 3u)) = v;
      }
    }
    moi_sync_warp();
    unsigned pairs = two ? 8u : 16u; /* of columns that the warp has */
    MOI_ROLLED
    for (unsigned e = lane; e < 16u * pairs; e += 32u) {
      unsigned row = e / pairs, pair = e % pairs;
      if (row0 + row >= item.rows) break;
      const float *u = own + row * OUT_PITCH + (two ? (pair >> 2) * 16u + 2u * (pair & 3u) : 2u * pair);
      put_pair(a, gate_up, &su, &sg, moi_slot_of(a, item.first + row0 + row),
               j0 + (two ? line0 / 2u : line0) + 2u * pair, u, two ? u + 8 : u);
    }
    moi_sync_warp();
    MOI_UNROLL
    for (int c = 0; c < 48; c++) acc[c] = acc[c + 16]; /* a register's number must be a constant */
  }
}

/* What a thread brings of a chunk of x: 16 bytes of each digit of row thread / 2, and one of two its scale. */
typedef struct x_part {
  moi_u4 digit[2];
  moi_f2 scale;
} x_part;

/* row: in units of 16 bytes, or NO_ROW */
#define NO_ROW 0xffffffffu
MOI_DEVICE void load_x(const moi_cu_gemm_args *a, unsigned row, unsigned k0, const int digits, x_part *part) {
  unsigned half = moi_thread() & 1u;
  const moi_u4 *from = (const moi_u4 *)(const void *)a->x + (row == NO_ROW ? 0u : row);
  MOI_UNROLL
  for (int digit = 0; digit < digits; digit++) {
    moi_u4 none = {0u, 0u, 0u, 0u};
    part->digit[digit] = row == NO_ROW ? none : from[((unsigned)digit * a->ldx + k0) / 16u + half];
  }
  moi_f2 none = {0.0f, 0.0f};
  part->scale = none;
  if (row != NO_ROW && !half) part->scale = ((const moi_f2 *)(const void *)(from + a->ldx / 8u))[k0 / CHUNK];
}

MOI_DEVICE void store_x(const x_part *part, unsigned char *x, moi_f2 *scales, const int digits) {
  unsigned row = moi_thread() >> 1, half = moi_thread() & 1u;
  MOI_UNROLL
  for (int digit = 0; digit < digits; digit++) *(moi_u4 *)(void *)(x + digit * PLANE + at(row, half)) = part->digit[digit];
  if (!half) scales[row] = part->scale;
}

/* A line of W, and the 16 k of a chunk in it, that a thread decodes. */
typedef struct line_part {
  moi_streams m;
  unsigned n, rows, line, k;
} line_part;

MOI_DEVICE void load_w(const line_part *part, unsigned k0, unsigned K, moi_raw *raw) {
  moi_streams m = part->m; /* up's or gate's: global memory both, which a choice of addresses hides from the compiler */
  m.d = (const uint8_t *)moi_global(m.d);
  m.s = (const uint8_t *)moi_global(m.s);
  m.z = (const uint8_t *)moi_global(m.z);
  moi_raw_load(&m, part->n, k0 + part->k, part->rows, K, raw);
}

MOI_DEVICE void store_w(const line_part *part, const moi_raw *raw, unsigned char *w, float *scales, float *minima) {
  unsigned codes[4];
  float scale = 0.0f, minimum = 0.0f;
  moi_raw_bytes(raw, codes, &scale, &minimum);
  moi_u4 v;
  v.x = codes[0], v.y = codes[1], v.z = codes[2], v.w = codes[3];
  *(moi_u4 *)(void *)(w + at(part->line, part->k >> 4)) = v;
  if (GROUPS == 2 || !part->k) {
    scales[(part->k ? LINES : 0u) + part->line] = scale;
    if (MOI_INT8_MINIMUM) minima[part->line] = minimum;
  }
}

MOI_DEVICE void int8(const moi_cu_gemm_args *a, const int gate_up, const int digits) {
  MOI_SHARED_ASKED(tiles);
  MOI_SHARED(float, scales, 2 * GROUPS * LINES);
  MOI_SHARED(float, minima, MOI_INT8_MINIMUM ? 2 * LINES : 4);
  MOI_SHARED(moi_f2, x_scales, 2 * M_TILE);
  unsigned n_rows, n_items = moi_item_count(a, &n_rows), thread = moi_thread();
  int two = gate_up && a->has_gate;
  unsigned n_tile = two ? LINES / 2 : LINES, columns = moi_columns_of(a, gate_up);
  unsigned char *w_tiles = tiles, *x_tiles = tiles + 2 * PLANE;
  line_part part;
  part.line = MOI_BY_N ? thread & 127u : thread >> 1;
  part.k = (MOI_BY_N ? thread >> 7 : thread & 1u) * 16u;
  for (unsigned i = moi_block_y(); i < n_items; i += moi_grid_y()) {
    moi_cu_item item = moi_item_at(a, i, n_rows);
    moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
    if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
    unsigned row = NO_ROW;
    if (thread >> 1 < item.rows) row = moi_slot_of(a, item.first + (thread >> 1)) / a->x_div * (a->ldx / 4u);
    unsigned n_chunks = su.there && sg.there ? (a->k + CHUNK - 1u) / CHUNK : 0u;
    for (unsigned j0 = moi_block_x() * n_tile; j0 < columns; j0 += moi_grid_x() * n_tile) {
      int gate = two && part.line & 8u;
      unsigned column = j0 + (two ? (part.line >> 4) * 8u + (part.line & 7u) : part.line);
      if (column >= a->n) column = a->n - 1u;
      part.m = gate ? sg : su;
      part.n = gate ? column * a->gate.row_mul + a->gate.row_add : column * a->up.row_mul + a->up.row_add;
      part.rows = gate ? a->gate.rows : a->up.rows;
      float acc[64];
      MOI_UNROLL
      for (int c = 0; c < 64; c++) acc[c] = 0.0f;
      moi_raw raw;
      x_part x;
      if (n_chunks) {
        load_x(a, row, 0, digits, &x);
        load_w(&part, 0, a->k, &raw);
        store_x(&x, x_tiles, x_scales, digits);
        store_w(&part, &raw, w_tiles, scales, minima);
      }
      moi_sync();
      for (unsigned c = 0; c < n_chunks; c++) {
        unsigned now = c & 1u, next = now ^ 1u;
        if (c + 1u < n_chunks) {
          load_x(a, row, (c + 1u) * CHUNK, digits, &x);
          load_w(&part, (c + 1u) * CHUNK, a->k, &raw);
        }
        multiply(w_tiles + now * PLANE, x_tiles + now * (unsigned)(digits * PLANE), scales + now * GROUPS * LINES,
                 minima + (MOI_INT8_MINIMUM ? now * LINES : 0u), x_scales + now * M_TILE, item.rows, digits, acc);
        if (c + 1u < n_chunks) {
          store_x(&x, x_tiles + next * (unsigned)(digits * PLANE), x_scales + next * M_TILE, digits);
          store_w(&part, &raw, w_tiles + next * PLANE, scales + next * GROUPS * LINES,
                  minima + (MOI_INT8_MINIMUM ? next * LINES : 0u));
        }
        moi_sync();
      }
      finish(a, gate_up, i, two, j0, (float *)(void *)tiles, acc);
      moi_sync();
    }
  }
}

#define INT8_ONE(a, gate_up) int8(a, gate_up, 1)
#define INT8_TWO(a, gate_up) int8(a, gate_up, 2)
MOI_GEMM_KERNELS(gemm_int8, THREADS, INT8_TWO)
MOI_GEMM_KERNELS_ONE(gemm_int8, THREADS, INT8_ONE)

#endif
