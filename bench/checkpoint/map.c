#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#endif
#include "bench/checkpoint/store.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

/* Paths are UTF-8, as everywhere in the library. */
static bool wide(const char *path, wchar_t out[4096]) {
  return MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, 4096) > 0;
}

static bool fail(moi_load_error *error, const char *path) {
  char text[256];
  DWORD code = GetLastError();
  if (code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND) return moi_load_fail(error, "%s: No such file", path);
  DWORD n = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL, code, 0, text, sizeof text,
                           NULL);
  while (n && (text[n - 1] == '\n' || text[n - 1] == '\r')) n--;
  return moi_load_fail(error, "%s: %.*s", path, (int)n, text);
}

bool moi_map_open(const char *path, moi_map *map, moi_load_error *error) {
  wchar_t name[4096];
  if (!wide(path, name)) return moi_load_fail(error, "%s: is no path", path);
  if (moi_is_folder(path)) return moi_load_fail(error, "%s: is not a regular file", path);
  HANDLE file = CreateFileW(name, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
  if (file == INVALID_HANDLE_VALUE) return fail(error, path);
  LARGE_INTEGER size;
  HANDLE mapping = NULL;
  const void *data = NULL;
  if (!GetFileSizeEx(file, &size)) fail(error, path);
  else if (size.QuadPart <= 0) moi_load_fail(error, "%s: is empty", path);
  else if (!(mapping = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL)) ||
           !(data = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0)))
    fail(error, path);
  else {
    map->data = data;
    map->size = (uint64_t)size.QuadPart;
  }
  if (mapping) CloseHandle(mapping); /* the view holds both */
  CloseHandle(file);
  return data != NULL;
}

void moi_map_close(moi_map *map) {
  if (map->data) UnmapViewOfFile(map->data);
  map->data = NULL;
}

static DWORD attributes(const char *path) {
  wchar_t name[4096];
  return wide(path, name) ? GetFileAttributesW(name) : INVALID_FILE_ATTRIBUTES;
}

bool moi_is_folder(const char *path) {
  DWORD a = attributes(path);
  return a != INVALID_FILE_ATTRIBUTES && a & FILE_ATTRIBUTE_DIRECTORY;
}
bool moi_is_file(const char *path) {
  DWORD a = attributes(path);
  return a != INVALID_FILE_ATTRIBUTES && !(a & FILE_ATTRIBUTE_DIRECTORY);
}
#else
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool moi_map_open(const char *path, moi_map *map, moi_load_error *error) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return moi_load_fail(error, "%s: %s", path, strerror(errno));
  struct stat status;
  bool ok = false;
  if (fstat(file, &status)) moi_load_fail(error, "%s: %s", path, strerror(errno));
  else if (!S_ISREG(status.st_mode)) moi_load_fail(error, "%s: is not a regular file", path);
  else if (status.st_size <= 0) moi_load_fail(error, "%s: is empty", path);
  else if ((uint64_t)status.st_size > SIZE_MAX) moi_load_fail(error, "%s: is too large to be mapped", path);
  else {
    void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (data == MAP_FAILED) moi_load_fail(error, "%s: cannot be mapped: %s", path, strerror(errno));
    else {
      map->data = data;
      map->size = (uint64_t)status.st_size;
      ok = true;
    }
  }
  close(file); /* the mapping holds the file */
  return ok;
}

void moi_map_close(moi_map *map) {
  if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->size);
  map->data = NULL;
}

static bool is_mode(const char *path, mode_t mode) {
  struct stat status;
  return !stat(path, &status) && (status.st_mode & S_IFMT) == mode;
}

bool moi_is_folder(const char *path) { return is_mode(path, S_IFDIR); }
bool moi_is_file(const char *path) { return is_mode(path, S_IFREG); }
#endif
