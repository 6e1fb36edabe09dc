/* Runs on devices whose memory the host does not share: every buffer of the rig lies in host arenas, and a run on such
 * a device is a run on copies. Each arena block that a run may touch is copied, guard zones and odd alignments
 * included, the views in the args are translated to the copies, and everything comes back afterwards: comparisons and
 * the search for damage need not know. */
#ifndef MOI_BENCH_RIG_DEVICE_H
#define MOI_BENCH_RIG_DEVICE_H

#include "bench/peak.h"
#include "bench/rig/arena.h"

typedef struct moi_device moi_device;

/* What the rig keeps of a context that lets it make a device of its own: opened when it is first asked for, NULL and
 * *status if that failed; NULL and MOI_OK if the backend reads the host's memory. */
moi_device *moi_device_of(const moi_context *context, moi_status *status);
/* Before the context is destroyed. Nothing for contexts that have none. */
void moi_device_forget(const moi_context *context);

/* From now on copies lie in memory that the host does not see, and pass through a staging buffer: as they do on cards
 * of themselves, whose memory is what bench is to measure. For testing that way on other devices, before any run. */
moi_status moi_device_stage(moi_device *device);

/* keep 1: what runs copy from now on stays on the device for the runs after them, and nothing comes back: for
 * measuring. keep 0: all copies are dropped, and every run has its own again. The host's buffers live as long. */
void moi_device_keep(moi_device *device, int keep);

/* While copies are kept: the next run is recorded and not run, and can then be launched again and again with its copies, as
 * engines launch a CUDA graph; run i of those recorded. moi_device_records: whether this device can do that. Dropping the
 * copies drops the recordings. */
int moi_device_records(const moi_device *device);
void moi_device_record(moi_device *device);
moi_status moi_device_replay(moi_device *device, uint64_t i);

/* Seconds that the last run took on the device by its own clock, without recording, submission and wait; 0: it has
 * none. */
double moi_device_busy(const moi_device *device);

/* What this device gives now, by shaders of some 20 ms: bytes read in order, operations of a kind (a multiply-add is two),
 * a second. 0 if it has not that kind, or it cannot be measured. */
double moi_device_read_rate(moi_device *device);
double moi_device_ops_rate(moi_device *device, moi_peak_kind kind);

/* One run: begin, translate all args with the functions below, record with moi_mirror_queue, end. */
typedef struct moi_mirror moi_mirror;
moi_status moi_mirror_begin(moi_device *device, moi_mirror **out);
moi_queue moi_mirror_queue(const moi_mirror *mirror);
/* `recorded`: what recording gave. On MOI_OK submits, waits, copies back. Frees the mirror; gives the first failure. */
moi_status moi_mirror_end(moi_mirror *mirror, moi_status recorded);

moi_buffer moi_mirror_view(moi_mirror *mirror, moi_buffer view);
void moi_mirror_weights(moi_mirror *mirror, moi_weights *w);
void moi_mirror_route(moi_mirror *mirror, moi_route_args *a);
/* weights: room for copies of gate, up and down */
void moi_mirror_experts(moi_mirror *mirror, moi_experts_args *a, moi_weights weights[3]);
void moi_mirror_cache(moi_mirror *mirror, moi_kv_cache *c);

#endif
