#include "bench/report/rows.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 64 << 20, MAX_ENTRIES = 400000, MAX_FIELD = 160, MAX_NAME = 1000 };

typedef struct reader {
  moi_report *report;
  int file;
  char *error;
  size_t error_size;
} reader;

static int refuse(const reader *r, const char *format, ...) {
  va_list list;
  int n = snprintf(r->error, r->error_size, "%s: ", r->report->files[r->file].path);
  va_start(list, format);
  if (n >= 0 && (size_t)n < r->error_size) vsnprintf(r->error + n, r->error_size - (size_t)n, format, list);
  va_end(list);
  return 1;
}

static char *duplicate(const char *text, size_t size) {
  char *out = malloc(size + 1);
  if (!out) return NULL;
  memcpy(out, text, size);
  out[size] = 0;
  return out;
}

/* ---- the file */

/* Google Benchmark writes NaN and Infinity, which JSON does not have; here they become null. out has room for a third
 * more than in. */
static size_t without_nan(const char *in, size_t n, char *out) {
  static const char *const words[] = {"-NaN", "NaN", "-Infinity", "Infinity"};
  size_t at = 0;
  int quoted = 0;
  for (size_t i = 0; i < n; i++) {
    int found = 0;
    for (int w = 0; w < 4 && !quoted; w++) {
      size_t length = strlen(words[w]);
      if (n - i < length || memcmp(in + i, words[w], length)) continue;
      memcpy(out + at, "null", 4);
      at += 4;
      i += length - 1;
      found = 1;
      break;
    }
    if (found) continue;
    if (in[i] == '"') quoted = !quoted;
    out[at++] = in[i];
    if (quoted && in[i] == '\\' && i + 1 < n) out[at++] = in[++i];
  }
  return at;
}

static int read_json(const reader *r, cJSON **out) {
  const char *path = r->report->files[r->file].path;
  FILE *file = fopen(path, "rb");
  if (!file) return refuse(r, "%s", strerror(errno));
  char *text = NULL, *clean = NULL;
  size_t size = 0, capacity = 0, n;
  int status = 1, bad = 0;
  do {
    if (size == capacity) {
      capacity = capacity ? 2 * capacity : 1 << 16;
      char *more = realloc(text, capacity);
      if (!more) {
        fclose(file);
        free(text);
        return refuse(r, "out of memory");
      }
      text = more;
    }
    n = fread(text + size, 1, capacity - size, file);
    size += n;
  } while (n && size <= MAX_FILE);
  bad = ferror(file);
  fclose(file);
  if (bad) refuse(r, "cannot be read");
  else if (size > MAX_FILE) refuse(r, "is larger than %d MiB: no result of moiety bench", MAX_FILE >> 20);
  else if (!size) refuse(r, "is empty");
  else if (!(clean = malloc(size + size / 3 + 8))) refuse(r, "out of memory");
  else {
    const char *end = NULL;
    size_t length = without_nan(text, size, clean);
    *out = cJSON_ParseWithLengthOpts(clean, length, &end, 0);
    while (*out && end < clean + length && strchr(" \t\r\n", *end) && *end) end++;
    if (!*out || end != clean + length) {
      long line = 1;
      for (const char *p = clean; end && p < end && p < clean + length; p++) line += *p == '\n';
      refuse(r, "line %ld: not JSON", line);
    } else status = 0;
  }
  free(clean);
  free(text);
  return status;
}

/* A positive number, also one that is written as text; NaN. */
static double context_number(const cJSON *item) {
  double v = NAN;
  if (cJSON_IsNumber(item)) v = item->valuedouble;
  else if (cJSON_IsString(item)) {
    char *end;
    v = strtod(item->valuestring, &end);
    if (end == item->valuestring || *end) v = NAN;
  }
  return v > 1e-6 && v < 1e12 ? v : NAN;
}

static int read_context(const reader *r) {
  moi_report_file *f = &r->report->files[r->file];
  static const struct {
    const char *suffix, *unit;
  } kinds[] = {{"_gbs", "GB/s"}, {"_gflops", "GFLOP/s"}, {"_gops", "GOP/s"}};
  const char *const names[] = {"device", "isa",    "moiety_version", "git_commit",
                               "date",   "layers", "host_name",      "command"};
  const char **const to[] = {&f->device, &f->isa, &f->version, &f->commit, &f->date, &f->layers, &f->host, &f->command};
  f->context = cJSON_GetObjectItemCaseSensitive(f->json, "context");
  if (!cJSON_IsObject(f->json) || !cJSON_IsObject(f->context))
    return refuse(r, "has no \"context\": not a result of moiety bench");
  if (!cJSON_IsString(cJSON_GetObjectItemCaseSensitive(f->context, "moiety_version")))
    return refuse(r, "its \"context\" names no \"moiety_version\": not a result of moiety bench");
  for (int i = 0; i < 8; i++) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(f->context, names[i]);
    if (item && !cJSON_IsString(item)) return refuse(r, "context: \"%s\" is no text", names[i]);
    *to[i] = item ? item->valuestring : "";
  }
  const cJSON *item;
  f->threads = context_number(cJSON_GetObjectItemCaseSensitive(f->context, "threads"));
  f->cpus = context_number(cJSON_GetObjectItemCaseSensitive(f->context, "num_cpus"));
  f->memory = context_number(cJSON_GetObjectItemCaseSensitive(f->context, "memory_gb"));
  cJSON_ArrayForEach(item, f->context) {
    if (!item->string || strncmp(item->string, "peak_", 5) || f->n_peaks == MOI_REPORT_PEAKS) continue;
    const char *name = item->string + 5;
    for (int k = 0; k < 3; k++) {
      size_t n = strlen(name), m = strlen(kinds[k].suffix);
      double value = context_number(item);
      moi_report_peak *p = &f->peaks[f->n_peaks];
      if (n <= m || n - m >= sizeof p->name || strcmp(name + n - m, kinds[k].suffix) || isnan(value)) continue;
      snprintf(p->name, sizeof p->name, "%.*s", (int)(n - m), name);
      p->unit = kinds[k].unit;
      p->value = value;
      f->n_peaks++;
      break;
    }
  }
  return 0;
}

/* ---- rows */

typedef struct entry {
  const char *name;
  double family, instance;
  long index;
  const cJSON *json;
} entry;

static int compare_entries(const void *x, const void *y) {
  const entry *a = x, *b = y;
  int d = strcmp(a->name, b->name);
  if (!d) d = (a->family > b->family) - (a->family < b->family);
  if (!d) d = (a->instance > b->instance) - (a->instance < b->instance);
  return d ? d : (a->index > b->index) - (a->index < b->index);
}

static int same_benchmark(const entry *a, const entry *b) {
  return !strcmp(a->name, b->name) && a->family == b->family && a->instance == b->instance;
}

static const char *text_of(const cJSON *object, const char *name) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
  return cJSON_IsString(item) ? item->valuestring : "";
}

static double number_of(const cJSON *object, const char *name, double otherwise) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
  return cJSON_IsNumber(item) && isfinite(item->valuedouble) ? item->valuedouble : otherwise;
}

/* A number that is allowed to be absent or null (NaN), and nothing else. */
static int read_number(const reader *r, const entry *e, const char *name, double *out) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(e->json, name);
  *out = NAN;
  if (!item || cJSON_IsNull(item)) return 0;
  if (!cJSON_IsNumber(item)) return refuse(r, "benchmarks[%ld]: \"%s\" is no number", e->index, name);
  double v = item->valuedouble;
  if (v != 0 && !(v > 1e-24 && v < 1e24)) return refuse(r, "benchmarks[%ld]: \"%s\" is no measurement", e->index, name);
  *out = v;
  return 0;
}

static int read_seconds(const reader *r, const entry *e, double *out) {
  const char *unit = text_of(e->json, "time_unit");
  double scale = !strcmp(unit, "s")    ? 1
                 : !strcmp(unit, "ms") ? 1e-3
                 : !strcmp(unit, "us") ? 1e-6
                 : !strcmp(unit, "ns") ? 1e-9
                                       : 0;
  if (scale == 0) return refuse(r, "benchmarks[%ld]: \"time_unit\" is none of s, ms, us, ns", e->index);
  *out = number_of(e->json, "real_time", NAN) * scale;
  if (!(*out > 1e-12 && *out < 1e9)) return refuse(r, "benchmarks[%ld]: \"real_time\" is no time of a call", e->index);
  return 0;
}

static const char *failure_of(const cJSON *json) {
  if (!cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "error_occurred")) &&
      !cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "skipped")))
    return NULL;
  const char *text = text_of(json, "error_message");
  if (!*text) text = text_of(json, "skip_message");
  return *text ? text : "no reason given";
}

/* Members that have a place of their own or say nothing about the row. */
static int is_known(const char *name) {
  static const char *const known[] = {"name",
                                      "family_index",
                                      "per_family_instance_index",
                                      "run_name",
                                      "run_type",
                                      "repetitions",
                                      "repetition_index",
                                      "threads",
                                      "iterations",
                                      "real_time",
                                      "cpu_time",
                                      "time_unit",
                                      "bandwidth_fraction",
                                      "bytes_per_second",
                                      "compute_fraction",
                                      "read_peak",
                                      "compute_peak",
                                      "roof_fraction",
                                      "flops_per_second",
                                      "label",
                                      "aggregate_name",
                                      "aggregate_unit",
                                      "error",
                                      "tolerance",
                                      "nmse",
                                      "tokens",
                                      "error_occurred",
                                      "error_message",
                                      "skipped",
                                      "skip_message",
                                      "cpu_coefficient",
                                      "real_coefficient",
                                      "big_o",
                                      "rms"};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(name, known[i])) return 1;
  return 0;
}

static int ends_with(const char *name, const char *end) {
  size_t n = strlen(name), m = strlen(end);
  return n >= m && !strcmp(name + n - m, end);
}

/* A shape is a whole number that every repetition has alike, and not by its name a measurement. */
static int is_shape(const entry *group, long n, const cJSON *item) {
  static const char *const measured[] = {"_per_second", "_fraction", "_seconds", "_time", "_bytes", "bytes",
                                         "flops",       "_joules",   "_watts",   "error", "excused"};
  double v = item->valuedouble;
  if (!(v >= 0 && v < 1e15) || v != floor(v)) return 0;
  for (size_t i = 0; i < sizeof measured / sizeof *measured; i++)
    if (ends_with(item->string, measured[i])) return 0;
  for (long i = 0; i < n; i++)
    if (!*text_of(group[i].json, "aggregate_name") && number_of(group[i].json, item->string, v) != v) return 0;
  return 1;
}

/* Adds "NAME VALUE" to a list. */
static int extend(char **list, const char *name, const char *value) {
  size_t old = strlen(*list), size = old + strlen(name) + strlen(value) + 4;
  char *more = realloc(*list, size);
  if (!more) return 1;
  *list = more;
  snprintf(more + old, size - old, "%s%s%s%s", old ? ", " : "", name, *name && *value ? " " : "", value);
  return 0;
}

/* Whether the list has an entry of this name. */
static int has(const char *list, const char *name) {
  size_t n = strlen(name);
  for (const char *p = list; p && *p; p = strstr(p, ", ") ? strstr(p, ", ") + 2 : NULL)
    if (!strncmp(p, name, n) && p[n] == ' ') return 1;
  return 0;
}

/* The shape, with "= tokens" in the place of what is equal to them. */
static int make_series(moi_report_row *row) {
  row->series = duplicate("", 0);
  for (const char *p = row->shape; *p && row->series;) {
    const char *next = strstr(p, ", "), *end = next ? next : p + strlen(p), *value = end;
    while (value > p && *value != ' ') value--;
    char *stop;
    int equal = value > p && row->tokens == strtod(value + 1, &stop) && stop == end;
    char *part = duplicate(p, (size_t)((equal ? value : end) - p));
    if (!part || extend(&row->series, part, equal ? "= tokens" : "")) {
      free(part);
      return 1;
    }
    free(part);
    p = next ? next + 2 : end;
  }
  return !row->series;
}

/* "op/backend/kernel/format/preset/tokens:N", and further "what:value"; what Google Benchmark adds is dropped. */
static int read_name(const reader *r, const entry *e, moi_report_row *row) {
  static const char *const dropped[] = {"real_time", "manual_time", "process_time"};
  static const char *const settings[] = {"repeats", "min_time", "min_warmup_time", "iterations", "threads"};
  const char **const to[] = {&row->op, &row->backend, &row->kernel, &row->format, &row->preset};
  int field = 0;
  if (strlen(e->name) > MAX_NAME) return refuse(r, "benchmarks[%ld]: its name is too long", e->index);
  row->name = duplicate(e->name, strlen(e->name));
  if (!row->name) return refuse(r, "out of memory");
  for (char *part = row->name, *next; part; part = next) {
    next = strchr(part, '/');
    if (next) *next++ = 0;
    if (!*part || strlen(part) > MAX_FIELD) break;
    if (field < 5) {
      *to[field++] = part;
      continue;
    }
    char *colon = strchr(part, ':');
    int drop = 0;
    if (colon) *colon = 0;
    for (int i = 0; i < 3; i++) drop |= !colon && !strcmp(part, dropped[i]);
    for (int i = 0; i < 5; i++) drop |= colon && !strcmp(part, settings[i]);
    if (drop) continue;
    if (colon && !strcmp(part, "tokens")) {
      char *end;
      row->tokens = strtod(colon + 1, &end);
      if (*end || end == colon + 1 || !(row->tokens >= 0 && row->tokens < 1e12) || row->tokens != floor(row->tokens))
        return refuse(r, "benchmarks[%ld]: its name's tokens are no whole number", e->index);
    } else if (extend(&row->shape, part, colon ? colon + 1 : "")) return refuse(r, "out of memory");
  }
  if (field < 5)
    return refuse(r,
                  "benchmarks[%ld]: its name is not \"op/backend/kernel/format/preset/tokens:N\": no row of moiety "
                  "bench",
                  e->index);
  return 0;
}

/* The runs of one benchmark become a row. */
static int read_row(const reader *r, const entry *group, long n) {
  moi_report *report = r->report;
  if (report->n_rows == MOI_REPORT_ROWS) return refuse(r, "more than %d rows: give fewer files", MOI_REPORT_ROWS);
  if ((size_t)report->n_rows == report->capacity) {
    size_t capacity = report->capacity ? 2 * report->capacity : 256;
    moi_report_row *more = realloc(report->rows, capacity * sizeof *more);
    if (!more) return refuse(r, "out of memory");
    report->rows = more;
    report->capacity = capacity;
  }
  moi_report_row *row = &report->rows[report->n_rows++];
  memset(row, 0, sizeof *row);
  row->file = r->file;
  row->tokens = row->low = row->high = row->seconds = NAN;
  row->shape = duplicate("", 0);
  row->also = duplicate("", 0);
  if (!row->shape || !row->also) return refuse(r, "out of memory");
  const entry *median = NULL, *first = NULL;
  for (long i = 0; i < n; i++) {
    const char *aggregate = text_of(group[i].json, "aggregate_name");
    if (*aggregate) {
      if (!strcmp(aggregate, "median")) median = &group[i];
      continue;
    }
    double s;
    if (!first) first = &group[i];
    if (!row->failure) row->failure = failure_of(group[i].json);
    if (failure_of(group[i].json)) continue;
    if (read_seconds(r, &group[i], &s)) return 1;
    if (!(row->low <= s)) row->low = s;
    if (!(row->high >= s)) row->high = s;
    row->repetitions++;
  }
  const entry *e = median ? median : first ? first : group;
  if (read_name(r, e, row)) return 1;
  if (!median && !first) return refuse(r, "benchmarks[%ld]: an aggregate without a median", e->index);
  if (!row->failure && read_seconds(r, e, &row->seconds)) return 1;
  if (isnan(row->tokens) && read_number(r, e, "tokens", &row->tokens)) return 1;
  if (read_number(r, e, "bytes_per_second", &row->bytes_per_second) ||
      read_number(r, e, "flops_per_second", &row->flops_per_second) ||
      read_number(r, e, "bandwidth_fraction", &row->bandwidth_fraction) ||
      read_number(r, e, "compute_fraction", &row->compute_fraction) || read_number(r, e, "error", &row->error) ||
      read_number(r, e, "tolerance", &row->tolerance))
    return 1;
  if (isnan(row->error) && read_number(r, e, "nmse", &row->error)) return 1;
  row->compute_name = text_of(e->json, "label");
  if (!strncmp(row->compute_name, "of ", 3)) row->compute_name += 3;
  const cJSON *item;
  int named = *row->shape != 0; /* a name with a shape has all of it */
  cJSON_ArrayForEach(item, e->json) {
    char value[40];
    if (!item->string || !cJSON_IsNumber(item) || !isfinite(item->valuedouble) || is_known(item->string)) continue;
    if (strlen(item->string) > MAX_FIELD || has(row->shape, item->string)) continue;
    snprintf(value, sizeof value, "%.6g", item->valuedouble);
    int shape = !named && is_shape(group, n, item);
    if (shape) snprintf(value, sizeof value, "%.0f", item->valuedouble);
    char **list = shape ? &row->shape : &row->also;
    if (strlen(*list) < 1000 && extend(list, item->string, value)) return refuse(r, "out of memory");
  }
  if (make_series(row)) return refuse(r, "out of memory");
  return 0;
}

static int read_file(const reader *r) {
  moi_report_file *f = &r->report->files[r->file];
  if (read_json(r, &f->json) || read_context(r)) return 1;
  const cJSON *all = cJSON_GetObjectItemCaseSensitive(f->json, "benchmarks"), *item;
  if (!cJSON_IsArray(all)) return refuse(r, "has no list \"benchmarks\": not a result of moiety bench");
  long n = 0;
  cJSON_ArrayForEach(item, all) {
    if (!cJSON_IsObject(item)) return refuse(r, "benchmarks[%ld] is no object", n);
    if (++n > MAX_ENTRIES) return refuse(r, "has more than %d entries: no result of moiety bench", MAX_ENTRIES);
  }
  if (!n) return refuse(r, "its \"benchmarks\" is an empty list: nothing was measured");
  entry *entries = malloc((size_t)n * sizeof *entries);
  if (!entries) return refuse(r, "out of memory");
  int status = 0;
  n = 0;
  cJSON_ArrayForEach(item, all) {
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(item, "run_name");
    if (!name) name = cJSON_GetObjectItemCaseSensitive(item, "name");
    if (!cJSON_IsString(name)) {
      status = refuse(r, "benchmarks[%ld] has no \"run_name\"", n);
      break;
    }
    entries[n] = (entry){name->valuestring, number_of(item, "family_index", 0),
                         number_of(item, "per_family_instance_index", 0), n, item};
    n++;
  }
  if (!status) qsort(entries, (size_t)n, sizeof *entries, compare_entries);
  f->n_rows = r->report->n_rows;
  for (long i = 0, end; i < n && !status; i = end) {
    for (end = i + 1; end < n && same_benchmark(&entries[i], &entries[end]);) end++;
    status = read_row(r, entries + i, end - i);
  }
  f->n_rows = r->report->n_rows - f->n_rows;
  free(entries);
  return status;
}

/* ---- machines */

static int same_machine(const moi_report_file *a, const moi_report_file *b) {
  int threads = a->threads == b->threads || (isnan(a->threads) && isnan(b->threads));
  int cpus = a->cpus == b->cpus || (isnan(a->cpus) && isnan(b->cpus));
  return threads && cpus && !strcmp(a->device, b->device) && !strcmp(a->isa, b->isa) && !strcmp(a->host, b->host);
}

/* "Intel(R) Xeon(R) Processor" without its marks. */
static void plain_device(const char *device, char *out, size_t size) {
  size_t at = 0;
  for (const char *p = device; *p && at + 1 < size;) {
    size_t mark = !strncmp(p, "(R)", 3) ? 3 : !strncmp(p, "(TM)", 4) ? 4 : 0;
    p += mark;
    if (!mark) out[at++] = *p++;
  }
  while (at && ((unsigned char)out[at - 1] & 0xc0) == 0x80 && at + 1 >= size)
    at--; /* no half characters where it is cut */
  out[at] = 0;
  if (!at) snprintf(out, size, "unnamed machine");
}

static int find_machines(moi_report *report, char *error, size_t error_size) {
  const moi_report_row **sorted = malloc((size_t)report->n_rows * sizeof *sorted);
  char(*clash)[MOI_REPORT_FILES] = calloc(MOI_REPORT_FILES, sizeof *clash);
  int status = !sorted || !clash;
  for (int i = 0; i < report->n_rows && !status; i++) sorted[i] = &report->rows[i];
  status = status || moi_rows_sort(sorted, report->n_rows, "pohtfbk");
  for (int i = 0, n; i < report->n_rows && !status; i += n) {
    n = moi_rows_run(sorted + i, report->n_rows - i, "pohtfbk");
    char seen[MOI_REPORT_FILES] = {0};
    for (int j = i; j < i + n; j++) seen[sorted[j]->file] = 1;
    for (int a = 0; a < report->n_files && n > 1; a++)
      for (int b = 0; b < a; b++)
        if (seen[a] && seen[b]) clash[a][b] = clash[b][a] = 1;
  }
  for (int i = 0; i < report->n_files && !status; i++) {
    moi_report_file *f = &report->files[i];
    f->machine = -1;
    for (int j = 0; j < i && f->machine < 0; j++) {
      int m = report->files[j].machine, fits = same_machine(f, &report->files[j]);
      for (int k = 0; k < i && fits; k++) fits = report->files[k].machine != m || !clash[i][k];
      if (fits) f->machine = m;
    }
    if (f->machine < 0) {
      f->machine = report->n_machines++;
      moi_report_machine *m = &report->machines[f->machine];
      int number = f->machine, same = 1;
      char device[64];
      m->first_file = i;
      if (number < 26) snprintf(m->letter, sizeof m->letter, "%c", 'A' + number);
      else snprintf(m->letter, sizeof m->letter, "%c%c", 'A' + number / 26 - 1, 'A' + number % 26);
      plain_device(f->device, device, sizeof device);
      for (int k = 0; k < number; k++)
        same += !strncmp(report->machines[k].name, device, strlen(device)) &&
                strchr(", ", report->machines[k].name[strlen(device)]);
      snprintf(m->name, sizeof m->name, same > 1 ? "%s, run %d" : "%s", device, same);
    }
    report->machines[f->machine].n_files++;
  }
  for (int i = 0; i < report->n_rows && !status; i++)
    report->rows[i].machine = report->files[report->rows[i].file].machine;
  free(clash);
  free(sorted);
  if (status) snprintf(error, error_size, "out of memory");
  return status;
}

int moi_report_read(int n, char *const *paths, moi_report *out, char *error, size_t error_size) {
  memset(out, 0, sizeof *out);
  if (n > MOI_REPORT_FILES) {
    snprintf(error, error_size, "%d files: at most %d", n, MOI_REPORT_FILES);
    return 1;
  }
  for (int i = 0; i < n; i++) {
    reader r = {out, i, error, error_size};
    out->files[i].path = paths[i];
    out->n_files = i + 1;
    for (int j = 0; j < i; j++)
      if (!strcmp(paths[i], paths[j])) return refuse(&r, "is given twice");
    if (read_file(&r)) return 1;
  }
  return find_machines(out, error, error_size);
}

void moi_report_free(moi_report *report) {
  for (int i = 0; i < report->n_rows; i++) {
    free(report->rows[i].name);
    free(report->rows[i].shape);
    free(report->rows[i].series);
    free(report->rows[i].also);
  }
  for (int i = 0; i < report->n_files; i++) cJSON_Delete(report->files[i].json);
  free(report->rows);
  memset(report, 0, sizeof *report);
}

/* ---- order */

static int compare_numbers(double a, double b) {
  if (isnan(a) || isnan(b)) return !!isnan(a) - !!isnan(b);
  return (a > b) - (a < b);
}

/* Whole layers first, then their parts. */
static int op_rank(const char *op) {
  static const char *const order[] = {"moe", "experts", "gemm", "route", "attention"};
  for (int i = 0; i < 5; i++)
    if (!strcmp(op, order[i])) return i;
  return 5;
}

int moi_rows_compare(const moi_report_row *a, const moi_report_row *b, const char *keys) {
  int d = 0;
  for (const char *k = keys; *k && !d; k++) switch (*k) {
    case 'p':
      d = strcmp(a->preset, b->preset);
      break;
    case 'o':
      d = op_rank(a->op) - op_rank(b->op);
      if (!d) d = strcmp(a->op, b->op);
      break;
    case 'h':
      d = strcmp(a->shape, b->shape);
      break;
    case 'y':
      d = strcmp(a->series, b->series);
      break;
    case 't':
      d = compare_numbers(a->tokens, b->tokens);
      break;
    case 'f':
      d = strcmp(a->format, b->format);
      break;
    case 'm':
      d = a->machine - b->machine;
      break;
    case 'b':
      d = strcmp(a->backend, b->backend);
      break;
    case 'k':
      d = strcmp(a->kernel, b->kernel);
      break;
    case 's':
      d = compare_numbers(a->seconds, b->seconds);
      break;
    }
  return d;
}

int moi_rows_sort(const moi_report_row **rows, int n, const char *keys) {
  const moi_report_row **other = malloc((size_t)(n ? n : 1) * sizeof *other), **from = rows, **to = other;
  if (!other) return 1;
  for (long width = 1; width < n; width *= 2) {
    for (long left = 0; left < n; left += 2 * width) {
      long middle = left + width < n ? left + width : n, right = left + 2 * width < n ? left + 2 * width : n;
      for (long i = left, a = left, b = middle; i < right; i++)
        to[i] = a < middle && (b >= right || moi_rows_compare(from[a], from[b], keys) <= 0) ? from[a++] : from[b++];
    }
    const moi_report_row **swap = from;
    from = to;
    to = swap;
  }
  if (from != rows) memcpy(rows, from, (size_t)n * sizeof *rows);
  free(other);
  return 0;
}

int moi_rows_run(const moi_report_row **rows, int n, const char *keys) {
  int i = 1;
  while (i < n && !moi_rows_compare(rows[0], rows[i], keys)) i++;
  return n ? i : 0;
}

double moi_row_limit(const moi_report_row *row, const char **name) {
  double a = row->bandwidth_fraction, b = row->compute_fraction;
  int memory = !isnan(a) && (isnan(b) || a >= b);
  *name = memory ? "memory bandwidth" : isnan(b) ? "" : *row->compute_name ? row->compute_name : "compute";
  return memory ? a : b;
}

double moi_machine_peak(const moi_report *report, int machine, const char *name) {
  double best = NAN;
  for (int i = 0; i < report->n_files; i++)
    for (int k = 0; k < report->files[i].n_peaks && report->files[i].machine == machine; k++) {
      const moi_report_peak *p = &report->files[i].peaks[k];
      if (!strcmp(p->name, name) && !(p->value <= best)) best = p->value;
    }
  return best;
}
