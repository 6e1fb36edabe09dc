/* The small vocabulary that lets one text be C, CUDA and GLSL: functions take and return uint, int and float by value,
 * and memory is reached through three macros, because GLSL cannot hand a buffer to a function.
 *
 *   MOI_FN                function prefix
 *   MOI_U8(B, i)          byte i of stream B, as uint
 *   MOI_U16(B, i)         the 16 bits at byte offset i (a multiple of 2) of stream B, as uint
 *   MOI_U32(B, i)         the 32 bits at byte offset i (a multiple of 4) of stream B, as uint
 *   moi_bits_f32(u)       reinterpret
 *   moi_f32_bits(f)
 *
 * A GLSL or CUDA file may define them before it includes this one. Offsets within one expert's matrix fit 32 bits
 * (moi_format_size refuses more). */
#ifndef MOI_SHARED_PRELUDE_H
#define MOI_SHARED_PRELUDE_H

#if defined(GL_core_profile) || defined(VULKAN)

#define MOI_FN
#define moi_bits_f32(u) uintBitsToFloat(u)
#define moi_f32_bits(f) floatBitsToUint(f)
#define MOI_UINT(x) uint(x)
#define MOI_INT(x) int(x)
#define MOI_FLOAT(x) float(x)

#else

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define MOI_FN static __host__ __device__ __forceinline__
#else
#define MOI_FN static inline
#endif

#ifdef __USE_MISC /* glibc has a uint of its own unless it is asked for strict C */
#include <sys/types.h>
#else
typedef unsigned int uint;
#endif
#define MOI_UINT(x) ((uint)(x))
#define MOI_INT(x) ((int)(x))
#define MOI_FLOAT(x) ((float)(x))

MOI_FN float moi_bits_f32(uint u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
MOI_FN uint moi_f32_bits(float f) {
  uint u;
  memcpy(&u, &f, 4);
  return u;
}

#ifndef MOI_U8
MOI_FN uint moi_load_u16(const uint8_t *p) {
  uint16_t v;
  memcpy(&v, p, 2);
  return v;
}
MOI_FN uint moi_load_u32(const uint8_t *p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}
#define MOI_U8(B, i) MOI_UINT((B)[i])
#define MOI_U16(B, i) moi_load_u16((B) + (i))
#define MOI_U32(B, i) moi_load_u32((B) + (i))
#endif

#endif
#endif
