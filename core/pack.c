/* Lossless changes of layout between formats, on the host. A pair is a function that moves one matrix. */
#include <string.h>

#include "core/backend.h"
#include "core/format.h"
#include "core/shared/decode.h"
#include "core/structs.h"

typedef struct streams {
  uint8_t *data, *scales, *zeros;
} streams;
typedef void (*pack_fn)(streams src, streams dst, uint32_t n, uint32_t k, uint32_t group);

static void kn_to_nk_16(streams src, streams dst, uint32_t n, uint32_t k, uint32_t group) {
  (void)group;
  enum { TILE = 32 }; /* both sides of a tile stay in L1 */
  for (uint32_t n0 = 0; n0 < n; n0 += TILE)
    for (uint32_t k0 = 0; k0 < k; k0 += TILE)
      for (uint32_t i = n0; i < n0 + TILE && i < n; i++)
        for (uint32_t j = k0; j < k0 + TILE && j < k; j++)
          memcpy(dst.data + ((size_t)i * k + j) * 2, src.data + ((size_t)j * n + i) * 2, 2);
}

/* Codes and zero points of GPTQ and AWQ into INT4Z's rows. */
static void int4z_row(streams dst, uint32_t n, uint32_t k_at, uint32_t k, uint32_t q) {
  uint8_t *byte = dst.data + ((size_t)n * k + k_at) / 2;
  *byte = (uint8_t)(k_at & 1 ? (*byte & 15u) | q << 4 : (*byte & 0xf0u) | q);
}

static void gptq_to_int4z(streams src, streams dst, uint32_t n, uint32_t k, uint32_t group) {
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t j = 0; j < k; j++)
      int4z_row(dst, i, j, k, MOI_U32(src.data, ((size_t)(j / 8) * n + i) * 4) >> (4 * (j % 8)) & 15u);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t g = 0; g < k / group; g++) {
      memcpy(dst.scales + ((size_t)i * (k / group) + g) * 2, src.scales + ((size_t)g * n + i) * 2, 2);
      dst.zeros[(size_t)i * (k / group) + g] =
          (uint8_t)moi_gptq_zero(MOI_U32(src.zeros, ((size_t)g * (n / 8) + i / 8) * 4), i);
    }
}

static void awq_to_int4z(streams src, streams dst, uint32_t n, uint32_t k, uint32_t group) {
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t j = 0; j < k; j++)
      int4z_row(dst, i, j, k, moi_awq_nibble(MOI_U32(src.data, ((size_t)j * (n / 8) + i / 8) * 4), i));
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t g = 0; g < k / group; g++) {
      memcpy(dst.scales + ((size_t)i * (k / group) + g) * 2, src.scales + ((size_t)g * n + i) * 2, 2);
      dst.zeros[(size_t)i * (k / group) + g] =
          (uint8_t)moi_awq_nibble(MOI_U32(src.zeros, ((size_t)g * (n / 8) + i / 8) * 4), i);
    }
}

/* 32 codes: even/odd order to GGUF's halves and back. */
static void mxfp4_to_gguf(streams src, streams dst, uint32_t n, uint32_t k, uint32_t group) {
  (void)group;
  for (size_t b = 0; b < (size_t)n * (k / 32); b++) {
    uint8_t *out = dst.data + b * 17;
    const uint8_t *in = src.data + b * 16;
    out[0] = src.scales[b];
    for (uint32_t j = 0; j < 16; j++)
      out[1 + j] = (uint8_t)(moi_nibble_even_odd(in[j / 2], j) | moi_nibble_even_odd(in[j / 2 + 8], j) << 4);
  }
}

static void gguf_to_mxfp4(streams src, streams dst, uint32_t n, uint32_t k, uint32_t group) {
  (void)group;
  for (size_t b = 0; b < (size_t)n * (k / 32); b++) {
    const uint8_t *in = src.data + b * 17;
    uint8_t *out = dst.data + b * 16;
    dst.scales[b] = in[0];
    for (uint32_t j = 0; j < 16; j++) {
      uint32_t even = 2 * j, odd = 2 * j + 1;
      out[j] = (uint8_t)(moi_nibble_half(in[1 + (even & 15)], even) | moi_nibble_half(in[1 + (odd & 15)], odd) << 4);
    }
  }
}

static const struct {
  moi_format from, to;
  uint32_t group;
  pack_fn fn;
} pairs[] = {
    {MOI_FORMAT_BF16_KN, MOI_FORMAT_BF16, 0, kn_to_nk_16},
    {MOI_FORMAT_GPTQ_G32, MOI_FORMAT_INT4Z_G32, 32, gptq_to_int4z},
    {MOI_FORMAT_GPTQ_G128, MOI_FORMAT_INT4Z_G128, 128, gptq_to_int4z},
    {MOI_FORMAT_AWQ_G32, MOI_FORMAT_INT4Z_G32, 32, awq_to_int4z},
    {MOI_FORMAT_AWQ_G128, MOI_FORMAT_INT4Z_G128, 128, awq_to_int4z},
    {MOI_FORMAT_MXFP4, MOI_FORMAT_MXFP4_GGUF, 0, mxfp4_to_gguf},
    {MOI_FORMAT_MXFP4_GGUF, MOI_FORMAT_MXFP4, 0, gguf_to_mxfp4},
};

/* Checks one side's views and finds the strides between experts. */
static moi_status side(const char *fn, const char *what, const moi_weights *in, moi_format format, uint32_t n,
                       uint32_t k, uint32_t n_experts, streams *out, uint64_t stride[3]) {
  moi_weights w;
  moi_status status = moi_struct_in(fn, what, &w, sizeof w, in);
  if (!status) status = moi_chain_none(fn, what, w.next);
  moi_format_sizes sizes;
  if (!status) status = moi_format_size(format, n, k, &sizes);
  if (status) return status;
  const char *names[3] = {"data", "scales", "zeros"};
  moi_buffer views[3] = {w.data, w.scales, w.zeros};
  uint64_t bytes[3] = {sizes.data, sizes.scales, sizes.zeros};
  uint64_t given[3] = {w.data_stride, w.scales_stride, w.zeros_stride};
  uint8_t **to[3] = {&out->data, &out->scales, &out->zeros};
  for (int i = 0; i < 3; i++) {
    *to[i] = moi_view(views[i]);
    stride[i] = given[i] ? given[i] : bytes[i];
    if (!bytes[i]) {
      *to[i] = NULL; /* the format has no such stream: what the view says of it is not looked at */
      continue;
    }
    if (!*to[i]) return moi_fail(MOI_INVALID_ARGUMENT, fn, "%s->%s: is absent", what, names[i]);
    if (stride[i] < bytes[i] || stride[i] > UINT64_MAX >> 17)
      return moi_fail(MOI_INVALID_ARGUMENT, fn, "%s->%s_stride: %llu, one expert has %llu bytes", what, names[i],
                      (unsigned long long)stride[i], (unsigned long long)bytes[i]);
    uint64_t all = stride[i] * (n_experts - 1) + bytes[i];
    if (views[i].size < all)
      return moi_fail(MOI_INVALID_ARGUMENT, fn, "%s->%s.size: %llu bytes, %llu are needed", what, names[i],
                      (unsigned long long)views[i].size, (unsigned long long)all);
  }
  return MOI_OK;
}

static streams expert(const streams *all, const uint64_t stride[3], uint32_t e) {
  streams one = {all->data + stride[0] * e, all->scales ? all->scales + stride[1] * e : NULL,
                 all->zeros ? all->zeros + stride[2] * e : NULL};
  return one;
}

moi_status moi_pack(const moi_pack_desc *desc, const moi_weights *src, const moi_weights *dst) {
  const char *fn = "moi_pack";
  moi_pack_desc d;
  moi_status status = MOI_STRUCT_IN(fn, &d, desc);
  if (!status) status = moi_chain_none(fn, "desc", d.next);
  if (status) return status;
  if (!d.n_experts || d.n_experts > 65536)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->n_experts: %u, must be 1..65536", d.n_experts);
  if (!moi_format_find(d.from) || !moi_format_find(d.to))
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "desc->from, to: %d, %d: no weight format", (int)d.from, (int)d.to);
  for (size_t p = 0; p < sizeof pairs / sizeof pairs[0]; p++) {
    if (pairs[p].from != d.from || pairs[p].to != d.to) continue;
    streams from, to;
    uint64_t from_stride[3], to_stride[3];
    status = side(fn, "src", src, d.from, d.n, d.k, d.n_experts, &from, from_stride);
    if (!status) status = side(fn, "dst", dst, d.to, d.n, d.k, d.n_experts, &to, to_stride);
    if (status) return status;
    for (uint32_t e = 0; e < d.n_experts; e++)
      pairs[p].fn(expert(&from, from_stride, e), expert(&to, to_stride, e), d.n, d.k, pairs[p].group);
    return MOI_OK;
  }
  return moi_fail(MOI_UNSUPPORTED, fn, "desc->from, to: no packing from %s to %s", moi_format_name(d.from),
                  moi_format_name(d.to));
}
