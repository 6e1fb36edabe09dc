/* What the tests of bench/checkpoint share. */
#ifndef MOI_TESTS_CHECKPOINT_H
#define MOI_TESTS_CHECKPOINT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/checkpoint/layer.h"

static char folder[256]; /* of what the tests write */

static inline void sample(char path[512], const char *name) { snprintf(path, 512, "%s/%s", MOI_CHECKPOINTS_DIR, name); }

static inline void inside(char path[512], const char *name) { snprintf(path, 512, "%.255s/%.250s", folder, name); }

static inline uint8_t *read_all(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  uint8_t *bytes = malloc(*size + 1);
  assert_non_null(bytes);
  assert_int_equal(fread(bytes, 1, *size, file), *size);
  bytes[*size] = 0;
  fclose(file);
  return bytes;
}

static inline void write_all(const char *name, const void *bytes, size_t size) {
  char path[512];
  inside(path, name);
  remove(path); /* a file that takes the place of an emptied one is written to the disk at once by some file systems */
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static inline moi_checkpoint *open_sample(const char *name) {
  char path[512];
  sample(path, name);
  moi_load_error error;
  moi_checkpoint *c = moi_checkpoint_open(path, &error);
  if (!c) fail_msg("%s", error.text);
  return c;
}

/* Opens a file of `folder`; NULL must come with a text, success without one. */
static inline moi_checkpoint *open_inside(const char *name, moi_load_error *error) {
  char path[512];
  inside(path, name);
  memset(error, 'x', sizeof *error);
  moi_checkpoint *c = moi_checkpoint_open(path, error);
  assert_true(memchr(error->text, 0, sizeof error->text) != NULL);
  assert_int_equal(c == NULL, error->text[0] != 0);
  return c;
}

static inline void refuses(const char *name, const char *because) {
  moi_load_error error;
  moi_checkpoint *c = open_inside(name, &error);
  if (c) fail_msg("%s was accepted; expected: %s", name, because);
  if (!strstr(error.text, because)) fail_msg("\"%s\" does not say \"%s\"", error.text, because);
}

static inline moi_checkpoint *accepts(const char *name) {
  moi_load_error error;
  moi_checkpoint *c = open_inside(name, &error);
  if (!c) fail_msg("%s", error.text);
  return c;
}

static volatile uint8_t sink;

static inline void touch(const void *data, uint64_t size) {
  const uint8_t *bytes = data;
  uint8_t sum = 0;
  for (uint64_t i = 0; i < size; i++) sum = (uint8_t)(sum + bytes[i]);
  sink = sum;
}

static inline void touch_buffer(moi_buffer b) { touch(b.ptr, b.size); }

static inline void touch_weights(const moi_weights *w, const moi_experts_desc *d, moi_format format, uint32_t n,
                                 uint32_t k) {
  touch_buffer(w->data);
  touch_buffer(w->scales);
  touch_buffer(w->zeros);
  touch_buffer(w->global_scale);
  touch_buffer(w->bias);
  if (!w->data.size) return;
  moi_format_sizes sizes;
  assert_int_equal(moi_format_size(format, n, k, &sizes), MOI_OK);
  if (!(d->flags & MOI_EXPERTS_TABLES)) {
    assert_int_equal(w->data.size, sizes.data * d->n_experts);
    assert_int_equal(w->scales.size, sizes.scales * d->n_experts);
    assert_int_equal(w->zeros.size, sizes.zeros * d->n_experts);
    return;
  }
  for (uint32_t e = 0; e < d->n_experts; e++) {
    touch((const void *)(uintptr_t)((const uint64_t *)w->data.ptr)[e], sizes.data);
    if (sizes.scales) touch((const void *)(uintptr_t)((const uint64_t *)w->scales.ptr)[e], sizes.scales);
    if (sizes.zeros) touch((const void *)(uintptr_t)((const uint64_t *)w->zeros.ptr)[e], sizes.zeros);
  }
}

static inline void touch_ffn(const moi_experts_desc *d, const moi_weights *gate, const moi_weights *up,
                             const moi_weights *down) {
  uint32_t rows = d->gate_layout == MOI_GATE_SPLIT ? d->intermediate : 2 * d->intermediate;
  touch_weights(gate, d, d->format, d->intermediate, d->hidden);
  touch_weights(up, d, d->format, rows, d->hidden);
  touch_weights(down, d, d->down_format ? d->down_format : d->format, d->hidden, d->intermediate);
}

/* Reads all that a layer names: a sanitizer or the system sees a view that is too large. */
static inline void touch_layer(const moi_layer *l) {
  touch_buffer(l->router);
  touch_buffer(l->router_bias);
  touch_buffer(l->select_bias);
  touch_buffer(l->expert_scale);
  touch_buffer(l->norm_weight);
  touch_buffer(l->hash_table);
  touch_buffer(l->shared_gate_vector);
  touch_ffn(&l->experts, &l->gate, &l->up, &l->down);
  if (l->has_shared) touch_ffn(&l->shared, &l->shared_gate, &l->shared_up, &l->shared_down);
}

static inline void touch_tensors(const moi_checkpoint *c, uint64_t file_size) {
  const uint8_t *first = NULL, *end = NULL;
  for (uint64_t i = 0; i < moi_checkpoint_count(c); i++) {
    const moi_tensor *t = moi_checkpoint_tensor(c, i);
    assert_ptr_equal(moi_checkpoint_find(c, t->name), t);
    if (!t->data || !t->size) continue;
    touch(t->data, t->size);
    if (!first || t->data < first) first = t->data;
    if (!end || t->data + t->size > end) end = t->data + t->size;
  }
  assert_true(file_size == 0 || (uint64_t)(end - first) <= file_size);
}

/* Whatever a damaged file is, it is an error with a text or a checkpoint that can be read. */
static uint32_t opened, layers_opened;
static inline void survives(const char *name, uint64_t size, uint32_t layer_index) {
  moi_load_error error;
  moi_checkpoint *c = open_inside(name, &error);
  if (!c) return;
  opened++;
  touch_tensors(c, size);
  moi_layer layer;
  if (moi_layer_open(c, layer_index, &layer, &error)) {
    layers_opened++;
    touch_layer(&layer);
    moi_layer_close(&layer);
  } else assert_true(error.text[0] != 0);
  moi_checkpoint_close(c);
}

static inline moi_layer open_layer(const moi_checkpoint *c, uint32_t index) {
  moi_layer layer;
  moi_load_error error;
  if (!moi_layer_open(c, index, &layer, &error)) fail_msg("%s", error.text);
  touch_layer(&layer);
  return layer;
}

static inline void layer_refuses(const char *name, uint32_t index, const char *because) {
  moi_checkpoint *c = accepts(name);
  moi_layer layer;
  moi_load_error error;
  if (moi_layer_open(c, index, &layer, &error)) fail_msg("%s: layer accepted; expected: %s", name, because);
  if (!strstr(error.text, because)) fail_msg("\"%s\" does not say \"%s\"", error.text, because);
  moi_checkpoint_close(c);
}

#endif
