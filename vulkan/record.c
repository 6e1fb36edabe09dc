/* Recording of a run into the caller's command buffer. */
#include "vulkan/vulkan.h"

/* What was recorded since the last barrier. A storage buffer is bound as a whole, so that who looks at bindings alone (the
 * validation layer does) takes any two accesses for a conflict: without addresses each is waited for. */
enum { SINCE_NOTHING, SINCE_UPDATE, SINCE_DISPATCH };

/* ---- views */

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) & ~(to - 1); }

/* The storage buffer that holds a view; 0 if none can. Memory is read in words. */
static int range_of(const moi_vk_record *r, moi_buffer view, VkDescriptorBufferInfo *out) {
  const moi_vk_traits *t = &r->v->traits;
  uint64_t end = round_up(view.offset + (view.size ? view.size : 4), 4);
  uint64_t begin = end <= t->max_range ? 0 : view.offset & ~(t->range_align - 1); /* from 0, other views fit in too */
  *out = (VkDescriptorBufferInfo){(VkBuffer)(uintptr_t)view.handle, begin, end - begin};
  if (end >= view.offset && end - begin <= t->max_range) return 1;
  r->slots->too_large = view.size;
  r->slots->too_large_at = view.offset;
  return 0;
}

static uint64_t common_address(const moi_vk_record *r, moi_buffer view) {
  moi_vk_slots *s = r->slots;
  VkDescriptorBufferInfo range;
  if (!range_of(r, view, &range)) return 0;
  uint64_t end = range.offset + range.range;
  for (uint32_t i = 1; i <= s->used; i++) {
    VkDescriptorBufferInfo *b = &s->list[i];
    if (b->buffer != range.buffer || view.offset < b->offset || end - b->offset > r->v->traits.max_range) continue;
    if (end - b->offset > b->range) b->range = end - b->offset, s->changed = 1;
    return (uint64_t)i << 32 | (view.offset - b->offset);
  }
  if (s->used == MOI_VK_COMMON) {
    s->exhausted = 1;
    return 0;
  }
  s->list[++s->used] = range;
  s->changed = 1;
  return (uint64_t)s->used << 32 | (view.offset - range.offset);
}

uint64_t moi_vk_address(const moi_vk_record *r, moi_buffer view) {
  if (!view.handle) return 0;
  if (r->slots) return common_address(r, view);
  VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                    .buffer = (VkBuffer)(uintptr_t)view.handle};
  return r->v->vk.GetBufferDeviceAddress(r->v->device, &info) + view.offset;
}

uint64_t moi_vk_experts_of_part(const moi_vk_traits *t, uint64_t skip, uint64_t stride) {
  uint64_t low = stride & (~stride + 1), step = low < t->range_align ? t->range_align / low : 1; /* parts begin alike */
  return stride ? (t->max_range - skip - 3) / stride / step * step : 0;
}

/* A stream's address, from s->next on; binds it too, if so. */
static uint64_t place(const moi_vk_record *r, moi_buffer view, uint64_t *stride, int bind) {
  moi_vk_slots *s = r->slots;
  const moi_vk_traits *t = &r->v->traits;
  uint64_t begin = view.offset & ~(t->range_align - 1), skip = view.offset - begin, per = 0, done = 0;
  uint32_t first = s->next;
  if (!view.handle) return 0;
  if (view.size > t->max_range - skip - 3) {
    per = moi_vk_experts_of_part(t, skip, *stride);
    if (!per || per > UINT32_MAX) {
      s->too_large = view.size;
      s->too_large_at = view.offset;
      return 0;
    }
  }
  do {
    uint64_t size = per && view.size - done > per * *stride ? per * *stride : view.size - done;
    if (s->next == MOI_VK_BINDINGS) {
      s->too_many = 1;
      return 0;
    }
    VkDescriptorBufferInfo range = {(VkBuffer)(uintptr_t)view.handle, begin + done,
                                    round_up(skip + (size ? size : 4), 4)};
    VkDescriptorBufferInfo *b = &s->list[s->next++];
    int other = b->buffer != range.buffer || b->offset != range.offset || b->range != range.range;
    if (bind && other) *b = range, s->changed = 1;
    done += size;
  } while (done < view.size);
  *stride = (*stride & UINT32_MAX) | per << 32;
  return (uint64_t)first << 32 | skip;
}

void moi_vk_first_stream(const moi_vk_record *r) {
  if (r->slots) r->slots->next = MOI_VK_FFN_COMMON + 1;
}

uint64_t moi_vk_next_stream(const moi_vk_record *r, moi_buffer view, uint64_t *stride) {
  return r->slots ? place(r, view, stride, 0) : moi_vk_address(r, view);
}

void moi_vk_bind_streams(const moi_vk_record *r, const moi_weights *const matrices[2]) {
  moi_vk_slots *s = r->slots;
  if (!s || !matrices[0]) return;
  if (s->used > MOI_VK_FFN_COMMON) s->exhausted = 1;
  moi_vk_first_stream(r);
  for (int i = 0; i < 2 && matrices[i]; i++) {
    const moi_weights *w = matrices[i];
    uint64_t strides[5] = {w->data_stride, w->scales_stride, w->zeros_stride, w->bias_stride, 0};
    const moi_buffer streams[5] = {w->data, w->scales, w->zeros, w->bias, w->global_scale};
    for (int k = 0; k < 5; k++) place(r, streams[k], &strides[k], 1);
  }
}

void moi_vk_forget(const moi_vk_record *r) {
  moi_vk_slots *s = r->slots;
  if (!s) return;
  memset(&s->list[2], 0, sizeof s->list - 2 * sizeof s->list[0]);
  s->used = 1;
  s->changed = 1;
}

/* ---- commands */

moi_vk_record moi_vk_begin(const moi_plan *plan, const moi_run *run, moi_vk_slots *slots) {
  moi_vk_record r = {.v = plan->context->state, .commands = run->queue.native, .slots = slots};
  if (run->workspace.handle) {
    moi_buffer workspace = run->workspace;
    workspace.size = plan->workspace; /* there may be more of it */
    r.workspace = (VkBuffer)(uintptr_t)workspace.handle;
    r.workspace_offset = workspace.offset;
    r.workspace_address = moi_vk_address(&r, workspace);
  }
  moi_vk_barrier(&r);
  return r;
}

void moi_vk_barrier(const moi_vk_record *r) {
  if (r->slots) {
    r->slots->since = SINCE_NOTHING;
    if (r->slots->trial) return;
  }
  VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                             .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                             .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                                              VK_ACCESS_INDIRECT_COMMAND_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
  r->v->vk.CmdPipelineBarrier(r->commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                              VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT |
                                  VK_PIPELINE_STAGE_TRANSFER_BIT,
                              0, 1, &barrier, 0, NULL, 0, NULL);
}

uint64_t moi_vk_args(const moi_vk_record *r, size_t at, const void *args, size_t size) {
  if (r->slots) {
    if (r->slots->trial) return r->workspace_address + at;
    if (r->slots->since == SINCE_DISPATCH) moi_vk_barrier(r);
    r->slots->since = SINCE_UPDATE;
  }
  r->v->vk.CmdUpdateBuffer(r->commands, r->workspace, r->workspace_offset + at, size, args);
  return r->workspace_address + at;
}

uint64_t moi_vk_put(const moi_vk_record *r, moi_vk_block *block, const void *args, size_t size) {
  uint64_t address = r->workspace_address + block->at + block->used;
  memcpy(block->bytes + block->used, args, size);
  block->used += (uint32_t)((size + 15) & ~(size_t)15);
  return address;
}

void moi_vk_flush(const moi_vk_record *r, const moi_vk_block *block) {
  moi_vk_args(r, block->at, block->bytes, block->used);
}

/* All of them are bound, as the shaders' array demands: those that nobody names to what is there. */
static void push_slots(const moi_vk_record *r) {
  moi_vk_slots *s = r->slots;
  VkDescriptorBufferInfo list[MOI_VK_BINDINGS];
  for (uint32_t i = 0; i < MOI_VK_BINDINGS; i++) list[i] = s->list[i].buffer ? s->list[i] : s->list[1];
  VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                .descriptorCount = MOI_VK_BINDINGS,
                                .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                .pBufferInfo = list};
  r->v->vk.CmdPushDescriptorSetKHR(r->commands, VK_PIPELINE_BIND_POINT_COMPUTE, r->v->layout, 0, 1, &write);
  s->changed = 0;
}

/* Returns 0 if nothing is to be dispatched. */
static int bind(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size) {
  if (r->slots) {
    if (r->slots->trial) return 0;
    if (r->slots->since != SINCE_NOTHING) moi_vk_barrier(r);
    r->slots->since = SINCE_DISPATCH;
    if (r->slots->changed) push_slots(r);
  }
  r->v->vk.CmdBindPipeline(r->commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
  r->v->vk.CmdPushConstants(r->commands, r->v->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, size, push);
  return 1;
}

void moi_vk_dispatch(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size, uint32_t x, uint32_t y,
                     uint32_t z) {
  if (!x || !y || !z) return;
  if (!bind(r, pipeline, push, size)) return;
  r->v->vk.CmdDispatch(r->commands, x, y, z);
}

void moi_vk_dispatch_indirect(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size, size_t at) {
  if (!bind(r, pipeline, push, size)) return;
  r->v->vk.CmdDispatchIndirect(r->commands, r->workspace, r->workspace_offset + at);
}
