/* Recording of a run into the caller's command buffer. */
#include "vulkan/vulkan.h"

uint64_t moi_vk_address(const moi_vk_record *r, moi_buffer view) {
  if (!view.handle) return 0;
  VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                    .buffer = (VkBuffer)(uintptr_t)view.handle};
  return r->v->vk.GetBufferDeviceAddress(r->v->device, &info) + view.offset;
}

moi_vk_record moi_vk_begin(const moi_plan *plan, const moi_run *run) {
  moi_vk_record r = {.v = plan->context->state, .commands = run->queue.native};
  if (run->workspace.handle) {
    r.workspace = (VkBuffer)(uintptr_t)run->workspace.handle;
    r.workspace_offset = run->workspace.offset;
    r.workspace_address = moi_vk_address(&r, run->workspace);
  }
  moi_vk_barrier(&r);
  return r;
}

void moi_vk_barrier(const moi_vk_record *r) {
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

static void bind(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size) {
  r->v->vk.CmdBindPipeline(r->commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
  r->v->vk.CmdPushConstants(r->commands, r->v->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, size, push);
}

void moi_vk_dispatch(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size, uint32_t x, uint32_t y,
                     uint32_t z) {
  if (!x || !y || !z) return;
  bind(r, pipeline, push, size);
  r->v->vk.CmdDispatch(r->commands, x, y, z);
}

void moi_vk_dispatch_indirect(const moi_vk_record *r, VkPipeline pipeline, const void *push, uint32_t size, size_t at) {
  bind(r, pipeline, push, size);
  r->v->vk.CmdDispatchIndirect(r->commands, r->workspace, r->workspace_offset + at);
}
