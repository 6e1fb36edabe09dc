#include "bench/rig/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/rig/device_kind.h"

/* A block of an arena on the device. */
typedef struct copy {
  uint8_t *host;
  size_t before, size, at; /* at: of the block's first byte in the chunk; before: guard bytes in front of it */
  moi_chunk *in;
  int is_table; /* of addresses: translated, and not copied back */
} copy;

enum { ALIGN = 256, CHUNK = 64 << 20 };

/* In ascending order of host, so that a run of many kept blocks finds its own in no time. */
typedef struct copies {
  copy *list;
  size_t n, capacity;
} copies;

struct moi_device {
  moi_device *next;
  const moi_context *context;
  const moi_device_kind *kind;
  void *own; /* the kind's */
  moi_chunk *chunks;
  int keep;
  copies kept;
  double busy;
};

static moi_device *devices; /* one thread: the program's and the tests' main one */

static const moi_device_kind *kind_of(const moi_context *context) {
#if defined(MOI_HAVE_VULKAN)
  if (!strcmp(context->ops->name, "vulkan")) return &moi_device_vulkan;
#endif
#if defined(MOI_HAVE_CUDA)
  if (!strcmp(context->ops->name, "cuda")) return &moi_device_cuda;
#endif
  (void)context;
  return NULL;
}

static void free_chunk(moi_device *d, moi_chunk *c) {
  if (!c) return;
  d->kind->drop(d->own, c);
  free(c);
}

static void close_device(moi_device *d) {
  for (moi_chunk *c = d->chunks, *next; c; c = next) {
    next = c->next;
    free_chunk(d, c);
  }
  if (d->own) d->kind->close(d->own);
  free(d->kept.list);
  free(d);
}

moi_device *moi_device_of(const moi_context *context, moi_status *status) {
  *status = MOI_OK;
  const moi_device_kind *kind = kind_of(context);
  if (!kind) return NULL;
  for (moi_device *d = devices; d; d = d->next)
    if (d->context == context) return d;
  moi_device *d = calloc(1, sizeof *d);
  if (!d) {
    *status = moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a device");
    return NULL;
  }
  d->context = context;
  d->kind = kind;
  *status = kind->open(context, &d->own);
  if (*status) {
    close_device(d);
    return NULL;
  }
  d->next = devices;
  devices = d;
  return d;
}

void moi_device_forget(const moi_context *context) {
  for (moi_device **at = &devices; *at; at = &(*at)->next)
    if ((*at)->context == context) {
      moi_device *d = *at;
      *at = d->next;
      close_device(d);
      return;
    }
}

moi_status moi_device_stage(moi_device *d) {
  return d->kind->stage ? d->kind->stage(d->own) : moi_fail(MOI_UNSUPPORTED, "the rig", "this device has no staging");
}

int moi_device_records(const moi_device *d) { return d->keep && d->kind->records && d->kind->records(d->own); }
void moi_device_record(moi_device *d) { d->kind->record(d->own); }
moi_status moi_device_replay(moi_device *d, uint64_t i) { return d->kind->replay(d->own, i, &d->busy); }

double moi_device_busy(const moi_device *d) { return d->busy; }
double moi_device_read_rate(moi_device *d) { return d->kind->read_rate(d->own); }
double moi_device_ops_rate(moi_device *d, moi_peak_kind kind) { return d->kind->ops_rate(d->own, kind); }

/* ---- memory */

/* size bytes at an offset that is `phase` modulo 256 */
static moi_status take(moi_device *d, size_t size, size_t phase, moi_chunk **in, size_t *at) {
  for (moi_chunk *c = d->chunks; c; c = c->next) {
    size_t begin = ((c->used + ALIGN - 1) & ~(size_t)(ALIGN - 1)) + phase;
    if (begin > c->size || size > c->size - begin) continue;
    *in = c;
    *at = begin;
    c->used = begin + size;
    return MOI_OK;
  }
  moi_chunk *c = calloc(1, sizeof *c);
  if (!c) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a chunk");
  c->size = size + 2 * ALIGN > CHUNK ? (size + 2 * ALIGN + 3) & ~(size_t)3 : CHUNK;
  moi_status status = d->kind->make(d->own, c->size, c);
  if (status) {
    free_chunk(d, c);
    return status;
  }
  c->next = d->chunks;
  d->chunks = c;
  *in = c;
  *at = phase;
  c->used = phase + size;
  return MOI_OK;
}

/* ---- a run on copies */

struct moi_mirror {
  moi_device *device;
  copies own, *all; /* all: the device's kept ones, or own */
  moi_status status;
  char text[256]; /* why, if it is not MOI_OK */
};

void moi_device_keep(moi_device *d, int keep) {
  if (d->kind->unrecord) d->kind->unrecord(d->own);
  for (moi_chunk **at = &d->chunks; *at;) {
    moi_chunk *c = *at;
    c->used = 0;
    if (c->size > CHUNK) { /* made to measure for a block that is gone */
      *at = c->next;
      free_chunk(d, c);
    } else {
      at = &c->next;
    }
  }
  d->kept.n = 0;
  d->keep = keep;
}

moi_status moi_mirror_begin(moi_device *d, moi_mirror **out) {
  *out = NULL;
  for (moi_chunk *c = d->chunks; c && !d->keep; c = c->next) c->used = 0;
  moi_status status = d->kind->begin(d->own);
  if (status) return status;
  moi_mirror *m = calloc(1, sizeof *m);
  if (!m) return moi_fail(MOI_OUT_OF_MEMORY, "the rig", "a mirror");
  m->device = d;
  m->all = d->keep ? &d->kept : &m->own;
  *out = m;
  return MOI_OK;
}

moi_queue moi_mirror_queue(const moi_mirror *m) { return m->device->kind->queue(m->device->own); }

static copy *copy_of(moi_mirror *m, const uint8_t *p);

/* The address of a host pointer's copy; 0 for NULL and on failure. */
static uint64_t translate(moi_mirror *m, uint64_t host) {
  if (!host) return 0;
  copy *c = copy_of(m, (const uint8_t *)(uintptr_t)host);
  return c ? c->in->address + c->at + ((uintptr_t)host - (uintptr_t)c->host) : 0;
}

/* Where the copy of the block that holds p is, or has to be put in: the first whose block ends behind p (an
 * empty one, or the end of one, is told by the arena). */
static size_t place_of(const copies *all, const uint8_t *p) {
  size_t low = 0, high = all->n;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (all->list[middle].host + all->list[middle].size <= p) low = middle + 1;
    else high = middle;
  }
  return low;
}

static copy *copy_of(moi_mirror *m, const uint8_t *p) {
  copies *all = m->all;
  if (m->status) return NULL;
  size_t index = place_of(all, p);
  if (index < all->n && p >= all->list[index].host) return &all->list[index];
  moi_block block;
  if (!moi_arena_find(p, &block)) {
    m->status = moi_fail(MOI_INTERNAL, "the rig", "a view names memory that is in no arena");
    return NULL;
  }
  index = place_of(all, block.ptr);
  for (size_t i = index > 2 ? index - 2 : 0; i < all->n && all->list[i].host <= block.ptr; i++)
    if (all->list[i].host == block.ptr) return &all->list[i];
  if (all->n == all->capacity) {
    all->capacity = all->capacity ? 2 * all->capacity : 32;
    all->list = realloc(all->list, all->capacity * sizeof *all->list);
    if (!all->list) exit(3);
  }
  size_t before = block.guard, whole = before + block.size + block.tail + 3; /* 3: shaders read whole words */
  copy c = {.host = block.ptr,
            .before = before,
            .size = block.size + block.tail,
            .is_table = !strcmp(block.name, "an address table")};
  size_t begin = 0;
  m->status = take(m->device, whole, ((uintptr_t)block.ptr - before) % 256, &c.in, &begin);
  if (m->status) return NULL;
  c.at = begin + before;
  memmove(&all->list[index + 1], &all->list[index], (all->n - index) * sizeof *all->list);
  all->list[index] = c;
  all->n++;
  uint8_t *table = NULL;
  if (c.is_table) {
    table = malloc(before + c.size);
    if (!table) exit(3);
    memcpy(table, block.ptr - before, before + c.size);
    for (size_t i = 0; i < block.size / 8; i++) {
      uint64_t address;
      memcpy(&address, block.ptr + 8 * i, 8);
      address = translate(m, address);
      memcpy(table + before + 8 * i, &address, 8);
    }
  }
  if (!m->status) m->status = m->device->kind->move(m->device->own, c.in, begin, table ? table : block.ptr - before, NULL, before + c.size);
  free(table);
  if (m->status) return NULL;
  for (index = 0; all->list[index].host != block.ptr; index++) continue; /* a table's own copies may have moved it */
  return &all->list[index];
}

moi_buffer moi_mirror_view(moi_mirror *m, moi_buffer view) {
  if (!view.ptr) return view;
  const uint8_t *p = (const uint8_t *)view.ptr + view.offset;
  copy *c = copy_of(m, p);
  moi_buffer out = {.size = view.size};
  if (!c && !m->text[0]) snprintf(m->text, sizeof m->text, "%s", moi_last_error());
  if (!c) return out;
  out.handle = c->in->handle;
  if (!out.handle) out.ptr = (void *)(uintptr_t)c->in->address;
  out.offset = c->at + (size_t)(p - c->host);
  return out;
}

moi_status moi_mirror_end(moi_mirror *m, moi_status recorded) {
  moi_device *d = m->device;
  moi_status status = recorded;
  if (m->status) status = moi_fail(m->status, "the rig", "%s", m->text); /* an absent view is only what came of it */
  status = d->kind->end(d->own, status, &d->busy);
  for (size_t i = 0; i < m->own.n && !status; i++) {
    const copy *c = &m->own.list[i];
    if (!c->is_table)
      status = d->kind->move(d->own, c->in, c->at - c->before, NULL, c->host - c->before, c->before + c->size);
  }
  if (!status) status = d->kind->flush(d->own);
  free(m->own.list);
  free(m);
  return status;
}

/* ---- args */

#define VIEW(b) b = moi_mirror_view(m, b)

void moi_mirror_weights(moi_mirror *m, moi_weights *w) {
  VIEW(w->data);
  VIEW(w->scales);
  VIEW(w->zeros);
  VIEW(w->global_scale);
  VIEW(w->bias);
}

void moi_mirror_route(moi_mirror *m, moi_route_args *a) {
  moi_buffer *views[] = {&a->n_tokens_device, &a->hidden,          &a->router,    &a->logits,       &a->router_bias,
                         &a->select_bias,     &a->select_bias_alt, &a->alt_mask,  &a->expert_scale, &a->norm_weight,
                         &a->hash_table,      &a->token_ids,       &a->ids,       &a->weights,      &a->counts,
                         &a->offsets,         &a->permutation,     &a->logits_out};
  for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) *views[i] = moi_mirror_view(m, *views[i]);
}

void moi_mirror_experts(moi_mirror *m, moi_experts_args *a, moi_weights weights[3]) {
  VIEW(a->n_tokens_device);
  VIEW(a->input);
  VIEW(a->ids);
  VIEW(a->weights);
  VIEW(a->output);
  const moi_weights **from[3] = {&a->gate, &a->up, &a->down};
  for (int i = 0; i < 3; i++) {
    if (!*from[i]) continue;
    weights[i] = **from[i];
    moi_mirror_weights(m, &weights[i]);
    *from[i] = &weights[i];
  }
}

void moi_mirror_cache(moi_mirror *m, moi_kv_cache *c) {
  VIEW(c->k);
  VIEW(c->v);
  VIEW(c->page_table);
  VIEW(c->start);
  VIEW(c->k_scale);
  VIEW(c->v_scale);
}
