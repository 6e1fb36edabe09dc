/* Reading the JSON that moiety bench (Google Benchmark) writes. */
#ifndef MOI_BENCH_RESULTS_H
#define MOI_BENCH_RESULTS_H

#include <cjson/cJSON.h>

typedef struct moi_results {
  const char *path;
  cJSON *json;
  const cJSON *context;
  cJSON *rows; /* one for each benchmark: the median where it was repeated */
} moi_results;

/* 0, or 1 after a message on stderr. */
int moi_results_read(const char *path, moi_results *out);
void moi_results_free(moi_results *results);

/* The row's name without Google Benchmark's suffixes. */
const char *moi_result_name(const cJSON *row);
/* Wall time of an iteration; 0 for a row that failed. */
double moi_result_seconds(const cJSON *row);
/* A counter, 0 if the row has none of that name. */
double moi_result_number(const cJSON *row, const char *name);
/* A string of the context, "" if there is none of that name. */
const char *moi_result_context(const moi_results *results, const char *name);

#endif
