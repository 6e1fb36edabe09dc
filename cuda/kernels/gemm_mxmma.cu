/* Grouped GEMM of E2M1 by E4M3 on the block-scaled tensor cores of sm_120a: W of MXFP4, widened to bytes on its way into shared
 * memory, and x as an act_quant of FP8 leaves it whose scales are powers of two. The tensor core multiplies by the scales
 * of both, each an exponent: W's of 32 k, x's of 128. Up to 128 rows x 128 columns a block (64 of a gate and an up), 128 k
 * at a time, whose sums are added up in fp32: how many bits hardware keeps of them is not known, as for gemm_fp8mma.cu,
 * whose tiles these are. Two stages; the warps' parts are gemm_mma.h's. */
#include "cuda/kernels/gemm_e4m3.h"

#if defined(MOI_FORMAT_MXFP4) || defined(MOI_FORMAT_MXFP4_GGUF)


/* 16 k of W, a byte each: a code lies in bits 2 to 5 of it. */
MOI_DEVICE moi_u4 widened(const moi_raw *r) {
  moi_u4 v;
#ifdef MOI_FORMAT_MXFP4 /* 8 bytes of nibbles, low first */
  unsigned even = (r->q[0] << 2) & 0x3c3c3c3cu, odd = (r->q[0] >> 2) & 0x3c3c3c3cu;
  v.x = moi_bytes(even, odd, 0x5140u), v.y = moi_bytes(even, odd, 0x7362u);
  even = (r->q[1] << 2) & 0x3c3c3c3cu, odd = (r->q[1] >> 2) & 0x3c3c3c3cu;
  v.z = moi_bytes(even, odd, 0x5140u), v.w = moi_bytes(even, odd, 0x7362u);
#else /* bytes already, codes in the low nibbles */
  v.x = r->q[0] << 2, v.y = r->q[1] << 2, v.z = r->q[2] << 2, v.w = r->q[3] << 2;
#endif
  return v;
}

/* acc[tile][column group] += x W of a stage. w, x: where a lane's matrices begin; two segments further is an exclusive or.
 * scales: of the lines of W, a byte for each 32 k, then of the rows of x. */
MOI_DEVICE void multiply(const unsigned char *stage_w, const unsigned char *stage_x, unsigned w, unsigned x,
                         const unsigned *scales, unsigned rows, float *acc) {
  unsigned wm = moi_warp() & 1u, lane = moi_lane();
  unsigned b[4][8], of_b[4];
  MOI_UNROLL
  for (unsigned c = 0; c < 4u; c++) {
    moi_ldmatrix_x4(b[c], stage_w + w + c * 1024u);
    moi_ldmatrix_x4(b[c] + 4, stage_w + (w ^ 64u) + c * 1024u);
    of_b[c] = scales[(moi_warp() >> 1) * 32u + c * 8u + (lane >> 2)];
  }
  MOI_UNROLL
  for (unsigned tile = 0; tile < 4u; tile++) {
    unsigned row = tile * 32u + wm * 16u;
    if (row >= rows) continue;
    unsigned of_a = scales[LINES + row + (lane >> 2) + 8u * (lane & 1u)];
    float sum[4][4];
    MOI_UNROLL
    for (int c = 0; c < 4; c++) sum[c][0] = sum[c][1] = sum[c][2] = sum[c][3] = 0.0f;
    MOI_UNROLL
    for (unsigned step = 0; step < 4u; step++) {
      unsigned a[4];
      moi_ldmatrix_x4(a, stage_x + (x ^ step * 32u) + tile * 4096u);
      MOI_UNROLL
      for (unsigned c = 0; c < 4u; c++) moi_mma_mx_e4m3_e2m1_16832(sum[c], a, b[c] + 2u * step, of_a, of_b[c] >> 8u * step);
    }
    MOI_UNROLL
    for (unsigned c = 0; c < 4u; c++) {
      MOI_UNROLL
      for (unsigned i = 0; i < 4u; i++) acc[(tile * 4u + c) * 4u + i] += sum[c][i];
    }
  }
}

/* What a thread copies: a segment of each fourth of the rows of x and of the lines of W, and one row's scale. */
typedef struct part {
  moi_streams m;       /* of the lines */
  unsigned lines[4];   /* their rows of W */
  unsigned rows[4];    /* of rows_of_x */
  const float *scales; /* of the thread's row, one for each chunk; null: 0 */
} part;

MOI_DEVICE void load_w(const moi_cu_gemm_args *a, const part *p, unsigned chunk, moi_raw *raw) {
  unsigned k = chunk * CHUNK + (moi_thread() & 7u) * 16u;
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++) {
    if (k < a->k) {
      moi_raw_load(&p->m, p->lines[i], k, 0, a->k, &raw[i]);
    } else {
      raw[i].q[0] = raw[i].q[1] = raw[i].q[2] = raw[i].q[3] = raw[i].s = 0u;
    }
  }
}
/* scales: words of the lines; of the two threads that have 32 k one writes their byte. */
MOI_DEVICE void store_w(const moi_raw *raw, unsigned char *w, unsigned *scales) {
  unsigned segment = moi_thread() & 7u, line = moi_thread() >> 3;
  MOI_UNROLL
  for (unsigned i = 0; i < 4u; i++) {
    *(moi_u4 *)(void *)(w + at(line, segment) + i * 4096u) = widened(&raw[i]);
    if (!(segment & 1u)) ((unsigned char *)(scales + line + 32u * i))[segment >> 1] = (unsigned char)raw[i].s;
  }
}

MOI_DEVICE void mx(const moi_cu_gemm_args *a, const int gate_up) {
  MOI_SHARED_ASKED(tiles);
  MOI_SHARED(unsigned, scales, 2 * 256);
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
    p.scales = NULL;
    if (thread < item.rows && thread < LINES)
      p.scales = a->x_scales + (uint64_t)(moi_slot_of(a, item.first + thread) / a->x_div) * (x_row >> 7);
    rows_of_x(a, &item, p.rows);
    for (unsigned j0 = moi_block_x() * n_tile; j0 < columns; j0 += moi_grid_x() * n_tile) {
      int gate;
      moi_raw raw[4];
      MOI_UNROLL
      for (unsigned r = 0; r < 4u; r++) p.lines[r] = row_of_line(a, two, j0, (thread >> 3) + 32u * r, &gate);
      p.m = gate ? sg : su; /* of all four alike: 32 lines apart */
      p.m.d = (const uint8_t *)moi_global(p.m.d);
      p.m.s = (const uint8_t *)moi_global(p.m.s);
      float acc[64], scale = 0.0f;
      MOI_UNROLL
      for (int c = 0; c < 64; c++) acc[c] = 0.0f;
      if (chunks) {
        copy_x(a, p.rows, 0, x_tiles);
        moi_copy_commit();
        load_w(a, &p, 0, raw);
        store_w(raw, w_tiles, scales);
        if (thread < LINES) scales[LINES + thread] = p.scales ? moi_f32_bits(p.scales[0]) >> 23 : 0u;
        moi_copy_wait(0);
      }
      moi_sync();
      for (unsigned c = 0; c < chunks; c++) {
        unsigned now = c & 1u, next = now ^ 1u;
        if (c + 1u < chunks) {
          copy_x(a, p.rows, c + 1u, x_tiles + next * PLANE);
          moi_copy_commit();
          load_w(a, &p, c + 1u, raw);
          scale = p.scales ? p.scales[c + 1u] : 0.0f;
        }
        multiply(w_tiles + now * PLANE, x_tiles + now * PLANE, w, x, scales + now * 256u, item.rows, acc);
        if (c + 1u < chunks) {
          store_w(raw, w_tiles + next * PLANE, scales + next * 256u);
          if (thread < LINES) scales[next * 256u + LINES + thread] = moi_f32_bits(scale) >> 23;
        }
        moi_copy_wait(0);
        moi_sync();
      }
      finish(a, gate_up, i, two, j0, (float *)(void *)tiles, acc);
      moi_sync();
    }
  }
}

#if defined(MOI_EMULATED) || !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM120_ALL)
#define MX mx
#else /* a row that needs sm_120a: no code of it can run */
#define MX(a, gate_up) (void)a
#endif
MOI_GEMM_KERNELS(gemm_mxmma, THREADS, MX)

#endif
