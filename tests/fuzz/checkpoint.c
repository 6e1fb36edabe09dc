/* A GGUF or safetensors file of any bytes: it is refused with a text, or every tensor and layer lies inside it. */
#include <fcntl.h>
#include <unistd.h>

#include "bench/checkpoint/layer.h"
#include "tests/fuzz/bytes.h"

static uint64_t touched;

static void touch(const void *p, uint64_t size) {
  const uint8_t *at = p;
  for (uint64_t i = 0; at && i < size; i += 61) touched += at[i];
  if (at && size) touched += at[size - 1];
}
static void touch_view(moi_buffer v) { touch(v.ptr ? (uint8_t *)v.ptr + v.offset : NULL, v.size); }
static void touch_weights(const moi_weights *w) {
  touch_view(w->data);
  touch_view(w->scales);
  touch_view(w->zeros);
  touch_view(w->bias);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64];
  const int gguf = size && (data[0] == 'G' || data[0] & 1);
  snprintf(path, sizeof path, "/dev/shm/moiety-fuzz-%d.%s", (int)getpid(), gguf ? "gguf" : "safetensors");
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, 1, size, file) != size || fclose(file)) abort();
  moi_load_error error = {""};
  moi_checkpoint *checkpoint = moi_checkpoint_open(path, &error);
  unlink(path);
  if (!checkpoint) {
    if (!error.text[0]) abort();
    return 0;
  }
  for (uint64_t i = 0; i < moi_checkpoint_count(checkpoint) && i < 256; i++) {
    const moi_tensor *t = moi_checkpoint_tensor(checkpoint, i);
    touch(t->data, t->size);
    if (moi_checkpoint_find(checkpoint, t->name) == NULL) abort();
  }
  for (uint32_t index = 0; index < 3; index++) {
    moi_layer layer;
    if (!moi_layer_open(checkpoint, index, &layer, &error)) {
      if (!error.text[0]) abort();
      continue;
    }
    touch_view(layer.router);
    touch_view(layer.router_bias);
    touch_view(layer.select_bias);
    if (!(layer.experts.flags & MOI_EXPERTS_TABLES)) {
      touch_weights(&layer.gate);
      touch_weights(&layer.up);
      touch_weights(&layer.down);
    }
    moi_layer_close(&layer);
  }
  moi_checkpoint_close(checkpoint);
  return 0;
}
