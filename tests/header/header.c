/* Compiled as C and as C++: the header alone, its initialisers, and the sizes that the ABI promises. */
#include <moiety.h>

#define MOI_IS_32_BIT(type) typedef char type##_is_32_bit[sizeof(type) == 4 ? 1 : -1];
MOI_IS_32_BIT(moi_status)
MOI_IS_32_BIT(moi_format)
MOI_IS_32_BIT(moi_backend)
MOI_IS_32_BIT(moi_log_level)
MOI_IS_32_BIT(moi_op)
MOI_IS_32_BIT(moi_score)
MOI_IS_32_BIT(moi_group_score)
MOI_IS_32_BIT(moi_renorm)
MOI_IS_32_BIT(moi_activation)
MOI_IS_32_BIT(moi_gate_layout)
MOI_IS_32_BIT(moi_weight_on)
MOI_IS_32_BIT(moi_act_quant)
MOI_IS_32_BIT(moi_shared_gate)

#define MOI_GROWS(type) typedef char type##_starts_with_its_size[offsetof(type, struct_size) == 0 ? 1 : -1];
MOI_GROWS(moi_context_desc)
MOI_GROWS(moi_device_info)
MOI_GROWS(moi_kernel_info)
MOI_GROWS(moi_route_desc)
MOI_GROWS(moi_route_args)
MOI_GROWS(moi_experts_desc)
MOI_GROWS(moi_experts_args)
MOI_GROWS(moi_weights)
MOI_GROWS(moi_gemm_desc)
MOI_GROWS(moi_gemm_args)
MOI_GROWS(moi_moe_desc)
MOI_GROWS(moi_moe_args)
MOI_GROWS(moi_pack_desc)
MOI_GROWS(moi_preset)

int main(void) {
  moi_context_desc context = MOI_CONTEXT_DESC_INIT;
  moi_device_info device = MOI_DEVICE_INFO_INIT;
  moi_kernel_info kernel = MOI_KERNEL_INFO_INIT;
  moi_route_desc route = MOI_ROUTE_DESC_INIT;
  moi_route_args route_args = MOI_ROUTE_ARGS_INIT;
  moi_experts_desc experts = MOI_EXPERTS_DESC_INIT;
  moi_experts_args experts_args = MOI_EXPERTS_ARGS_INIT;
  moi_weights weights = MOI_WEIGHTS_INIT;
  moi_gemm_desc gemm = MOI_GEMM_DESC_INIT;
  moi_gemm_args gemm_args = MOI_GEMM_ARGS_INIT;
  moi_moe_desc moe = MOI_MOE_DESC_INIT;
  moi_moe_args moe_args = MOI_MOE_ARGS_INIT;
  moi_pack_desc pack = MOI_PACK_DESC_INIT;
  moi_buffer buffer = moi_ptr(&context, sizeof(context));
  size_t sizes = context.struct_size + device.struct_size + kernel.struct_size + route.struct_size +
                 route_args.struct_size + experts.struct_size + experts_args.struct_size + weights.struct_size +
                 gemm.struct_size + gemm_args.struct_size + moe.struct_size + moe_args.struct_size + pack.struct_size;
  return sizes == 0 || buffer.ptr != &context;
}
