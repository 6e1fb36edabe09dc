/* Grouped GEMM of E4M3 by E4M3 on tensor cores: what act_quant leaves of x, and weights of FP8 and FP8_B128, both as they
 * lie: nothing is converted. Up to 128 rows x 128 columns a block (64 of a gate and an up), 128 k at a time, which are a
 * group of act_quant and a block of FP8_B128: their sums are multiplied by both scales and added up in fp32. Two stages;
 * the warps' parts are gemm_mma.h's.
 *
 * Products are exact, but the sums of 128 k may not be fp32's: measurements that others published say that tensor cores
 * keep about 14 bits of E4M3 sums. docs/cuda.md says what follows. */
#include "cuda/kernels/gemm_e4m3.h"

#if defined(MOI_FORMAT_FP8) || defined(MOI_FORMAT_FP8_B128)

#ifdef MOI_FORMAT_FP8_B128
#define BLOCKS_OF_W 1
#else
#define BLOCKS_OF_W 0
#endif

/* acc[tile][column group] += x W of a stage. w, x: where a lane's matrices begin; two segments further is an exclusive or.
 * scales: of the lines of W, then of the rows of x. */
MOI_DEVICE void multiply(const unsigned char *stage_w, const unsigned char *stage_x, unsigned w, unsigned x,
                         const float *scales, unsigned rows, float *acc) {
  unsigned wm = moi_warp() & 1u, lane = moi_lane();
  unsigned b[4][8];
  moi_f2 s[4];
  MOI_UNROLL
  for (unsigned c = 0; c < 4u; c++) {
    moi_ldmatrix_x4(b[c], stage_w + w + c * 1024u);
    moi_ldmatrix_x4(b[c] + 4, stage_w + (w ^ 64u) + c * 1024u);
    if (BLOCKS_OF_W)
      s[c] = *(const moi_f2 *)(const void *)(scales + (moi_warp() >> 1) * 32u + c * 8u + 2u * (lane & 3u));
  }
  MOI_UNROLL
  for (unsigned tile = 0; tile < 4u; tile++) {
    unsigned row = tile * 32u + wm * 16u;
    if (row >= rows) continue;
    float sum[4][4];
    MOI_UNROLL
    for (int c = 0; c < 4; c++) sum[c][0] = sum[c][1] = sum[c][2] = sum[c][3] = 0.0f;
    MOI_UNROLL
    for (unsigned step = 0; step < 4u; step++) {
      unsigned a[4];
      moi_ldmatrix_x4(a, stage_x + (x ^ step * 32u) + tile * 4096u);
      MOI_UNROLL
      for (unsigned c = 0; c < 4u; c++) moi_mma_e4m3_16832(sum[c], a, b[c] + 2u * step);
    }
    float first = scales[LINES + row + (lane >> 2)], second = scales[LINES + row + (lane >> 2) + 8u];
    MOI_UNROLL
    for (unsigned c = 0; c < 4u; c++) {
      float *to = acc + (tile * 4u + c) * 4u;
      if (BLOCKS_OF_W) sum[c][0] *= s[c].x, sum[c][1] *= s[c].y, sum[c][2] *= s[c].x, sum[c][3] *= s[c].y;
      to[0] = fmaf(sum[c][0], first, to[0]);
      to[1] = fmaf(sum[c][1], first, to[1]);
      to[2] = fmaf(sum[c][2], second, to[2]);
      to[3] = fmaf(sum[c][3], second, to[3]);
    }
  }
}

/* What a thread copies: a segment of each fourth of the rows of x and of the lines of W, and one scale. */
typedef struct part {
  moi_streams m;         /* of the lines */
  unsigned lines[4];     /* their rows of W */
  unsigned rows[4];      /* of rows_of_x */
  const float *scales;   /* of the thread's line or row, one for each chunk; null: 0 */
  int async;             /* 16 bytes of W may be copied at once */
} part;

MOI_DEVICE void copy(const moi_cu_gemm_args *a, const part *p, unsigned chunk, unsigned char *w, unsigned char *x) {
  unsigned segment = moi_thread() & 7u, line = moi_thread() >> 3, k = chunk * CHUNK + segment * 16u, K = a->k;
  copy_x(a, p->rows, chunk, x);
  if (p->async) {
    MOI_UNROLL
    for (unsigned i = 0; i < 4u; i++)
      moi_copy16_async(w + at(line, segment) + i * 4096u, p->m.d + (k < K ? p->lines[i] * K + k : 0u), k < K ? 16 : 0);
  } else {
    MOI_ROLLED
    for (unsigned i = 0; i < 4u; i++) {
      moi_raw raw;
      moi_u4 v;
      moi_raw_load(&p->m, i == 0u ? p->lines[0] : i == 1u ? p->lines[1] : i == 2u ? p->lines[2] : p->lines[3], k, 0, K,
                   &raw);
      v.x = raw.q[0], v.y = raw.q[1], v.z = raw.q[2], v.w = raw.q[3];
      *(moi_u4 *)(void *)(w + at(line, segment) + i * 4096u) = v;
    }
  }
  moi_copy_commit();
}

MOI_DEVICE void fp8(const moi_cu_gemm_args *a, const int gate_up) {
  MOI_SHARED_ASKED(tiles);
  MOI_SHARED(float, scales, 2 * 256);
  unsigned n_rows, n_items = moi_item_count(a, &n_rows), thread = moi_thread(), lane = moi_lane();
  int two = gate_up && a->has_gate;
  unsigned n_tile = two ? LINES / 2u : LINES, columns = moi_columns_of(a, gate_up);
  unsigned x_row = MOI_CU_UP128(a->ldx), n_chunks = (a->k + CHUNK - 1u) / CHUNK;
  unsigned char *w_tiles = tiles, *x_tiles = tiles + 2u * PLANE;
  unsigned w = at((moi_warp() >> 1) * 32u + (lane & 7u), lane >> 3);
  unsigned x = at((moi_warp() & 1u) * 16u + (lane & 15u), lane >> 4);
  for (unsigned i = moi_block_y(); i < n_items; i += moi_grid_y()) {
    moi_cu_item item = moi_item_at(a, i, n_rows);
    moi_streams su = moi_streams_of(&a->up, item.expert, a->bias_type), sg = su;
    if (two) sg = moi_streams_of(&a->gate, item.expert, a->bias_type);
    unsigned chunks = su.there && sg.there ? n_chunks : 0u;
    part p;
    rows_of_x(a, &item, p.rows);
    for (unsigned j0 = moi_block_x() * n_tile; j0 < columns; j0 += moi_grid_x() * n_tile) {
      int gate;
      MOI_UNROLL
      for (unsigned r = 0; r < 4u; r++) p.lines[r] = row_of_line(a, two, j0, (thread >> 3) + 32u * r, &gate);
      p.m = gate ? sg : su; /* of all four alike: 32 lines apart */
      p.m.d = (const uint8_t *)moi_global(p.m.d);
      p.m.s = (const uint8_t *)moi_global(p.m.s);
      p.async = !(((uintptr_t)p.m.d | a->k) & 15u);
      p.scales = NULL;
      if (thread >= LINES) {
        if (thread - LINES < item.rows)
          p.scales = a->x_scales + (uint64_t)(moi_slot_of(a, item.first + thread - LINES) / a->x_div) * (x_row >> 7);
      } else if (BLOCKS_OF_W) {
        unsigned row = row_of_line(a, two, j0, thread, &gate);
        p.scales = (const float *)(const void *)(gate ? sg.s : su.s) + (row >> 7) * n_chunks;
      }
      float acc[64], scale = 0.0f;
      MOI_UNROLL
      for (int c = 0; c < 64; c++) acc[c] = 0.0f;
      if (chunks) {
        copy(a, &p, 0, w_tiles, x_tiles);
        scales[thread] = p.scales ? p.scales[0] : 0.0f;
        moi_copy_wait(0);
      }
      moi_sync();
      for (unsigned c = 0; c < chunks; c++) {
        unsigned now = c & 1u, next = now ^ 1u;
        if (c + 1u < chunks) {
          copy(a, &p, c + 1u, w_tiles + next * PLANE, x_tiles + next * PLANE);
          scale = p.scales ? p.scales[c + 1u] : 0.0f;
        }
        multiply(w_tiles + now * PLANE, x_tiles + now * PLANE, w, x, scales + now * 256u, item.rows, acc);
        scales[next * 256u + thread] = scale;
        moi_copy_wait(0);
        moi_sync();
      }
      finish(a, gate_up, i, two, j0, (float *)(void *)tiles, acc);
      moi_sync();
    }
  }
}

#if defined(MOI_EMULATED) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
#define FP8 fp8
#else /* a row that needs sm_89: no code of it can run */
#define FP8(a, gate_up) (void)a
#endif
MOI_GEMM_KERNELS(gemm_fp8mma, THREADS, FP8)

#endif
