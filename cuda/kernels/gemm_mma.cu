/* Grouped GEMM for many rows on tensor cores: up to 128 rows x 128 columns a block (64 of a gate and an up), 32 k at a time,
 * two stages. x comes as digits straight into shared memory while the stage before is multiplied; W is loaded at the
 * same time, and made codes behind it. Eight warps: 2 by rows, in tiles of 16 that alternate between them, so that
 * tiles without rows cost little; 4 by columns, 32 each.
 *
 * Sums are fp32; scales of 16 or 32 k multiply the sums of their k, not the codes, which stay exact; the scale of a row of
 * x, where its form has one, multiplies the whole sums.
 *
 * Digits and codes are bf16, or f16 in gemm_f16mma.cu, which includes this file with MOI_F16 as 1. */
#include "cuda/device/copy.h"
#include "cuda/kernels/codes.h"

#if MOI_F16
#define MMA_NAME gemm_f16mma
#define MMA moi_mma_f16_k16
#define MOI_ROW_SCALE(a, slot) ((a)->x_scales[(slot) / (a)->x_div] * MOI_FACTOR)
#else
#define MMA_NAME gemm_mma
#define MMA moi_mma_bf16_16816
#define MOI_ROW_SCALE(a, slot) 1.0f
#endif
#include "cuda/kernels/gemm_mma.h"

/* Before sm_80 a thread's part of x goes through its registers, and shared memory has room for one block. */
#if MOI_F16 && (defined(MOI_EMULATED) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800)
#define ASYNC 0
#else
#define ASYNC 1
#endif

#if !defined(MOI_FORMAT_F32) /* it has too many digits */

#define THREADS 256
#define M_TILE 128
#define CHUNK 32
#define LINES 128 /* of W: columns of one product, or by eights of up and gate */
#define GROUPS (MOI_GROUP == 16 ? 2 : 1)
#undef MOI_BLOCKS
#if MOI_GROUP || !ASYNC /* the sums of a group beside those of all: too many registers for two blocks */
#define MOI_BLOCKS 1
#else
#define MOI_BLOCKS 2
#endif
#define PLANE ((int)MOI_CU_MMA_STAGE)

/* Where 16 bytes of k lie in a plane of rows of 64 bytes: eight rows of one segment, and two rows, are in all banks. */
MOI_DEVICE unsigned at(unsigned row, unsigned segment) { return row * 64u + ((segment ^ ((row >> 1) & 3u)) << 4); }

/* Where a lane's matrices begin in a stage: of W, of x. Columns by 8 and tiles of rows are 512 and 2048 bytes further; the
 * second 16 k are two segments, a bit of the address, from the first. */
typedef struct places {
  unsigned w, x;
} places;
MOI_DEVICE places places_of(void) {
  unsigned lane = moi_lane(), row = (moi_warp() & 1u) * 16u + (lane & 15u);
  places p;
  p.w = at((moi_warp() >> 1) * 32u + (lane & 7u), lane >> 3);
  p.x = at(row, lane >> 4);
  return p;
}

/* acc[tile][column group] += x W of a stage. x: planes of digits. rows: of the item. */
MOI_DEVICE void multiply(const places *p, const unsigned char *w, const unsigned char *x, const float *scales,
                         const float *minima, unsigned rows, const int digits, int low_digit, float *acc) {
  unsigned wm = moi_warp() & 1u;
  unsigned b[4][4];
  MOI_UNROLL
  for (unsigned c = 0; c < 4u; c++) moi_ldmatrix_x4(b[c], w + p->w + c * 512u);
  MOI_UNROLL
  for (unsigned group = 0; group < GROUPS; group++) {
#if MOI_GROUP
    moi_f2 s[4], low[4];
    MOI_UNROLL
    for (unsigned c = 0; c < 4u; c++) {
      unsigned line = group * LINES + (moi_warp() >> 1) * 32u + c * 8u + 2u * (moi_lane() & 3u);
      s[c] = *(const moi_f2 *)(const void *)(scales + line);
      if (MOI_MINIMUM) low[c] = *(const moi_f2 *)(const void *)(minima + line);
    }
#endif
    MOI_UNROLL
    for (unsigned tile = 0; tile < 4u; tile++) {
      if (tile * 32u + wm * 16u >= rows) continue;
#if MOI_GROUP
      float sum[4][4], all[4];
      MOI_UNROLL
      for (int c = 0; c < 4; c++) sum[0][c] = sum[1][c] = sum[2][c] = sum[3][c] = all[c] = 0.0f;
#endif
      MOI_UNROLL
      for (unsigned i = 0; i < 2u / GROUPS; i++) {
        unsigned step = group * (2u / GROUPS) + i;
        MOI_UNROLL
        for (int digit = 0; digit < digits; digit++) {
          unsigned a[4];
          if (digit && low_digit) continue; /* of both, less than what is lost anyway */
          moi_ldmatrix_x4(a, x + (p->x ^ step * 32u) + tile * 2048u + digit * PLANE);
          MOI_UNROLL
          for (unsigned c = 0; c < 4u; c++) {
#if MOI_GROUP
            MMA(sum[c], a, b[c] + 2u * step);
#else
            MMA(acc + (tile * 4u + c) * 4u, a, b[c] + 2u * step);
#endif
          }
#if MOI_MINIMUM
          const unsigned ones[2] = {MOI_TWICE(MOI_ONE), MOI_TWICE(MOI_ONE)};
          MMA(all, a, ones);
#endif
        }
      }
#if MOI_GROUP
      MOI_UNROLL
      for (unsigned c = 0; c < 4u; c++) {
        float *to = acc + (tile * 4u + c) * 4u;
        MOI_UNROLL
        for (int r = 0; r < 4; r += 2) {
          to[r] = fmaf(sum[c][r], s[c].x, to[r]);
          to[r + 1] = fmaf(sum[c][r + 1], s[c].y, to[r + 1]);
          if (MOI_MINIMUM) {
            to[r] = fmaf(-all[r], low[c].x, to[r]);
            to[r + 1] = fmaf(-all[r], low[c].y, to[r + 1]);
          }
        }
      }
#endif
    }
  }
  (void)scales, (void)minima;
}

/* What a thread copies of x: 16 bytes of each of two rows, for each digit. rows: where, in units of 16 bytes, or NO_ROW. */
#define NO_ROW 0xffffffffu
#if ASYNC
typedef char x_part;
MOI_DEVICE void load_x(const moi_cu_gemm_args *a, unsigned char *x, const unsigned *rows, unsigned k0, const int digits,
                       x_part *part) {
  (void)part;
  unsigned thread = moi_thread(), segment = thread & 3u;
  MOI_UNROLL
  for (unsigned i = 0; i < 2u; i++) {
    MOI_UNROLL
    for (int digit = 0; digit < digits; digit++)
      moi_copy16_async(x + digit * PLANE + at(thread >> 2, segment) + i * 4096u,
                       (const moi_u4 *)(const void *)a->x +
                           (rows[i] == NO_ROW ? 0u : rows[i] + ((unsigned)digit * a->ldx + k0) / 8u),
                       rows[i] == NO_ROW ? 0 : 16);
  }
  moi_copy_commit();
}
MOI_DEVICE void store_x(const x_part *part, unsigned char *x, const int digits) {
  (void)part, (void)x, (void)digits;
  moi_copy_wait(0);
}
#else
typedef struct x_part {
  moi_u4 v[4];
} x_part;
MOI_DEVICE void load_x(const moi_cu_gemm_args *a, unsigned char *x, const unsigned *rows, unsigned k0, const int digits,
                       x_part *part) {
  const moi_u4 zero = {0u, 0u, 0u, 0u};
  (void)x;
  MOI_UNROLL
  for (unsigned i = 0; i < 2u; i++) {
    MOI_UNROLL
    for (int digit = 0; digit < digits; digit++)
      part->v[2 * digit + (int)i] =
          rows[i] == NO_ROW
              ? zero
              : ((const moi_u4 *)moi_global(a->x))[rows[i] + ((unsigned)digit * a->ldx + k0) / 8u];
  }
}
MOI_DEVICE void store_x(const x_part *part, unsigned char *x, const int digits) {
  MOI_UNROLL
  for (unsigned i = 0; i < 2u; i++) {
    MOI_UNROLL
    for (int digit = 0; digit < digits; digit++)
      *(moi_u4 *)(void *)(x + digit * PLANE + at(moi_thread() >> 2, moi_thread() & 3u) + i * 4096u) =
          part->v[2 * digit + (int)i];
  }
}
#endif

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

MOI_DEVICE void store_w(const line_part *part, const moi_raw *raw, int digit, unsigned char *w, float *scales,
                        float *minima) {
  unsigned codes[8];
  float scale = 0.0f, minimum = 0.0f;
  moi_raw_codes(raw, digit, codes, &scale, &minimum);
  MOI_UNROLL
  for (unsigned i = 0; i < 2u; i++) {
    moi_u4 v;
    v.x = codes[4 * i], v.y = codes[4 * i + 1], v.z = codes[4 * i + 2], v.w = codes[4 * i + 3];
    *(moi_u4 *)(void *)(w + at(part->line, (part->k >> 3) + i)) = v;
  }
  if (MOI_GROUP == 16 || (MOI_GROUP && !part->k)) {
    unsigned to = (GROUPS == 2 && part->k ? LINES : 0u) + part->line;
    scales[to] = scale;
    if (MOI_MINIMUM) minima[to] = minimum;
  }
}

MOI_DEVICE void mma(const moi_cu_gemm_args *a, const int gate_up, const int digits) {
  MOI_SHARED_ASKED(tiles);
  MOI_SHARED(float, scales, 2 * GROUPS * LINES);
  MOI_SHARED(float, minima, MOI_MINIMUM ? 2 * LINES : 4);
  unsigned n_rows, n_items = moi_item_count(a, &n_rows), thread = moi_thread();
  int two = gate_up && a->has_gate;
  unsigned n_tile = two ? LINES / 2 : LINES, columns = moi_columns_of(a, gate_up);
  unsigned char *w_tiles = tiles, *x_tiles = tiles + 2 * PLANE;
  places p = places_of();
  line_part part;
  part.line = MOI_BY_N ? thread & 127u : thread >> 1;
  part.k = (MOI_BY_N ? thread >> 7 : thread & 1u) * 16u;
  for (unsigned i = moi_block_y(); i < n_items; i += moi_grid_y()) {
    moi_cu_item item = moi_item_at(a, i, n_rows);
    moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
    if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
    unsigned rows[2];
    MOI_UNROLL
    for (unsigned r = 0; r < 2u; r++) {
      unsigned row = (thread >> 2) + 64u * r;
      rows[r] = NO_ROW;
      if (row < item.rows) rows[r] = moi_slot_of(a, item.first + row) / a->x_div * (a->ldx / 4u) + (thread & 3u);
    }
    unsigned n_chunks = su.there && sg.there ? (a->k + CHUNK - 1u) / CHUNK * MOI_DIGITS : 0u;
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
      x_part xs;
      if (n_chunks) {
        load_x(a, x_tiles, rows, 0, digits, &xs);
        load_w(&part, 0, a->k, &raw);
        store_w(&part, &raw, 0, w_tiles, scales, minima);
        store_x(&xs, x_tiles, digits);
      }
      moi_sync();
      for (unsigned c = 0; c < n_chunks; c++) {
        unsigned now = c & 1u, next = now ^ 1u, k0 = (c + 1u) / MOI_DIGITS * CHUNK;
        if (c + 1u < n_chunks) {
          load_x(a, x_tiles + next * (unsigned)(digits * PLANE), rows, k0, digits, &xs);
          load_w(&part, k0, a->k, &raw);
        }
        multiply(&p, w_tiles + now * PLANE, x_tiles + now * (unsigned)(digits * PLANE), scales + now * GROUPS * LINES,
                 minima + (MOI_MINIMUM ? now * LINES : 0u), item.rows, digits, MOI_DIGITS == 2 && c & 1u, acc);
        if (c + 1u < n_chunks) {
          store_w(&part, &raw, MOI_DIGITS == 2 && !(c & 1u), w_tiles + next * PLANE, scales + next * GROUPS * LINES,
                  minima + (MOI_MINIMUM ? next * LINES : 0u));
          store_x(&xs, x_tiles + next * (unsigned)(digits * PLANE), digits);
        }
        moi_sync();
      }
      finish(a, gate_up, i, two, j0, (float *)(void *)tiles, acc);
      moi_sync();
    }
  }
}

#if MOI_F16 || defined(MOI_EMULATED) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define MMA_ONE(a, gate_up) mma(a, gate_up, 1)
#define MMA_TWO(a, gate_up) mma(a, gate_up, 2)
#else /* rows that need sm_80: no code of theirs can run */
#define MMA_ONE(a, gate_up) (void)a
#define MMA_TWO(a, gate_up) (void)a
#endif
MOI_GEMM_KERNELS_OF(MMA_NAME, THREADS, MMA_TWO)
MOI_GEMM_KERNELS_ONE_OF(MMA_NAME, THREADS, MMA_ONE)

#endif
