/* Compiled as C and as C++: the CUDA header alone, without CUDA's own. */
#include <moiety_cuda.h>

typedef char moi_cuda_context_is_a_chain[offsetof(moi_cuda_context, chain) == 0 ? 1 : -1];
typedef char moi_cuda_handles_out_starts_with_its_size[offsetof(moi_cuda_handles_out, struct_size) == 0 ? 1 : -1];

int main(void) {
  moi_cuda_context context = MOI_CUDA_CONTEXT_INIT;
  moi_cuda_handles_out handles = MOI_CUDA_HANDLES_INIT;
  return context.chain.type == 0 || handles.struct_size == 0;
}
