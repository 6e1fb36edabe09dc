#!/usr/bin/env python3
"""Measures what else an NVIDIA card could run, on what `moiety bench` measures: the same shapes, tokens and routing, weights
that are cold, routing inside the time. Rows have the names and the JSON of moiety bench, for `moiety compare --work` and
`moiety report`. docs/performance.md says what each peer is. Needs python3 with torch; what else is missing is said."""
import argparse
import importlib.util
import sys

for needed in ("torch", "numpy"):
    if not importlib.util.find_spec(needed):
        print(f"bench/peers: {needed} is not here: no peer was measured", file=sys.stderr)
        sys.exit(3)

import torch

import attention_torch
import gemm_cublas
import measure
import moe_torch
import moe_triton
import work

MOE = {"torch": moe_torch, "triton": moe_triton}


def numbers(text):
    return [int(n) for n in text.split(",")]


def options():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--presets", metavar="FILE", help="what `moiety presets --json` prints (default: build/bin/moiety is asked)")
    p.add_argument("--preset", default="qwen3-30b-a3b", help="models, a comma between")
    p.add_argument("--op", default="moe,experts", help="of moe, experts, gemm, attention")
    p.add_argument("--peer", default="torch,triton,cublas")
    p.add_argument("--tokens", type=numbers, default=[1, 8, 64, 512])
    p.add_argument("--kv", type=numbers, default=[4096])
    p.add_argument("--batch", type=numbers, default=[1, 8])
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    p.add_argument("--experts", type=int, help="fewer experts than the model has: for tests")
    p.add_argument("--repetitions", type=int, default=3)
    p.add_argument("--min-time", type=float, default=0.2)
    p.add_argument("--peaks", metavar="FILE", help="a result of moiety bench in the same run: its peaks are the limits")
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--check", metavar="DIR", help="what `moiety bench --operands DIR` wrote of the one preset and op: is the "
                   "same computed, and drawn?")
    p.add_argument("--kind", default="full", help="of attention, for --check")
    return p.parse_args()


def ready(peer, module, device):
    why = module.missing(device)
    if why:
        print(f"{peer}: left out: {why}")
    return not why


def quickest(layer, variants, tokens, device):
    """The configuration of the Triton GEMMs that is quickest here, as serving engines' tuned tables name it."""
    tried = []
    for config in moe_triton.configs(layer, tokens):
        if device != "cuda":
            return config
        try:
            calls = [measure.graph_of(moe_triton.call_of(layer, v, config)) for v in variants[:4]]
            times = [measure.timed(calls[i % len(calls)], device)[1] for i in range(24)]
            tried.append((sorted(times)[12], config))
        except RuntimeError as e:
            print(f"triton: {config}: left out: {str(e).splitlines()[0]}")
    if not tried:
        raise RuntimeError("no configuration runs")
    return min(tried, key=lambda x: x[0])[1]


def layer_row(results, peer, op, layer, tokens):
    module = MOE[peer]
    name = f"{op}/{peer}/{module.KERNEL}/bf16/{layer.name}/tokens:{tokens}"
    variants = layer.variants(op, tokens)
    if peer == "triton":
        config = quickest(layer, variants, tokens, results.device)
        calls = [module.call_of(layer, v, config) for v in variants]
    else:
        calls = [module.call_of(layer, v) for v in variants]
    truth, clear = variants[0].truth(layer)
    error = work.distance(calls[0]()[:len(truth)][clear], truth[clear])
    accounts = [v.accounts(layer, op) for v in variants]
    results.measure(name, calls, [a[0] for a in accounts], [a[1] for a in accounts], error)


def check(o, preset):
    """Against moiety: the tokens, router and ids that are drawn, bit for bit, and what each peer makes of its weights."""
    bad = 0

    def say(what, ok, more=""):
        nonlocal bad
        bad += not ok
        print(f"{'ok' if ok else 'FAILED'}: {what}{more}")

    def close(what, error, allowed=measure.TOLERANCE):
        say(what, error <= allowed, f": off by {error:.2g} of its norm, {allowed} allowed")

    if o.op == "attention":
        close("sdpa", attention_torch.check(preset, o.kind, work.files(o.check), work.distance))
        return bad
    layer = work.Layer(preset, o.device, experts=work.files(o.check)["up"].shape[0])
    f = layer.load(o.check)
    tokens = len(f["input"])
    v = layer.variants(o.op, tokens)[0]
    say("tokens are the same bits", torch.equal(v.x.cpu(), f["input"]))
    if o.op == "experts":
        say("ids are the same", torch.equal(v.ids.cpu(), f["ids"]))
        say("weights of routing are the same", torch.equal(v.weights.cpu(), f["weights"]))
        call, error = gemm_cublas.call_of(layer, v, gemm_cublas.Cublas() if o.device == "cuda" else gemm_cublas.Instead())
        close("cublas", error(work.distance))
    else:
        say("the router is the same bits", torch.equal(layer.router(0), f["router"]))
        ids, w = moe_torch.route(v.x, v.router, layer.top_k)
        say("torch chooses the same experts", torch.equal(ids.sort(-1)[0].cpu().int(), f["ids"].sort(-1)[0]))
        close("weights of routing", work.distance(w.cpu().sort(-1)[0], f["weights"].sort(-1)[0]))
    truth, clear = v.truth(layer)
    close("fp64 here and moiety", work.distance(f["output"][:len(truth)][clear.cpu()], truth[clear].cpu()))
    for peer in o.peer.split(","):
        if peer not in MOE or not ready(peer, MOE[peer], o.device):
            continue
        for config in (moe_triton.FEW + moe_triton.MANY if o.device == "cuda" else [moe_triton.FEW[0], moe_triton.MANY[0]]) \
                if peer == "triton" else [None]:
            call = MOE[peer].call_of(layer, v, config) if config else MOE[peer].call_of(layer, v)
            close(f"{peer}{f', {config}' if config else ''}", work.distance(call().cpu(), f["output"]))
    return bad


def main():
    o = options()
    every = work.presets(o.presets)
    names = o.preset.split(",")
    for name in names:
        if name not in every:
            sys.exit(f"bench/peers: no preset '{name}', see moiety presets")
    if o.check:
        sys.exit(1 if check(o, every[names[0]]) else 0)
    results = measure.Results(o.device, "bench/peers/run.py " + " ".join(sys.argv[1:]), o.peaks, o.repetitions, o.min_time)
    ops = o.op.split(",")
    peers = o.peer.split(",")
    for name in names:
        if "attention" in ops and "torch" in peers:
            attention_torch.run(results, every[name], o.tokens, o.kv, o.batch, work.distance)
        if not {"moe", "experts", "gemm"} & set(ops):
            continue
        if name not in work.LAYERS:
            print(f"{name}: left out: its layer is none of those that the peers compute: {', '.join(sorted(work.LAYERS))}")
            continue
        memory = torch.cuda.get_device_properties(0).total_memory // 2 if o.device == "cuda" else None
        layer = work.Layer(every[name], o.device, memory, o.experts)
        layer.fill()
        rows = [(p, op, n) for op in ops if op in ("moe", "experts") for n in o.tokens for p in peers
                if p == "cublas" or ready(p, MOE[p], o.device)]
        rows += [("cublas", "gemm", n) for n in (512, 4096) if "gemm" in ops and "cublas" in peers]
        for peer, op, n in rows:
            try:
                if op == "gemm":
                    gemm_cublas.run_dense(results, layer, n if o.device == "cuda" else 16, work.distance)
                elif peer == "cublas":
                    if op == "experts":
                        gemm_cublas.run_grouped(results, layer, n, work.distance)
                else:
                    layer_row(results, peer, op, layer, n)
            except (RuntimeError, OSError) as e:
                results.fail(f"{op}/{peer}/{MOE[peer].KERNEL if peer in MOE else gemm_cublas.KERNEL}/bf16/{name}/tokens:{n}", e)
        del layer
        if o.device == "cuda":
            torch.cuda.empty_cache()
    if o.json:
        results.write(o.json)
    sys.exit(1 if results.failed or not results.rows else 0)


if __name__ == "__main__":
    main()
