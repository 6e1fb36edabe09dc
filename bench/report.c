/* moiety report: JSON results of moiety bench as one HTML page. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/options.h"
#include "bench/report/report.h"

static int write_page(const char *path, const moi_page *page) {
  FILE *file = path ? fopen(path, "wb") : stdout;
  if (!file) {
    fprintf(stderr, "moiety report: %s: %s\n", path, strerror(errno));
    return 1;
  }
  int bad = fwrite(page->text, 1, page->size, file) != page->size;
  bad |= (path ? fclose(file) : fflush(file)) != 0;
  if (bad) fprintf(stderr, "moiety report: %s: %s\n", path ? path : "standard output", strerror(errno));
  if (bad && path) remove(path);
  return bad;
}

int moi_command_report(int argc, char **argv) {
  static const moi_command command = {
      "report", "JSON results of bench as one HTML page",
      "The page needs no network and nothing beside it. Files of several machines are compared; files of one machine "
      "are\n"
      "taken together, unless they measured the same rows: then each is a run of its own.\n",
      "FILE.json..."};
  const char *out = NULL;
  char error[1024];
  int n;
  moi_option options[] = {
      {"-o", MOI_OPTION_TEXT, (void *)&out, "FILE.html", "where the page goes (default: standard output)", 0},
  };
  int status = moi_options_parse(&command, options, 1, argc, argv, &n);
  if (status >= 0) return status;
  if (!n) return moi_usage_error("report", "takes the JSON files of moiety bench");
  for (int i = 0; i < n && out; i++)
    if (!strcmp(argv[i], out)) return moi_usage_error("report", "-o: %s is one of the results", out);
  moi_report *report = malloc(sizeof *report);
  moi_page page = {0};
  if (!report) {
    fprintf(stderr, "moiety report: out of memory\n");
    return 1;
  }
  if (moi_report_read(n, argv, report, error, sizeof error)) {
    fprintf(stderr, "moiety report: %s\n", error);
    status = 1;
  } else if (moi_report_write(report, &page)) {
    fprintf(stderr, "moiety report: out of memory\n");
    status = 1;
  } else status = write_page(out, &page);
  moi_page_free(&page);
  moi_report_free(report);
  free(report);
  return status;
}
