/* Lossless changes of layout between formats: what all backends check, and the host's loops. A pair is a function that
 * moves rows of one matrix. */
#include <stdio.h>
#include <string.h>

#include "core/backend.h"
#include "core/check.h"
#include "core/format.h"
#include "core/shared/decode.h"
#include "core/structs.h"

typedef struct streams {
  uint8_t *data, *scales, *zeros;
} streams;
typedef struct shape {
  uint32_t n, k, group, begin, end; /* rows begin..end-1 are moved */
} shape;
typedef void (*pack_fn)(streams src, streams dst, const shape *s);

static void kn_to_nk_16(streams src, streams dst, const shape *s) {
  enum { TILE = 32 }; /* both sides of a tile stay in L1 */
  for (size_t n0 = s->begin; n0 < s->end; n0 += TILE)
    for (size_t k0 = 0; k0 < s->k; k0 += TILE)
      for (size_t i = n0; i < n0 + TILE && i < s->end; i++)
        for (size_t j = k0; j < k0 + TILE && j < s->k; j++)
          memcpy(dst.data + (i * s->k + j) * 2, src.data + (j * s->n + i) * 2, 2);
}

/* Codes and zero points of GPTQ and AWQ into INT4Z's rows. */
static void int4z_row(streams dst, uint32_t n, uint32_t k_at, uint32_t k, uint32_t q) {
  uint8_t *byte = dst.data + ((size_t)n * k + k_at) / 2;
  *byte = (uint8_t)(k_at & 1 ? (*byte & 15u) | q << 4 : (*byte & 0xf0u) | q);
}

static void gptq_to_int4z(streams src, streams dst, const shape *s) {
  uint32_t n = s->n, k = s->k, group = s->group;
  for (uint32_t i = s->begin; i < s->end; i++)
    for (uint32_t j = 0; j < k; j++)
      int4z_row(dst, i, j, k, MOI_U32(src.data, ((size_t)(j / 8) * n + i) * 4) >> (4 * (j % 8)) & 15u);
  for (uint32_t i = s->begin; i < s->end; i++)
    for (uint32_t g = 0; g < k / group; g++) {
      memcpy(dst.scales + ((size_t)i * (k / group) + g) * 2, src.scales + ((size_t)g * n + i) * 2, 2);
      dst.zeros[(size_t)i * (k / group) + g] =
          (uint8_t)moi_gptq_zero(MOI_U32(src.zeros, ((size_t)g * (n / 8) + i / 8) * 4), i);
    }
}

static void awq_to_int4z(streams src, streams dst, const shape *s) {
  uint32_t n = s->n, k = s->k, group = s->group;
  for (uint32_t i = s->begin; i < s->end; i++)
    for (uint32_t j = 0; j < k; j++)
      int4z_row(dst, i, j, k, moi_awq_nibble(MOI_U32(src.data, ((size_t)j * (n / 8) + i / 8) * 4), i));
  for (uint32_t i = s->begin; i < s->end; i++)
    for (uint32_t g = 0; g < k / group; g++) {
      memcpy(dst.scales + ((size_t)i * (k / group) + g) * 2, src.scales + ((size_t)g * n + i) * 2, 2);
      dst.zeros[(size_t)i * (k / group) + g] =
          (uint8_t)moi_awq_nibble(MOI_U32(src.zeros, ((size_t)g * (n / 8) + i / 8) * 4), i);
    }
}

/* 32 codes, byte j of them: even/odd order to GGUF's halves and back. */
static uint8_t half_byte(const uint8_t *in, uint32_t j) {
  return (uint8_t)(moi_nibble_even_odd(in[j / 2], j) | moi_nibble_even_odd(in[j / 2 + 8], j) << 4);
}
static uint8_t even_odd_byte(const uint8_t *in, uint32_t j) {
  uint32_t even = 2 * j, odd = 2 * j + 1;
  return (uint8_t)(moi_nibble_half(in[even & 15], even) | moi_nibble_half(in[odd & 15], odd) << 4);
}

static void mxfp4_to_gguf(streams src, streams dst, const shape *s) {
  size_t blocks = s->k / 32;
  for (size_t b = s->begin * blocks; b < s->end * blocks; b++) {
    uint8_t *out = dst.data + b * 17;
    const uint8_t *in = src.data + b * 16;
    out[0] = src.scales[b];
    for (uint32_t j = 0; j < 16; j++) out[1 + j] = half_byte(in, j);
  }
}

static void gguf_to_mxfp4(streams src, streams dst, const shape *s) {
  size_t blocks = s->k / 32;
  for (size_t b = s->begin * blocks; b < s->end * blocks; b++) {
    const uint8_t *in = src.data + b * 17;
    uint8_t *out = dst.data + b * 16;
    dst.scales[b] = in[0];
    for (uint32_t j = 0; j < 16; j++) out[j] = even_odd_byte(in + 1, j);
  }
}

/* Blocks into 16 rows interleaved and back. */
typedef struct interleave {
  uint32_t elements, words; /* of a block: how many it holds, and how many words of its bytes are interleaved */
  uint32_t head;            /* bytes of scale before those */
  int even_odd;             /* 1: MXFP4's order, and scales of one byte in a stream of their own */
} interleave;

static void to_r16(streams src, streams dst, const shape *s, interleave b) {
  const size_t blocks = s->k / b.elements, scale = b.even_odd ? 1 : b.head;
  for (size_t i = s->begin; i < s->end; i++)
    for (size_t j = 0; j < blocks; j++) {
      const size_t from = i * blocks + j, to = i / 16 * blocks + j;
      const uint8_t *in = src.data + from * (4 * b.words + b.head), *codes = in + b.head;
      uint8_t halves[16], *out = dst.data + to * 64 * b.words + i % 16 * 4;
      for (uint32_t c = 0; b.even_odd && c < 16; c++) halves[c] = half_byte(in, c);
      for (uint32_t c = 0; c < b.words; c++) memcpy(out + 64 * c, (b.even_odd ? halves : codes) + 4 * c, 4);
      if (scale) memcpy(dst.scales + (to * 16 + i % 16) * scale, b.head ? in : src.scales + from, scale);
    }
}

static void from_r16(streams src, streams dst, const shape *s, interleave b) {
  const size_t blocks = s->k / b.elements, scale = b.even_odd ? 1 : b.head;
  for (size_t i = s->begin; i < s->end; i++)
    for (size_t j = 0; j < blocks; j++) {
      const size_t from = i / 16 * blocks + j, to = i * blocks + j;
      const uint8_t *in = src.data + from * 64 * b.words + i % 16 * 4;
      uint8_t halves[16], *out = dst.data + to * (4 * b.words + b.head);
      for (uint32_t c = 0; c < b.words; c++) memcpy((b.even_odd ? halves : out + b.head) + 4 * c, in + 64 * c, 4);
      for (uint32_t c = 0; b.even_odd && c < 16; c++) out[c] = even_odd_byte(halves, c);
      if (scale) memcpy(b.head ? out : dst.scales + to, src.scales + (from * 16 + i % 16) * scale, scale);
    }
}

#define INTERLEAVE(name, ...)                                                                                          \
  static void name##_to_r16(streams src, streams dst, const shape *s) {                                                \
    to_r16(src, dst, s, (interleave){__VA_ARGS__});                                                                    \
  }                                                                                                                    \
  static void name##_from_r16(streams src, streams dst, const shape *s) {                                              \
    from_r16(src, dst, s, (interleave){__VA_ARGS__});                                                                  \
  }
INTERLEAVE(nibbles, 32, 4, 2, 0)
INTERLEAVE(bytes, 32, 8, 2, 0)
INTERLEAVE(gguf, 32, 4, 1, 0)
INTERLEAVE(mxfp4, 32, 4, 0, 1)
INTERLEAVE(q4_k, 256, 36, 0, 0)

typedef struct pair {
  moi_format from, to;
  uint32_t group;
  pack_fn fn;
} pair;
static const pair pairs[] = {
    {MOI_FORMAT_BF16_KN, MOI_FORMAT_BF16, 0, kn_to_nk_16},
    {MOI_FORMAT_GPTQ_G32, MOI_FORMAT_INT4Z_G32, 32, gptq_to_int4z},
    {MOI_FORMAT_GPTQ_G128, MOI_FORMAT_INT4Z_G128, 128, gptq_to_int4z},
    {MOI_FORMAT_AWQ_G32, MOI_FORMAT_INT4Z_G32, 32, awq_to_int4z},
    {MOI_FORMAT_AWQ_G128, MOI_FORMAT_INT4Z_G128, 128, awq_to_int4z},
    {MOI_FORMAT_MXFP4, MOI_FORMAT_MXFP4_GGUF, 0, mxfp4_to_gguf},
    {MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_MXFP4, 0, gguf_to_mxfp4},
    {MOI_FORMAT_Q4_0, MOI_FORMAT_Q4_0_R16, 0, nibbles_to_r16},
    {MOI_FORMAT_Q4_0_R16, MOI_FORMAT_Q4_0, 0, nibbles_from_r16},
    {MOI_FORMAT_IQ4_NL, MOI_FORMAT_IQ4_NL_R16, 0, nibbles_to_r16},
    {MOI_FORMAT_IQ4_NL_R16, MOI_FORMAT_IQ4_NL, 0, nibbles_from_r16},
    {MOI_FORMAT_Q8_0, MOI_FORMAT_Q8_0_R16, 0, bytes_to_r16},
    {MOI_FORMAT_Q8_0_R16, MOI_FORMAT_Q8_0, 0, bytes_from_r16},
    {MOI_FORMAT_Q4_K, MOI_FORMAT_Q4_K_R16, 0, q4_k_to_r16},
    {MOI_FORMAT_Q4_K_R16, MOI_FORMAT_Q4_K, 0, q4_k_from_r16},
    {MOI_FORMAT_MXFP4, MOI_FORMAT_MXFP4_R16, 0, mxfp4_to_r16},
    {MOI_FORMAT_MXFP4_R16, MOI_FORMAT_MXFP4, 0, mxfp4_from_r16},
    {MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_MXFP4_R16, 0, gguf_to_r16},
    {MOI_FORMAT_MXFP4_R16, MOI_FORMAT_MXFP4_GGUF, 0, gguf_from_r16},
};

moi_format moi_pack_source(moi_format format) {
  for (size_t p = 0; p < sizeof pairs / sizeof pairs[0]; p++)
    if (pairs[p].to == format) return pairs[p].from;
  return format;
}

/* NULL if there is no such pair. */
static const pair *pair_of(const moi_pack_desc *d) {
  for (size_t p = 0; p < sizeof pairs / sizeof pairs[0]; p++)
    if (pairs[p].from == d->from && pairs[p].to == d->to) return &pairs[p];
  return NULL;
}

static moi_status check_pack(const char *fn, const moi_pack_desc *d, const char *what) {
  RANGE(what, n_experts, 1, MAX_EXPERTS);
  if (!moi_format_find(d->from) || !moi_format_find(d->to))
    REFUSE("%s->from, to: %d, %d: no weight format", what, (int)d->from, (int)d->to);
  if (!pair_of(d))
    return moi_fail(MOI_UNSUPPORTED, fn, "%s->from, to: no packing from %s to %s", what, moi_format_name(d->from),
                    moi_format_name(d->to));
  moi_format_sizes sizes;
  moi_status status = moi_format_size(d->from, d->n, d->k, &sizes);
  if (!status) status = moi_format_size(d->to, d->n, d->k, &sizes);
  return status ? moi_fail(status, fn, "%s->n, k: %s", what, moi_last_error()) : MOI_OK;
}

enum { DATA, SCALES, ZEROS, STREAMS };
static const char *const names[STREAMS] = {"data", "scales", "zeros"};

/* One side's streams; bytes: from the first expert's first to the last one's last. */
typedef struct side {
  const char *what;
  moi_weights w;
  moi_buffer *view[STREAMS];
  uint64_t bytes[STREAMS];
} side;

/* Checks one side's views and resolves its strides. aligned: to what kernels load; the host's loops take any byte. */
static moi_status take_side(const char *fn, moi_memory memory, int aligned, const moi_pack_desc *d, moi_format format,
                            const moi_weights *in, side *out) {
  moi_weights *w = &out->w;
  TRY(moi_struct_in(fn, out->what, w, sizeof *w, in));
  TRY(moi_chain_none(fn, out->what, w->next));
  moi_format_sizes sizes;
  TRY(moi_format_size(format, d->n, d->k, &sizes));
  const moi_format_row *row = moi_format_find(format);
  moi_buffer *views[STREAMS] = {&w->data, &w->scales, &w->zeros};
  uint64_t *strides[STREAMS] = {&w->data_stride, &w->scales_stride, &w->zeros_stride};
  uint64_t bytes[STREAMS] = {sizes.data, sizes.scales, sizes.zeros};
  uint32_t aligns[STREAMS] = {moi_format_align(row), row->scale_bytes, row->zero_bits == 4 ? 4 : 1};
  for (int i = 0; i < STREAMS; i++) {
    out->view[i] = views[i];
    out->bytes[i] = 0;
    if (!bytes[i]) { /* the format has no such stream: what the view says of it is not looked at */
      memset(views[i], 0, sizeof *views[i]);
      *strides[i] = 0;
      continue;
    }
    uint64_t stride = *strides[i] ? *strides[i] : bytes[i];
    uint32_t align = aligned ? aligns[i] : 1;
    if (stride < bytes[i] || stride > UINT64_MAX >> 17)
      REFUSE("%s->%s_stride: %llu, one expert has %llu bytes", out->what, names[i], (unsigned long long)stride,
             (unsigned long long)bytes[i]);
    if (stride % align) REFUSE("%s->%s_stride: is not a multiple of %u", out->what, names[i], align);
    char name[32];
    snprintf(name, sizeof name, "%s->%s", out->what, names[i]);
    out->bytes[i] = stride * (d->n_experts - 1) + bytes[i];
    TRY(need(fn, memory, name, *views[i], out->bytes[i], align));
    *strides[i] = stride;
  }
  return MOI_OK;
}

/* Checks both, and that nothing is written to what is read. */
static moi_status take_sides(const char *fn, moi_memory memory, int aligned, const moi_pack_desc *d,
                             const moi_weights *from, const moi_weights *to, moi_weights *src_out,
                             moi_weights *dst_out) {
  side src = {.what = "src"}, dst = {.what = "dst"};
  TRY(take_side(fn, memory, aligned, d, d->from, from, &src));
  TRY(take_side(fn, memory, aligned, d, d->to, to, &dst));
  for (int i = 0; i < STREAMS; i++)
    for (int j = 0; j < STREAMS; j++)
      if (overlap(*dst.view[i], dst.bytes[i], *src.view[j], src.bytes[j]))
        REFUSE("dst->%s: overlaps src->%s", names[i], names[j]);
  *src_out = src.w;
  *dst_out = dst.w;
  return MOI_OK;
}

static streams streams_of(const moi_weights *w, uint32_t e) {
  streams s = {moi_view(w->data), moi_view(w->scales), moi_view(w->zeros)};
  s.data += w->data_stride * e;
  if (s.scales) s.scales += w->scales_stride * e;
  if (s.zeros) s.zeros += w->zeros_stride * e;
  return s;
}

void moi_pack_rows(const moi_pack_desc *d, const moi_weights *src, const moi_weights *dst, uint32_t e, uint32_t begin,
                   uint32_t end) {
  const pair *p = pair_of(d);
  shape s = {d->n, d->k, p->group, begin, end};
  p->fn(streams_of(src, e), streams_of(dst, e), &s);
}

moi_status moi_pack(const moi_pack_desc *desc, const moi_weights *src, const moi_weights *dst) {
  const char *fn = "moi_pack";
  moi_status status;
  moi_pack_desc d;
  moi_weights from, to;
  TAKE(&d, desc, check_pack);
  TRY(take_sides(fn, MOI_BY_PTR, 0, &d, src, dst, &from, &to));
  for (uint32_t e = 0; e < d.n_experts; e++) moi_pack_rows(&d, &from, &to, e, 0, d.n);
  return MOI_OK;
}

moi_status moi_pack_plan(moi_context *context, const moi_pack_desc *desc, moi_plan **out) {
  const char *fn = "moi_pack_plan";
  moi_plan draft;
  moi_status status = moi_plan_begin(fn, context, MOI_OP_PACK, &draft, out);
  if (status) return status;
  TAKE(&draft.pack, desc, check_pack);
  return moi_plan_finish(fn, &draft, out);
}

moi_status moi_pack_run(const moi_plan *plan, const moi_weights *src, const moi_weights *dst, moi_queue queue) {
  const char *fn = "moi_pack_run";
  moi_run run;
  moi_buffer no_workspace = {0};
  TRY(moi_run_begin(fn, plan, MOI_OP_PACK, no_workspace, queue, &run));
  TRY(take_sides(fn, moi_memory_of(plan), 1, &plan->pack, src, dst, &run.pack_src, &run.pack_dst));
  return plan->context->ops->run(fn, plan, &run);
}
