#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[640];

const char *moi_status_text(moi_status status) {
  switch (status) {
#define MOI_X(name, value, text)                                                                                       \
  case MOI_##name: return text;
    MOI_STATUS_MAP(MOI_X)
#undef MOI_X
    default: return "not a moi_status";
  }
}

const char *moi_last_error(void) { return last_error; }

moi_status moi_fail(moi_status status, const char *function, const char *format, ...) {
  char text[640]; /* an argument of the format may be last_error itself */
  int at = snprintf(text, sizeof text, "%s: ", function);
  if (at < 0 || (size_t)at >= sizeof text) at = 0;
  va_list list;
  va_start(list, format);
  vsnprintf(text + at, sizeof text - (size_t)at, format, list);
  va_end(list);
  snprintf(last_error, sizeof last_error, "%s", text);
  return status;
}

uint32_t moi_version(void) { return MOI_VERSION; }
