/* Weights of random bytes through every row that runs here, against the reference: what is finite must agree. */
#include "tests/fuzz/bytes.h"

enum { ROWS = 3, N = 32 };

/* Products of weights and activations whose sum fp32 holds with something to spare: the integer rows are defined for no
 * others. */
static int sane(const float *y, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (!isfinite(y[i]) || fabsf(y[i]) > 1e30f || (y[i] != 0 && fabsf(y[i]) < 1e-25f)) return 0;
  return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static float x[ROWS * 512], got[ROWS * N], wanted[ROWS * N];
  bytes b = {data, data + size};
  moi_gemm_desc d = MOI_GEMM_DESC_INIT;
  d.format = any_format(&b);
  d.max_rows = ROWS;
  d.n = N;
  d.k = 256 * (1 + below(&b, 2));
  d.n_experts = 1;
  moi_format_sizes sizes;
  if (moi_format_size(d.format, d.n, d.k, &sizes)) return 0;
  for (uint32_t i = 0; i < ROWS * d.k; i++) x[i] = ((float)next8(&b) - 127.5f) / 64;
  moi_weights w = MOI_WEIGHTS_INIT;
  w.data = view(&b, sizes.data);
  w.scales = view(&b, sizes.scales);
  w.zeros = view(&b, sizes.zeros);
  int32_t offsets[2] = {0, ROWS};
  moi_gemm_args a = MOI_GEMM_ARGS_INIT;
  a.n_rows = ROWS;
  a.input = moi_ptr(x, sizeof(float) * ROWS * d.k);
  a.offsets = moi_ptr(offsets, sizeof offsets);
  a.weights = &w;
  const moi_queue queue = {NULL};
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  int all_sane = 0;
  for (uint32_t i = 0;; i++) {
    if (i && moi_kernel_get(MOI_BACKEND_CPU, i - 1, &info)) break;
    if (i && (info.op != MOI_OP_GEMM || !info.runs_here || (info.format && info.format != d.format))) continue;
    moi_plan *plan = NULL;
    d.kernel = i ? info.name : "ref";
    moi_status status = moi_gemm_plan(fuzz_context(), &d, &plan);
    if (status == MOI_UNSUPPORTED && i) continue; /* a row for bf16 activations alone */
    if (status) abort();
    a.output = i ? moi_ptr(got, sizeof got) : moi_ptr(wanted, sizeof wanted);
    if (moi_gemm_run(plan, &a, workspace_of(plan), queue)) abort();
    moi_plan_destroy(plan);
    if (!i) all_sane = sane(wanted, ROWS * N);
    if (!i || !all_sane) continue;
    /* Bytes of no distribution: terms may cancel, so an error is held against the largest output instead. */
    float most = 0, off = 0;
    for (uint32_t j = 0; j < ROWS * N; j++) {
      most = fmaxf(most, fabsf(wanted[j]));
      off = isfinite(got[j]) ? fmaxf(off, fabsf(got[j] - wanted[j])) : INFINITY;
    }
    if (off > 0.02f * most + 1e-20f) {
      fprintf(stderr, "%s %s: off by %g of %g\n", moi_format_name(d.format), d.kernel, (double)off, (double)most);
      abort();
    }
  }
  drop_blocks();
  return 0;
}
