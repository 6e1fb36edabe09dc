/* Sizes of formats and packing, with hostile shapes, strides and views; lossless pairs come back as they were. */
#include "tests/fuzz/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  bytes b = {data, data + size};
  moi_pack_desc d = MOI_PACK_DESC_INIT;
  d.from = any_format(&b);
  d.to = next8(&b) < 200 ? moi_pack_preferred(MOI_BACKEND_CPU, d.from) : any_format(&b);
  if (d.from == MOI_FORMAT_MXFP4 && next8(&b) < 200) d.to = MOI_FORMAT_MXFP4_GGUF;
  if (d.from == MOI_FORMAT_MXFP4_GGUF && next8(&b) < 200) d.to = MOI_FORMAT_MXFP4;
  d.n = next8(&b) < 240 ? 8 * (1 + below(&b, 8)) : next32(&b);
  d.k = next8(&b) < 240 ? 32 * (1 + below(&b, 8)) : next32(&b);
  d.n_experts = count(&b, 4);
  moi_format_sizes from = {0, 0, 0}, to = {0, 0, 0};
  told(moi_format_size(d.from, d.n, d.k, &from));
  told(moi_format_size(d.to, d.n, d.k, &to));
  uint64_t experts = d.n_experts < 8 ? d.n_experts : 8;
  moi_weights source = MOI_WEIGHTS_INIT, packed = MOI_WEIGHTS_INIT;
  source.data = odd_view(&b, from.data * experts);
  source.scales = odd_view(&b, from.scales * experts);
  source.zeros = odd_view(&b, from.zeros * experts);
  packed.data = odd_view(&b, to.data * experts);
  packed.scales = odd_view(&b, to.scales * experts);
  packed.zeros = odd_view(&b, to.zeros * experts);
  if (next8(&b) > 240) source.data_stride = next32(&b);
  if (next8(&b) > 240) packed.scales_stride = next32(&b);
  moi_status status = moi_pack(&d, &source, &packed);
  told(status);
  if (!status && experts == d.n_experts && !source.data_stride && !packed.scales_stride &&
      (d.from == MOI_FORMAT_MXFP4_GGUF || d.from == MOI_FORMAT_MXFP4) && d.to != d.from) {
    moi_weights again = MOI_WEIGHTS_INIT;
    again.data = view(&b, from.data * experts);
    again.scales = view(&b, from.scales * experts);
    moi_format swap = d.from;
    d.from = d.to;
    d.to = swap;
    if (moi_pack(&d, &packed, &again)) abort();
    if (again.data.ptr && memcmp(again.data.ptr, source.data.ptr, from.data * experts)) abort();
    if (again.scales.ptr && memcmp(again.scales.ptr, source.scales.ptr, from.scales * experts)) abort();
  }
  drop_blocks();
  return 0;
}
