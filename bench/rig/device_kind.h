/* Between device.c, which knows blocks and copies of them, and one file for each kind of device, which knows its memory
 * and its queue. */
#ifndef MOI_BENCH_RIG_DEVICE_KIND_H
#define MOI_BENCH_RIG_DEVICE_KIND_H

#include "bench/rig/device.h"
#include "core/backend.h"

/* Memory that runs take their copies from. */
typedef struct moi_chunk {
  struct moi_chunk *next;
  uint64_t handle;  /* a VkBuffer; 0: `address` is what views name */
  uint64_t address; /* on the device */
  uint8_t *mapped;  /* NULL where the host cannot see it */
  void *own;        /* of the kind */
  size_t size, used;
} moi_chunk;

/* What a kind of device does. `own` is its state; failures have set moi_last_error. */
typedef struct moi_device_kind {
  moi_status (*open)(const moi_context *context, void **own);
  void (*close)(void *own); /* also of what open left half made */
  moi_status (*stage)(void *own); /* moi_device_stage; NULL: it cannot */
  moi_status (*make)(void *own, size_t size, moi_chunk *c);
  void (*drop)(void *own, moi_chunk *c); /* c->own, handle and address may be 0 */
  /* Bytes of a chunk go to `out`, which must live until the flush, or where that is NULL come from `from`. Between two
   * flushes no byte of a chunk is written twice. */
  moi_status (*move)(void *own, moi_chunk *in, size_t at, const uint8_t *from, uint8_t *out, size_t size);
  moi_status (*flush)(void *own);
  /* A run: begin, the caller records or launches on the queue, end. end: `status` is what that gave; on MOI_OK flushes,
   * waits for the run, and says how many seconds the device's clock counted (0: it has none). */
  moi_status (*begin)(void *own);
  moi_queue (*queue)(void *own);
  moi_status (*end)(void *own, moi_status status, double *busy);
  /* Recordings of runs, NULL where there are none. records: whether there can be; record: the next run becomes the last of
   * them; replay: launches it and waits, as end; unrecord: drops all. */
  int (*records)(const void *own);
  void (*record)(void *own);
  moi_status (*replay)(void *own, uint64_t i, double *busy);
  void (*unrecord)(void *own);
  double (*read_rate)(void *own);
  double (*ops_rate)(void *own, moi_peak_kind kind);
} moi_device_kind;

extern const moi_device_kind moi_device_vulkan, moi_device_cuda;

#endif
