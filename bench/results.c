#include "bench/results.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    fprintf(stderr, "moiety: %s: %s\n", path, strerror(errno));
    return NULL;
  }
  size_t size = 0, capacity = 1 << 16, n;
  char *text = malloc(capacity + 1);
  while (text && (n = fread(text + size, 1, capacity - size, file)) > 0) {
    size += n;
    if (size < capacity) continue;
    char *more = realloc(text, (capacity *= 2) + 1);
    if (!more) free(text);
    text = more;
  }
  int bad = ferror(file);
  fclose(file);
  if (!text || bad) {
    fprintf(stderr, "moiety: %s: %s\n", path, text ? "cannot be read" : "out of memory");
    free(text);
    return NULL;
  }
  text[size] = 0;
  return text;
}

static const char *text_of(const cJSON *object, const char *name) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
  return cJSON_IsString(item) ? item->valuestring : "";
}

const char *moi_result_name(const cJSON *row) { return text_of(row, "run_name"); }

double moi_result_number(const cJSON *row, const char *name) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
  return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

double moi_result_seconds(const cJSON *row) {
  if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(row, "error_occurred"))) return 0;
  const char *unit = text_of(row, "time_unit");
  double scale = !strcmp(unit, "s") ? 1 : !strcmp(unit, "ms") ? 1e-3 : !strcmp(unit, "us") ? 1e-6 : 1e-9;
  return moi_result_number(row, "real_time") * scale;
}

const char *moi_result_context(const moi_results *results, const char *name) { return text_of(results->context, name); }

/* Google Benchmark appends "/real_time", "/manual_time" and the like. */
static void strip(cJSON *row) {
  static const char *const suffixes[] = {"/real_time", "/manual_time", "/process_time"};
  cJSON *name = cJSON_GetObjectItemCaseSensitive(row, "run_name");
  if (!cJSON_IsString(name)) return;
  for (int i = 0; i < 3; i++) {
    char *at = strstr(name->valuestring, suffixes[i]);
    if (at) *at = 0;
  }
  char *at = strstr(name->valuestring, "/repeats:");
  if (at) *at = 0;
  at = strstr(name->valuestring, "/min_time:");
  if (at) *at = 0;
}

int moi_results_read(const char *path, moi_results *out) {
  memset(out, 0, sizeof *out);
  char *text = read_file(path);
  if (!text) return 1;
  out->path = path;
  out->json = cJSON_Parse(text);
  if (!out->json) {
    const char *at = cJSON_GetErrorPtr();
    long line = 1;
    for (const char *p = text; at && p < at; p++) line += *p == '\n';
    fprintf(stderr, "moiety: %s: line %ld: not JSON\n", path, line);
  }
  free(text);
  if (!out->json) return 1;
  out->context = cJSON_GetObjectItemCaseSensitive(out->json, "context");
  cJSON *all = cJSON_GetObjectItemCaseSensitive(out->json, "benchmarks");
  if (!cJSON_IsArray(all)) {
    fprintf(stderr, "moiety: %s: has no \"benchmarks\": not a result of moiety bench\n", path);
    moi_results_free(out);
    return 1;
  }
  out->rows = cJSON_CreateArray();
  cJSON *row;
  cJSON_ArrayForEach(row, all) strip(row);
  cJSON_ArrayForEach(row, all) {
    const char *aggregate = text_of(row, "aggregate_name");
    int wanted = !strcmp(aggregate, "median");
    if (!*aggregate) { /* a single run, unless its median stands elsewhere or it is a later repetition */
      wanted = moi_result_number(row, "repetition_index") == 0;
      cJSON *other;
      cJSON_ArrayForEach(other, all) if (!strcmp(text_of(other, "aggregate_name"), "median") &&
                                         !strcmp(moi_result_name(other), moi_result_name(row))) wanted = 0;
    }
    if (wanted) cJSON_AddItemReferenceToArray(out->rows, row);
  }
  return 0;
}

void moi_results_free(moi_results *results) {
  cJSON_Delete(results->rows);
  cJSON_Delete(results->json);
  memset(results, 0, sizeof *results);
}
