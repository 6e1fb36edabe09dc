#include "cuda/cublas.h"

#include <stdio.h>

#include "core/lock.h"

typedef struct handle_of_cublas *handle; /* cublasHandle_t */

enum { SUCCESS = 0, ALLOC_FAILED = 3, ARCH_MISMATCH = 8, NOT_SUPPORTED = 15 }; /* cublasStatus_t */
enum { AS_IT_IS = 0, TRANSPOSED = 1 };                                         /* cublasOperation_t */
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };                                    /* cudaDataType */
enum { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69 };                          /* cublasComputeType_t */
enum { MATH_DEFAULT = 0, MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16 };     /* cublasMath_t */
enum { ALGORITHM_DEFAULT = -1 };                                               /* cublasGemmAlgo_t */

/* X(member, symbol, parameters); of cuBLAS 11.2 and newer */
#define FUNCTIONS(X)                                                                                                   \
  X(Create, "cublasCreate_v2", (handle * h))                                                                           \
  X(Destroy, "cublasDestroy_v2", (handle h))                                                                           \
  X(SetMathMode, "cublasSetMathMode", (handle h, int mode))                                                            \
  X(SetStream, "cublasSetStream_v2", (handle h, moi_cu_stream stream))                                                 \
  X(SetWorkspace, "cublasSetWorkspace_v2", (handle h, void *workspace, size_t size))                                   \
  X(GemmEx, "cublasGemmEx",                                                                                            \
    (handle h, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda,     \
     const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc, int compute, int algorithm))

static struct {
#define X(name, symbol, parameters) int(MOI_CU_CALL * name) parameters;
  FUNCTIONS(X)
#undef X
} cublas;
static const char *missing;
static moi_once once = MOI_ONCE_INIT;

#if defined(_WIN32)
#define NAME(major) "cublas64_" #major ".dll"
#else
#define NAME(major) "libcublas.so." #major
#endif

/* The newest that the driver can serve: a library is of a major version, and needs a driver of it or a newer one. */
static void load(void) {
  static const struct {
    int major;
    const char *name;
  } names[] = {{13, NAME(13)}, {12, NAME(12)}, {11, NAME(11)}};
  const moi_cu_driver *cu;
  void *library = NULL;
  moi_cu_symbol f;
  missing = "cuBLAS, which is not here (" NAME(13) ", " NAME(12) " or " NAME(11) ", as the driver serves)";
  if (moi_cu_load("cuBLAS", &cu)) return;
  for (size_t i = 0; !library && i < sizeof names / sizeof names[0]; i++)
    if (names[i].major <= cu->version / 1000) library = moi_cu_library_open(names[i].name);
  if (!library) return;
  missing = NULL;
#define X(name, symbol, parameters)                                                                                    \
  f = moi_cu_library_find(library, symbol);                                                                            \
  if (!f) missing = "a newer cuBLAS: this one has no " symbol;                                                         \
  memcpy(&cublas.name, &f, sizeof f);
  FUNCTIONS(X)
#undef X
}

const char *moi_cublas_missing(void) {
  moi_once_do(&once, load);
  return missing;
}

size_t moi_cublas_room(uint32_t sm) { return ((size_t)(sm >= 120 ? 12 : sm >= 90 ? 32 : 4) << 20) + MOI_CUBLAS_ALIGN; }

/* ---- handles */

struct moi_cublas {
  moi_lock lock;
  handle h; /* null: none yet */
};

static moi_status fail(const char *fn, const char *what, int result) {
  moi_status status = result == ALLOC_FAILED                               ? MOI_OUT_OF_MEMORY
                      : result == NOT_SUPPORTED || result == ARCH_MISMATCH ? MOI_UNSUPPORTED
                                                                           : MOI_DEVICE_ERROR;
  return moi_fail(status, fn, "%s: cublasStatus_t %d", what, result);
}

moi_status moi_cublas_open(const char *fn, moi_context *context) {
  moi_cuda *c = context->state;
  c->cublas = moi_allocate(context, sizeof *c->cublas);
  if (!c->cublas) return moi_fail(MOI_OUT_OF_MEMORY, fn, "allocate: returned null for %zu bytes", sizeof *c->cublas);
  c->cublas->h = NULL;
  moi_lock_open(&c->cublas->lock);
  return MOI_OK;
}

void moi_cublas_close(moi_context *context) {
  moi_cuda *c = context->state;
  if (!c->cublas) return;
  if (c->cublas->h && !c->cu->CtxPush(c->context)) {
    cublas.Destroy(c->cublas->h);
    moi_cu_leave(c);
  }
  moi_lock_close(&c->cublas->lock);
  moi_release(context, c->cublas, sizeof *c->cublas);
  c->cublas = NULL;
}

static moi_status start(const char *fn, handle *out) {
  handle h = NULL;
  int result = cublas.Create(&h);
  if (result) return fail(fn, "cublasCreate", result);
  result = cublas.SetMathMode(h, MATH_DEFAULT | MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  if (result) {
    cublas.Destroy(h);
    return fail(fn, "cublasSetMathMode", result);
  }
  *out = h;
  return MOI_OK;
}

moi_status moi_cublas_start(const char *fn, const moi_context *context) {
  const moi_cuda *c = context->state;
  moi_lock_take(&c->cublas->lock);
  moi_status status = c->cublas->h ? MOI_OK : start(fn, &c->cublas->h);
  moi_lock_give(&c->cublas->lock);
  return status;
}

/* ---- products */

/* Its matrices are column-major, so that y is n x n_rows there, x k x n_rows, and W k x n, or n x k where rows lie along n. */
static int multiply(handle h, const moi_cublas_product *p) {
  const float one = 1.0f, none = 0.0f;
  int dense = p->row->form == MOI_CU_FLOATS, along_n = p->row->format == MOI_FORMAT_BF16_KN;
  int type = dense ? R_32F : p->row->form == MOI_CU_DIGITS ? R_16BF : R_16F;
  int lda = (int)(along_n ? p->n : p->k),
      ldb = (int)(dense ? p->ldx : 2 * p->ldx); /* a row of digits lies as one of floats */
  for (uint32_t digit = 0; digit < (dense ? 1 : p->n_digits); digit++) {
    const uint8_t *x = (const uint8_t *)p->x + (size_t)digit * p->ldx * 2;
    int result = cublas.GemmEx(h, along_n ? AS_IT_IS : TRANSPOSED, AS_IT_IS, (int)p->n, (int)p->n_rows, (int)p->k, &one,
                               p->w, type, lda, x, type, ldb, digit ? &one : &none, p->y, R_32F, (int)p->ldy,
                               dense ? COMPUTE_32F_PEDANTIC : COMPUTE_32F, ALGORITHM_DEFAULT);
    if (result) return result;
  }
  return SUCCESS;
}

void moi_cublas_run(moi_cu_run *r, const moi_cublas_product *p) {
  if (r->status || !p->n_rows) return;
  struct moi_cublas *own = r->c->cublas;
  uint8_t *room = (uint8_t *)(((uintptr_t)p->room + MOI_CUBLAS_ALIGN - 1) & ~(uintptr_t)(MOI_CUBLAS_ALIGN - 1));
  const char *what = "cublasSetStream";
  moi_lock_take(&own->lock);
  int result = cublas.SetStream(own->h, r->stream); /* which takes the workspace away: it comes second */
  if (!result) {
    what = "cublasSetWorkspace";
    result = cublas.SetWorkspace(own->h, room, moi_cublas_room(r->c->traits.sm) - MOI_CUBLAS_ALIGN);
  }
  if (!result) {
    what = "cublasGemmEx";
    result = multiply(own->h, p);
  }
  moi_lock_give(&own->lock);
  if (result) r->status = fail(r->function, what, result);
  r->n_launches = 0; /* what cuBLAS launched is not ours to overlap */
}
