#include "bench/memory.h"

#include <stdio.h>
#include <string.h>

#include <moiety.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

uint64_t moi_memory_available(void) {
  MEMORYSTATUSEX status = {.dwLength = sizeof status};
  return GlobalMemoryStatusEx(&status) ? status.ullAvailPhys : (uint64_t)1 << 30;
}
#else
/* A container's limit is below what /proc/meminfo shows. */
static uint64_t container_left(void) {
  unsigned long long limit = 0, used = 0;
  FILE *file = fopen("/sys/fs/cgroup/memory.max", "r");
  int known = file && fscanf(file, "%llu", &limit) == 1; /* "max" is no number */
  if (file) fclose(file);
  file = fopen("/sys/fs/cgroup/memory.current", "r");
  known = known && file && fscanf(file, "%llu", &used) == 1;
  if (file) fclose(file);
  return known && limit > used ? limit - used : UINT64_MAX;
}

uint64_t moi_memory_available(void) {
  uint64_t bytes = 0;
  char line[128];
  FILE *file = fopen("/proc/meminfo", "r");
  while (file && fgets(line, sizeof line, file)) {
    unsigned long long kib;
    if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) bytes = kib * 1024;
  }
  if (file) fclose(file);
  if (!bytes) {
    moi_device_info info = MOI_DEVICE_INFO_INIT;
    bytes = moi_device_get(MOI_BACKEND_CPU, 0, &info) || !info.memory ? (uint64_t)1 << 30 : info.memory / 2;
  }
  uint64_t left = container_left();
  return bytes < left ? bytes : left;
}
#endif
