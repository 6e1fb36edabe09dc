/* What the system says of this machine: the CPU's name, memory and cache. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__linux__)
/* What follows the colon of a line of /proc/cpuinfo that begins with `key`, or NULL; cuts the line's end off. */
static char *value_of(char *line, const char *key) {
  char *colon = strchr(line, ':');
  if (strncmp(line, key, strlen(key)) || !colon) return NULL;
  line[strcspn(line, "\n")] = 0;
  return colon[1] == ' ' ? colon + 2 : colon + 1;
}

#if defined(__aarch64__)
/* The cores of MIDR_EL1's implementer << 12 | part, which is all that cpuinfo tells on AArch64. */
static const struct {
  uint32_t id;
  const char *name;
} cores[] = {
    {0x41d03, "Cortex-A53"},   {0x41d04, "Cortex-A35"},   {0x41d05, "Cortex-A55"},   {0x41d07, "Cortex-A57"},
    {0x41d08, "Cortex-A72"},   {0x41d09, "Cortex-A73"},   {0x41d0a, "Cortex-A75"},   {0x41d0b, "Cortex-A76"},
    {0x41d0c, "Neoverse-N1"},  {0x41d0d, "Cortex-A77"},   {0x41d0e, "Cortex-A76AE"}, {0x41d40, "Neoverse-V1"},
    {0x41d41, "Cortex-A78"},   {0x41d42, "Cortex-A78AE"}, {0x41d44, "Cortex-X1"},    {0x41d46, "Cortex-A510"},
    {0x41d47, "Cortex-A710"},  {0x41d48, "Cortex-X2"},    {0x41d49, "Neoverse-N2"},  {0x41d4a, "Neoverse-E1"},
    {0x41d4b, "Cortex-A78C"},  {0x41d4c, "Cortex-X1C"},   {0x41d4d, "Cortex-A715"},  {0x41d4e, "Cortex-X3"},
    {0x41d4f, "Neoverse-V2"},  {0x41d80, "Cortex-A520"},  {0x41d81, "Cortex-A720"},  {0x41d82, "Cortex-X4"},
    {0x41d84, "Neoverse-V3"},  {0x41d85, "Cortex-X925"},  {0x41d87, "Cortex-A725"},  {0x41d8e, "Neoverse-N3"},
    {0x46001, "A64FX"},        {0x48d01, "TaiShan v110"}, {0x51001, "Oryon"},        {0xc0ac3, "Ampere-1"},
    {0xc0ac4, "Ampere-1a"},
};

/* Appends the core's name unless it is there. */
static void add_core(uint32_t id, char *names, size_t size) {
  char name[32];
  snprintf(name, sizeof name, "AArch64 0x%02x:0x%03x", id >> 12, id & 0xfff);
  for (size_t i = 0; i < sizeof cores / sizeof *cores; i++)
    if (cores[i].id == id) snprintf(name, sizeof name, "%s", cores[i].name);
  const size_t length = strlen(name);
  for (const char *at = names; (at = strstr(at, name)); at += length)
    if ((at == names || at[-1] == '+') && (!at[length] || at[length] == '+')) return;
  const size_t used = strlen(names);
  if (used < size) snprintf(names + used, size - used, "%s%s", used ? "+" : "", name);
}

/* A board's name is in its device tree. */
static void board_name(char *name, size_t size) {
  name[0] = 0;
  FILE *file = fopen("/proc/device-tree/model", "r");
  if (!file) return;
  name[fread(name, 1, size - 1, file)] = 0;
  fclose(file);
}
#endif

static void find_name(char *name, size_t size) {
  FILE *file = fopen("/proc/cpuinfo", "r");
  if (!file) return;
  char line[256], *value, model[128] = "";
#if defined(__aarch64__)
  char found[96] = "", board[96];
  uint32_t implementer = 0;
#endif
  while (!model[0] && fgets(line, sizeof line, file)) {
    if ((value = value_of(line, "model name"))) snprintf(model, sizeof model, "%s", value);
#if defined(__aarch64__)
    if ((value = value_of(line, "CPU implementer"))) implementer = (uint32_t)strtoul(value, NULL, 0);
    if ((value = value_of(line, "CPU part")))
      add_core(implementer << 12 | (uint32_t)strtoul(value, NULL, 0), found, sizeof found);
#endif
  }
  fclose(file);
#if defined(__aarch64__)
  board_name(board, sizeof board);
  if (board[0] && found[0]) snprintf(name, size, "%s (%s)", board, found);
  else if (board[0] || found[0]) snprintf(name, size, "%s", board[0] ? board : found);
#endif
  if (model[0]) snprintf(name, size, "%s", model);
}
#elif defined(__APPLE__)
static void find_name(char *name, size_t size) {
  char brand[128];
  size_t length = sizeof brand;
  if (!sysctlbyname("machdep.cpu.brand_string", brand, &length, NULL, 0)) snprintf(name, size, "%s", brand);
}
#elif defined(_WIN32)
static void find_name(char *name, size_t size) {
  char text[128];
  DWORD length = sizeof text;
  if (!RegGetValueA(HKEY_LOCAL_MACHINE, "HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0", "ProcessorNameString",
                    RRF_RT_REG_SZ, NULL, text, &length))
    snprintf(name, size, "%s", text);
}
#else
static void find_name(char *name, size_t size) {
  (void)name;
  (void)size;
}
#endif

void moi_cpu_name(char *name, size_t size) {
  snprintf(name, size, "CPU");
  find_name(name, size);
}

#if defined(_WIN32)
void moi_cpu_memory(moi_device_info *info) {
  MEMORYSTATUSEX status = {.dwLength = sizeof status};
  if (GlobalMemoryStatusEx(&status)) info->memory = status.ullTotalPhys;
  SYSTEM_LOGICAL_PROCESSOR_INFORMATION list[512];
  DWORD size = sizeof list;
  if (!GetLogicalProcessorInformation(list, &size)) return;
  for (DWORD i = 0; i < size / sizeof *list; i++)
    if (list[i].Relationship == RelationCache && list[i].Cache.Level == 3 && list[i].Cache.Size > info->cache)
      info->cache = list[i].Cache.Size;
}
#else
void moi_cpu_memory(moi_device_info *info) {
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) info->memory = (uint64_t)pages * (uint64_t)page;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (cache > 0) info->cache = (uint64_t)cache;
#endif
}
#endif
