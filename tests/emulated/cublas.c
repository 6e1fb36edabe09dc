/* A libcublas.so.13 for the emulated device: the calls that cuda/cublas.c makes, and no other. It multiplies with plain loops, in
 * a launch, so that a graph captures it. What NVIDIA's manual asks of a caller it looks at: what is wrong gets a text and a
 * status that is not 0, and threads that share a handle without a lock end the program. A product fills the workspace with
 * NaN first, all of it. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

#define API __attribute__((visibility("default")))

/* the driver's */
int cuCtxGetCurrent(void **context);
int cuDeviceGetAttribute(int *value, int attribute, int device);
int cuMemAlloc_v2(uint64_t *pointer, size_t size);
int cuMemFree_v2(uint64_t pointer);
int cuStreamGetFlags(void *stream, unsigned *flags);
int cuLaunchKernel(const moi_emulated_kernel *k, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **params, void **extra);

enum {
  SUCCESS = 0,
  NOT_INITIALIZED = 1,
  ALLOC_FAILED = 3,
  INVALID_VALUE = 7,
  ARCH_MISMATCH = 8,
  EXECUTION_FAILED = 13
};
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { MAGIC = 0x0c0b1a5 };

typedef struct handle {
  unsigned magic;
  void *context, *stream, *workspace;
  size_t workspace_size;
  uint64_t memory; /* on the device, as a real one has some */
  int math;
  pthread_t user; /* who has set the stream */
  atomic_flag busy;
} handle;

static _Atomic int live; /* handles */
API int moi_emulated_cublas_handles(void) { return live; }

static int wrong(const char *what) {
  fprintf(stderr, "emulated cuBLAS: %s\n", what);
  return INVALID_VALUE;
}

/* ---- handles */

static int enter(handle *h) {
  void *current = NULL;
  if (!h || h->magic != MAGIC) return wrong("a handle that is none");
  if (atomic_flag_test_and_set(&h->busy)) {
    fprintf(stderr, "emulated cuBLAS: two threads use a handle at once\n");
    abort();
  }
  cuCtxGetCurrent(&current);
  if (current == h->context) return SUCCESS;
  atomic_flag_clear(&h->busy);
  return wrong("the current context is not the handle's");
}
static int leave(handle *h, int status) {
  atomic_flag_clear(&h->busy);
  return status;
}

API int cublasCreate_v2(handle **out) {
  void *current = NULL;
  cuCtxGetCurrent(&current);
  if (!current) return NOT_INITIALIZED;
  handle *h = calloc(1, sizeof *h);
  if (!h) return ALLOC_FAILED;
  if (cuMemAlloc_v2(&h->memory, 1024)) {
    free(h);
    return ALLOC_FAILED;
  }
  h->magic = MAGIC;
  h->context = current;
  live++;
  *out = h;
  return SUCCESS;
}
API int cublasDestroy_v2(handle *h) {
  int status = enter(h);
  if (status) return status;
  cuMemFree_v2(h->memory);
  h->magic = 0;
  free(h);
  live--;
  return SUCCESS;
}
API int cublasSetMathMode(handle *h, int mode) {
  int status = enter(h);
  if (status) return status;
  h->math = mode;
  return leave(h, SUCCESS);
}
API int cublasSetStream_v2(handle *h, void *stream) {
  unsigned flags;
  int status = enter(h);
  if (status) return status;
  if (cuStreamGetFlags(stream, &flags)) return leave(h, wrong("a stream that is none"));
  h->stream = stream;
  h->workspace = NULL; /* the library's own, from here on */
  h->user = pthread_self();
  return leave(h, SUCCESS);
}
API int cublasSetWorkspace_v2(handle *h, void *workspace, size_t size) {
  int status = enter(h);
  if (status) return status;
  if (!workspace || (uintptr_t)workspace % 256)
    return leave(h, wrong("a workspace that does not begin at a multiple of 256"));
  if (size < (size_t)4 << 20) return leave(h, wrong("a workspace of less than 4 MiB"));
  h->workspace = workspace;
  h->workspace_size = size;
  return leave(h, SUCCESS);
}

/* ---- products: C[m, n] = A[m, k] B[k, n] + beta C, column-major */

typedef struct product {
  const void *a, *b;
  float *c;
  void *workspace;
  size_t workspace_size;
  int m, n, k, lda, ldb, ldc, transposed, type;
  float beta;
} product;

static float halves[2][1 << 16]; /* of f16, of bf16 */
__attribute__((constructor)) static void fill_halves(void) {
  for (unsigned i = 0; i < 2u << 16; i++)
    halves[i >> 16][i & 0xffffu] = moi_emulated_half(i & 0xffffu, 0, (int)(i >> 16));
}

static float value(const void *p, size_t i, int type) {
  return type == R_32F ? ((const float *)p)[i] : halves[type == R_16BF][((const uint16_t *)p)[i]];
}

static void multiply(const void *args) {
  const product *p = args;
  memset(p->workspace, 0xff, p->workspace_size);
  for (int j = 0; j < p->n; j++)
    for (int i = 0; i < p->m; i++) {
      float *c = p->c + (size_t)j * (size_t)p->ldc + i, sum = 0.0f;
      for (int k = 0; k < p->k; k++) {
        size_t at = p->transposed ? (size_t)i * (size_t)p->lda + (size_t)k : (size_t)k * (size_t)p->lda + (size_t)i;
        sum += value(p->a, at, p->type) * value(p->b, (size_t)j * (size_t)p->ldb + (size_t)k, p->type);
      }
      *c = p->beta != 0.0f ? sum + p->beta * *c : sum;
    }
}
static const moi_emulated_kernel kernel = {"cublasGemmEx", multiply, sizeof(product), 1};

static int meet(const void *p, size_t p_size, const void *q, size_t q_size) {
  return (const char *)p < (const char *)q + q_size && (const char *)q < (const char *)p + p_size;
}

API int cublasGemmEx(handle *h, int transa, int transb, int m, int n, int k, const float *alpha, const void *a,
                     int a_type, int lda, const void *b, int b_type, int ldb, const float *beta, void *c, int c_type,
                     int ldc, int compute, int algorithm) {
  int sm[2], status = enter(h);
  if (status) return status;
  cuDeviceGetAttribute(&sm[0], 75, 0);
  cuDeviceGetAttribute(&sm[1], 76, 0);
  size_t element = a_type == R_32F ? 4 : 2, a_rows = (size_t)(transa ? k : m), a_columns = (size_t)(transa ? m : k);
  if (!pthread_equal(h->user, pthread_self())) {
    fprintf(stderr, "emulated cuBLAS: a product on the stream of another thread\n");
    abort();
  }
  if (!h->workspace) return leave(h, wrong("a product without a workspace, which would take memory"));
  if ((transa != 0 && transa != 1) || transb != 0)
    return leave(h, wrong("an operation that the backend does not ask for"));
  if (m <= 0 || n <= 0 || k <= 0 || !a || !b || !c || !alpha || !beta) return leave(h, wrong("a product of nothing"));
  if (lda < (int)a_rows || ldb < k || ldc < m) return leave(h, wrong("a leading dimension below the rows"));
  if ((a_type != R_32F && a_type != R_16F && a_type != R_16BF) || b_type != a_type || c_type != R_32F)
    return leave(h, wrong("types that the backend does not ask for"));
  if (compute != (a_type == R_32F ? 69 : 68) || algorithm != -1 || !(h->math & 16) || (h->math & 15))
    return leave(h, wrong("sums that need not be of fp32"));
  if (a_type == R_16BF && sm[0] < 8) return leave(h, ARCH_MISMATCH);
  if (((uintptr_t)a | (uintptr_t)b) % element || (uintptr_t)c % 4)
    return leave(h, wrong("a matrix that is not aligned"));
  size_t a_size = ((a_columns - 1) * (size_t)lda + a_rows) * element;
  size_t b_size = (((size_t)n - 1) * (size_t)ldb + (size_t)k) * element,
         c_size = (((size_t)n - 1) * (size_t)ldc + (size_t)m) * 4;
  if (meet(c, c_size, a, a_size) || meet(c, c_size, b, b_size)) return leave(h, wrong("a result over an operand"));
  if (meet(h->workspace, h->workspace_size, a, a_size) || meet(h->workspace, h->workspace_size, b, b_size) ||
      meet(h->workspace, h->workspace_size, c, c_size))
    return leave(h, wrong("a matrix in the workspace"));
  if (*alpha != 1.0f || (*beta != 0.0f && *beta != 1.0f))
    return leave(h, wrong("factors that the backend does not ask for"));
  product p = {a, b, c, h->workspace, h->workspace_size, m, n, k, lda, ldb, ldc, transa, a_type, *beta};
  void *params[1] = {&p};
  int result = cuLaunchKernel(&kernel, 1, 1, 1, 1, 1, 1, 0, h->stream, params, NULL);
  return leave(h, result == 2 ? ALLOC_FAILED : result ? EXECUTION_FAILED : SUCCESS);
}
