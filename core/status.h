/* Errors: set the thread's text, return the status. */
#ifndef MOI_CORE_STATUS_H
#define MOI_CORE_STATUS_H

#include <moiety.h>

#if defined(__MINGW32__) && !defined(__clang__)
#define MOI_PRINTF(at) __attribute__((format(gnu_printf, at, (at) + 1)))
#elif defined(__GNUC__)
#define MOI_PRINTF(at) __attribute__((format(printf, at, (at) + 1)))
#else
#define MOI_PRINTF(at)
#endif

/* Stores "function: text" for moi_last_error and returns `status`. */
moi_status moi_fail(moi_status status, const char *function, const char *format, ...) MOI_PRINTF(3);

#endif
