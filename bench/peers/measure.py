"""Times calls, and writes rows as `moiety bench --json` does: run.py's own lines, and the file."""
import datetime
import json
import os
import time

import torch

TOLERANCE = 0.01  # of a peer's result: bf16 between its steps


class Results:
    """peaks: a JSON result of `moiety bench` on this machine, from the same run: rows say how near its limits they are."""

    def __init__(self, device, command, peaks, repetitions, min_time):
        self.device, self.rows, self.failed = device, [], 0
        self.repetitions, self.min_time = repetitions, min_time
        ours = context_of(peaks)
        self.context = {**ours, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                        "command": command, "torch": torch.__version__, "num_cpus": ours.get("num_cpus", os.cpu_count())}
        self.context.setdefault("moiety_version", "")
        self.read = float(ours.get("cuda_peak_read_gbs", 0)) * 1e9
        self.ops = float(ours.get("cuda_peak_bf16_gflops", 0)) * 1e9
        if device == "cuda":
            self.context.setdefault("cuda_device", torch.cuda.get_device_name())

    def fail(self, name, why):
        self.failed += 1
        why = " ".join(str(why).split())[:300]
        print(f"{name}: FAILED: {why}", flush=True)
        self.rows.append({"name": name, "run_name": name, "run_type": "iteration", "repetitions": 1, "repetition_index": 0,
                          "threads": 1, "error_occurred": True, "error_message": why})

    def measure(self, name, calls, bytes_, flops, error, extra=None, captured=True):
        """calls[i] is iteration i, then round again; bytes_ and flops a list of as many. On a card each is a graph that is
        launched again, where it can be captured, so that launches by Python are not in the way."""
        if not error <= TOLERANCE:
            return self.fail(name, f"wrong result: off by {error:.3g} of its norm, {TOLERANCE} allowed")
        launched = [graph_of(c) for c in calls] if self.device == "cuda" and captured else calls
        seconds, busy = [], []
        for c in launched:
            c()
        for _ in range(self.repetitions):
            n, wall, device = 0, 0.0, 0.0
            while wall < self.min_time or n < len(launched):
                w, d = timed(launched[n % len(launched)], self.device)
                n, wall, device = n + 1, wall + w, device + d
            seconds.append(wall / n)
            busy.append(device / n)
        work = sum(bytes_) / len(bytes_), sum(flops) / len(flops)
        more = {**(extra or {}), "error": error, "tolerance": TOLERANCE}
        runs = [self.entry(name, i, s, d, work, more) for i, (s, d) in enumerate(zip(seconds, busy))]
        median = dict(sorted(runs, key=lambda r: r["real_time"])[len(runs) // 2])
        median.update(name=name + "_median", run_type="aggregate", aggregate_name="median", aggregate_unit="time")
        self.rows += runs + ([median] if len(runs) > 1 else [])
        print(f"{name}: {median['device_seconds'] * 1e6:.1f} us, {median['bytes_per_second'] / 1e9:.0f} GB/s, "
              f"{median['flops_per_second'] / 1e12:.2f} TFLOP/s", flush=True)

    def entry(self, name, i, seconds, busy, work, more):
        rate = work[0] / seconds, work[1] / seconds
        read, ops = (rate[0] / self.read if self.read else 0), (rate[1] / self.ops if self.ops else 0)
        return {"name": name, "run_name": name, "run_type": "iteration", "repetitions": self.repetitions,
                "repetition_index": i, "threads": 1, "iterations": 1, "real_time": seconds * 1e6, "cpu_time": seconds * 1e6,
                "time_unit": "us", "label": "of bf16 mma", "device_seconds": busy, "bytes_per_second": rate[0],
                "flops_per_second": rate[1], "bandwidth_fraction": read, "compute_fraction": ops,
                "roof_fraction": max(read, ops), "read_peak": self.read, "compute_peak": self.ops, **more}

    def write(self, path):
        with open(path, "w") as out:
            json.dump({"context": self.context, "benchmarks": self.rows}, out, indent=1)
            out.write("\n")


def context_of(path):
    try:
        return json.load(open(path))["context"] if path else {}
    except (OSError, ValueError, KeyError) as e:
        print(f"{path}: no result of moiety bench ({e}): how near the limits the peers are is not known")
        return {}


def graph_of(call):
    """The call as a CUDA graph; calls must have run before, so that nothing is compiled or allocated for the first time."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def timed(call, device):
    """Seconds of launch and wait, as bench counts them, and of those on the device."""
    if device != "cuda":
        start = time.perf_counter()
        call()
        wall = time.perf_counter() - start
        return wall, wall
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start = time.perf_counter()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return time.perf_counter() - start, begin.elapsed_time(end) * 1e-3
