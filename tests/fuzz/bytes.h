/* What the fuzz targets share: values out of the fuzzer's bytes, which lean to what is nearly valid, and views whose end
 * is the end of a heap block, so that AddressSanitizer sees the first byte too many. */
#ifndef MOI_TESTS_FUZZ_BYTES_H
#define MOI_TESTS_FUZZ_BYTES_H

#include <moiety.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct bytes {
  const uint8_t *at, *end;
} bytes;

static inline uint8_t next8(bytes *b) { return b->at < b->end ? *b->at++ : 0; }
static inline uint32_t next32(bytes *b) {
  uint32_t u = 0;
  for (int i = 0; i < 4; i++) u = u << 8 | next8(b);
  return u;
}
static inline uint32_t below(bytes *b, uint32_t n) { return next8(b) % n; }
/* Mostly 0..most, at times any number. */
static inline uint32_t count(bytes *b, uint32_t most) {
  uint8_t kind = next8(b);
  return kind < 250 ? next8(b) % (most + 1) : next32(b);
}
/* 0 mostly, else one of the usual floats or any bits. */
static inline float real(bytes *b) {
  static const float usual[] = {0, 0, 0, 1, -1, 0.5f, 30, 1e-6f, 1e30f};
  uint8_t kind = next8(b);
  if (kind < 240) return usual[kind % 9];
  uint32_t u = next32(b);
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline moi_format dense_type(bytes *b) {
  static const moi_format types[] = {0, MOI_FORMAT_F32, MOI_FORMAT_F16, MOI_FORMAT_BF16};
  uint8_t kind = next8(b);
  return kind < 250 ? types[kind % 4] : (moi_format)kind;
}
static inline moi_format any_format(bytes *b) {
  uint8_t kind = next8(b);
  if (kind >= 250) return (moi_format)kind;
  uint32_t n = 0;
  while (moi_format_at(n)) n++;
  return moi_format_at(kind % n);
}

/* A block of `size` bytes of whatever the fuzzer has left, repeated; freed by drop_blocks. */
enum { MAX_BLOCKS = 64 };
static void *blocks[MAX_BLOCKS];
static uint32_t n_blocks;

static inline moi_buffer view(bytes *b, uint64_t size) {
  if (!size || size > (1u << 22) || n_blocks == MAX_BLOCKS) return moi_ptr(NULL, 0);
  uint8_t *p = malloc(size);
  if (!p) abort();
  blocks[n_blocks++] = p;
  size_t left = (size_t)(b->end - b->at);
  for (uint64_t i = 0; i < size; i++) p[i] = left ? b->at[i % left] ^ (uint8_t)(i / left * 37) : (uint8_t)(i * 29);
  return moi_ptr(p, size);
}
/* The same, or at times absent, shorter or misaligned. */
static inline moi_buffer odd_view(bytes *b, uint64_t size) {
  uint8_t kind = next8(b);
  moi_buffer v = view(b, size);
  if (kind < 245 || !v.ptr) return v;
  if (kind < 248) return moi_ptr(NULL, 0);
  if (kind < 252) v.size = v.size / 2;
  else v.ptr = (uint8_t *)v.ptr + 1, v.size--;
  return v;
}
/* n small integers, most of them in -1..most */
static inline moi_buffer indices(bytes *b, uint64_t n, uint32_t most) {
  moi_buffer v = view(b, n * 4);
  for (uint64_t i = 0; v.ptr && i < n; i++) {
    uint8_t kind = next8(b);
    ((int32_t *)v.ptr)[i] = kind < 250 ? (int32_t)(kind % (most + 2)) - 1 : (int32_t)next32(b);
  }
  return v;
}
/* n offsets that mostly ascend from 0 to most */
static inline moi_buffer ascending(bytes *b, uint64_t n, uint32_t most) {
  moi_buffer v = view(b, n * 4);
  uint32_t at = 0;
  for (uint64_t i = 0; v.ptr && i < n; i++) {
    uint8_t kind = next8(b);
    ((int32_t *)v.ptr)[i] = kind < 250 ? (int32_t)at : (int32_t)next32(b);
    at += kind % 4;
    if (at > most) at = most;
  }
  return v;
}
static inline moi_buffer workspace_of(const moi_plan *plan) {
  size_t align, size = moi_plan_workspace(plan, &align);
  if (!size) return moi_ptr(NULL, 0);
  if (size > (1u << 27) || n_blocks == MAX_BLOCKS) return moi_ptr(NULL, 0);
  void *p = aligned_alloc(align, (size + align - 1) / align * align);
  if (!p) abort();
  memset(p, 0xff, size);
  blocks[n_blocks++] = p;
  return moi_ptr(p, size);
}
static inline void drop_blocks(void) {
  while (n_blocks) free(blocks[--n_blocks]);
}

static inline moi_context *fuzz_context(void) {
  static moi_context *context;
  if (!context) {
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.n_workers = 1;
    if (moi_context_create(&desc, &context)) abort();
  }
  return context;
}

/* A kernel's name: mostly NULL, else a row of the list. */
static inline const char *any_kernel(bytes *b) {
  uint8_t kind = next8(b);
  if (kind < 160) return NULL;
  if (kind < 200) return "ref";
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  return moi_kernel_get(MOI_BACKEND_CPU, next8(b), &info) ? "none" : info.name;
}

/* A failing call has a text that begins with its name. */
static inline void told(moi_status status) {
  if (status && strncmp(moi_last_error(), "moi_", 4)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
