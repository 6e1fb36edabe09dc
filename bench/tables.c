/* moiety tables: Markdown for README.md and docs/performance.md, from the kernel lists and from committed results. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/options.h"
#include "bench/results.h"
#include "core/format.h"
#include "vulkan/kernel.h"

/* What the table needs of a kernel: `needs` as the list writes it, "" for plain C. */
typedef struct support_row {
  moi_op op;
  moi_format format;
  char needs[32];
  int generic;
  enum { ALL, BUT_F32, ALONG_K, OF_BLOCKS } of; /* formats, where `format` is NONE */
} support_row;

/* The CPU's list holds the rows of this architecture; the table is to be the same on all. */
enum { STEADY = 0, FALLBACK = 1, WHOLE = 0 };
static const support_row cpu_rows[] = {
#define MOI_EVERY_ARCHITECTURE
#define GEMM(name, format, needs, form, m_max, scratch, flags, fn)                                                     \
  {MOI_OP_GEMM, MOI_FORMAT_##format, #needs, ((flags)&FALLBACK) != 0},
#define ROUTE(name, needs, flags, fn) {MOI_OP_ROUTE, MOI_FORMAT_NONE, #needs, ((flags)&FALLBACK) != 0},
#define ATTENTION(name, needs, form, m_max, flags, fn)                                                                 \
  {MOI_OP_ATTENTION, MOI_FORMAT_NONE, #needs, ((flags)&FALLBACK) != 0},
#define REFERENCE(op) {MOI_OP_##op, MOI_FORMAT_NONE, "", 1},
#include "cpu/kernels.def"
#undef GEMM
#undef ROUTE
#undef ATTENTION
#undef REFERENCE
};

/* And the same whether this build has the other backends; their GEMM rows are for every format, or for a list. */
static const support_row vulkan_rows[] = {
#define GEMM(name, needs, ...) {MOI_OP_GEMM, MOI_FORMAT_NONE, name, 0},
#define CODES_ROW(FORMAT, format, name) {MOI_OP_GEMM, MOI_FORMAT_##FORMAT, name, 0},
#define CODES(name, ...) MOI_VK_CODES(CODES_ROW, name)
#define ROUTE(name, needs, flags, shader) {MOI_OP_ROUTE, MOI_FORMAT_NONE, name, ((flags)&FALLBACK) != 0},
#define ATTENTION(name, needs, m_max, m_tile, n_tile, flags, shader)                                                   \
  {MOI_OP_ATTENTION, MOI_FORMAT_NONE, name, ((flags)&FALLBACK) != 0},
#include "vulkan/kernels.def"
#undef GEMM
#undef CODES
#undef ROUTE
#undef ATTENTION
};

static const support_row cuda_rows[] = {
#define GEMM(name, ...) {MOI_OP_GEMM, MOI_FORMAT_NONE, name, 0, ALL},
#define GEMM_DIGITS(name, ...) {MOI_OP_GEMM, MOI_FORMAT_NONE, name, 0, BUT_F32},
#define GEMM_FP8(name, ...)                                                                                            \
  {MOI_OP_GEMM, MOI_FORMAT_FP8, name, 0, ALL}, {MOI_OP_GEMM, MOI_FORMAT_FP8_B128, name, 0, ALL},
#define GEMM_MX(name, ...)                                                                                             \
  {MOI_OP_GEMM, MOI_FORMAT_MXFP4, name, 0, ALL}, {MOI_OP_GEMM, MOI_FORMAT_MXFP4_GGUF, name, 0, ALL},
#define GEMM_INT8(name, ...) {MOI_OP_GEMM, MOI_FORMAT_NONE, name, 0, OF_BLOCKS},
#define GEMM_ALONG_K(name, ...) {MOI_OP_GEMM, MOI_FORMAT_NONE, name, 0, ALONG_K},
#define GEMM_CUBLAS(name, ...)                                                                                         \
  {MOI_OP_GEMM, MOI_FORMAT_F32, name, 0, ALL}, {MOI_OP_GEMM, MOI_FORMAT_F16, name, 0, ALL},                            \
  {MOI_OP_GEMM, MOI_FORMAT_BF16, name, 0, ALL}, {MOI_OP_GEMM, MOI_FORMAT_BF16_KN, name, 0, ALL},
#define ROUTE(name, needs, threads, flags, image) {MOI_OP_ROUTE, MOI_FORMAT_NONE, name, ((flags)&FALLBACK) != 0},
#define ATTENTION(name, needs, m_max, m_tile, n_tile, threads, flags, image)                                           \
  {MOI_OP_ATTENTION, MOI_FORMAT_NONE, name, ((flags)&FALLBACK) != 0},
#include "cuda/kernels.def"
#undef GEMM
#undef GEMM_DIGITS
#undef GEMM_FP8
#undef GEMM_MX
#undef GEMM_INT8
#undef GEMM_ALONG_K
#undef GEMM_CUBLAS
#undef ROUTE
#undef ATTENTION
};

/* Row i of a backend; 0 past its last. */
static int row_at(moi_backend backend, uint32_t i, support_row *out) {
  if (backend == MOI_BACKEND_CPU) {
    if (i >= sizeof cpu_rows / sizeof *cpu_rows) return 0;
    *out = cpu_rows[i];
    if (!strcmp(out->needs, "SCALAR")) out->needs[0] = 0;
    for (char *c = out->needs; *c; c++) *c = (char)tolower((unsigned char)*c);
    return 1;
  }
  const support_row *rows = backend == MOI_BACKEND_VULKAN ? vulkan_rows : cuda_rows;
  size_t n = backend == MOI_BACKEND_VULKAN ? sizeof vulkan_rows / sizeof *vulkan_rows : sizeof cuda_rows / sizeof *cuda_rows;
  if (i >= n) return 0;
  *out = rows[i];
  return 1;
}

/* The instruction sets or features of the tuned kernels of a format, "generic", or "-". */
static void support_of(moi_backend backend, moi_op op, moi_format format, char *out, size_t size) {
  support_row info;
  size_t at = 0;
  int generic = 0;
  out[0] = 0;
  for (uint32_t i = 0; row_at(backend, i, &info); i++) {
    if (info.op != op || (info.format != format && info.format != MOI_FORMAT_NONE)) continue;
    if (backend != MOI_BACKEND_CPU && format && moi_format_find(format)->interleaved) continue;
    if (info.of == BUT_F32 && format == MOI_FORMAT_F32) continue;
    if (info.of == ALONG_K && moi_format_find(format)->k_major) continue;
    if (info.of == OF_BLOCKS && moi_format_find(format)->block_k * moi_format_find(format)->block_n == 1) continue;
    if (info.generic) {
      generic = 1;
      continue;
    }
    const char *needs = info.needs[0] ? info.needs : backend == MOI_BACKEND_CPU ? "plain C" : "any device";
    char word[64];
    snprintf(word, sizeof word, "%s", needs);
    if (strstr(out, word)) { /* "avx512" stands in "avx512vnni" too: compare whole words */
      int found = 0;
      for (const char *p = strstr(out, word); p; p = strstr(p + 1, word)) {
        char before = p == out ? ' ' : p[-1], after = p[strlen(word)];
        found |= (before == ' ' || before == '(') && (after == ',' || after == 0);
      }
      if (found) continue;
    }
    at += (size_t)snprintf(out + at, at < size ? size - at : 0, "%s%s", at ? ", " : "", word);
  }
  if (!at) snprintf(out, size, "%s", generic ? "generic" : "-");
}

static int support(void) {
  char text[256];
  printf("| op | weight format |");
  for (int b = 0; b < MOI_BACKEND_COUNT; b++) printf(" %s |", moi_backend_name((moi_backend)b));
  printf("\n|---|---|---|---|---|\n| route | (any router) |");
  for (int b = 0; b < MOI_BACKEND_COUNT; b++) {
    support_of((moi_backend)b, MOI_OP_ROUTE, MOI_FORMAT_NONE, text, sizeof text);
    printf(" %s |", text);
  }
  printf("\n");
  for (uint32_t f = 0; moi_format_at(f); f++) {
    printf("| experts, gemm, moe | `%s` |", moi_format_name(moi_format_at(f)));
    for (int b = 0; b < MOI_BACKEND_COUNT; b++) {
      support_of((moi_backend)b, MOI_OP_GEMM, moi_format_at(f), text, sizeof text);
      printf(" %s |", text);
    }
    printf("\n");
  }
  printf("| attention, KV append, merge | (KV: `f32`, `f16`, `bf16`, `fp8`, `q8_0`) |");
  for (int b = 0; b < MOI_BACKEND_COUNT; b++) {
    support_of((moi_backend)b, MOI_OP_ATTENTION, MOI_FORMAT_NONE, text, sizeof text);
    printf(" %s |", text);
  }
  printf("\n\nA name is the instruction set or feature that a tuned kernel needs; where a machine lacks it, the next\n"
         "one or the generic kernel serves; on CUDA and Vulkan it is the row, lanes for software devices.\n"
         "generic: right and portable, not fast.\n");
  return 0;
}

/* What tells rows of attention apart: "attention full, 4096 keys". */
static void attention_of(const cJSON *row, char *op, size_t size) {
  const cJSON *kind = cJSON_GetObjectItemCaseSensitive(row, "kind");
  double keys = moi_result_number(row, "kv_len"), page = moi_result_number(row, "page_size");
  if (!cJSON_IsString(kind) || keys <= 0) return;
  int n = snprintf(op, size, "attention %s, %.0f keys", kind->valuestring, keys);
  if (page > 0 && n >= 0 && (size_t)n < size) snprintf(op + n, size - (size_t)n, ", pages of %.0f", page);
}

/* field i of "op/backend/kernel/format/preset/tokens:N" */
static void field(const char *name, int i, char *out, size_t size) {
  for (; i && name; i--) name = strchr(name, '/') ? strchr(name, '/') + 1 : NULL;
  snprintf(out, size, "%.*s", name ? (int)strcspn(name, "/") : 0, name ? name : "");
}

static int speed(int n_files, char **files) {
  for (int i = 0; i < n_files; i++) {
    moi_results r;
    const cJSON *row;
    if (moi_results_read(files[i], &r)) return 1;
    if (i) printf("\n");
    printf("**%s**, %s, %s threads; memory reads %s GB/s; ", moi_result_context(&r, "device"),
           moi_result_context(&r, "isa"), moi_result_context(&r, "threads"), moi_result_context(&r, "peak_read_gbs"));
    for (int b = 0; b < MOI_BACKEND_COUNT; b++) {
      const char *name = moi_backend_name((moi_backend)b), *const members[3] = {"device", "driver", "peak_read_gbs"};
      const char *values[3];
      char member[64];
      for (int k = 0; k < 3; k++) {
        snprintf(member, sizeof member, "%s_%s", name, members[k]);
        values[k] = moi_result_context(&r, member);
      }
      if (values[0][0]) printf("%s: **%s**, %s, memory reads %s GB/s; ", name, values[0], values[1], values[2]);
    }
    printf("moiety %s %s; `%s`\n\n", moi_result_context(&r, "moiety_version"), moi_result_context(&r, "git_commit"),
           moi_result_context(&r, "command"));
    printf("| preset | op | format | kernel | tokens | time | GB/s | of peak | GFLOP/s | of peak |\n");
    printf("|---|---|---|---|--:|--:|--:|--:|--:|--:|\n");
    cJSON_ArrayForEach(row, r.rows) {
      char f[6][64];
      double s = moi_result_seconds(row);
      if (s <= 0) continue;
      for (int k = 0; k < 6; k++) field(moi_result_name(row), k, f[k], sizeof f[k]);
      attention_of(row, f[0], sizeof f[0]);
      char time[32];
      if (s >= 1e-2) snprintf(time, sizeof time, "%.1f ms", s * 1e3);
      else if (s >= 1e-3) snprintf(time, sizeof time, "%.2f ms", s * 1e3);
      else snprintf(time, sizeof time, "%.1f us", s * 1e6);
      printf("| %s | %s | %s | %s %s | %s | %s | %.1f | %.0f %% | %.0f | %.0f %% |\n", f[4], f[0], f[3], f[1], f[2],
             strchr(f[5], ':') ? strchr(f[5], ':') + 1 : "", time, moi_result_number(row, "bytes_per_second") / 1e9,
             100 * moi_result_number(row, "bandwidth_fraction"), moi_result_number(row, "flops_per_second") / 1e9,
             100 * moi_result_number(row, "compute_fraction"));
    }
    moi_results_free(&r);
  }
  return 0;
}

int moi_command_tables(int argc, char **argv) {
  static const moi_command command = {"tables", "the support and speed tables in Markdown", NULL, "[FILE.json ...]"};
  int do_support = 0, do_speed = 0, n_positional;
  moi_option options[] = {
      {"--support", MOI_OPTION_FLAG, &do_support, NULL, "op x weight format x backend, from the kernel lists", 0},
      {"--speed", MOI_OPTION_FLAG, &do_speed, NULL, "the rows of JSON results of moiety bench", 0},
  };
  int status = moi_options_parse(&command, options, 2, argc, argv, &n_positional);
  if (status >= 0) return status;
  if (do_support == do_speed) return moi_usage_error("tables", "give one of --support and --speed");
  if (do_support && n_positional) return moi_usage_error("tables", "--support takes no files");
  if (do_speed && !n_positional) return moi_usage_error("tables", "--speed takes the JSON files of moiety bench");
  return do_support ? support() : speed(n_positional, argv);
}
