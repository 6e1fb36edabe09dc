/* moiety compare: two JSON results of moiety bench, row by row. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/options.h"
#include "bench/commands.h"
#include "bench/results.h"

static const cJSON *find(const moi_results *results, const char *name) {
  const cJSON *row;
  cJSON_ArrayForEach(row, results->rows) if (!strcmp(moi_result_name(row), name)) return row;
  return NULL;
}

static void context_line(const moi_results *r) {
  printf("%s: %s, %s, moiety %s %s\n", r->path, moi_result_context(r, "device"), moi_result_context(r, "isa"),
         moi_result_context(r, "moiety_version"), moi_result_context(r, "git_commit"));
}

int moi_command_compare(int argc, char **argv) {
  static const moi_command command = {"compare", "two JSON results of bench, row by row",
                                      "The ratio is time A / time B: above 1, B is faster.\n", "A.json B.json"};
  int n_positional, status = moi_options_parse(&command, NULL, 0, argc, argv, &n_positional);
  if (status >= 0) return status;
  if (n_positional != 2) return moi_usage_error("compare", "takes two files, %d given", n_positional);
  moi_results a, b;
  if (moi_results_read(argv[0], &a)) return 1;
  if (moi_results_read(argv[1], &b)) {
    moi_results_free(&a);
    return 1;
  }
  context_line(&a);
  context_line(&b);
  printf("\n%-60s %12s %12s %8s\n", "row", "A us", "B us", "A/B");
  const cJSON *row;
  cJSON_ArrayForEach(row, a.rows) {
    const cJSON *other = find(&b, moi_result_name(row));
    double x = moi_result_seconds(row), y = other ? moi_result_seconds(other) : 0;
    if (!other) printf("%-60s %12.1f %12s %8s\n", moi_result_name(row), x * 1e6, "missing", "");
    else if (x <= 0 || y <= 0)
      printf("%-60s %12s %12s\n", moi_result_name(row), x > 0 ? "" : "failed", y > 0 ? "" : "failed");
    else printf("%-60s %12.1f %12.1f %8.3f\n", moi_result_name(row), x * 1e6, y * 1e6, x / y);
  }
  cJSON_ArrayForEach(row, b.rows) {
    if (!find(&a, moi_result_name(row)))
      printf("%-60s %12s %12.1f\n", moi_result_name(row), "missing", moi_result_seconds(row) * 1e6);
  }
  moi_results_free(&a);
  moi_results_free(&b);
  return 0;
}
