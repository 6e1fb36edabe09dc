/* Every weight format against floats that other programs read out of the same bytes (golden/formats_*.txt): the product
 * of one-hot rows is the matrix. On every kernel row of the format that runs here, and on the one a plan chooses. */
#include <dirent.h>
#include <math.h>

#include "support.h"

typedef struct golden {
  char format[32];
  uint32_t n, k;
  uint8_t *streams[3]; /* data, scales, zeros */
  size_t sizes[3];
  float global_scale, *w;
} golden;

static const char *const stream_names[3] = {"data", "scales", "zeros"};

static void read_bytes(FILE *file, uint8_t *out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    unsigned byte;
    assert_int_equal(fscanf(file, " %2x", &byte), 1);
    out[i] = (uint8_t)byte;
  }
}

static void read_floats(FILE *file, float *out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    char text[32], *end;
    assert_int_equal(fscanf(file, "%31s", text), 1);
    out[i] = strtof(text, &end);
    assert_true(end != text && !*end);
  }
}

static golden golden_read(const char *path) {
  golden g;
  memset(&g, 0, sizeof g);
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  char key[32], name[32];
  while (fscanf(file, "%31s", key) == 1) {
    if (!strcmp(key, "format")) assert_int_equal(fscanf(file, "%31s", g.format), 1);
    else if (!strcmp(key, "decode")) assert_int_equal(fscanf(file, "%31s", name), 1);
    else if (!strcmp(key, "n")) assert_int_equal(fscanf(file, "%u", &g.n), 1);
    else if (!strcmp(key, "k")) assert_int_equal(fscanf(file, "%u", &g.k), 1);
    else if (!strcmp(key, "bytes")) {
      size_t size;
      assert_int_equal(fscanf(file, "%31s %zu", name, &size), 2);
      int i = 0;
      while (i < 3 && strcmp(name, stream_names[i])) i++;
      assert_true(i < 3 && !g.streams[i]);
      g.streams[i] = malloc(size);
      g.sizes[i] = size;
      assert_non_null(g.streams[i]);
      read_bytes(file, g.streams[i], size);
    } else {
      assert_string_equal(key, "tensor");
      assert_int_equal(fscanf(file, "%31s", name), 1);
      if (!strcmp(name, "global_scale")) {
        uint32_t one;
        assert_int_equal(fscanf(file, "%u", &one), 1);
        read_floats(file, &g.global_scale, one == 1 ? 1 : 0);
      } else {
        uint32_t n, k;
        assert_int_equal(fscanf(file, "%u %u", &n, &k), 2);
        assert_string_equal(name, "w");
        assert_true(n == g.n && k == g.k && n && k && !g.w);
        g.w = malloc((size_t)n * k * sizeof *g.w);
        assert_non_null(g.w);
        read_floats(file, g.w, (size_t)n * k);
      }
    }
  }
  fclose(file);
  assert_non_null(g.w);
  return g;
}

static void golden_free(golden *g) {
  for (int i = 0; i < 3; i++) free(g->streams[i]);
  free(g->w);
}

static int64_t ordered(float v) {
  int32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits < 0 ? -(int64_t)(bits & 0x7fffffff) : bits;
}

/* NaN for NaN, and at most one unit in the last place apart. Kernels for few tokens write the 1 of a one-hot row as a
 * 15-bit integer times an inexact scale: theirs may differ by 2^-20 of the largest of the 32 weights around it, and by
 * what is lost where that scale times the weights' is subnormal. They shift weights to unsigned codes of twice the
 * size: a block whose largest is beyond half of fp32's range is outside theirs. */
static int same(const golden *g, int reference, uint32_t n, uint32_t k, float got) {
  const float *row = g->w + (size_t)n * g->k;
  if (isnan(got) || isnan(row[k])) return isnan(got) && isnan(row[k]);
  int64_t distance = ordered(got) - ordered(row[k]);
  if (distance >= -1 && distance <= 1) return 1;
  if (reference) return 0;
  float largest = 0;
  for (uint32_t i = k / 32 * 32; i < g->k && i < k / 32 * 32 + 32; i++)
    if (fabsf(row[i]) > largest) largest = fabsf(row[i]);
  return largest > 0x1p127f || fabsf(got - row[k]) <= 0x1p-20f * largest + 0x1p-130f;
}

static void set_one(void *x, int is_bf16, size_t at, int one) {
  if (is_bf16) ((uint16_t *)x)[at] = one ? 0x3f80 : 0;
  else ((float *)x)[at] = (float)one;
}

/* Products of all one-hot rows, `rows` of them a call. */
static uint32_t differing(const golden *g, const char *path, moi_context *context, const char *kernel, uint32_t rows) {
  moi_gemm_desc desc = MOI_GEMM_DESC_INIT;
  desc.max_rows = rows;
  desc.n = g->n;
  desc.k = g->k;
  desc.n_experts = 1;
  desc.format = moi_format_from_name(g->format);
  desc.kernel = kernel;
  moi_plan *plan = NULL;
  moi_status status = moi_gemm_plan(context, &desc, &plan);
  if (status == MOI_UNSUPPORTED) { /* some kernels take bf16 only, in which 0 and 1 are what they are */
    desc.input_type = MOI_FORMAT_BF16;
    desc.output_type = MOI_FORMAT_F32;
    status = moi_gemm_plan(context, &desc, &plan);
  }
  if (status == MOI_UNSUPPORTED) { /* some take 8-bit integers only: 127 times an inexact scale, as above */
    desc.input_type = MOI_FORMAT_F32;
    desc.act_quant = MOI_ACT_QUANT_INT8_32;
    status = moi_gemm_plan(context, &desc, &plan);
  }
  passes(status);
  const int is_bf16 = desc.input_type == MOI_FORMAT_BF16;
  const size_t element = is_bf16 ? sizeof(uint16_t) : sizeof(float);
  moi_buffer workspace = take_workspace(plan);
  moi_weights weights = MOI_WEIGHTS_INIT;
  weights.data = moi_ptr(g->streams[0], g->sizes[0]);
  weights.scales = moi_ptr(g->streams[1], g->sizes[1]);
  weights.zeros = moi_ptr(g->streams[2], g->sizes[2]);
  if (g->global_scale != 0) weights.global_scale = moi_ptr(&g->global_scale, sizeof g->global_scale);
  void *x = calloc((size_t)rows * g->k, element);
  float *y = malloc((size_t)rows * g->n * sizeof *y);
  assert_true(x && y);
  uint32_t bad = 0;
  for (uint32_t k0 = 0; k0 < g->k; k0 += rows) {
    uint32_t m = g->k - k0 < rows ? g->k - k0 : rows;
    for (uint32_t r = 0; r < m; r++) set_one(x, is_bf16, (size_t)r * g->k + k0 + r, 1);
    const int32_t offsets[2] = {0, (int32_t)m};
    moi_gemm_args args = MOI_GEMM_ARGS_INIT;
    args.n_rows = m;
    args.input = moi_ptr(x, (size_t)m * g->k * element);
    args.offsets = moi_ptr(offsets, sizeof offsets);
    args.output = moi_ptr(y, (size_t)m * g->n * sizeof *y);
    args.weights = &weights;
    memset(y, 0xff, (size_t)rows * g->n * sizeof *y);
    passes(moi_gemm_run(plan, &args, workspace, no_queue));
    for (uint32_t r = 0; r < m; r++) {
      for (uint32_t n = 0; n < g->n; n++) {
        float got = y[(size_t)r * g->n + n], wanted = g->w[(size_t)n * g->k + k0 + r];
        if (is_bf16 && got == 0 && fpclassify(wanted) == FP_SUBNORMAL) continue; /* bf16 instructions flush them */
        if (!same(g, kernel && !strcmp(kernel, "ref"), n, k0 + r, got) && ++bad <= 4)
          print_error("%s: kernel %s (%s), %u rows: w[%u,%u] is %.9g, wanted %.9g\n", path, kernel ? kernel : "chosen",
                      moi_plan_kernel(plan), rows, n, k0 + r, (double)got, (double)wanted);
      }
      set_one(x, is_bf16, (size_t)r * g->k + k0 + r, 0);
    }
  }
  free(x);
  free(y);
  drop_aligned(workspace.ptr);
  moi_plan_destroy(plan);
  return bad;
}

static uint32_t check(const char *path, moi_context *context) {
  golden g = golden_read(path);
  moi_format format = moi_format_from_name(g.format);
  assert_int_not_equal(format, MOI_FORMAT_NONE);
  moi_format_sizes sizes;
  passes(moi_format_size(format, g.n, g.k, &sizes));
  assert_int_equal(sizes.data, g.sizes[0]);
  assert_int_equal(sizes.scales, g.sizes[1]);
  assert_int_equal(sizes.zeros, g.sizes[2]);
  uint32_t bad = 0, n_reference = 0;
  const uint32_t rows[3] = {1, 8, g.k}; /* below, at and above the bound of the few-token kernels */
  for (int i = 0; i < 3; i++) {
    bad += differing(&g, path, context, NULL, rows[i]);
    moi_kernel_info info = MOI_KERNEL_INFO_INIT;
    for (uint32_t row = 0; !moi_kernel_get(MOI_BACKEND_CPU, row, &info); row++) {
      if (info.op != MOI_OP_GEMM || !info.runs_here) continue;
      if (info.format != MOI_FORMAT_NONE && info.format != format) continue;
      bad += differing(&g, path, context, info.name, rows[i]);
      n_reference += !strcmp(info.name, "ref");
    }
  }
  assert_int_equal(n_reference, 3);
  golden_free(&g);
  return bad;
}

static void formats(void **state) {
  (void)state;
  moi_context *context = open_cpu(1);
  DIR *dir = opendir(MOI_GOLDEN_DIR);
  assert_non_null(dir);
  uint32_t bad = 0;
  for (struct dirent *entry; (entry = readdir(dir));) {
    size_t length = strlen(entry->d_name);
    if (strncmp(entry->d_name, "formats_", 8) || length < 4 || strcmp(entry->d_name + length - 4, ".txt")) continue;
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", MOI_GOLDEN_DIR, entry->d_name);
    bad += check(path, context);
  }
  closedir(dir);
  moi_context_destroy(context);
  assert_int_equal(bad, 0);
}

/* The data is all there: formats_<name>.txt for every name. */
static void every_format_has_golden_data(void **state) {
  (void)state;
  moi_format format;
  for (uint32_t i = 0; (format = moi_format_at(i)) != MOI_FORMAT_NONE; i++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/formats_%s%s.txt", MOI_GOLDEN_DIR, moi_format_name(format),
             format == MOI_FORMAT_FP8_B128 ? "_codes" : "");
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("%s is missing", path);
    fclose(file);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_format_has_golden_data), cmocka_unit_test(formats)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
