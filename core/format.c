#include "core/format.h"

#include <string.h>

#include "core/status.h"

#define MOI_ORDER_N 0, 0
#define MOI_ORDER_K 1, 0
#define MOI_ORDER_R 0, 1

static const moi_format_row rows[] = {
#define MOI_X(NAME, value, name, order, bn, bk, bytes, sn, sk, sb, zb)                                                 \
  {MOI_FORMAT_##NAME, name, MOI_ORDER_##order, bn, bk, bytes, sn, sk, sb, zb},
  MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
};
enum { N_ROWS = sizeof rows / sizeof rows[0] };

const moi_format_row *moi_format_find(moi_format format) {
  for (uint32_t i = 0; i < N_ROWS; i++)
    if (rows[i].format == format) return &rows[i];
  return NULL;
}

const char *moi_format_name(moi_format format) {
  const moi_format_row *row = moi_format_find(format);
  return row ? row->name : NULL;
}

moi_format moi_format_from_name(const char *name) {
  for (uint32_t i = 0; name && i < N_ROWS; i++)
    if (!strcmp(rows[i].name, name)) return rows[i].format;
  return MOI_FORMAT_NONE;
}

moi_format moi_format_at(uint32_t index) { return index < N_ROWS ? rows[index].format : MOI_FORMAT_NONE; }

uint32_t moi_dense_bytes(moi_format format) {
  return format == MOI_FORMAT_F32 ? 4 : format == MOI_FORMAT_F16 || format == MOI_FORMAT_BF16 ? 2 : 0;
}

uint32_t moi_format_align(const moi_format_row *row) {
  return row->block_bytes == 4 ? 4 : row->block_bytes == 2 ? 2 : 1;
}

static uint64_t round_up_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

moi_status moi_format_size(moi_format format, uint32_t n, uint32_t k, moi_format_sizes *out) {
  const char *fn = "moi_format_size";
  if (!out) return moi_fail(MOI_INVALID_ARGUMENT, fn, "out: is null");
  const moi_format_row *row = moi_format_find(format);
  if (!row) return moi_fail(MOI_INVALID_ARGUMENT, fn, "format: %d is no weight format", (int)format);
  if (!n || !k) return moi_fail(MOI_INVALID_ARGUMENT, fn, "n, k: %u x %u, both must be > 0", n, k);
  /* whole blocks along k; tiles of scales that span both directions (fp8 128x128) may be ragged */
  uint32_t k_multiple = row->scale_n <= 1 && row->scale_k > row->block_k ? row->scale_k : row->block_k;
  uint32_t n_multiple = row->k_major && row->zero_bits ? 8 : row->block_n;
  if (k % k_multiple)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "k: %u is not a multiple of %u, as %s needs", k, k_multiple, row->name);
  if (n % n_multiple)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "n: %u is not a multiple of %u, as %s needs", n, n_multiple, row->name);
  moi_format_sizes sizes = {0, 0, 0};
  sizes.data = (uint64_t)(n / row->block_n) * (k / row->block_k) * row->block_bytes;
  if (row->scale_bytes) {
    uint64_t count = round_up_div(n, row->scale_n) * round_up_div(k, row->scale_k);
    sizes.scales = count * row->scale_bytes;
    sizes.zeros = count * row->zero_bits / 8;
  }
  /* bytes are counted in 32 bits, on devices from the word that the first of them lies in */
  if (sizes.data > UINT32_MAX - 3 || (uint64_t)n * k > UINT32_MAX)
    return moi_fail(MOI_INVALID_ARGUMENT, fn, "n, k: %u x %u in %s exceeds 4 GiB or 2^32 elements for one matrix", n, k, row->name);
  *out = sizes;
  return MOI_OK;
}
