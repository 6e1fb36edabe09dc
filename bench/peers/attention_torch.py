"""scaled_dot_product_attention, by each of torch's backends that takes the shape."""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cuda": {"sdpa-cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa-flash": SDPBackend.FLASH_ATTENTION,
                     "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION}, "cpu": {"sdpa-math": SDPBackend.MATH}}
COLD_BYTES, MAX_COPIES, MAX_PROMPTS = 1 << 30, 512, 8


def shapes(preset, tokens, kv, batch):
    """(kind, sequences, rows, keys), as bench.cc lists them."""
    for kind in preset["attention"]:
        for n in tokens:
            if n > 16 and kind["kind"] != "mla-absorbed":
                yield kind, 1, n, n
        for n in kv:
            for s in batch:
                if kind["kind"] != "mla":
                    yield kind, s, 1, n


def refuses(kind, keys):
    """Why SDPA does not compute this kind, or None."""
    for what in ("softcap", "sinks", "chunk", "temperature", "v_in_k"):
        if kind[what]:
            return f"SDPA has no {what.replace('_', ' ')}"
    return "SDPA has no window" if 0 < kind["window"] < keys else None


def counts(kind, sequences, rows, keys):
    """Bytes and operations, as bench_attention.c counts them: rows are the last of the keys, each sees those up to itself."""
    seen = sequences * sum(range(keys - rows + 1, keys + 1))
    width = kind["head_dim"] + kind["v_head_dim"]
    size = sequences * keys * kind["kv_token_bytes"] + sequences * rows * kind["heads"] * width * 2
    return size, 2.0 * seen * kind["heads"] * width


def call_of(kind, q, k, v, rows):
    """q, k, v: [sequence, head, token, element], views of what lies as moiety's does, [sequence, token, head, element]."""
    grouped = kind["heads"] != kind["kv_heads"]
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=rows > 1, scale=kind["scale"], enable_gqa=grouped)


def truth(kind, q, k, v, row):
    """A row of the last sequence in fp64, all heads."""
    group = kind["heads"] // kind["kv_heads"]
    keys = k.shape[2] - q.shape[2] + row + 1
    k, v = (x[-1, :, :keys].double().repeat_interleave(group, 0) for x in (k, v))
    p = torch.softmax((k @ q[-1, :, row].double()[:, :, None])[:, :, 0] * kind["scale"], -1)
    return (p[:, None, :] @ v)[:, 0]


def operands(kind, sequences, rows, keys, device):
    def some(tokens, heads, dim, gain=1.0):
        return (torch.randn(sequences, tokens, heads, dim, device=device) * gain).to(torch.bfloat16).transpose(1, 2)

    gain = 2 / (kind["scale"] * kind["head_dim"] ** 0.5)
    return (some(rows, kind["heads"], kind["head_dim"], gain), some(keys, kind["kv_heads"], kind["head_dim"]),
            some(keys, kind["kv_heads"], kind["v_head_dim"]))


def run(results, preset, tokens, kv, batch, distance):
    device = results.device
    for kind, sequences, rows, keys in shapes(preset, tokens, kv, batch):
        name = f"bf16/{preset['name']}/tokens:{sequences * rows}/kind:{kind['kind']}/sequences:{sequences}/kv_len:{keys}"
        why = refuses(kind, keys)
        if why:
            print(f"attention/torch/{name}: left out: {why}")
            continue
        size, flops = counts(kind, sequences, rows, keys)
        copies = max(2, min(int(COLD_BYTES // size) + 1, MAX_PROMPTS if rows > 1 else MAX_COPIES))
        sets = [operands(kind, sequences, rows, keys, device) for _ in range(copies)]
        for kernel, backend in BACKENDS[device].items():
            full = f"attention/torch/{kernel}/{name}"
            try:
                with sdpa_kernel([backend]):
                    calls = [call_of(kind, *s, rows) for s in sets]
                    out = calls[0]()
                    error = max(distance(out[-1, :, r], truth(kind, *sets[0], r)) for r in {0, rows // 2, rows - 1})
                    results.measure(full, calls, [size], [flops], error,
                                    {"kind": kind["kind"], "kv_format": "bf16", "rows": rows, "sequences": sequences,
                                     "kv_len": keys, "page_size": 0})
            except RuntimeError as e:
                print(f"{full}: left out: {str(e).splitlines()[0]}")
        del sets


def check(preset, kind_name, f, distance):
    """Against moiety's result of the same row: the largest distance of a sequence."""
    kind = next(k for k in preset["attention"] if k["kind"] == kind_name)
    n, worst = len(f["start"]), 0.0
    rows = len(f["q"]) // n
    starts = sorted(f["start"].tolist()) + [len(f["k"])]
    for s, start in enumerate(f["start"].tolist()):
        end = starts[starts.index(start) + 1]
        q, k, v = (x.transpose(0, 1)[None] for x in (f["q"][s * rows:(s + 1) * rows], f["k"][start:end], f["v"][start:end]))
        out = call_of(kind, q, k, v, rows)()[0].transpose(0, 1)
        worst = max(worst, distance(out, f["output"][s * rows:(s + 1) * rows]))
    return worst
