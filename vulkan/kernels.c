#include "core/choose.h"
#include "vulkan/kernel.h"

#include "vulkan_formats.h" /* generated: MOI_VK_EVERY_FORMAT(X, ...) is X(NAME, "name", ...) for each format */

#define STEADY (MOI_DETERMINISTIC | MOI_BATCH_INVARIANT)
#define FALLBACK MOI_ROW_FALLBACK
#define WHOLE MOI_VK_WHOLE
#define DIGITS MOI_VK_DIGITS

const moi_vk_kernel moi_vk_kernels[] = {
#define GEMM_ROW(FORMAT, format, name, needs, m_max, m_tile, n_tile, flags, shader)                                    \
  {format "-" name, MOI_OP_GEMM, MOI_FORMAT_##FORMAT, needs, m_max, m_tile, n_tile, flags, shader "_" format},
#define GEMM(name, needs, ...) MOI_VK_EVERY_FORMAT(GEMM_ROW, name, MOI_VK_##needs, __VA_ARGS__)
#define CODES_ROW(FORMAT, format, name, needs, m_max, m_tile, n_tile, flags, shader)                                   \
  {format "-" name, MOI_OP_GEMM, MOI_FORMAT_##FORMAT, needs, m_max, m_tile, n_tile, flags, shader},
#define CODES(name, needs, ...) MOI_VK_CODES(CODES_ROW, name, MOI_VK_##needs, __VA_ARGS__)
#define ROUTE(name, needs, flags, shader)                                                                              \
  {name, MOI_OP_ROUTE, MOI_FORMAT_NONE, MOI_VK_##needs, 0, 0, 0, flags, shader},
#define ATTENTION(name, needs, m_max, m_tile, n_tile, flags, shader)                                                   \
  {name, MOI_OP_ATTENTION, MOI_FORMAT_NONE, MOI_VK_##needs, m_max, m_tile, n_tile, flags, shader},
#include "vulkan/kernels.def"
};
const uint32_t moi_vk_kernel_count = sizeof moi_vk_kernels / sizeof moi_vk_kernels[0];
