/* What a dense GEMM reaches on these cores: OpenBLAS and oneDNN on one product y = x W^T, x [m, k], W [n, k], by default that of
 * 512 tokens with gate and up of an expert of qwen3-30b-a3b. Matrices stay the same: they are in the caches, as far as those
 * reach. Rows have the JSON of moiety bench. docs/performance.md says how it is built. */
#include <cblas.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/rig/random.h"

enum { MAX_REPETITIONS = 101, CHECKED = 4 };

typedef struct problem {
  int m, n, k;
  float *x, *w, *y;              /* fp32 */
  uint16_t *x_bf16, *w_bf16;     /* rounded x and w */
  uint8_t *x_u8;                 /* codes 0 .. 255 and -127 .. 127 */
  int8_t *w_s8;
  int32_t *y_s32;
} problem;

typedef struct options {
  int m, n, k, repetitions;
  double min_time;
  const char *json, *peaks;
} options;

/* One product, and its result in fp64 against the operands as they were given. */
typedef struct contender {
  const char *who, *kernel, *format, *peak, *label;
  int size; /* bytes of an element of x and of W */
  int (*open)(problem *);
  int (*run)(problem *);
  double (*element)(const problem *, int row, int column, double *truth);
} contender;

static void die(const char *what, const char *why) {
  fprintf(stderr, "dense-peer: %s: %s\n", what, why);
  exit(2);
}

static void *allocate(size_t size) {
  void *p = aligned_alloc(64, (size + 63) / 64 * 64);
  if (!p) die("memory", "there is not enough");
  return p;
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t x) {
  uint32_t u = (uint32_t)x << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static problem make(const options *o) {
  problem p = {o->m, o->n, o->k, 0, 0, 0, 0, 0, 0, 0, 0};
  const size_t m = (size_t)o->m, n = (size_t)o->n, k = (size_t)o->k;
  p.x = allocate(m * k * 4), p.w = allocate(n * k * 4), p.y = allocate(m * n * 4);
  p.x_bf16 = allocate(m * k * 2), p.w_bf16 = allocate(n * k * 2);
  p.x_u8 = allocate(m * k), p.w_s8 = allocate(n * k), p.y_s32 = allocate(m * n * 4);
  for (size_t i = 0; i < m * k; i++) {
    p.x_bf16[i] = to_bf16(moi_random_normal(1, i));
    p.x[i] = from_bf16(p.x_bf16[i]);
    p.x_u8[i] = (uint8_t)moi_random_below(3, i, 256);
  }
  for (size_t i = 0; i < n * k; i++) {
    p.w_bf16[i] = to_bf16(moi_random_normal(2, i) / sqrtf((float)k));
    p.w[i] = from_bf16(p.w_bf16[i]);
    p.w_s8[i] = (int8_t)((int)moi_random_below(4, i, 255) - 127);
  }
  return p;
}

static double real_element(const problem *p, int row, int column, double *truth) {
  *truth = 0;
  for (int i = 0; i < p->k; i++)
    *truth += (double)p->x[(size_t)row * (size_t)p->k + (size_t)i] * (double)p->w[(size_t)column * (size_t)p->k + (size_t)i];
  return (double)p->y[(size_t)row * (size_t)p->n + (size_t)column];
}

static double integer_element(const problem *p, int row, int column, double *truth) {
  *truth = 0;
  for (int i = 0; i < p->k; i++)
    *truth += p->x_u8[(size_t)row * (size_t)p->k + (size_t)i] * p->w_s8[(size_t)column * (size_t)p->k + (size_t)i];
  return p->y_s32[(size_t)row * (size_t)p->n + (size_t)column];
}

/* ---- OpenBLAS */

static int blas_open(problem *p) {
  (void)p;
  return 0;
}

static int blas_run(problem *p) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, p->m, p->n, p->k, 1, p->x, p->k, p->w, p->k, 0, p->y, p->n);
  return 0;
}

/* ---- oneDNN: weights in the layout that it chooses, turned once */

static struct {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  dnnl_primitive_t matmul;
  dnnl_exec_arg_t args[3];
  char implementation[128];
} dnn;

static dnnl_memory_desc_t matrix(int rows, int columns, dnnl_data_type_t type, dnnl_format_tag_t tag) {
  dnnl_memory_desc_t desc = NULL;
  const dnnl_dims_t dims = {rows, columns};
  return dnnl_memory_desc_create_with_tag(&desc, 2, dims, type, tag) ? NULL : desc;
}

static int dnn_open(problem *p, dnnl_data_type_t xt, void *x, dnnl_data_type_t wt, void *w, dnnl_data_type_t yt, void *y) {
  dnnl_primitive_desc_t desc = NULL, reorder_desc = NULL;
  dnnl_primitive_t reorder = NULL;
  dnnl_memory_t mx = NULL, mw = NULL, my = NULL, given = NULL;
  const dnnl_memory_desc_t dx = matrix(p->m, p->k, xt, dnnl_ab), dy = matrix(p->m, p->n, yt, dnnl_ab),
                           any = matrix(p->k, p->n, wt, dnnl_format_tag_any), lies = matrix(p->k, p->n, wt, dnnl_ba);
  if (!dnn.engine && (dnnl_engine_create(&dnn.engine, dnnl_cpu, 0) ||
                      dnnl_stream_create(&dnn.stream, dnn.engine, dnnl_stream_default_flags)))
    return 1;
  if (!dx || !dy || !any || !lies || dnnl_matmul_primitive_desc_create(&desc, dnn.engine, dx, any, NULL, dy, NULL)) return 1;
  const_dnnl_memory_desc_t chosen = dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
  const char *name = "";
  dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, (void *)&name);
  snprintf(dnn.implementation, sizeof dnn.implementation, "%s", name);
  if (dnnl_memory_create(&mx, dx, dnn.engine, x) || dnnl_memory_create(&my, dy, dnn.engine, y) ||
      dnnl_memory_create(&given, lies, dnn.engine, w) || dnnl_memory_create(&mw, chosen, dnn.engine, DNNL_MEMORY_ALLOCATE))
    return 1;
  if (dnnl_reorder_primitive_desc_create(&reorder_desc, lies, dnn.engine, chosen, dnn.engine, NULL) ||
      dnnl_primitive_create(&reorder, reorder_desc) || dnnl_primitive_create(&dnn.matmul, desc))
    return 1;
  const dnnl_exec_arg_t turn[2] = {{DNNL_ARG_FROM, given}, {DNNL_ARG_TO, mw}};
  dnn.args[0] = (dnnl_exec_arg_t){DNNL_ARG_SRC, mx};
  dnn.args[1] = (dnnl_exec_arg_t){DNNL_ARG_WEIGHTS, mw};
  dnn.args[2] = (dnnl_exec_arg_t){DNNL_ARG_DST, my};
  return dnnl_primitive_execute(reorder, dnn.stream, 2, turn) || dnnl_stream_wait(dnn.stream);
}

static int dnn_f32(problem *p) { return dnn_open(p, dnnl_f32, p->x, dnnl_f32, p->w, dnnl_f32, p->y); }
static int dnn_bf16(problem *p) { return dnn_open(p, dnnl_bf16, p->x_bf16, dnnl_bf16, p->w_bf16, dnnl_f32, p->y); }
static int dnn_int8(problem *p) { return dnn_open(p, dnnl_u8, p->x_u8, dnnl_s8, p->w_s8, dnnl_s32, p->y_s32); }

static int dnn_run(problem *p) {
  (void)p;
  return dnnl_primitive_execute(dnn.matmul, dnn.stream, 3, dnn.args) || dnnl_stream_wait(dnn.stream);
}

static const contender contenders[] = {
    {"openblas", "sgemm", "f32", "peak_f32_gflops", "of f32 FMA", 4, blas_open, blas_run, real_element},
    {"onednn", "matmul", "f32", "peak_f32_gflops", "of f32 FMA", 4, dnn_f32, dnn_run, real_element},
    {"onednn", "matmul", "bf16", "peak_bf16_gflops", "of bf16", 2, dnn_bf16, dnn_run, real_element},
    {"onednn", "matmul-u8s8", "int8", "peak_int8_gops", "of int8 VNNI", 1, dnn_int8, dnn_run, integer_element},
};

/* ---- measuring */

static double distance(const problem *p, const contender *c) {
  double off = 0, norm = 0;
  for (int r = 0; r < CHECKED; r++)
    for (int j = 0; j < p->n; j++) {
      double truth, got = c->element(p, r * (p->m - 1) / (CHECKED - 1), j, &truth);
      off += (got - truth) * (got - truth);
      norm += truth * truth;
    }
  return sqrt(off / norm);
}

static int by_size(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double peak_of(const cJSON *context, const char *name) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(context, name);
  return cJSON_IsString(item) ? atof(item->valuestring) * 1e9 : 0;
}

static int measure(const options *o, problem *p, const contender *c, const cJSON *context, cJSON *rows) {
  double times[MAX_REPETITIONS];
  char name[160];
  const double flops = 2.0 * p->m * p->n * p->k, peak = peak_of(context, c->peak), read = peak_of(context, "peak_read_gbs");
  const double bytes = c->size * ((double)p->m + p->n) * p->k + 4.0 * p->m * p->n;
  snprintf(name, sizeof name, "gemm/%s/%s/%s/%dx%d/tokens:%d", c->who, c->kernel, c->format, p->n, p->k, p->m);
  dnn.implementation[0] = 0;
  if (c->open(p)) return printf("%s: left out: this library has no such product here\n", name), 0;
  if (c->run(p)) return printf("%s: FAILED\n", name), 1;
  const double error = distance(p, c);
  if (!(error <= 1e-4)) return printf("%s: FAILED: wrong result: off by %g of its norm\n", name, error), 1;
  for (int r = 0; r < o->repetitions; r++) {
    const double start = seconds();
    int n = 0;
    for (; !n || seconds() - start < o->min_time; n++)
      if (c->run(p)) return printf("%s: FAILED\n", name), 1;
    times[r] = (seconds() - start) / n;
  }
  qsort(times, (size_t)o->repetitions, sizeof *times, by_size);
  const double median = times[o->repetitions / 2];
  printf("%s: %.1f us (%.1f to %.1f), %.0f GFLOP/s%s%s\n", name, median * 1e6, times[0] * 1e6,
         times[o->repetitions - 1] * 1e6, flops / median / 1e9, dnn.implementation[0] ? ", " : "", dnn.implementation);
  cJSON *row = cJSON_CreateObject();
  cJSON_AddItemToArray(rows, row);
  cJSON_AddStringToObject(row, "name", name);
  cJSON_AddStringToObject(row, "run_name", name);
  cJSON_AddStringToObject(row, "run_type", "iteration");
  cJSON_AddNumberToObject(row, "repetitions", o->repetitions);
  cJSON_AddNumberToObject(row, "repetition_index", 0);
  cJSON_AddNumberToObject(row, "threads", 1);
  cJSON_AddStringToObject(row, "time_unit", "us");
  cJSON_AddStringToObject(row, "label", c->label);
  cJSON_AddStringToObject(row, "implementation", dnn.implementation);
  cJSON_AddNumberToObject(row, "iterations", 1);
  cJSON_AddNumberToObject(row, "real_time", median * 1e6);
  cJSON_AddNumberToObject(row, "cpu_time", median * 1e6);
  cJSON_AddNumberToObject(row, "bytes_per_second", bytes / median);
  cJSON_AddNumberToObject(row, "flops_per_second", flops / median);
  cJSON_AddNumberToObject(row, "bandwidth_fraction", read > 0 ? bytes / median / read : 0);
  cJSON_AddNumberToObject(row, "compute_fraction", peak > 0 ? flops / median / peak : 0);
  cJSON_AddNumberToObject(row, "roof_fraction", peak > 0 ? flops / median / peak : 0);
  cJSON_AddNumberToObject(row, "compute_peak", peak);
  cJSON_AddNumberToObject(row, "error", error);
  cJSON_AddNumberToObject(row, "tolerance", 1e-4);
  return 0;
}

/* The context of a result of moiety bench, or an empty one. */
static cJSON *context_of(const char *path) {
  if (!path) return cJSON_CreateObject();
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) die(path, "cannot be read");
  const size_t size = (size_t)ftell(file);
  char *text = calloc(1, size + 1);
  rewind(file);
  if (!text || fread(text, 1, size, file) != size) die(path, "cannot be read");
  fclose(file);
  cJSON *all = cJSON_Parse(text), *context = cJSON_DetachItemFromObjectCaseSensitive(all, "context");
  if (!context) die(path, "no result of moiety bench");
  cJSON_Delete(all);
  free(text);
  return context;
}

static void put(cJSON *context, const char *name, const char *value) {
  cJSON_DeleteItemFromObjectCaseSensitive(context, name);
  cJSON_AddStringToObject(context, name, value);
}

static options parse(int argc, char **argv) {
  options o = {512, 1536, 2048, 11, 0.05, NULL, NULL};
  const struct {
    const char *name;
    int *value, most;
  } numbers[] = {{"--m", &o.m, 1 << 16}, {"--n", &o.n, 1 << 16}, {"--k", &o.k, 1 << 16},
                 {"--repetitions", &o.repetitions, MAX_REPETITIONS}};
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--help")) {
      printf("dense-peer [--m 512] [--n 1536] [--k 2048] [--repetitions 11] [--min-time 0.05] [--peaks FILE] [--json FILE]\n"
             "Threads are those of OPENBLAS_NUM_THREADS and OMP_NUM_THREADS.\n");
      exit(0);
    }
    if (i + 1 == argc) die(argv[i], "no such option, or its value is missing; see --help");
    const char *name = argv[i], *value = argv[++i];
    char *end = NULL;
    int known = 0;
    for (size_t j = 0; j < sizeof numbers / sizeof *numbers; j++) {
      if (strcmp(name, numbers[j].name)) continue;
      const long n = strtol(value, &end, 10);
      if (!*value || *end || n < 1 || n > numbers[j].most) die(name, "no such number");
      *numbers[j].value = (int)n;
      known = 1;
    }
    if (!strcmp(name, "--min-time")) {
      o.min_time = strtod(value, &end);
      if (!*value || *end || !(o.min_time >= 0 && o.min_time < 1e6)) die(name, "no time in seconds");
      known = 1;
    }
    if (!strcmp(name, "--json")) o.json = value, known = 1;
    if (!strcmp(name, "--peaks")) o.peaks = value, known = 1;
    if (!known) die(name, "no such option; see --help");
  }
  return o;
}

int main(int argc, char **argv) {
  const options o = parse(argc, argv);
  cJSON *all = cJSON_CreateObject(), *context = context_of(o.peaks), *rows = cJSON_CreateArray();
  char command[1024] = "dense-peer", version[64], date[40];
  const time_t now = time(NULL);
  for (int i = 1; i < argc; i++)
    snprintf(command + strlen(command), sizeof command - strlen(command), " %s", argv[i]);
  const dnnl_version_t *v = dnnl_version();
  snprintf(version, sizeof version, "%d.%d.%d", v->major, v->minor, v->patch);
  strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
  put(context, "date", date);
  put(context, "command", command);
  put(context, "threads", getenv("OMP_NUM_THREADS") ? getenv("OMP_NUM_THREADS") : "");
  put(context, "openblas", openblas_get_config());
  put(context, "onednn", version);
  cJSON_DeleteItemFromObjectCaseSensitive(context, "layers");
  problem p = make(&o);
  int failed = 0;
  for (size_t i = 0; i < sizeof contenders / sizeof *contenders; i++)
    failed |= measure(&o, &p, &contenders[i], context, rows);
  if (!cJSON_GetArraySize(rows)) failed = 1;
  cJSON_AddItemToObject(all, "context", context);
  cJSON_AddItemToObject(all, "benchmarks", rows);
  if (o.json) {
    char *text = cJSON_Print(all);
    FILE *file = fopen(o.json, "w");
    if (!text || !file || fprintf(file, "%s\n", text) < 0 || fclose(file)) die(o.json, "cannot be written");
    free(text);
  }
  cJSON_Delete(all);
  return failed;
}
