#!/usr/bin/env python3
"""Writes small checkpoints of every kind that bench/checkpoint reads, and expected.txt: single elements of their
matrices as independent code decodes them.

    make_checkpoints.py DIRECTORY        (packages: tests/checkpoints-requirements.txt)

Seeds are fixed: the same packages give the same bytes. Lines of expected.txt: file layer matrix expert n k value
"""
import json
import pathlib
import sys

import gguf
import numpy as np
import safetensors

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
expected = []
random = np.random.default_rng(20)


def expect(file, layer, matrix, w):
    """w: [e, n, k] float32. Twelve elements, the corners among them."""
    e, n, k = w.shape
    places = [(0, 0, 0), (e - 1, n - 1, k - 1), (0, n - 1, 0), (e - 1, 0, k - 1)]
    places += [tuple(int(random.integers(d)) for d in w.shape) for _ in range(8)]
    for a, b, c in places:
        expected.append(f"{file} {layer} {matrix} {a} {b} {c} {float(w[a, b, c]):.9g}")


def normal(*shape):
    return (random.standard_normal(shape) * 0.1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- GGUF

Q = gguf.GGMLQuantizationType


def blocks(kind, *shape):
    """Random bytes of a type, with finite scales: (raw, decoded)."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape)) // elements
    raw = random.integers(0, 256, (count, size), dtype=np.uint8)
    half = lambda: (random.random(count) * 0.01 + 0.001).astype(np.float16).view(np.uint8).reshape(count, 2)
    at = {Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208], Q.Q8_0: [0], Q.Q4_0: [0], Q.IQ4_NL: [0]}
    if kind == Q.MXFP4:
        raw[:, 0] = random.integers(110, 128, count)
    for offset in at.get(kind, []):
        raw[:, offset:offset + 2] = half()
    raw = raw.reshape(*shape[:-1], shape[-1] // elements * size)
    return raw, gguf.quants.dequantize(raw, kind).reshape(shape)


class Gguf:
    def __init__(self, file, arch):
        self.file = file
        self.writer = gguf.GGUFWriter(out / file, arch)
        self.arch = arch

    def uint(self, **values):
        for key, value in values.items():
            self.writer.add_uint32(f"{self.arch}.{key}", value)

    def dense(self, name, data):
        self.writer.add_tensor(name, data)

    def experts(self, name, layer, matrix, kind, *shape):
        raw, decoded = blocks(kind, *shape)
        self.writer.add_tensor(f"blk.{layer}.{name}.weight", raw, raw_dtype=kind)
        expect(self.file, layer, matrix, decoded.reshape((-1,) + decoded.shape[-2:]))

    def close(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def qwen3moe():
    e, h, i = 2, 256, 32
    g = Gguf("qwen3moe.gguf", "qwen3moe")
    g.uint(block_count=2, embedding_length=h, expert_count=e, expert_used_count=1, expert_feed_forward_length=i)
    g.writer.add_array("tokenizer.ggml.tokens", ["a", "b", "\u00e9"])
    g.writer.add_array("qwen3moe.rope.sections", [1, 2, 3, 4])
    g.writer.add_bool("qwen3moe.a_bool", True)
    g.writer.add_float64("qwen3moe.a_double", 0.25)
    g.writer.add_int64("qwen3moe.a_long", -5)
    g.writer.add_string("tokenizer.chat_template", "x" * 5000)
    g.dense("token_embd.weight", normal(3, 16))
    g.dense("blk.1.ffn_gate_inp.weight", normal(e, h))
    g.experts("ffn_gate_exps", 1, "gate", Q.Q4_K, e, i, h)
    g.experts("ffn_up_exps", 1, "up", Q.Q4_K, e, i, h)
    g.experts("ffn_down_exps", 1, "down", Q.Q8_0, e, h, i)
    g.close()


def deepseek2():
    e, h, i, s = 4, 256, 8, 32
    g = Gguf("deepseek2.gguf", "deepseek2")
    g.uint(block_count=1, expert_count=e, expert_used_count=2, expert_shared_count=1, expert_gating_func=2,
           expert_group_count=2, expert_group_used_count=1)
    g.writer.add_bool("deepseek2.expert_weights_norm", True)
    g.writer.add_float32("deepseek2.expert_weights_scale", 2.5)
    g.dense("blk.0.ffn_gate_inp.weight", normal(e, h))
    g.dense("blk.0.exp_probs_b.bias", normal(e))
    g.experts("ffn_gate_exps", 0, "gate", Q.Q6_K, e, i, h)
    g.experts("ffn_up_exps", 0, "up", Q.Q6_K, e, i, h)
    raw = normal(e, h, i).astype(np.float16)
    g.dense("blk.0.ffn_down_exps.weight", raw)
    expect(g.file, 0, "down", raw.astype(np.float32))
    g.experts("ffn_gate_shexp", 0, "shared_gate", Q.Q5_K, s, h)
    g.experts("ffn_up_shexp", 0, "shared_up", Q.Q5_K, s, h)
    g.experts("ffn_down_shexp", 0, "shared_down", Q.IQ4_NL, h, s)
    g.close()


def gpt_oss_gguf():
    e, h, i = 4, 64, 32
    g = Gguf("gpt-oss.gguf", "gpt-oss")
    g.uint(block_count=1, expert_count=e, expert_used_count=2)
    g.dense("blk.0.ffn_gate_inp.weight", normal(e, h))
    g.dense("blk.0.ffn_gate_inp.bias", normal(e))
    for name, matrix, n, k in (("gate", "gate", i, h), ("up", "up", i, h), ("down", "down", h, i)):
        g.experts(f"ffn_{name}_exps", 0, matrix, Q.MXFP4, e, n, k)
        g.dense(f"blk.0.ffn_{name}_exps.bias", normal(e, n))
    g.close()


def types_gguf():
    """Every type that the package knows, to be listed with its size."""
    g = Gguf("types.gguf", "llama")
    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        raw = np.zeros((2, size), dtype=np.uint8)
        g.writer.add_tensor(f"t.{kind.name}", raw, raw_shape=raw.shape, raw_dtype=kind)
    g.close()


# --------------------------------------------------------------------------------------------------------- safetensors

def bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_e4m3(b):
    e, m, sign = (b >> 3) & 15, b & 7, np.where(b & 128, -1.0, 1.0)
    return (sign * np.where(e == 0, m / 8 * 2.0 ** -6, (1 + m / 8) * 2.0 ** (e.astype(int) - 7))).astype(np.float32)


E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def low_first(packed):
    """[..., b] bytes -> [..., 2b] nibbles, the low one first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


class Safetensors:
    def __init__(self, folder, config):
        self.folder = folder
        (out / folder).mkdir(exist_ok=True)
        (out / folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        self.tensors, self.arrays = {}, []

    def add(self, name, dtype, array):
        shape, array = array.shape, np.ascontiguousarray(array)  # which makes a scalar an array of one
        self.arrays.append(array)  # a TensorSpec holds an address
        self.tensors[name] = safetensors.TensorSpec(dtype=dtype, shape=shape, data_ptr=array.ctypes.data,
                                                    data_len=array.nbytes)

    def bf16(self, name, x):
        bits = bf16(x)
        self.add(name, "bfloat16", bits)
        return from_bf16(bits)

    def close(self, shards=1):
        names = sorted(self.tensors)
        if shards == 1:
            safetensors.serialize_file(self.tensors, out / self.folder / "model.safetensors", {"format": "pt"})
            return
        index = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: self.tensors[name] for name in names[shard::shards]}
            safetensors.serialize_file(part, out / self.folder / file, {"format": "pt"})
            index.update({name: file for name in part})
        (out / self.folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": index}, indent=1) + "\n")


def qwen3_moe():
    e, h, i = 4, 48, 24
    s = Safetensors("qwen3_moe", {"model_type": "qwen3_moe", "num_experts": e, "num_experts_per_tok": 2,
                                  "norm_topk_prob": True, "hidden_act": "silu", "torch_dtype": "bfloat16"})
    s.bf16("model.layers.0.mlp.gate.weight", normal(e, h))
    for name, n, k in (("gate", i, h), ("up", i, h), ("down", h, i)):
        w = [s.bf16(f"model.layers.0.mlp.experts.{x}.{name}_proj.weight", normal(n, k)) for x in range(e)]
        expect(s.folder, 0, name, np.stack(w))
    s.close(shards=3)


def qwen3_5_moe():
    e, h, i = 3, 32, 16
    s = Safetensors("qwen3_5_moe", {"model_type": "qwen3_5_moe", "text_config": {
        "model_type": "qwen3_5_moe_text", "num_experts": e, "num_experts_per_tok": 2, "hidden_act": "silu"}})
    block = "model.language_model.layers.7.mlp."
    s.bf16(block + "gate.weight", normal(e, h))
    expect(s.folder, 7, "up", s.bf16(block + "experts.gate_up_proj", normal(e, 2 * i, h)))
    expect(s.folder, 7, "down", s.bf16(block + "experts.down_proj", normal(e, h, i)))
    for name, n, k in (("gate", i, h), ("up", i, h), ("down", h, i)):
        w = s.bf16(block + f"shared_expert.{name}_proj.weight", normal(n, k))
        expect(s.folder, 7, "shared_" + name, w[None])
    s.bf16(block + "shared_expert_gate.weight", normal(1, h))
    s.close()


def gpt_oss():
    e, h, i = 4, 64, 32
    s = Safetensors("gpt_oss", {"model_type": "gpt_oss", "num_local_experts": e, "num_experts_per_tok": 2,
                                "hidden_act": "silu", "swiglu_limit": 7.0,
                                "quantization_config": {"quant_method": "mxfp4"}})
    block = "model.layers.0.mlp."
    s.bf16(block + "router.weight", normal(e, h))
    s.bf16(block + "router.bias", normal(e))
    for name, matrix, n, k in (("gate_up_proj", "up", 2 * i, h), ("down_proj", "down", h, i)):
        data = random.integers(0, 256, (e, n, k // 32, 16), dtype=np.uint8)
        scale = random.integers(115, 130, (e, n, k // 32), dtype=np.uint8)
        s.add(block + f"experts.{name}_blocks", "uint8", data)
        s.add(block + f"experts.{name}_scales", "uint8", scale)
        s.bf16(block + f"experts.{name}_bias", normal(e, n))
        w = E2M1[low_first(data)] * (2.0 ** (scale.astype(int) - 127))[..., None]
        expect(s.folder, 0, matrix, w.reshape(e, n, k).astype(np.float32))
    s.close()


def deepseek_v3():
    e, h, i = 4, 160, 16
    s = Safetensors("deepseek_v3", {
        "model_type": "deepseek_v3", "n_routed_experts": e, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 2, "topk_group": 1,
        "routed_scaling_factor": 2.5, "hidden_act": "silu", "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                "weight_block_size": [128, 128]}})
    block = "model.layers.3.mlp."
    s.bf16(block + "gate.weight", normal(e, h))
    s.add(block + "gate.e_score_correction_bias", "float32", normal(e))

    def fp8(name, n, k):
        q = random.integers(0, 256, (n, k), dtype=np.uint8)
        q[(q & 127) == 127] = 0
        scale = (random.random((-(-n // 128), -(-k // 128))) * 0.01 + 0.001).astype(np.float32)
        s.add(name + ".weight", "float8_e4m3fn", q)
        s.add(name + ".weight_scale_inv", "float32", scale)
        return from_e4m3(q) * np.repeat(np.repeat(scale, 128, 0), 128, 1)[:n, :k]

    for name, n, k in (("gate", i, h), ("up", i, h), ("down", h, i)):
        expect(s.folder, 3, name, np.stack([fp8(block + f"experts.{x}.{name}_proj", n, k) for x in range(e)]))
        expect(s.folder, 3, "shared_" + name, fp8(block + f"shared_experts.{name}_proj", n, k)[None])
    s.close()


def kimi_int4():
    e, h, i = 3, 64, 32
    weights = {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True, "type": "int"}
    s = Safetensors("kimi_int4", {"model_type": "kimi_k25", "text_config": {
        "model_type": "kimi_k2", "n_routed_experts": e, "num_experts_per_tok": 2, "norm_topk_prob": True,
        "scoring_func": "sigmoid", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
                                "config_groups": {"group_0": {"weights": weights}}}}})
    block = "language_model.model.layers.1.mlp."
    s.bf16(block + "gate.weight", normal(e, h))
    s.add(block + "gate.e_score_correction_bias", "float32", normal(e))
    for name, n, k in (("gate", i, h), ("up", i, h), ("down", h, i)):
        stack = []
        for x in range(e):
            q = random.integers(0, 16, (n, k // 8, 8), dtype=np.uint32)
            words = (q << (4 * np.arange(8, dtype=np.uint32))).sum(axis=-1).astype(np.uint32)
            base = block + f"experts.{x}.{name}_proj"
            s.add(base + ".weight_packed", "int32", words.view(np.int32))
            scale = s.bf16(base + ".weight_scale", np.abs(normal(n, k // 32)))
            s.add(base + ".weight_shape", "int64", np.array([n, k], dtype=np.int64))
            stack.append((q.reshape(n, k).astype(np.float32) - 8) * np.repeat(scale, 32, 1))
        expect(s.folder, 1, name, np.stack(stack))
    s.close()


def int4_groups(folder, config, awq):
    e, h, i, group = 2, 128, 64, 32
    s = Safetensors(folder, {"model_type": "mixtral", "num_local_experts": e, "num_experts_per_tok": 2,
                             "torch_dtype": "float16", "quantization_config": config})
    block = "model.layers.0.block_sparse_moe."
    s.add(block + "gate.weight", "float16", normal(e, h).astype(np.float16))
    nibbles = np.array([0, 2, 4, 6, 1, 3, 5, 7]) if awq else np.arange(8)
    shifts = 4 * np.arange(8, dtype=np.uint32)
    for name, matrix, n, k in (("w1", "gate", i, h), ("w3", "up", i, h), ("w2", "down", h, i)):
        stack = []
        for x in range(e):
            q = random.integers(0, 16, (k, n), dtype=np.uint32)
            zero = random.integers(1, 16, (k // group, n), dtype=np.uint32)
            scale = np.abs(normal(k // group, n)).astype(np.float16)
            pack = lambda a: (a.reshape(*a.shape[:-1], -1, 8)[..., nibbles] << shifts).sum(-1).astype(np.uint32)
            base = block + f"experts.{x}.{name}"
            packed = pack(q) if awq else pack(q.T).T
            s.add(base + ".qweight", "int32", np.ascontiguousarray(packed).view(np.int32))
            s.add(base + ".qzeros", "int32", pack(zero if awq else zero - 1).view(np.int32))
            s.add(base + ".scales", "float16", scale)
            if not awq:
                s.add(base + ".g_idx", "int32", (np.arange(k) // group).astype(np.int32))
            wide = lambda a: np.repeat(a.astype(np.float32), group, 0)
            stack.append(((q.astype(np.float32) - wide(zero)) * wide(scale)).T)
        expect(folder, 0, matrix, np.stack(stack))
    s.close()


def nvfp4():
    e, h, i = 2, 64, 32
    s = Safetensors("nvfp4", {"model_type": "qwen3_moe", "num_experts": e, "num_experts_per_tok": 1,
                              "norm_topk_prob": True, "quantization_config": {"quant_method": "modelopt"}})
    block = "model.layers.0.mlp."
    s.bf16(block + "gate.weight", normal(e, h))
    for name, n, k in (("gate", i, h), ("up", i, h), ("down", h, i)):
        stack = []
        for x in range(e):
            base = block + f"experts.{x}.{name}_proj"
            data = random.integers(0, 256, (n, k // 2), dtype=np.uint8)
            scale = random.integers(40, 80, (n, k // 16), dtype=np.uint8)
            total = np.array(0.01 + 0.001 * x, dtype=np.float32)
            s.add(base + ".weight", "uint8", data)
            s.add(base + ".weight_scale", "float8_e4m3fn", scale)
            s.add(base + ".weight_scale_2", "float32", total)
            stack.append(E2M1[low_first(data)] * np.repeat(from_e4m3(scale), 16, 1) * total)
        expect(s.folder, 0, name, np.stack(stack))
    s.close()


def llama4():
    e, h, i = 2, 32, 24
    s = Safetensors("llama4", {"model_type": "llama4", "text_config": {
        "model_type": "llama4_text", "num_local_experts": e, "num_experts_per_tok": 1, "hidden_act": "silu",
        "torch_dtype": "bfloat16"}})
    block = "language_model.model.layers.1.feed_forward."
    s.bf16(block + "router.weight", normal(e, h))
    for name, matrix, k, n in (("gate_up_proj", "up", h, 2 * i), ("down_proj", "down", i, h)):
        expect(s.folder, 1, matrix, s.bf16(block + f"experts.{name}", normal(e, k, n)).transpose(0, 2, 1))
    for name, n, k in (("gate", i, h), ("up", i, h), ("down", h, i)):
        w = s.bf16(block + f"shared_expert.{name}_proj.weight", normal(n, k))
        expect(s.folder, 1, "shared_" + name, w[None])
    s.close()


def deepseek_v4():
    e, h, i, k_top = 3, 64, 32, 2
    s = Safetensors("deepseek_v4", {"model_type": "deepseek_v4", "n_routed_experts": e, "num_experts_per_tok": k_top,
                                    "norm_topk_prob": True, "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0,
                                    "routed_scaling_factor": 1.5, "quantization_config": {"scale_fmt": "ue8m0"}})
    block = "layers.0.ffn."
    s.bf16(block + "gate.weight", normal(e, h))
    s.add(block + "gate.tid2eid", "int64", random.integers(0, e, (10, k_top), dtype=np.int64))
    for name, matrix, n, k in (("w1", "gate", i, h), ("w3", "up", i, h), ("w2", "down", h, i)):
        stack = []
        for x in range(e):
            data = random.integers(0, 256, (n, k // 2), dtype=np.uint8)
            scale = random.integers(115, 130, (n, k // 32), dtype=np.uint8)
            s.add(block + f"experts.{x}.{name}.weight", "int8", data.view(np.int8))
            s.add(block + f"experts.{x}.{name}.scale", "float8_e8m0fnu", scale)
            stack.append(E2M1[low_first(data)] * np.repeat(2.0 ** (scale.astype(int) - 127), 32, 1))
        expect(s.folder, 0, matrix, np.stack(stack).astype(np.float32))
        q = random.integers(0, 120, (n, k), dtype=np.uint8)
        scale = random.integers(115, 130, (1, 1), dtype=np.uint8)
        s.add(block + f"shared_experts.{name}.weight", "float8_e4m3fn", q)
        s.add(block + f"shared_experts.{name}.scale", "float8_e8m0fnu", scale)
        w = from_e4m3(q) * np.float32(2.0 ** (int(scale[0, 0]) - 127))
        expect(s.folder, 0, "shared_" + matrix, w[None])
    s.close()


for make in (qwen3moe, deepseek2, gpt_oss_gguf, types_gguf, qwen3_moe, qwen3_5_moe, gpt_oss, deepseek_v3, kimi_int4,
             nvfp4, llama4, deepseek_v4):
    make()
int4_groups("gptq", {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}, False)
int4_groups("awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, True)
(out / "expected.txt").write_text("\n".join(expected) + "\n")
