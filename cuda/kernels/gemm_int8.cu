/* Grouped GEMM for many rows on int8 tensor cores: up to 128 rows x 128 columns a block (64 of a gate and an up), 32 k at a
 * time, two stages. W comes as signed bytes with its scales beside them, x as one or two digits of a byte (args.h) and a
 * scale for each 32 k. Both go through registers, loaded while the stage before is multiplied: half of the threads bring W,
 * the others x. Sixteen warps, so that four of each scheduler take turns at products and at what becomes of the sums: 4 by
 * rows, in tiles of 16 that alternate between them, so that tiles without rows cost little; 4 by columns, 32 each, side by
 * side, so that a tile alone keeps all four schedulers busy.
 *
 * The integer sums of a group, of each digit by itself, are exact; they become floats once for each group, and the sums
 * of groups are fp32. A product begins at MAGIC, the bits of 1.5 * 2^23, and ends as the bits of that float plus the sum,
 * which is below 2^20 by magnitude: an addition takes the 1.5 * 2^23 off again, where a conversion has a quarter of the
 * rate. Of two digits
 *     256 * (high - 1.5 * 2^23) + low
 * is rounded once, to whole numbers or to 2^-24; its scale is a power of two, so that one fma takes the 1.5 * 2^23 off and
 * scales. With the fma to the sums of groups that are four instructions, three with one digit. */
#include "cuda/device/mma.h"

#define MOI_WARPS_M 4
#define MOI_WARP_M(warp) ((warp) >> 2)
#define MOI_WARP_N(warp) ((warp) & 3u)
#define MOI_ROW_SCALE(a, slot) 1.0f
#include "cuda/kernels/gemm_mma.h"

#if !defined(MOI_FORMAT_F32) && !defined(MOI_FORMAT_F16) && !defined(MOI_FORMAT_BF16) && !defined(MOI_FORMAT_BF16_KN) &&   \
    !defined(MOI_FORMAT_FP8) && !defined(MOI_FORMAT_FP8_B128) /* of whole numbers alone */
#include "cuda/kernels/codes_int8.h"

#define THREADS 512
#define M_TILE 128
#define CHUNK 32
#define LINES 128 /* of W: columns of one product, or by eights of up and gate */
#define GROUPS (CHUNK / MOI_INT8_GROUP)
#define PLANE ((int)MOI_CU_INT8_PLANE)
#define MAGIC 0x4b400000
#define MAGIC_F32 12582912.0f

/* Where 16 bytes of k lie in a plane of rows of 32 bytes: eight rows of one segment are in all banks. */
MOI_DEVICE unsigned at(unsigned row, unsigned segment) { return row * 32u + ((segment ^ ((row >> 2) & 1u)) << 4); }

/* acc[tile][column group] += x W of a stage. x: planes of digits. rows: of the item. */
MOI_DEVICE void multiply(const unsigned char *w, const unsigned char *x, const float *scales, const float *minima,
                         const moi_f2 *x_scales, unsigned rows, const int digits, float *acc) {
  unsigned thread = moi_fresh(moi_thread()), lane = thread & 31u, wm = thread >> 7, line0 = thread & 96u;
  const unsigned char *w_at = w + at(line0 + (lane >> 4) * 8u + (lane & 7u), (lane >> 3) & 1u);
  const unsigned char *x_at = x + at(wm * 16u + (lane & 15u), lane >> 4); /* a tile is 2048 bytes further */
  unsigned line = line0 + 2u * (lane & 3u);
  MOI_UNROLL
  for (unsigned tile = 0; tile < 2u; tile++) {
    unsigned row0 = tile * 64u + wm * 16u;
    if (row0 >= rows) continue;
    unsigned a[2][4];
    MOI_UNROLL
    for (int digit = 0; digit < digits; digit++)
      moi_ldmatrix_x4(a[digit], x_at + digit * PLANE + tile * 2048u);
    moi_f2 of_x[2]; /* of rows g and g + 8: scale, and scale times the sum of the digits */
    of_x[0] = x_scales[row0 + (lane >> 2)];
    of_x[1] = x_scales[row0 + (lane >> 2) + 8u];
    unsigned b[4]; /* of two column groups, 256 bytes each */
    MOI_UNROLL
    for (unsigned c = 0; c < 4u; c++) {
      if (c == 2u) moi_sync_warp();
      if (!(c & 1u)) moi_ldmatrix_x4(b, w_at + c * 256u);
      const unsigned *columns = b + 2u * (c & 1u);
      float *to = acc + (tile * 4u + c) * 4u;
      moi_f2 low;
      if (MOI_INT8_MINIMUM) low = *(const moi_f2 *)(const void *)(minima + line + c * 8u);
      MOI_UNROLL
      for (unsigned group = 0; group < GROUPS; group++) {
        if (c || group) moi_sync_warp(); /* the compiler begins none of these products before: registers */
        int sum[2][4];
        moi_f2 s = *(const moi_f2 *)(const void *)(scales + group * LINES + line + c * 8u);
        MOI_UNROLL
        for (int digit = 0; digit < digits; digit++) {
          if (GROUPS == 1) moi_mma_s8_16832(sum[digit], a[digit], columns, MAGIC);
          else moi_mma_s8_16816(sum[digit], a[digit] + 2u * group, columns + group, MAGIC);
        }
        MOI_UNROLL
        for (int i = 0; i < 4; i++) {
          float scale = of_x[i >> 1].x, v = moi_bits_f32((unsigned)sum[0][i]) - MAGIC_F32;
          if (digits == 1) v = v * scale;
          else v = fmaf(fmaf(v, 256.0f, moi_bits_f32((unsigned)sum[1][i])), scale, -MAGIC_F32 * scale);
          to[i] = fmaf(v, i & 1 ? s.y : s.x, to[i]);
        }
      }
      MOI_UNROLL
      for (int i = 0; i < 4 && MOI_INT8_MINIMUM; i++) to[i] = fmaf(-of_x[i >> 1].y, i & 1 ? low.y : low.x, to[i]);
    }
  }
  (void)minima;
}

/* What a thread brings of a chunk of x: 16 bytes of each digit of row thread / 2 % 128, and one of two its scale. */
typedef struct x_part {
  moi_u4 digit[2];
  moi_f2 scale;
} x_part;

/* row: null if there is none. No register holds an address of the next chunk while this one is multiplied: there are 128,
 * and on sm_120 the products want the rest. So in load_w and turn_of too. */
MOI_DEVICE void load_x(const moi_cu_gemm_args *a, const uint8_t *row, unsigned k0, const int digits, x_part *part) {
  unsigned half = moi_fresh(moi_thread()) & 1u, ldx = moi_fresh(a->ldx);
  const moi_u4 *from = (const moi_u4 *)moi_global(moi_fresh_address(row));
  MOI_UNROLL
  for (int digit = 0; digit < digits; digit++) {
    moi_u4 none = {0u, 0u, 0u, 0u};
    part->digit[digit] = row ? from[((unsigned)digit * ldx + k0) / 16u + half] : none;
  }
  moi_f2 none = {0.0f, 0.0f};
  part->scale = none;
  if (row && !half) part->scale = ((const moi_f2 *)(const void *)(from + ldx / 8u))[k0 / CHUNK];
}

MOI_DEVICE void store_x(const x_part *part, unsigned char *x, moi_f2 *scales, const int digits) {
  unsigned thread = moi_fresh(moi_thread()), row = (thread >> 1) & 127u, half = thread & 1u;
  MOI_UNROLL
  for (int digit = 0; digit < digits; digit++) *(moi_u4 *)(void *)(x + digit * PLANE + at(row, half)) = part->digit[digit];
  if (!half) scales[row] = part->scale;
}

/* Where the line of W that a thread brings lies; of a thread that brings x, m.d is its row. */
typedef struct line_part {
  moi_streams m;
  unsigned n, rows;
} line_part;
MOI_DEVICE unsigned line_of(unsigned thread) { return (MOI_BY_N ? thread : thread >> 1) & 127u; }
MOI_DEVICE unsigned k_of(unsigned thread) { return ((MOI_BY_N ? thread >> 7 : thread) & 1u) * 16u; }

MOI_DEVICE void load_w(const line_part *part, unsigned k0, unsigned K, moi_raw *raw) {
  moi_streams m = part->m; /* up's or gate's: global memory both, which a choice of addresses hides from the compiler */
  m.d = (const uint8_t *)moi_global(moi_fresh_address(m.d));
  m.s = (const uint8_t *)moi_global(moi_fresh_address(m.s));
  m.z = (const uint8_t *)moi_global(moi_fresh_address(m.z));
  moi_raw_load(&m, moi_fresh(part->n), k0 + k_of(moi_fresh(moi_thread())), part->rows, K, raw);
}

MOI_DEVICE void store_w(const moi_raw *raw, unsigned char *w, float *scales, float *minima) {
  unsigned codes[4], thread = moi_fresh(moi_thread()), line = line_of(thread), k = k_of(thread);
  float scale = 0.0f, minimum = 0.0f;
  moi_raw_bytes(raw, codes, &scale, &minimum);
  moi_u4 v;
  v.x = codes[0], v.y = codes[1], v.z = codes[2], v.w = codes[3];
  *(moi_u4 *)(void *)(w + at(line, k >> 4)) = v;
  if (GROUPS == 2 || !k) {
    scales[(k ? LINES : 0u) + line] = scale;
    if (MOI_INT8_MINIMUM) minima[line] = minimum;
  }
}

/* A thread brings one or the other: in the same registers. */
typedef union brought {
  moi_raw w;
  x_part x;
} brought;

/* Item and first column of a block's turn; found again behind the products, so that no register holds them. */
typedef struct turn {
  unsigned i, j0;
} turn;
MOI_DEVICE turn turn_of(const moi_cu_gemm_args *a, const int gate_up, int two, unsigned n) {
  unsigned n_tile = two ? LINES / 2 : LINES, step = moi_fresh_grid_x() * n_tile;
  unsigned parts = (moi_columns_of(a, gate_up) + step - 1u) / step; /* of an item's columns, for each block */
  turn t;
  t.i = moi_block_y() + n / parts * moi_fresh_grid_y();
  t.j0 = moi_block_x() * n_tile + n % parts * step;
  return t;
}

MOI_DEVICE void int8(const moi_cu_gemm_args *a, const int gate_up, const int digits) {
  MOI_SHARED_ASKED(tiles);
  MOI_SHARED(float, scales, 2 * GROUPS * LINES);
  MOI_SHARED(float, minima, MOI_INT8_MINIMUM ? 2 * LINES : 4);
  MOI_SHARED(moi_f2, x_scales, 2 * M_TILE);
  int two = gate_up && a->has_gate, of_w = moi_thread() < 2u * LINES; /* threads that bring W; the others bring x */
  unsigned char *w_tiles = tiles, *x_tiles = tiles + 2 * PLANE;
  for (unsigned n = 0;; n++) {
    unsigned n_rows, n_items = moi_item_count(a, &n_rows), thread = moi_fresh(moi_thread());
    turn t = turn_of(a, gate_up, two, n);
    if (t.i >= n_items) break;
    if (t.j0 >= moi_columns_of(a, gate_up)) continue;
    moi_cu_item item = moi_item_at(a, t.i, n_rows);
    moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
    if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
    line_part part;
    unsigned n_chunks = su.there && sg.there ? (a->k + CHUNK - 1u) / CHUNK : 0u;
    if (of_w) {
      unsigned line = line_of(thread);
      int gate = two && line & 8u;
      unsigned column = t.j0 + (two ? (line >> 4) * 8u + (line & 7u) : line);
      if (column >= a->n) column = a->n - 1u;
      part.m = gate ? sg : su;
      part.n = gate ? column * a->gate.row_mul + a->gate.row_add : column * a->up.row_mul + a->up.row_add;
      part.rows = gate ? a->gate.rows : a->up.rows;
    } else {
      unsigned row = (thread >> 1) & 127u;
      part.m.d = row < item.rows ? (const uint8_t *)moi_x_row(a, item.first + row) : NULL;
      part.n = part.rows = 0u;
    }
    float acc[32];
    MOI_UNROLL
    for (int c = 0; c < 32; c++) acc[c] = 0.0f;
    brought held;
    if (n_chunks && of_w) {
      load_w(&part, 0, a->k, &held.w);
      store_w(&held.w, w_tiles, scales, minima);
    } else if (n_chunks) {
      load_x(a, part.m.d, 0, digits, &held.x);
      store_x(&held.x, x_tiles, x_scales, digits);
    }
    moi_sync();
    MOI_ROLLED
    for (unsigned c = 0; c < n_chunks; c++) {
      unsigned now = c & 1u, next = now ^ 1u;
      int more = c + 1u < n_chunks;
      if (more && of_w) load_w(&part, (c + 1u) * CHUNK, a->k, &held.w);
      if (more && !of_w) load_x(a, part.m.d, (c + 1u) * CHUNK, digits, &held.x);
      multiply(w_tiles + now * PLANE, x_tiles + now * (unsigned)(digits * PLANE), scales + now * GROUPS * LINES,
               minima + (MOI_INT8_MINIMUM ? now * LINES : 0u), x_scales + now * M_TILE, item.rows, digits, acc);
      if (more && of_w)
        store_w(&held.w, w_tiles + next * PLANE, scales + next * GROUPS * LINES,
                minima + (MOI_INT8_MINIMUM ? next * LINES : 0u));
      if (more && !of_w) store_x(&held.x, x_tiles + next * (unsigned)(digits * PLANE), x_scales + next * M_TILE, digits);
      moi_sync();
    }
    t = turn_of(a, gate_up, two, moi_fresh(n));
    finish(a, gate_up, t.i, two, t.j0, (float *)(void *)tiles, acc);
    moi_sync();
  }
}

#define INT8_ONE(a, gate_up) int8(a, gate_up, 1)
#define INT8_TWO(a, gate_up) int8(a, gate_up, 2)
MOI_GEMM_KERNELS(gemm_int8, THREADS, INT8_TWO)
MOI_GEMM_KERNELS_ONE(gemm_int8, THREADS, INT8_ONE)

#endif
