#!/usr/bin/env python3
"""Writes the golden data of attention: what the models' own attention modules hand to their softmax, and get from it.

    make_golden_attention.py [DIRECTORY]        (default: here; packages: requirements.txt)

The same packages give the same files. README.md says what is in them."""
import math
import zlib

import numpy as np
import torch
import transformers

from make_golden import EFFECT, write

torch.set_grad_enabled(False)

UNIT = 1 / 32  # of q, k and v: short text, and eight bits of them are exact in bf16
LENGTHS, PREFILL = [21, 7, 1], [10, 5, 1]

# ------------------------------------------------------------------------------------------------------------ reference


def visible(d, p, n):
    """The keys 0..n-1 that position p sees."""
    j = np.arange(n)
    see = j <= p
    if d.get("window"):
        see &= j > p - d["window"]
    if d.get("chunk"):
        see &= j // d["chunk"] == p // d["chunk"]
    return see


def attention(d, t, group=None):
    """The formula of moiety.h in float64. group: another map of query heads to KV heads."""
    q, k = t["q"].astype(np.float64), t["k"].astype(np.float64)
    v = t["v"].astype(np.float64) if "v" in t else k[..., :d.get("v_head_dim", d["head_dim"])]
    heads = np.arange(d["n_heads"])
    group = heads // (d["n_heads"] // d["n_kv_heads"]) if group is None else group
    y = np.zeros((len(q), d["n_heads"], v.shape[-1]))
    begin = 0
    for n in t["lengths"]:
        for p in range(n):
            see = visible(d, p, n)
            keys, values = k[begin:begin + n][see][:, group], v[begin:begin + n][see][:, group]
            tau = 1.0
            if d.get("temperature"):
                tau += d["temperature"] * math.log(1 + (p + 1) // d["temperature_floor"])
            l = np.einsum("hd,jhd->jh", q[begin + p], keys) * d.get("scale", q.shape[-1] ** -0.5) * tau
            if d.get("softcap"):
                l = d["softcap"] * np.tanh(l / d["softcap"])
            if "sinks" in t:
                l = np.concatenate([l, t["sinks"][None].astype(np.float64)])
            e = np.exp(l - l.max(0))
            w = (e / e.sum(0))[:len(keys)]
            y[begin + p] = np.einsum("jh,jhd->hd", w, values) * t.get("v_scale", np.ones(1))[0]
        begin += n
    return y


def expanded(t, y):
    """W_vb of absorbed MLA turns what leaves the core into the module's output."""
    return np.einsum("hvc,nhc->nhv", t["w_vb"].astype(np.float64), y) if "w_vb" in t else y


def without(d, t):
    """Every feature of the case switched off or exchanged, one at a time."""
    for key in ("window", "chunk", "temperature", "softcap", "scale"):
        if d.get(key):
            yield key, {k: v for k, v in d.items() if k != key}, t, None
    for key in ("window", "chunk"):
        if d.get(key):
            yield key + " + 1", {**d, key: d[key] + 1}, t, None
    for key in ("sinks", "v_scale"):
        if key in t:
            yield key, d, {k: v for k, v in t.items() if k != key}, None
    if "sinks" in t:
        yield "sinks of the heads", d, {**t, "sinks": t["sinks"][::-1]}, None
    if 1 < d["n_kv_heads"] < d["n_heads"]:
        yield "groups", d, t, np.arange(d["n_heads"]) % d["n_kv_heads"]


# ------------------------------------------------------------------------------------------------------------- modules


def rounded(x):
    return (x / UNIT).round().clamp(-255, 255) * UNIT


class Core:
    """Stands before a model's eager_attention_forward: rounds q, k and v of one layer to few bits, and keeps what goes in
    and comes out. rounds: which of the three are rounded here."""

    def __init__(self, modeling, layer, rounds="qkv"):
        self.eager, self.layer, self.rounds, self.calls = modeling.eager_attention_forward, layer, rounds, []
        modeling.eager_attention_forward = self

    def __call__(self, module, query, key, value, mask, **kwargs):
        if module.layer_idx != self.layer:
            return self.eager(module, query, key, value, mask, **kwargs)
        query, key, value = (rounded(x) if name in self.rounds else x
                             for name, x in zip("qkv", (query, key, value)))
        y, weights = self.eager(module, query, key, value, mask, **kwargs)
        n = query.shape[2]
        self.calls.append([query[0].transpose(0, 1), key[0, :, -n:].transpose(0, 1),
                           value[0, :, -n:].transpose(0, 1), y[0]])
        self.module, self.scaling = module, kwargs["scaling"]
        return y, weights


def randomize(model, name, plus_one, gain):
    """Weights that keep activations near 1, norms and biases that matter."""
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for key, p in model.named_parameters():
        r = torch.randn(p.shape, generator=g)
        if "norm" in key:
            r = r * 0.3 + (0 if plus_one else 1)
        elif p.dim() > 1:
            r *= p.shape[-1] ** -0.5 * (gain if ".q_proj" in key or ".k_proj" in key else 1)
        elif "sink" not in key:
            r *= 0.3
        p.copy_(r)


def golden(name, package, cls, module, config, desc, layer=0, what="", plus_one=False, gain=1.6, rounds="qkv",
           hooks=None, tensors=None):
    """One file: layer `layer` of a model of class `cls`, run as its engine would: every sequence's prompt in one call, the
    rest token by token on the model's own cache. hooks(attention, taken) may register hooks that keep things in `taken`.
    tensors(core, taken, t, d) has the last word on what the file holds."""
    modeling = __import__(f"transformers.models.{package}.modeling_{package}", fromlist=["x"])
    made = getattr(__import__(f"transformers.models.{package}", fromlist=["x"]), config.pop("cls"))(**{
        "hidden_size": 48, "intermediate_size": 16, "vocab_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        **config})
    made._attn_implementation = "eager"
    model = getattr(modeling, cls)(made).float().eval()
    randomize(model, name, plus_one, gain)
    core, taken = Core(modeling, layer, rounds), {}
    attentions = [m for m in model.modules() if type(m).__name__ == module and m.layer_idx == layer]
    assert len(attentions) == 1, (name, module, [type(m).__name__ for m in model.modules()])
    if hooks:
        hooks(attentions[0], taken)
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()) + 1)
    for n, prompt in zip(LENGTHS, PREFILL):
        x = torch.randn((1, n, made.hidden_size), generator=g)
        cache = transformers.DynamicCache(config=made)
        for begin, end in [(0, prompt)] + [(i, i + 1) for i in range(prompt, n)]:
            model(inputs_embeds=x[:, begin:end], past_key_values=cache, use_cache=True,
                  position_ids=torch.arange(begin, end)[None])
    modeling.eager_attention_forward = core.eager

    t = {"lengths": np.array(LENGTHS), "prefill": np.array(PREFILL)}
    t.update(zip("qkv", (np.concatenate([c[i].numpy() for c in core.calls]) for i in range(3))))
    if getattr(core.module, "sinks", None) is not None:
        t["sinks"] = core.module.sinks.numpy()
    want = np.concatenate([c[3].numpy() for c in core.calls])
    d = {"n_heads": 4, "n_kv_heads": 2, "head_dim": t["q"].shape[-1], **desc}
    if t["v"].shape[-1] != d["head_dim"]:
        d["v_head_dim"] = t["v"].shape[-1]
    scale = d.get("scale", d["head_dim"] ** -0.5)
    assert abs(core.scaling / scale - 1) < 1e-6, (name, core.scaling, scale)
    if tensors:
        tensors(core, taken, t, d)
    y = expanded(t, attention(d, t))
    off = np.abs(y - want).max()
    assert off < 1e-5 * np.abs(want).max(), (name, off, np.abs(want).max())
    blind = [key for key, d2, t2, group in without(d, t)
             if np.abs(expanded(t, attention(d2, t2, group)) - y).max() < EFFECT * np.abs(y).max()]
    assert not blind, (name, "without effect", blind)
    source = f"transformers {transformers.__version__} {module}{what and ', ' + what}"
    head = [("source", source)] + [(f"attention.{k}", v) for k, v in d.items()]
    size = write(f"attention_{name}", head, {**t, "out": want})
    print(f"{name:20} {size / 1024:6.1f} KiB  off {off / np.abs(want).max():.1e}  {source}")
    return made


# -------------------------------------------------------------------------------------------------------------- models

MOE = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
          "topk_group": 1, "first_k_dense_replace": 1}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
BOTH = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


def rope(theta=1e4, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


def plain_models():
    golden("qwen3_moe", "qwen3_moe", "Qwen3MoeModel", "Qwen3MoeAttention", {
        "cls": "Qwen3MoeConfig", "num_hidden_layers": 1, "head_dim": 16, **MOE, **rope(1e6)}, {})
    golden("mixtral", "mixtral", "MixtralModel", "MixtralAttention", {
        "cls": "MixtralConfig", "num_hidden_layers": 1, "head_dim": 16, "num_attention_heads": 6,
        "num_key_value_heads": 2, **LOCAL, **rope(1e6)}, {"n_heads": 6})
    golden("glm4_moe", "glm4_moe", "Glm4MoeModel", "Glm4MoeAttention", {
        "cls": "Glm4MoeConfig", "num_hidden_layers": 1, "head_dim": 16, "attention_bias": True, "use_qk_norm": True,
        **ROUTED, **rope(1e6, partial_rotary_factor=0.5)}, {})
    golden("phimoe", "phimoe", "PhimoeModel", "PhimoeAttention", {
        "cls": "PhimoeConfig", "num_hidden_layers": 1, "hidden_size": 64, "attention_bias": True, **LOCAL,
        **rope(1e4)}, {})
    golden("granitemoe", "granitemoe", "GraniteMoeModel", "GraniteMoeAttention", {
        "cls": "GraniteMoeConfig", "num_hidden_layers": 1, "hidden_size": 64, "attention_multiplier": 0.09375, **LOCAL,
        **rope(1e4)}, {"scale": 0.09375}, gain=2.5)
    golden("qwen3_next", "qwen3_next", "Qwen3NextModel", "Qwen3NextAttention", {
        "cls": "Qwen3NextConfig", "num_hidden_layers": 1, "layer_types": ["full_attention"], "head_dim": 24,
        "shared_expert_intermediate_size": 8, **MOE, **rope(1e7, partial_rotary_factor=0.25)}, {}, plus_one=True,
        what="before its output gate")
    golden("minimax_m2", "minimax_m2", "MiniMaxM2Model", "MiniMaxM2Attention", {
        "cls": "MiniMaxM2Config", "num_hidden_layers": 1, "head_dim": 16, **LOCAL,
        **rope(5e6, partial_rotary_factor=0.5)}, {})
    golden("olmoe", "olmoe", "OlmoeModel", "OlmoeAttention", {
        "cls": "OlmoeConfig", "num_hidden_layers": 1, "hidden_size": 64, "num_key_value_heads": 4, **MOE,
        **rope(1e4)}, {"n_kv_heads": 4})
    golden("hunyuan_v1_moe", "hunyuan_v1_moe", "HunYuanMoEV1Model", "HunYuanMoEV1Attention", {
        "cls": "HunYuanMoEV1Config", "num_hidden_layers": 1, "head_dim": 16, "moe_topk": [2], "num_experts": 4,
        **rope(1e4)}, {})


def window_models():
    yarn = {"rope_type": "yarn", "rope_theta": 1.5e5, "factor": 32.0, "original_max_position_embeddings": 16,
            "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    for layer, kind in enumerate(("window", "full")):
        golden(f"gpt_oss_{kind}", "gpt_oss", "GptOssModel", "GptOssAttention", {
            "cls": "GptOssConfig", **BOTH, "head_dim": 16, "sliding_window": 6, "rope_parameters": yarn, **LOCAL,
            "max_position_embeddings": 512}, {"window": [6, 0][layer], "flags": ["ATTENTION_SINKS"]}, layer, kind + " layer")
        golden(f"gemma2_{kind}", "gemma2", "Gemma2Model", "Gemma2Attention", {
            "cls": "Gemma2Config", **BOTH, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 4.0, **rope(1e4)}, {
                "window": [5, 0][layer], "scale": 12 ** -0.5, "softcap": 4.0}, layer, kind + " layer",
            plus_one=True)
        golden(f"gemma3_{kind}", "gemma3", "Gemma3TextModel", "Gemma3Attention", {
            "cls": "Gemma3TextConfig", **BOTH, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}, {
                "window": [8, 0][layer], "scale": 24 ** -0.5}, layer, kind + " layer", plus_one=True)
        golden(f"mimo_v2_flash_{kind}", "mimo_v2_flash", "MiMoV2FlashModel", "MiMoV2FlashAttention", {
            "cls": "MiMoV2FlashConfig", **BOTH, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24,
            "v_head_dim": 16, "sliding_window": 7, "attention_value_scale": 0.707, "mlp_layer_types": ["dense", "dense"]}, {
                "n_kv_heads": [2, 1][layer], "window": [7, 0][layer],
                **({} if layer else {"flags": ["ATTENTION_SINKS"]})}, layer, kind + " layer, values before their scale",
            rounds="qk", hooks=round_values, tensors=values_before_scale)
        golden(f"gemma4_{kind}", "gemma4", "Gemma4TextModel", "Gemma4TextAttention", {
            "cls": "Gemma4TextConfig", **BOTH, "head_dim": 16, "global_head_dim": 24, "num_global_key_value_heads": 1,
            "attention_k_eq_v": True, "sliding_window": 6, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
            "enable_moe_block": False, "vocab_size_per_layer_input": 32}, {
                "n_kv_heads": [2, 1][layer], "window": [6, 0][layer], "scale": 1.0}, layer, kind + " layer")


def round_values(attention, taken):
    attention.v_proj.register_forward_hook(lambda m, args, y: rounded(y))


def values_before_scale(core, taken, t, d):
    """HF scales v; the desc of an engine has it as the cache's v_scale."""
    scale = np.float32(core.module.v_scale)
    t["v"] = np.round(t["v"] / scale / UNIT) * np.float32(UNIT)
    t["v_scale"] = np.full(d["n_kv_heads"], scale)


def keys_are_values(core, taken, t, d):
    assert np.array_equal(t["k"], t["v"])
    del t["v"]


def deepseek_v4():
    golden("deepseek_v4_window", "deepseek_v4", "DeepseekV4Model", "DeepseekV4Attention", {
        "cls": "DeepseekV4Config", "num_hidden_layers": 1, "layer_types": ["sliding_attention"], "head_dim": 24,
        "num_key_value_heads": 1, "q_lora_rank": 20, "sliding_window": 6, "o_groups": 2, "o_lora_rank": 12,
        "partial_rotary_factor": 0.25, "mlp_layer_types": ["moe"], "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 8, "n_shared_experts": 1}, {
            "n_kv_heads": 1, "window": 6, "flags": ["ATTENTION_SINKS", "ATTENTION_V_IN_K"]},
        what="window layer, out before it is rotated back", tensors=keys_are_values)


def llama4():
    def config():
        return {"cls": "Llama4TextConfig", "num_hidden_layers": 2, "head_dim": 16, "intermediate_size_mlp": 16,
                "no_rope_layers": [1, 0], "attention_chunk_size": 8, "attn_temperature_tuning": True, "floor_scale": 4,
                "attn_scale": 0.5, "use_qk_norm": True, **LOCAL, **rope(5e5)}
    golden("llama4_chunked", "llama4", "Llama4TextModel", "Llama4TextAttention", config(), {"chunk": 8}, 0,
           "RoPE layer")

    def hooks(attention, taken):
        def hook(m, args, y):
            taken.setdefault("q", []).append(rounded(y)[0])
            return rounded(y)
        attention.q_proj.register_forward_hook(hook)

    def before_temperature(core, taken, t, d):
        t["q"] = np.concatenate([x.numpy() for x in taken["q"]]).reshape(t["q"].shape)
    golden("llama4_nope", "llama4", "Llama4TextModel", "Llama4TextAttention", config(), {
        "temperature": 0.5, "temperature_floor": 4}, 1, "NoPE layer, q before its temperature", rounds="kv", hooks=hooks,
        tensors=before_temperature)


def latent():
    """MLA of DeepSeek V3: the same module once as plain attention, once absorbed over its latent cache."""
    nope, rot, v, lora, heads = 16, 8, 16, 20, 4
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    scale = (nope + rot) ** -0.5 * (0.1 * math.log(40) + 1) ** 2

    def config():
        return {"cls": "DeepseekV3Config", "num_hidden_layers": 1, "num_key_value_heads": heads, "q_lora_rank": 20,
                "kv_lora_rank": lora, "qk_nope_head_dim": nope, "qk_rope_head_dim": rot, "v_head_dim": v,
                "rope_parameters": yarn, "max_position_embeddings": 163840, **ROUTED}

    def hooks(attention, taken):
        """Latents and W_kb, W_vb of few bits, so that keys and values are exact in both forms."""
        w = attention.kv_b_proj.weight
        w.copy_((w * 8).round().clamp(-7, 7) / 8)

        def latent_of(m, args, y):
            taken.setdefault("c", []).append((y * 8).round()[0] / 8)
            return (y * 8).round() / 8
        attention.kv_a_layernorm.register_forward_hook(latent_of)

        def expand(kv_nope, k_rot, own=attention.expand_kv):
            return own(kv_nope, rounded(k_rot))
        attention.expand_kv = expand

    def absorb(core, taken, t, d):
        w = core.module.kv_b_proj.weight.numpy().reshape(heads, nope + v, lora)
        q, c = t["q"].astype(np.float64), np.concatenate([x.numpy().reshape(-1, lora) for x in taken["c"]])
        absorbed = np.einsum("hnc,thn->thc", w[:, :nope].astype(np.float64), q[..., :nope])
        t["q"] = np.concatenate([absorbed, q[..., nope:]], -1)
        assert (t["q"] == t["q"].astype(np.float32)).all()
        t["k"] = np.concatenate([c, t["k"][:, 0, nope:]], -1)[:, None]
        t["w_vb"] = w[:, nope:]
        del t["v"]
        d.update(n_kv_heads=1, head_dim=lora + rot, v_head_dim=lora, flags=["ATTENTION_V_IN_K"])
    common = "deepseek_v3", "DeepseekV3Model", "DeepseekV3Attention"
    golden("deepseek_v3", *common, config(), {"n_kv_heads": heads, "scale": scale}, what="MLA, plain", rounds="q",
           hooks=hooks)
    golden("deepseek_v3_absorbed", *common, config(), {"n_kv_heads": heads, "scale": scale},
           what="MLA, absorbed: out is after w_vb", rounds="q", hooks=hooks, tensors=absorb)


if __name__ == "__main__":
    plain_models()
    window_models()
    deepseek_v4()
    llama4()
    latent()
