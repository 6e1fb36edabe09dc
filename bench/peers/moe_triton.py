"""A fused MoE of the shape that serving engines run on Triton: choose, align the slots of each expert to blocks of rows,
GEMM with gathered rows, SwiGLU, GEMM times the routing weight, sum. TRITON_INTERPRET=1 runs it on a CPU."""
import os

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

KERNEL = "fused-moe"


def missing(device):
    if not triton:
        return "no triton here"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "without a card it wants TRITON_INTERPRET=1"
    return None


if triton:

    @triton.jit
    def choose(logits, ids, weights, E: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
        """Softmax, top-k, divided by the sum; a program for each token. The lower expert wins ties."""
        t = tl.program_id(0)
        e = tl.arange(0, WIDTH)
        l = tl.load(logits + t * E + e, mask=e < E, other=float("-inf"))
        left = l
        top = tl.max(l, 0)
        total = 0.0
        for _ in tl.static_range(K):
            total += tl.exp(tl.max(left, 0) - top)
            left = tl.where(e == tl.argmax(left, 0), float("-inf"), left)
        for j in tl.static_range(K):
            best = tl.argmax(l, 0)
            tl.store(ids + t * K + j, best.to(tl.int32))
            tl.store(weights + t * K + j, (tl.exp(tl.max(l, 0) - top) / total).to(tl.bfloat16).to(tl.float32))
            l = tl.where(e == best, float("-inf"), l)

    @triton.jit
    def count(ids, counts, n, B: tl.constexpr):
        i = tl.program_id(0) * B + tl.arange(0, B)
        e = tl.load(ids + i, mask=i < n, other=0)
        tl.atomic_add(counts + e, 1, mask=i < n)

    @triton.jit
    def place(counts, next_slot, block_expert, n_blocks, E: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr,
              MOST: tl.constexpr):
        """Where each expert's rows begin, in whole blocks; block_expert: the expert of each block, a program for 128 of them."""
        e = tl.arange(0, WIDTH)
        blocks = (tl.load(counts + e, mask=e < E, other=0) + BM - 1) // BM
        end = tl.cumsum(blocks, 0)
        if tl.program_id(0) == 0:
            tl.store(next_slot + e, (end - blocks) * BM, mask=e < E)
            tl.store(n_blocks, tl.sum(blocks, 0))
        b = tl.program_id(0) * 128 + tl.arange(0, 128)
        whose = tl.sum((end[None, :] <= b[:, None]).to(tl.int32), 1)
        tl.store(block_expert + b, whose, mask=b < MOST)

    @triton.jit
    def scatter(ids, next_slot, slots, n, B: tl.constexpr):
        i = tl.program_id(0) * B + tl.arange(0, B)
        e = tl.load(ids + i, mask=i < n, other=0)
        at = tl.atomic_add(next_slot + e, 1, mask=i < n)
        tl.store(slots + at, i, mask=i < n)

    @triton.jit
    def multiply(x, w, y, slots, block_expert, n_blocks, scale, n_slots, N: tl.constexpr, K: tl.constexpr,
                 DIVIDE: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                 GROUP: tl.constexpr):
        """y[slot] = x[slot / DIVIDE] w[expert]^T (times scale[slot]), a block of one expert's rows by BN columns."""
        across: tl.constexpr = (N + BN - 1) // BN
        p = tl.program_id(0)
        blocks = tl.num_programs(0) // across
        first = p // (GROUP * across) * GROUP
        size = tl.minimum(blocks - first, GROUP)
        m = first + p % (GROUP * across) % size
        n = p % (GROUP * across) // size
        if m < tl.load(n_blocks):
            slot = tl.load(slots + m * BM + tl.arange(0, BM))
            there = slot < n_slots
            e = tl.load(block_expert + m).to(tl.int64)
            cols = n * BN + tl.arange(0, BN)
            k = tl.arange(0, BK)
            xp = x + (slot // DIVIDE).to(tl.int64)[:, None] * K + k[None, :]
            wp = w + e * N * K + cols.to(tl.int64)[None, :] * K + k[:, None]
            sums = tl.zeros((BM, BN), tl.float32)
            for at in range(0, K, BK):
                a = tl.load(xp, mask=there[:, None] & (at + k[None, :] < K), other=0.0)
                b = tl.load(wp, mask=(cols[None, :] < N) & (at + k[:, None] < K), other=0.0)
                sums = tl.dot(a, b, sums)
                xp += BK
                wp += BK
            if SCALED:
                sums *= tl.load(scale + slot, mask=there, other=0.0)[:, None]
            tl.store(y + slot.to(tl.int64)[:, None] * N + cols[None, :], sums.to(y.dtype.element_ty),
                     mask=there[:, None] & (cols[None, :] < N))

    @triton.jit
    def swiglu(both, y, I: tl.constexpr, B: tl.constexpr):
        s = tl.program_id(0).to(tl.int64)
        i = tl.program_id(1) * B + tl.arange(0, B)
        g = tl.load(both + s * 2 * I + i, mask=i < I, other=0.0).to(tl.float32)
        u = tl.load(both + s * 2 * I + I + i, mask=i < I, other=0.0).to(tl.float32)
        tl.store(y + s * I + i, (g / (1 + tl.exp(-g)) * u).to(y.dtype.element_ty), mask=i < I)

    @triton.jit
    def add_slots(parts, y, H: tl.constexpr, K: tl.constexpr, B: tl.constexpr):
        t = tl.program_id(0).to(tl.int64)
        i = tl.program_id(1) * B + tl.arange(0, B)
        total = tl.zeros((B,), tl.float32)
        for j in tl.static_range(K):
            total += tl.load(parts + (t * K + j) * H + i, mask=i < H, other=0.0).to(tl.float32)
        tl.store(y + t * H + i, total.to(y.dtype.element_ty), mask=i < H)


# What the GEMMs are tried in; the quickest of a shape is measured. Blocks of rows: few rows of an expert, many.
FEW = [dict(BM=16, BN=64, BK=128, warps=4, stages=4), dict(BM=16, BN=128, BK=128, warps=4, stages=3),
       dict(BM=16, BN=128, BK=64, warps=8, stages=4)]
MANY = [dict(BM=64, BN=128, BK=64, warps=4, stages=4), dict(BM=128, BN=128, BK=64, warps=8, stages=4),
        dict(BM=128, BN=256, BK=64, warps=8, stages=3)]


def configs(layer, tokens):
    return FEW if tokens * layer.top_k <= 8 * layer.experts else MANY


def call_of(layer, v, config):
    t, k, e, h, i, n = len(v.x), layer.top_k, layer.experts, layer.hidden, layer.inter, len(v.x) * layer.top_k
    # Triton's interpreter multiplies no bf16: on a CPU the same numbers are f32, and what lies between steps is not rounded
    x, up, down = (w if w.is_cuda else w.float() for w in (v.x, v.up, v.down))
    bm, width = config["BM"], triton.next_power_of_2(e)
    most = min(n, n // bm + e)  # blocks: every expert may have one that is not full
    
    def new(*shape, dtype=x.dtype):
        return torch.empty(*shape, dtype=dtype, device=v.x.device)

    ids = v.ids if v.ids is not None else new(t, k, dtype=torch.int32)
    weights = v.weights if v.ids is not None else new(t, k, dtype=torch.float32)
    counts, starts, n_blocks = new(e, dtype=torch.int32), new(e, dtype=torch.int32), new(1, dtype=torch.int32)
    slots, block_expert = new(most * bm, dtype=torch.int32), new(most, dtype=torch.int32)
    both, mid, parts, y = new(n, 2 * i), new(n, i), new(n, h), new(t, h)
    router = v.router.T if v.ids is None else None

    def gemm(x, w, out, N, K, divide, scaled):
        multiply[(most * triton.cdiv(N, config["BN"]),)](
            x, w, out, slots, block_expert, n_blocks, weights, n, N, K, divide, scaled, bm, config["BN"], config["BK"], 8,
            num_warps=config["warps"], num_stages=config["stages"])

    def call():
        if v.ids is None:
            logits = torch.mm(v.x, router, out_dtype=torch.float32) if v.x.is_cuda else v.x.float() @ router.float()
            choose[(t,)](logits, ids, weights, e, k, width)
        counts.zero_()
        slots.fill_(n)
        count[(triton.cdiv(n, 256),)](ids, counts, n, 256)
        place[(triton.cdiv(most, 128),)](counts, starts, block_expert, n_blocks, e, width, bm, most)
        scatter[(triton.cdiv(n, 256),)](ids, starts, slots, n, 256)
        gemm(x, up, both, 2 * i, h, k, False)
        swiglu[(n, triton.cdiv(i, 1024))](both, mid, i, 1024)
        gemm(mid, down, parts, h, i, 1, True)
        add_slots[(t, triton.cdiv(h, 1024))](parts, y, h, k, 1024)
        return y

    return call
