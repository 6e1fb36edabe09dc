/* moiety compare: JSON results of moiety bench, row by row, or side by side what did the same work. */
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

/* ---- the same work: op, format, model and shape are equal; backend and kernel are who did it */

enum { MAX_FILES = 16, MAX_ROWS = 4096, MAX_NAME = 512 };

typedef struct doer {
  char work[MAX_NAME], who[MAX_NAME];
  const cJSON *row;
  int printed;
} doer;

/* "op/backend/kernel/format/...": the first and what follows the third, and the two between. */
static int split(const char *name, doer *out) {
  const char *backend = strchr(name, '/'), *kernel = backend ? strchr(backend + 1, '/') : NULL;
  const char *format = kernel ? strchr(kernel + 1, '/') : NULL;
  if (!format || strlen(name) >= MAX_NAME) return 1;
  snprintf(out->work, sizeof out->work, "%.*s%s", (int)(backend - name), name, format);
  snprintf(out->who, sizeof out->who, "%.*s", (int)(format - backend - 1), backend + 1);
  return 0;
}

/* By the device's own clock, where the row has it. */
static double busy_seconds(const cJSON *row) {
  double device = moi_result_number(row, "device_seconds"), wall = moi_result_seconds(row);
  return wall > 0 && device > 0 ? device : wall;
}

static void work_line(const doer *d, double ours) {
  double seconds = busy_seconds(d->row), wall = moi_result_seconds(d->row);
  if (seconds <= 0) {
    printf("  %-40s failed\n", d->who);
    return;
  }
  char limit[40] = "", ratio[32] = "";
  double roof = moi_result_number(d->row, "roof_fraction") * wall / seconds;
  int memory = moi_result_number(d->row, "bandwidth_fraction") >= moi_result_number(d->row, "compute_fraction");
  if (roof > 0) snprintf(limit, sizeof limit, "%.0f%% of %s", 100 * roof, memory ? "memory" : "compute");
  if (ours > 0) snprintf(ratio, sizeof ratio, "%.2f", seconds / ours);
  printf("  %-40s %12.1f us  %-16s %8s\n", d->who, seconds * 1e6, limit, ratio);
}

static int compare_work(int n, char **paths) {
  moi_results results[MAX_FILES];
  doer *all = calloc(MAX_ROWS, sizeof *all);
  int status = !all, n_read = 0, n_rows = 0;
  for (; n_read < n && !status; n_read++) {
    if (moi_results_read(paths[n_read], &results[n_read])) {
      status = 1;
      break;
    }
    const cJSON *row;
    cJSON_ArrayForEach(row, results[n_read].rows) {
      if (n_rows == MAX_ROWS || split(moi_result_name(row), &all[n_rows])) continue;
      all[n_rows++].row = row;
    }
  }
  if (!status) printf("%-42s %12s     %-16s %8s\n", "work, and who did it", "time", "of the limit", "of first");
  for (int i = 0; i < n_rows && !status; i++) {
    if (all[i].printed) continue;
    double ours = busy_seconds(all[i].row);
    printf("%s\n", all[i].work);
    for (int j = i; j < n_rows; j++) {
      if (strcmp(all[j].work, all[i].work)) continue;
      work_line(&all[j], j == i ? 0 : ours);
      all[j].printed = 1;
    }
  }
  for (int i = 0; i < n_read; i++) moi_results_free(&results[i]);
  free(all);
  return status;
}

int moi_command_compare(int argc, char **argv) {
  static const moi_command command = {"compare", "two JSON results of bench, row by row",
                                      "The ratio is time A / time B: above 1, B is faster.\n"
                                      "With --work, of any number of files, those of peers (bench/peers) among them:\n"
                                      "which backend and kernel takes how long for the same op, format, model and shape,\n"
                                      "by the device's clock where a row has it, and how long that is of the first's:\n"
                                      "above 1, the first is faster.\n",
                                      "A.json B.json"};
  int work = 0, n_positional;
  moi_option options[] = {{"--work", MOI_OPTION_FLAG, &work, NULL, "side by side what does the same", 0}};
  int status = moi_options_parse(&command, options, 1, argc, argv, &n_positional);
  if (status >= 0) return status;
  if (work && (n_positional < 1 || n_positional > MAX_FILES))
    return moi_usage_error("compare", "--work takes 1 to %d files, %d given", MAX_FILES, n_positional);
  if (work) return compare_work(n_positional, argv);
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
