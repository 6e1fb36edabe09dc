/* The struct_size rule of moiety.h, for structs that come in and go out. */
#ifndef MOI_CORE_STRUCTS_H
#define MOI_CORE_STRUCTS_H

#include "core/status.h"

/* Copies a caller's struct of any version into ours of `size` bytes: a missing tail is 0, an unknown tail must be. */
moi_status moi_struct_in(const char *function, const char *what, void *dst, size_t size, const void *src);
/* Copies ours out into a caller's struct, no more than its struct_size says, which stays as it is. */
moi_status moi_struct_out(const char *function, const char *what, void *dst, size_t size, const void *src);

#define MOI_STRUCT_IN(function, dst, src) moi_struct_in(function, #src, dst, sizeof *(dst), src)

/* No backend here takes chained structs: anything in `next` is refused, never ignored. */
moi_status moi_chain_none(const char *function, const char *what, const moi_chain *next);

#endif
