"""What `moiety bench` measures, for peers: the same shapes, the same random tokens, routers and experts' ids, by the rules of
bench/rig/random.h, bench/rig/operands.c and bench/bench_layer.c. run.py --check holds all of it against moiety's own files."""
import json
import math
import pathlib
import subprocess

import numpy as np
import torch

COLD_BYTES, MAX_SETS, CHECKED = 2 << 30, 16, 4
# Layers that peers compute: softmax over all experts, top-k, divided by their sum, rounded to bf16; SwiGLU without limit or
# biases; no shared expert.
LAYERS = {"qwen3-30b-a3b", "qwen3-235b-a22b", "mixtral-8x7b", "mixtral-8x22b"}


def presets(path):
    text = pathlib.Path(path).read_text() if path else subprocess.run(["build/bin/moiety", "presets", "--json"], check=True,
                                                                      text=True, stdout=subprocess.PIPE).stdout
    return {p["name"]: p for p in json.loads(text)}


# ---- numbers by counter (random.h)

U64 = np.uint64


def bits(seed, i):
    with np.errstate(over="ignore"):
        z = U64((seed ^ 0x6A09E667F3BCC909) * 0xD1342543DE82EF95 % 2**64) + (i.astype(U64) + U64(1)) * U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return z ^ (z >> U64(31))


def below(seed, i, n):
    return ((bits(seed, i) >> U64(32)) * U64(n) >> U64(32)).astype(np.int64)


def normal(seed, i):
    z, m = bits(seed, i), U64(0xFFFF)
    total = ((z & m) + (z >> U64(16) & m) + (z >> U64(32) & m) + (z >> U64(48))).astype(np.int64) - 131070
    return total.astype(np.float32) * (np.float32(1.7320508) / np.float32(65535))


def bf16(x):
    return torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(torch.bfloat16)


def activations(rows, cols, seed):
    i, out = np.arange(cols), np.empty((rows, cols), np.float32)
    for r in range(rows):
        s = seed + r * 7919
        x = normal(s, i)
        out[r] = np.where(below(s ^ 0x5BD1, i, 64) == 0, x * np.float32(6), x)
    return bf16(out)


def draw_ids(tokens, top_k, experts, seed):
    out = np.empty((tokens, top_k), np.int32)
    for t in range(tokens):
        draws = iter(below(seed, (t << 20) + np.arange(64 * top_k), experts))
        row = []
        while len(row) < top_k:
            e = int(next(draws))
            if e not in row:
                row.append(e)
        out[t] = row
    return torch.from_numpy(out)


# ---- a layer

class Layer:
    """The experts and the router of a preset in bf16, several times over so that a call finds them cold. Weights are random
    here; load() takes moiety's."""

    def __init__(self, preset, device, memory=None, experts=None):
        self.name, self.device = preset["name"], device
        self.hidden, self.inter, self.top_k = preset["hidden"], preset["intermediate"], preset["top_k"]
        self.experts = experts or preset["experts"]
        self.expert_bytes = 6 * self.hidden * self.inter
        size = self.expert_bytes * self.experts
        if memory and size > memory:
            raise MemoryError(f"one copy of the layer is {size / 1e9:.1f} GB, {memory / 1e9:.1f} GB may be used")
        self.n_sets = max(1, min(MAX_SETS, -(-COLD_BYTES // size), memory // size if memory else MAX_SETS))
        self.sets = []

    def fill(self):
        made = torch.Generator(self.device).manual_seed(1)
        for s in range(0 if self.sets else self.n_sets):
            up = torch.empty(self.experts, 2 * self.inter, self.hidden, dtype=torch.bfloat16, device=self.device)
            down = torch.empty(self.experts, self.hidden, self.inter, dtype=torch.bfloat16, device=self.device)
            for w, k in (up, self.hidden), (down, self.inter):
                w.normal_(0, k ** -0.5, generator=made)
            self.sets.append((up, down, self.router(s).to(self.device)))

    def router(self, s):
        sigma, i = np.float32(2) / np.sqrt(np.float32(self.hidden)), np.arange(self.hidden)
        seed = (s + 77) * 7 + 2
        return bf16(np.stack([sigma * normal(seed + 131 * e, i) for e in range(self.experts)]))

    def load(self, folder):
        """One set, of files that `moiety bench --operands` wrote."""
        f = files(folder)
        gate, up, down = f.get("gate"), f["up"], f["down"]
        both = torch.cat([gate, up], 1) if gate is not None else up
        self.sets = [(both.to(self.device), down.to(self.device), f.get("router", torch.empty(0)).to(self.device))]
        self.n_sets = 1
        return f

    def variants(self, op, tokens):
        n = 64 if tokens <= 4 else 32 if tokens <= 16 else 8 if tokens <= 64 else 2
        if self.device == "cpu":  # where nothing is measured
            n = 1
        return [Variant(self, op, tokens, v) for v in range(max(n, self.n_sets))]


class Variant:
    """A call: tokens, and for op experts the experts that they go to."""

    def __init__(self, layer, op, tokens, v):
        seed = 10 + v
        self.up, self.down, self.router = layer.sets[v % layer.n_sets]
        self.x = activations(tokens, layer.hidden, seed * 5 + 1).to(layer.device)
        self.ids = self.weights = None
        if op == "experts":
            self.ids = draw_ids(tokens, layer.top_k, layer.experts, seed * 5 + 2).to(layer.device)
            u = (bits(seed * 5 + 3, np.arange(tokens * layer.top_k)) >> U64(40)).astype(np.float32) * np.float32(2**-24)
            w = (np.float32(0.25) + u) / np.sqrt(np.float32(layer.top_k))
            self.weights = torch.from_numpy(w).view(tokens, layer.top_k).to(layer.device)

    def routed(self, top_k):
        """Ids and weights by the rule, in fp64; and for each token whether no near tie could go otherwise."""
        if self.ids is not None:
            return self.ids.long(), self.weights.double(), torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        s = torch.softmax(self.x.double() @ self.router.double().T, -1)
        w, ids = s.topk(min(top_k + 1, s.shape[1]))
        clear = (w[:, top_k - 1] - w[:, -1] > 1e-4 * w[:, top_k - 1]) | (w.shape[1] == top_k)
        w = w[:, :top_k] / w[:, :top_k].sum(-1, keepdim=True)
        return ids[:, :top_k], w.bfloat16().double(), clear

    def accounts(self, layer, op):
        """Bytes and operations, as bench_layer.c counts them."""
        ids, t, h = self.routed(layer.top_k)[0], len(self.x), layer.hidden
        size = int(ids.unique().numel()) * layer.expert_bytes + t * h * 4
        flops = 6.0 * h * layer.inter * ids.numel()
        if op == "moe":
            size += 2 * h * layer.experts
            flops += 2.0 * t * h * layer.experts
        return size, flops

    def truth(self, layer):
        """The first tokens in fp64: rows, and which of them no near tie excuses."""
        n = min(CHECKED, len(self.x))
        ids, weights, clear = self.routed(layer.top_k)
        out = torch.zeros(n, layer.hidden, dtype=torch.float64, device=self.x.device)
        for t in range(n):
            for e, w in zip(ids[t].tolist(), weights[t].tolist()):
                gate, up = (self.up[e].double() @ self.x[t].double()).chunk(2)
                out[t] += w * (self.down[e].double() @ (torch.nn.functional.silu(gate) * up))
        return out, clear[:n]


def distance(result, truth):
    """The norm of the difference, of the norm; infinite if anything is not a number."""
    result, truth = result.double(), truth.double()
    d = float(torch.linalg.vector_norm(result - truth) / torch.linalg.vector_norm(truth))
    return d if math.isfinite(d) else math.inf


def files(folder):
    """What `moiety bench --operands` wrote: NAME.TYPE.D0xD1x..."""
    types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i32": torch.int32}
    out = {}
    for path in sorted(pathlib.Path(folder).iterdir()):
        name, kind, dims = path.name.split(".")
        out[name] = torch.frombuffer(bytearray(path.read_bytes()), dtype=types[kind]).view(*map(int, dims.split("x")))
    return out
