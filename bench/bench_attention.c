#include "bench/bench_attention.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/dump.h"
#include "bench/rig/attention.h"
#include "bench/rig/device.h"
#include "bench/rig/operands.h"
#include "core/backend.h"

enum { MIN_COPIES = 2, MAX_COPIES = 512, MAX_PROMPTS = 8 };
#define COLD_BYTES ((uint64_t)1 << 30)
#define REFERENCE_WORK 1.5e8 /* elements of keys and values that the reference reads for one row */

struct moi_bench_attention {
  moi_context *context, *reference;
  moi_bench_attention_shape shape;
  moi_attention_operands proto;
  moi_plan *plan;
  char name[256], kernel[128], serving[64], needs[32];
  double bytes, flops;
  double error, allowed; /* of the check */
  const char *dump;      /* folder, or NULL */
  int launches;          /* each run is to be launched by itself */
  moi_device *recorded;  /* what runs are recorded on, or NULL */
  uint32_t n_copies;
  moi_attention_operands *copies;
  moi_arena arena;
  moi_attention_outputs outputs;
  moi_buffer workspace;
};

static void *allocate(size_t size) {
  void *p = calloc(1, size);
  if (p) return p;
  fprintf(stderr, "moiety: out of memory: %zu bytes\n", size);
  exit(3);
}

static void count(moi_bench_attention *r) {
  const moi_attention_operands *o = &r->proto;
  const moi_attention_desc *d = &o->desc;
  uint64_t keys, seen = moi_attention_seen(o, &keys, NULL);
  moi_format output = moi_or(d->output_type, d->input_type);
  r->bytes = (double)(keys * moi_kv_token_bytes(d)) +
             (double)o->n_rows * d->n_heads *
                 (d->head_dim * moi_element_bytes(d->input_type) + d->v_head_dim * moi_element_bytes(output));
  r->flops = 2.0 * (double)seen * d->n_heads * (d->head_dim + d->v_head_dim);
}

/* What the kernel that serves the shape needs: rows of a KV head are packed, few of them have a kernel of their own. */
static void find_needs(moi_bench_attention *r, moi_backend backend) {
  enum { FEW = 8 };
  const moi_attention_desc *d = &r->proto.desc;
  const char *plus = strchr(r->kernel, '+'), *name = r->kernel;
  if (plus && (uint64_t)r->shape.rows * (d->n_heads / d->n_kv_heads) > FEW) name = plus + 1;
  size_t length = strcspn(name, "+");
  snprintf(r->serving, sizeof r->serving, "%.*s", (int)length, name);
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  for (uint32_t i = 0; !moi_kernel_get(backend, i, &info); i++)
    if (strlen(info.name) == length && !strncmp(info.name, name, length))
      snprintf(r->needs, sizeof r->needs, "%s", info.needs);
}

moi_status moi_bench_attention_open(const moi_preset *preset, const moi_preset_attention *kind,
                                    const moi_bench_attention_shape *shape, uint64_t memory, moi_context *context,
                                    moi_context *reference, const char *kernel, moi_bench_attention **out, char *error,
                                    size_t error_size) {
  moi_bench_attention *r = allocate(sizeof *r);
  moi_attention_operands *o = &r->proto;
  moi_attention_desc *d = &o->desc;
  *out = NULL;
  r->context = context;
  r->reference = reference;
  r->shape = *shape;
  *d = *kind->desc;
  if (shape->kv_format) d->k_format = d->v_format = shape->kv_format;
  d->max_kv = shape->kv_len;
  d->page_size = shape->page_size;
  o->n_seqs = shape->sequences;
  o->layout.tight = 1;
  o->layout.shuffled = shape->page_size > 0;
  for (uint32_t s = 0; s < o->n_seqs; s++)
    o->sequences[s] = (moi_sequence){.rows = shape->rows, .kv_len = (int32_t)shape->kv_len};
  o->n_rows = shape->sequences * shape->rows;
  moi_status status = moi_attention_operands_plan(o, context, kernel, 0, &r->plan);
  if (status) {
    snprintf(error, error_size, "%s", moi_last_error());
    free(r);
    return status;
  }
  snprintf(r->kernel, sizeof r->kernel, "%s", moi_plan_kernel(r->plan));
  find_needs(r, context->desc.backend);
  count(r);
  if (r->bytes > (double)(memory / MIN_COPIES)) {
    snprintf(error, error_size, "%d copies of %.2f GB, %.2f GB may be used", MIN_COPIES, r->bytes / 1e9,
             (double)memory / 1e9);
    moi_bench_attention_free(r);
    return MOI_OUT_OF_MEMORY;
  }
  uint64_t copies = COLD_BYTES / (uint64_t)r->bytes + 1, most = shape->rows > 1 ? MAX_PROMPTS : MAX_COPIES;
  if (copies > most) copies = most;
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  if (context->ops->by_handle && !moi_device_get(context->desc.backend, context->desc.device, &info) &&
      info.memory / 2 < memory)
    memory = info.memory / 2; /* all copies are to lie on the device */
  if (copies > memory / (uint64_t)r->bytes) copies = memory / (uint64_t)r->bytes;
  r->n_copies = copies < MIN_COPIES ? MIN_COPIES : (uint32_t)copies;
  int at = snprintf(r->name, sizeof r->name, "%s", moi_format_name(d->k_format));
  if (d->v_format && d->v_format != d->k_format)
    at += snprintf(r->name + at, sizeof r->name - (size_t)at, "+%s", moi_format_name(d->v_format));
  at += snprintf(r->name + at, sizeof r->name - (size_t)at, "/%s/tokens:%u/kind:%s/sequences:%u/kv_len:%u",
                 preset->name, o->n_rows, kind->kind, o->n_seqs, shape->kv_len);
  if (shape->page_size) snprintf(r->name + at, sizeof r->name - (size_t)at, "/page_size:%u", shape->page_size);
  *out = r;
  return MOI_OK;
}

void moi_bench_attention_free(moi_bench_attention *r) {
  if (!r) return;
  moi_bench_attention_release(r);
  moi_plan_destroy(r->plan);
  free(r);
}

const char *moi_bench_attention_kernel(const moi_bench_attention *r) { return r->kernel; }
const char *moi_bench_attention_serving(const moi_bench_attention *r) { return r->serving; }
const char *moi_bench_attention_needs(const moi_bench_attention *r) { return r->needs; }
const char *moi_bench_attention_name(const moi_bench_attention *r) { return r->name; }
const moi_bench_attention_shape *moi_bench_attention_shape_of(const moi_bench_attention *r) { return &r->shape; }
void moi_bench_attention_checked(const moi_bench_attention *r, double *error, double *allowed) {
  *error = r->error;
  *allowed = r->allowed;
}
double moi_bench_attention_bytes(const moi_bench_attention *r) { return r->bytes; }
double moi_bench_attention_flops(const moi_bench_attention *r) { return r->flops; }

/* Row `row` of copy 0 through the reference, for the first query heads of the first KV head, and as many of the
 * result. */
static int check_row(moi_bench_attention *r, uint32_t row, char *error, size_t error_size) {
  moi_arena arena = {0};
  moi_attention_operands one;
  if (!moi_attention_row(&r->copies[0], row, &arena, &one)) return 0;
  moi_attention_desc *d = &one.desc;
  uint32_t keys, heads = d->n_heads / d->n_kv_heads;
  moi_attention_seen(&one, NULL, &keys);
  while (heads > 1 && (double)heads * keys * (d->head_dim + d->v_head_dim) > REFERENCE_WORK) heads /= 2;
  uint32_t width = d->n_heads * d->v_head_dim;
  d->n_heads = heads;
  d->n_kv_heads = 1;
  moi_attention_outputs out = moi_attention_outputs_make(&arena, &one);
  moi_plan *plan = NULL;
  moi_status status = moi_attention_operands_plan(&one, r->reference, "ref", 0, &plan);
  if (!status) {
    size_t align, size = moi_plan_workspace(plan, &align);
    status = moi_attention_operands_run(&one, plan, &out, moi_arena_view(&arena, size, align ? align : 1, "workspace"));
  }
  moi_plan_destroy(plan);
  moi_verdict v = {.ok = !status};
  if (status) {
    snprintf(v.text, sizeof v.text, "the reference refuses: %.200s", moi_last_error());
  } else {
    moi_format type = moi_or(d->output_type, d->input_type);
    moi_matrix_view x = {type, out.output.ptr, heads, d->v_head_dim, d->v_head_dim}, y = x;
    y.data = (const uint8_t *)r->outputs.output.ptr + (size_t)row * width * moi_element_bytes(type);
    v = moi_compare(&y, &x, moi_attention_error(r->kernel, d, 2, keys, r->shape.kv_len), 1);
  }
  moi_arena_free(&arena);
  if (v.error * r->allowed >= r->error * v.allowed) r->error = v.error, r->allowed = v.allowed;
  if (!v.ok) snprintf(error, error_size, "wrong result: token %u: %s", row, v.text);
  return !v.ok;
}

static int write_operands(const moi_bench_attention *r, char *error, size_t error_size) {
  const moi_attention_operands *o = &r->copies[0];
  const moi_attention_desc *d = &o->desc;
  const moi_format input = moi_or(d->input_type, MOI_FORMAT_F32), k = moi_or(d->k_format, input);
  const moi_dump dump = {r->dump, error, error_size};
  if (d->page_size) return snprintf(error, error_size, "--operands: not of caches in pages"), 1;
#define WRITE(name, type, view, ...)                                                                                   \
  if (moi_dump_write(&dump, name, type, view, (const uint32_t[3]){__VA_ARGS__})) return 1
  WRITE("q", input, o->args.q, o->n_rows, d->n_heads, d->head_dim);
  WRITE("k", k, o->cache.k, o->cache.capacity, d->n_kv_heads, d->head_dim);
  WRITE("v", moi_or(d->v_format, k), o->cache.v, o->cache.capacity, d->n_kv_heads, d->v_head_dim);
  WRITE("start", MOI_FORMAT_NONE, o->cache.start, o->n_seqs);
  WRITE("output", moi_or(d->output_type, input), r->outputs.output, o->n_rows, d->n_heads, d->v_head_dim);
#undef WRITE
  return 0;
}

void moi_bench_attention_dump(moi_bench_attention *r, const char *folder) { r->dump = folder; }
void moi_bench_attention_launch(moi_bench_attention *r) { r->launches = 1; }

int moi_bench_attention_prepare(moi_bench_attention *r, char *error, size_t error_size) {
  moi_attention_operands *o = &r->proto;
  r->arena.flags = MOI_ARENA_HUGE;
  r->copies = allocate(r->n_copies * sizeof *r->copies);
  for (uint32_t i = 0; i < r->n_copies; i++) {
    r->copies[i] = *o;
    r->copies[i].like = i ? &r->copies[0] : NULL;
    moi_make_attention(&r->arena, &r->copies[i]);
  }
  size_t align, size = moi_plan_workspace(r->plan, &align);
  r->workspace = moi_arena_view(&r->arena, size, align ? align : 1, "workspace");
  r->outputs = moi_attention_outputs_make(&r->arena, o);
  if (moi_attention_operands_run(&r->copies[0], r->plan, &r->outputs, r->workspace)) {
    snprintf(error, error_size, "%s", moi_last_error());
    return 1;
  }
  const uint32_t rows[3] = {0, o->n_rows / 2, o->n_rows - 1};
  for (int i = 0; i < 3; i++)
    if ((!i || rows[i] != rows[i - 1]) && check_row(r, rows[i], error, error_size)) return 1;
  if (r->dump && write_operands(r, error, error_size)) return 1;
  moi_status status;
  moi_device *device = moi_device_of(r->context, &status);
  if (!device) return 0;
  moi_device_keep(device, 1); /* caches go to the device before the clock runs */
  for (uint32_t i = 0; i < r->n_copies; i++)
    if (moi_bench_attention_run(r, i)) {
      snprintf(error, error_size, "%s", moi_last_error());
      return 1;
    }
  if (r->launches || !moi_device_records(device)) return 0;
  for (uint32_t i = 0; i < r->n_copies; i++) {
    moi_device_record(device);
    if (moi_bench_attention_run(r, i)) {
      snprintf(error, error_size, "%s", moi_last_error());
      return 1;
    }
  }
  r->recorded = device;
  return 0;
}

moi_status moi_bench_attention_run(moi_bench_attention *r, uint64_t iteration) {
  if (r->recorded) return moi_device_replay(r->recorded, iteration % r->n_copies);
  return moi_attention_operands_run(&r->copies[iteration % r->n_copies], r->plan, &r->outputs, r->workspace);
}

void moi_bench_attention_release(moi_bench_attention *r) {
  moi_status status;
  moi_device *device = moi_device_of(r->context, &status);
  if (device) moi_device_keep(device, 0);
  r->recorded = NULL;
  moi_arena_free(&r->arena);
  free(r->copies);
  r->copies = NULL;
}
