#include "bench/dump.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int moi_dump_write(const moi_dump *dump, const char *name, moi_format type, moi_buffer view, const uint32_t dims[3]) {
  char path[1024];
  size_t size = type == MOI_FORMAT_F32 || !type ? 4 : 2;
  if (!view.ptr) return 0;
  if (type && type != MOI_FORMAT_F32 && type != MOI_FORMAT_F16 && type != MOI_FORMAT_BF16) {
    snprintf(dump->error, dump->error_size, "--operands: %s is %s: f32, f16 and bf16 can be written", name,
             moi_format_name(type));
    return 1;
  }
  int at = snprintf(path, sizeof path, "%s/%s.%s", dump->folder, name, type ? moi_format_name(type) : "i32");
  for (int i = 0; i < 3 && dims[i] && at < (int)sizeof path; i++) {
    at += snprintf(path + at, sizeof path - (size_t)at, "%c%u", i ? 'x' : '.', dims[i]);
    size *= dims[i];
  }
  if (at >= (int)sizeof path || size > view.size) {
    snprintf(dump->error, dump->error_size, "--operands: %s: %s", name,
             at >= (int)sizeof path ? "the path is too long" : "the view is smaller than its shape");
    return 1;
  }
  FILE *file = fopen(path, "wb");
  int bad = !file || fwrite((const uint8_t *)view.ptr + view.offset, 1, size, file) != size;
  if (file && fclose(file)) bad = 1;
  if (bad) snprintf(dump->error, dump->error_size, "--operands: %s: %s", path, strerror(errno));
  return bad;
}
