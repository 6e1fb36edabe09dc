/* A matrix of a checkpoint, whatever layout it has. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/checkpoint/parts.h"
#include "bench/checkpoint/store.h"
#include "core/shared/decode.h"

bool moi_is_type(const moi_tensor *t, const char *type) { return t && !strcmp(t->type, type); }

uint64_t moi_tensor_elements(const moi_tensor *t) {
  uint64_t n = 1;
  for (uint32_t i = 0; i < t->n_dims; i++) n *= t->dims[i];
  return n;
}

bool moi_layer_fail_tensor(const moi_layer_reader *r, const moi_tensor *t, const char *what) {
  char shape[128] = "";
  size_t length = 0;
  for (uint32_t i = 0; i < t->n_dims && length < sizeof shape - 24; i++)
    length +=
        (size_t)snprintf(shape + length, sizeof shape - length, "%s%llu", i ? "," : "", (unsigned long long)t->dims[i]);
  return moi_load_fail(r->error, "%s (%s [%s]): %s", t->name, t->type, shape, what);
}

bool moi_layer_numbers(moi_layer_reader *r, const moi_tensor *t, uint64_t count, moi_format want, moi_buffer *out) {
  uint64_t bytes = t->format == MOI_FORMAT_F32                                   ? 4
                   : t->format == MOI_FORMAT_F16 || t->format == MOI_FORMAT_BF16 ? 2
                                                                                 : 0;
  bool e8m0 = !strcmp(t->type, "F8_E8M0");
  if (!bytes && !e8m0) return moi_layer_fail_tensor(r, t, "is not F32, F16 or BF16, as it must be here");
  if (e8m0) bytes = 1;
  if (!count || moi_tensor_elements(t) != count || t->size != count * bytes) {
    char text[64];
    snprintf(text, sizeof text, "does not hold %llu numbers", (unsigned long long)count);
    return moi_layer_fail_tensor(r, t, text);
  }
  if (t->format == want && (uintptr_t)t->data % bytes == 0) {
    *out = moi_ptr(t->data, t->size);
    return true;
  }
  if (want != MOI_FORMAT_F32) return moi_layer_fail_tensor(r, t, "lies at an odd address");
  float *copy = moi_layer_own(r, count, sizeof *copy);
  if (!copy) return false;
  for (uint64_t i = 0; i < count; i++) {
    if (e8m0) copy[i] = moi_e8m0_value(t->data[i]);
    else if (bytes == 4) memcpy(&copy[i], t->data + 4 * i, 4);
    else {
      uint16_t half;
      memcpy(&half, t->data + 2 * i, 2);
      copy[i] = t->format == MOI_FORMAT_F16 ? moi_f16_value(half) : moi_bf16_value(half);
    }
  }
  *out = moi_ptr(copy, count * sizeof *copy);
  return true;
}

/* Alignment that the library asks of the streams, as moi_weights says. */
typedef struct alignment {
  uint32_t data, scales, zeros;
} alignment;

static alignment align_of(moi_format format) {
  switch (format) {
#define MOI_X(NAME, value, name, order, bn, bk, bytes, sn, sk, sb, zb)                                                 \
  case MOI_FORMAT_##NAME:                                                                                              \
    return (alignment){bytes == 4 || bytes == 2 ? bytes : 1, sb ? sb : 1, zb == 4 ? 4 : 1};
    MOI_FORMAT_MAP(MOI_X)
#undef MOI_X
  default:
    return (alignment){1, 1, 1};
  }
}

static moi_found bad(const moi_layer_reader *r, const moi_tensor *t, const char *what) {
  moi_layer_fail_tensor(r, t, what);
  return MOI_BAD;
}

/* The last check of every matrix: the library's own sizes are those of the tensors, and the addresses are aligned. */
static moi_found finish(const moi_layer_reader *r, moi_part *part, const moi_tensor *data, uint64_t n, uint64_t k,
                        uint64_t scales_size, uint64_t zeros_size) {
  part->name = data->name;
  if (!n || !k || n > INT32_MAX || k > INT32_MAX) return bad(r, data, "is no matrix");
  part->n = (uint32_t)n;
  part->k = (uint32_t)k;
  if (moi_format_size(part->format, part->n, part->k, &part->sizes) != MOI_OK) return bad(r, data, moi_last_error());
  uint64_t e = part->e ? part->e : 1, size;
  if (!moi_multiply(part->sizes.data, e, &size) || size != data->size) return bad(r, data, "has the wrong size");
  if (!moi_multiply(part->sizes.scales, e, &size) || size != scales_size)
    return bad(r, data, "its scales have the wrong size");
  if (!moi_multiply(part->sizes.zeros, e, &size) || size != zeros_size)
    return bad(r, data, "its zeros have the wrong size");
  alignment align = align_of(part->format);
  if ((uintptr_t)part->data % align.data || (uintptr_t)part->scales % align.scales ||
      (uintptr_t)part->zeros % align.zeros)
    return bad(r, data, "it or its scales lie at an odd address in the file and cannot be used in place");
  return MOI_FOUND;
}

static const moi_tensor *beside(const moi_layer_reader *r, const char *base, const char *suffix) {
  char name[MOI_LAYER_NAME * 2];
  snprintf(name, sizeof name, "%s%s", base, suffix);
  return moi_checkpoint_find(r->checkpoint, name);
}

/* Leading dimensions: [e,] rows, columns. */
static bool shape(const moi_tensor *t, uint64_t *e, uint64_t *rows, uint64_t *columns) {
  if (!t || (t->n_dims != 2 && t->n_dims != 3)) return false;
  *e = t->n_dims == 3 ? t->dims[0] : 0;
  *rows = t->dims[t->n_dims - 2];
  *columns = t->dims[t->n_dims - 1];
  return *e <= 65536 && (t->n_dims == 2 || *e) && *rows <= INT32_MAX && *columns <= INT32_MAX;
}

/* Scales [e,] n x k/group beside W[n,k]: the group, 0 if the shapes do not fit. */
static uint64_t group_of(const moi_tensor *scales, uint64_t e, uint64_t n, uint64_t k) {
  uint64_t scales_e, rows, columns;
  if (!shape(scales, &scales_e, &rows, &columns) || scales_e != e || rows != n || !columns || k % columns) return 0;
  return k / columns;
}

static bool config_says(const moi_layer_reader *r, const char *key, double *out) {
  char path[128];
  snprintf(path, sizeof path, "quantization_config.%s", key);
  if (moi_checkpoint_number(r->checkpoint, path, 0, out)) return true;
  snprintf(path, sizeof path, "quantization_config.config_groups.group_0.weights.%s", key);
  return moi_checkpoint_number(r->checkpoint, path, 0, out);
}

/* FP8 with a scale for each 128 x 128. */
static moi_found find_fp8(moi_layer_reader *r, const char *base, const moi_tensor *data, moi_part *part) {
  uint64_t e, n, k;
  const moi_tensor *scales = beside(r, base, ".weight_scale_inv");
  if (!scales) scales = beside(r, base, ".scale");
  if (!scales) return bad(r, data, "has no weight_scale_inv for each 128 x 128: no other scaling of fp8 is supported");
  if (!shape(data, &e, &n, &k)) return bad(r, data, "is no matrix");
  uint64_t scales_e, rows, columns;
  if (!shape(scales, &scales_e, &rows, &columns) || scales_e != e || rows != (n + 127) / 128 ||
      columns != (k + 127) / 128)
    return bad(r, scales, "is not one scale for each 128 x 128");
  moi_buffer numbers;
  if (!moi_layer_numbers(r, scales, moi_tensor_elements(scales), MOI_FORMAT_F32, &numbers)) return MOI_BAD;
  part->format = MOI_FORMAT_FP8_B128;
  part->e = (uint32_t)e;
  part->data = data->data;
  part->scales = numbers.ptr;
  return finish(r, part, data, n, k, numbers.size, 0);
}

/* int4 in int32 words, mxfp4 or nvfp4 in bytes: two elements to a byte, scales beside them. */
static moi_found find_packed(moi_layer_reader *r, const char *base, const moi_tensor *data, moi_part *part) {
  uint64_t e, n, columns, k;
  double v;
  const moi_tensor *scales = beside(r, base, ".weight_scale");
  if (!scales) scales = beside(r, base, ".scale");
  if (!shape(data, &e, &n, &columns)) return bad(r, data, "is no matrix");
  bool words = moi_is_type(data, "I32");
  k = words ? columns * 8 : moi_is_type(data, "F4") ? columns : columns * 2;
  uint64_t group = group_of(scales, e, n, k);
  if (!group) return bad(r, data, "has no weight_scale beside it that fits");
  part->e = (uint32_t)e;
  part->data = data->data;
  part->scales = scales->data;
  if (words) {
    if (config_says(r, "num_bits", &v) && v != 4) return bad(r, data, "is packed, but not of 4 bits");
    if (config_says(r, "symmetric", &v) && !v)
      return bad(r, data, "is packed with zero points, which is not supported");
    if (beside(r, base, ".weight_g_idx") || beside(r, base, ".weight_zero_point"))
      return bad(r, data, "has an order of groups or zero points, which are not supported");
    if (!moi_is_type(scales, "BF16")) return bad(r, scales, "is not BF16, as int4 needs");
    part->format = group == 32 ? MOI_FORMAT_INT4_G32 : group == 128 ? MOI_FORMAT_INT4_G128 : MOI_FORMAT_NONE;
  } else if (group == 32 && (moi_is_type(scales, "U8") || moi_is_type(scales, "F8_E8M0")))
    part->format = MOI_FORMAT_MXFP4;
  else if (group == 16 && moi_is_type(scales, "F8_E4M3")) {
    part->format = MOI_FORMAT_NVFP4;
    const moi_tensor *global = beside(r, base, ".weight_scale_2"), *inverse = beside(r, base, ".weight_global_scale");
    moi_buffer number = {NULL, 0, 0, 0};
    if (!global && !inverse) return bad(r, data, "is nvfp4 without a global scale");
    if (!moi_layer_numbers(r, global ? global : inverse, 1, MOI_FORMAT_F32, &number)) return MOI_BAD;
    float scale = *(const float *)number.ptr;
    if (!(scale > 0) || !isfinite(scale)) return bad(r, global ? global : inverse, "is no scale");
    part->global = global ? scale : 1 / scale; /* compressed-tensors stores the divisor */
  }
  if (part->format == MOI_FORMAT_NONE) return bad(r, data, "has groups or scales that no format of moiety has");
  return finish(r, part, data, n, k, scales->size, 0);
}

/* qweight, scales, qzeros. */
static moi_found find_gptq_awq(moi_layer_reader *r, const char *base, const moi_tensor *data, moi_part *part) {
  const char *method = moi_checkpoint_text(r->checkpoint, "quantization_config.quant_method");
  const char *version = moi_checkpoint_text(r->checkpoint, "quantization_config.checkpoint_format");
  const moi_tensor *scales = beside(r, base, ".scales"), *zeros = beside(r, base, ".qzeros");
  const moi_tensor *order = beside(r, base, ".g_idx");
  double v;
  bool awq = method && !strcmp(method, "awq");
  if (!awq && (!method || strcmp(method, "gptq")))
    return bad(r, data, "quant_method is neither gptq nor awq, so its packing is unknown");
  if (version && (!strcmp(version, "gptq_v2") || !strcmp(version, "marlin") || !strcmp(version, "gemv")))
    return bad(r, data, "this version of the packing is not supported");
  if (config_says(r, "bits", &v) && v != 4) return bad(r, data, "is not of 4 bits");
  if (!moi_is_type(data, "I32") || data->n_dims != 2) return bad(r, data, "is no matrix of int32");
  if (!scales || !moi_is_type(scales, "F16") || scales->n_dims != 2 || !zeros || !moi_is_type(zeros, "I32") ||
      zeros->n_dims != 2)
    return bad(r, data, "has no f16 scales and int32 qzeros beside it");
  uint64_t a = data->dims[0], b = data->dims[1];
  if (a > INT32_MAX / 8 || b > INT32_MAX / 8) return bad(r, data, "is no matrix");
  uint64_t k = awq ? a : a * 8, n = awq ? b * 8 : b;
  if (scales->dims[1] != n || !scales->dims[0] || k % scales->dims[0])
    return bad(r, scales, "does not fit its qweight");
  uint64_t group = k / scales->dims[0];
  if (group != 32 && group != 128) return bad(r, scales, "groups are neither of 32 nor of 128");
  if (order) { /* an order that is none is written by most tools */
    if (!moi_is_type(order, "I32") || moi_tensor_elements(order) != k) return bad(r, order, "does not fit its qweight");
    for (uint64_t i = 0; i < k; i++) {
      uint32_t g;
      memcpy(&g, order->data + 4 * i, 4);
      if (g != i / group) return bad(r, order, "reorders the columns (act-order), which is not supported");
    }
  }
  part->format = awq ? (group == 32 ? MOI_FORMAT_AWQ_G32 : MOI_FORMAT_AWQ_G128)
                     : (group == 32 ? MOI_FORMAT_GPTQ_G32 : MOI_FORMAT_GPTQ_G128);
  part->data = data->data;
  part->scales = scales->data;
  part->zeros = zeros->data;
  return finish(r, part, data, n, k, scales->size, zeros->size);
}

/* gpt-oss: blocks u8 [e,n,k/32,16], scales u8 [e,n,k/32]. */
static moi_found find_blocks(moi_layer_reader *r, const char *base, const moi_tensor *data, moi_part *part) {
  const moi_tensor *scales = beside(r, base, "_scales");
  uint64_t e, n, groups;
  if (!moi_is_type(data, "U8") || data->n_dims != 4 || data->dims[3] != 16)
    return bad(r, data, "is not u8 [e,n,k/32,16]");
  if (!moi_is_type(scales, "U8") || scales->n_dims != 3 || !shape(scales, &e, &n, &groups) || data->dims[0] != e ||
      data->dims[1] != n || data->dims[2] != groups)
    return bad(r, data, "has no u8 scales [e,n,k/32] beside it");
  part->format = MOI_FORMAT_MXFP4;
  part->e = (uint32_t)e;
  part->data = data->data;
  part->scales = scales->data;
  return finish(r, part, data, n, groups * 32, scales->size, 0);
}

moi_found moi_part_find(moi_layer_reader *r, const char *base, moi_part *part) {
  *part = (moi_part){.global = 1};
  const moi_tensor *t = beside(r, base, ".weight_packed");
  if (t) return find_packed(r, base, t, part);
  if ((t = beside(r, base, ".qweight"))) return find_gptq_awq(r, base, t, part);
  if ((t = beside(r, base, "_blocks"))) return find_blocks(r, base, t, part);
  t = beside(r, base, ".weight");
  if (!t) t = beside(r, base, ""); /* fused experts have no suffix */
  if (!t) return MOI_ABSENT;
  if (moi_is_type(t, "F8_E4M3")) return find_fp8(r, base, t, part);
  if (moi_is_type(t, "U8") || moi_is_type(t, "F4") ||
      (moi_is_type(t, "I8") && moi_checkpoint_get_kind(r->checkpoint) != MOI_CHECKPOINT_GGUF))
    return find_packed(r, base, t, part);
  uint64_t e, n, k;
  if (!t->format) return bad(r, t, "this type is not supported");
  if (!shape(t, &e, &n, &k)) return bad(r, t, "is neither a matrix nor one for each expert");
  part->format = t->format;
  part->e = (uint32_t)e;
  part->data = t->data;
  return finish(r, part, t, n, k, 0, 0);
}
