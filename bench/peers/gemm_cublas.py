"""cuBLAS: cublasGemmGroupedBatchedEx for the two GEMMs of an expert layer, called by its C interface, and cublasLt for one
expert's matrices. No row computes a layer: the gathering of rows, the activation and the sum over a token's experts are
not there, and the host knows the routing. A layer made of these would take longer."""
import ctypes

import torch

KERNEL = "grouped-gemms-alone"
OP_N, OP_T, R_16BF, COMPUTE_32F = 0, 1, 14, 68
NAMES = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"]


class Cublas:
    def __init__(self):
        for name in NAMES:
            try:
                self.lib = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise OSError("no libcublas")
        if not hasattr(self.lib, "cublasGemmGroupedBatchedEx"):
            raise OSError("this libcublas has no cublasGemmGroupedBatchedEx: 12.5 and newer have it")
        self.handle = ctypes.c_void_p()
        self.check(self.lib.cublasCreate_v2(ctypes.byref(self.handle)), "cublasCreate")

    def check(self, status, what):
        if status:
            raise RuntimeError(f"{what}: cublasStatus_t {status}")

    def grouped(self, *arguments):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.check(self.lib.cublasSetStream_v2(self.handle, stream), "cublasSetStream")
        self.check(self.lib.cublasGemmGroupedBatchedEx(self.handle, *arguments), "cublasGemmGroupedBatchedEx")


class Instead:
    """The same call on a CPU, by what the manual says of it: tests what is handed over."""

    def grouped(self, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, groups, sizes, compute):
        assert (at.value, bt.value, ct.value, compute.value) == (R_16BF,) * 3 + (COMPUTE_32F,)
        addresses = [(ctypes.c_int64 * groups.value).from_address(p.value) for p in (a, b, c)]

        def matrix(address, rows, cols, ld):  # column-major
            raw = (ctypes.c_int16 * (ld * cols)).from_address(address)
            return torch.frombuffer(raw, dtype=torch.bfloat16).view(cols, ld)[:, :rows].T

        for g in range(groups.value):
            assert sizes[g] == 1 and alpha[g] == 1 and beta[g] == 0 and ta[g] == OP_T and tb[g] == OP_N
            left = matrix(addresses[0][g], k[g], m[g], lda[g]).T.float()
            right = matrix(addresses[1][g], k[g], n[g], ldb[g]).float()
            matrix(addresses[2][g], m[g], n[g], ldc[g]).copy_(left @ right)


def grouped_arguments(x, w, y, counts):
    """y[rows of e] = x[rows of e] w[e]^T, rows sorted by expert: in cuBLAS's columns y^T = w x^T, a group for each expert that
    has rows. Returns what to pass, and what must live as long."""
    width, depth = w.shape[1], w.shape[2]
    used = [e for e, c in enumerate(counts) if c]
    first, at = {}, 0
    for e, c in enumerate(counts):
        first[e], at = at, at + c
    n = len(used)

    def ints(values):
        return (ctypes.c_int * n)(*values)

    def pointers(values):
        return torch.tensor(values, dtype=torch.int64, device=x.device)

    a = pointers([w[e].data_ptr() for e in used])
    b = pointers([x[first[e]].data_ptr() for e in used])
    c = pointers([y[first[e]].data_ptr() for e in used])
    one, zero = (ctypes.c_float * n)(*[1.0] * n), (ctypes.c_float * n)()
    kind, address = ctypes.c_int(R_16BF), lambda t: ctypes.c_void_p(t.data_ptr())
    return [ints([OP_T] * n), ints([OP_N] * n), ints([width] * n), ints([counts[e] for e in used]), ints([depth] * n), one,
            address(a), kind, ints([depth] * n), address(b), kind, ints([depth] * n), zero, address(c), kind,
            ints([width] * n), ctypes.c_int(n), ints([1] * n), ctypes.c_int(COMPUTE_32F)], (a, b, c)


def call_of(layer, v, cublas):
    """Both GEMMs on rows that are gathered and an activation that is made already; and how far the results are off."""
    expert = v.ids.long().reshape(-1)
    order = torch.argsort(expert, stable=True)
    counts = torch.bincount(expert, minlength=layer.experts).tolist()
    x = v.x[order // layer.top_k].contiguous()
    both = torch.empty(len(x), 2 * layer.inter, dtype=x.dtype, device=x.device)
    mid = torch.randn(len(x), layer.inter, device=x.device).to(x.dtype)
    y = torch.empty(len(x), layer.hidden, dtype=x.dtype, device=x.device)
    first, keep = grouped_arguments(x, v.up, both, counts)
    second, keep2 = grouped_arguments(mid, v.down, y, counts)

    def call(_=(keep, keep2)):
        cublas.grouped(*first)
        cublas.grouped(*second)

    def error(distance):
        call()
        rows = sorted({0, len(x) // 2, len(x) - 1})
        e = expert[order][rows]
        return max(distance(both[rows], torch.stack([v.up[i].double() @ x[r].double() for r, i in zip(rows, e)])),
                   distance(y[rows], torch.stack([v.down[i].double() @ mid[r].double() for r, i in zip(rows, e)])))

    return call, error


def run_grouped(results, layer, tokens, distance):
    name = f"experts/cublas/{KERNEL}/bf16/{layer.name}/tokens:{tokens}"
    cublas = Cublas() if results.device == "cuda" else Instead()
    variants = layer.variants("experts", tokens)
    made = [call_of(layer, v, cublas) for v in variants]
    accounts = [v.accounts(layer, "experts") for v in variants]
    results.measure(name, [c for c, _ in made], [a[0] for a in accounts], [a[1] for a in accounts], made[0][1](distance),
                    captured=False)  # its arguments are the host's


def run_dense(results, layer, tokens, distance):
    """One expert's gate and up, and its down, for as many rows: an expert's weights in turn."""
    if results.device == "cuda":
        torch.backends.cuda.preferred_blas_library("cublaslt")
    up, down, _ = layer.sets[0]
    for w in up, down:
        x = torch.randn(tokens, w.shape[2], device=w.device).to(w.dtype)
        y = torch.empty(tokens, w.shape[1], dtype=w.dtype, device=w.device)
        calls = [lambda m=m: torch.mm(x, m.T, out=y) for m in w[:32]]
        calls[0]()
        error = distance(y[:4], x[:4].double() @ w[0].double().T)
        name = f"gemm/cublas/lt/bf16/{layer.name}/tokens:{tokens}/n:{w.shape[1]}/k:{w.shape[2]}"
        results.measure(name, calls, [2 * (w[0].numel() + x.numel() + y.numel())], [2.0 * tokens * w[0].numel()], error)
