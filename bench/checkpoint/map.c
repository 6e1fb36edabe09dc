#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/checkpoint/store.h"

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
