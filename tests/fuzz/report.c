/* The JSON of a result: refused with words, or made into a page. */
#include <unistd.h>

#include "bench/report/report.h"
#include "tests/fuzz/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64], error[1024] = "";
  snprintf(path, sizeof path, "/dev/shm/moiety-fuzz-%d.json", (int)getpid());
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, 1, size, file) != size || fclose(file)) abort();
  static moi_report report;
  char *paths[] = {path, path};
  if (moi_report_read(1 + (size & 1), paths, &report, error, sizeof error)) {
    if (!error[0]) abort();
    moi_report_free(&report);
    unlink(path);
    return 0;
  }
  moi_page page = {0};
  if (moi_report_write(&report, &page)) abort();
  moi_page_free(&page);
  moi_report_free(&report);
  unlink(path);
  return 0;
}
