#!/usr/bin/env python3
"""Writes the golden data of this folder: MoE layers as their models' own modules compute them.

    make_golden.py [DIRECTORY]        (default: here; packages: requirements.txt)

The same packages give the same files. README.md says what is in them."""
import pathlib
import sys
import zlib

import numpy as np
import torch
import transformers

import reference

out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
out = out if out.is_dir() else out.parent
torch.set_grad_enabled(False)

MARGIN = 1e-3  # every routing decision is at least so far from a tie
EFFECT = 1e-3  # switching any feature off moves y by more than this part of its largest value

# ------------------------------------------------------------------------------------------------------------- writing


def scale_of(a):
    """The largest power of two whose multiples, below 512, a consists of; None if there is none."""
    if not np.isfinite(a).all():
        return None
    for exponent in range(0, -13, -1):
        n = a * 2.0 ** -exponent
        if np.abs(n).max() < 512 and (n == np.round(n)).all():
            return 2.0 ** exponent
    return None


def write_tensor(f, name, a):
    with np.errstate(invalid="ignore"):  # signalling NaN
        a = np.asarray(a).astype(np.float64)
    scale = scale_of(a)
    print("tensor", name, f"{scale or 1:.9g}", *a.shape, file=f)
    for row in a.reshape(-1, a.shape[-1]):
        print(*(f"{v / scale:.0f}" if scale else f"{v:.9g}" for v in row), file=f)


def write(name, head, tensors):
    with open(out / f"{name}.txt", "w") as f:
        for key, value in head:
            print(key, "|".join(value) if isinstance(value, list) else
                  f"{value:.9g}" if isinstance(value, float) else value, file=f)
        for key, value in tensors.items():
            write_tensor(f, key, value)
    return (out / f"{name}.txt").stat().st_size


# -------------------------------------------------------------------------------------------------------------- layers

class Draw:
    """Random tensors of few bits, so that the text is short and bf16 holds them."""

    def __init__(self, name, attempt):
        self.random = np.random.default_rng([zlib.crc32(name.encode()), attempt])

    def __call__(self, *shape, std, unit):
        n = np.round(self.random.standard_normal(shape) * std / unit)
        return (np.clip(n, -120, 120) * unit).astype(np.float32)


def draw_tensors(case, draw, wide):
    """The operands that the descs ask for. wide: how much larger than usual the inner activations are."""
    r, e, s = case["route"], case["experts"], case.get("shared")
    tokens, h, n_class = case["tokens"], e["hidden"], r["n_experts"] + r.get("n_identity", 0)
    flags, t = r.get("flags", []), {}
    t["x"] = draw(tokens, h, std=1, unit=1 / 32)
    if r["hidden"] != h or "ROUTE_INPUT_NORM" in flags:
        t["route_x"] = draw(tokens, r["hidden"], std=2, unit=1 / 16)
    t["router"] = draw(n_class, r["hidden"], std=1.5 / r["hidden"] ** 0.5, unit=1 / 32)
    if r.get("score") == "SCORE_SPARSEMIXER":  # logits around 20, so that several are within 2 eps of the largest
        t["x"][:, 0], t["router"][:, 0] = 4, 5
    small = r.get("score", "SCORE_SOFTMAX") == "SCORE_SOFTMAX"
    if "ROUTE_BIAS" in flags:
        t["router_bias"] = draw(n_class, std=1, unit=1 / 16)
    if "ROUTE_SELECT_BIAS" in flags:
        t["select_bias"] = draw(n_class, std=0.1 if small else 0.4, unit=1 / 128)
    if "ROUTE_SELECT_BIAS_ALT" in flags:
        t["select_bias_alt"] = draw(n_class, std=0.4, unit=1 / 128)
        t["alt_mask"] = np.arange(tokens) % 2
    if "ROUTE_EXPERT_SCALE" in flags:
        t["expert_scale"] = 1 + draw(n_class, std=0.3, unit=1 / 64)
    if "ROUTE_INPUT_NORM" in flags:
        t["norm_weight"] = 6 + draw(r["hidden"], std=2, unit=1 / 16)
    if "ROUTE_HASH" in flags:
        t["hash_table"] = np.argsort(draw.random.random((r["vocab"], r["n_experts"])))[:, :r["top_k"]]
        t["token_ids"] = draw.random.permutation(r["vocab"])[:tokens]
    for d, prefix, count in ((e, "", e["n_experts"]), (s, "shared.", 1)):
        if not d:
            continue
        i, layout = d["intermediate"], d.get("gate_layout", "GATE_SPLIT")
        rows = 2 * i if layout in ("GATE_CONCAT", "GATE_INTERLEAVED") else i
        shapes = {"up": (rows, h), "down": (h, i)}
        if layout == "GATE_SPLIT":
            shapes = {"gate": (i, h), **shapes}
        for name, (n, k) in shapes.items():
            std = 1.5 / k ** 0.5 * (wide if name != "down" else 1 / wide)
            unit = 2.0 ** np.round(np.log2(std / 8))
            shape = (k, n) if d.get("format") == "bf16_kn" else (n, k)
            t[prefix + name] = draw(count, *shape, std=std, unit=unit)
            if d.get("bias_type"):
                t[prefix + name + "_bias"] = draw(count, n, std=0.5, unit=1 / 32)
    if case["moe"].get("shared_gate") == "SHARED_SIGMOID":
        t["shared_gate"] = draw(h, std=1 / h ** 0.5, unit=1 / 32)
    return t


def golden(name, source, route, experts, shared=None, moe=None, tokens=6, wide=1, ordered=True, prepare=None,
           run=None):
    """One case. prepare(tensors) has the last word on the draw. run(case) -> ids, weights, y of the model's own code;
    None: the reference is the golden result."""
    route = {**route, "hidden": route.get("hidden", experts["hidden"]), "n_experts": experts["n_experts"]}
    experts = {**experts, "top_k": route["top_k"]}
    if route.get("n_identity"):
        experts["n_identity"] = route["n_identity"]
    if shared:
        shared = {"hidden": experts["hidden"], "n_experts": 1, "top_k": 1, **shared}
    case = {"tokens": tokens, "route": route, "experts": experts, "shared": shared, "moe": moe or {}}
    why = "every draw is near a tie"
    for attempt in range(2000):
        case["tensors"] = draw_tensors(case, Draw(name, attempt), wide)
        if prepare:
            prepare(case["tensors"])
        ids, weights, y, margin = reference.layer(case)
        if margin < MARGIN:
            continue
        blind = [what for what, other in reference.without(case)
                 if np.abs(reference.layer(other)[2] - y).max() < EFFECT * np.abs(y).max()]
        why = "without effect: " + ", ".join(blind)
        if not blind:
            break
    else:
        raise SystemExit(f"{name}: no good draw; {why}")
    if run:
        got = [np.asarray(v) for v in run(case)]
        order = np.argsort(got[0], 1), np.argsort(ids, 1)
        pick = np.take_along_axis
        assert (pick(got[0], order[0], 1) == pick(ids, order[1], 1)).all(), (name, got[0], ids)
        off = np.abs(pick(got[1], order[0], 1) - pick(weights, order[1], 1)).max()
        assert off < 1e-5 * np.abs(weights).max(), (name, "weights", off)
        off = np.abs(got[2] - y).max()
        assert off < 1e-5 * np.abs(y).max(), (name, "y", off, np.abs(y).max())
        ids, weights, y = got
        source = f"transformers {transformers.__version__} {source}"
    else:
        source = f"numpy {source}"
    head = [("source", source), ("tokens", tokens), ("order", "defined" if ordered else "undefined")]
    for part in ("route", "experts", "shared", "moe"):
        head += [(f"{part}.{k}", v) for k, v in (case[part] or {}).items()]
    tensors = {**case["tensors"], "ids": ids, "weights": weights, "y": y}
    size = write(name, head, tensors)
    print(f"{name:24} {size / 1024:6.1f} KiB  margin {margin:.3f}  draw {attempt}  |y| {np.abs(y).max():.2f}  {source}")


def module_of(model, cls, config_cls, **config):
    package = __import__(f"transformers.models.{model}", fromlist=["x"])
    modeling = __import__(f"transformers.models.{model}.modeling_{model}", fromlist=["x"])
    config = getattr(package, config_cls)(**config)
    config._experts_implementation = "eager"
    return modeling, config, getattr(modeling, cls)


def state_of(case, router="gate.weight", select_bias="gate.e_score_correction_bias", shared="shared_experts"):
    """The case's tensors under the names of the usual module."""
    t, state = case["tensors"], {router: case["tensors"]["router"]}
    if "select_bias" in t:
        state[select_bias] = t["select_bias"]
    state["experts.down_proj"] = t["down"]
    if "gate" in t:
        state["experts.gate_up_proj"] = np.concatenate([t["gate"], t["up"]], 1)
    elif case["experts"].get("gate_layout") == "GATE_NONE":
        state["experts.up_proj"] = t["up"]
    else:
        state["experts.gate_up_proj"] = t["up"]
    if case["shared"]:
        for name in ("gate", "up", "down"):
            if "shared." + name in t:
                state[f"{shared}.{name}_proj.weight"] = t["shared." + name][0]
    if "shared_gate" in t:
        state["shared_expert_gate.weight"] = t["shared_gate"][None]
    return state


def evaluate(module, state, case, router="gate", inputs=(), x="x"):
    """Loads state, which must be complete, and runs x: the router's output and the block's."""
    module = module.float().eval()
    module.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()}, strict=True)
    seen = {}
    module.get_submodule(router).register_forward_hook(lambda m, a, o: seen.update(route=o))
    y = module(torch.tensor(case["tensors"][x])[None], *inputs)
    y = y[0] if isinstance(y, tuple) else y
    return seen["route"], y.reshape(case["tokens"], -1)


def usual(model, cls, config_cls, block_args=(), scale_after=None, state=None, router="gate", **config):
    """run for blocks whose router returns (logits, weights, ids). scale_after: the block scales the routed sum."""
    def run(case):
        _, made, block = module_of(model, cls, config_cls, **config)
        (_, weights, ids), y = evaluate(block(made, *block_args), (state or state_of)(case), case, router)
        return ids, weights * (scale_after or 1), y
    return run


def dims(h=32, i=16, e=8, **more):
    return {"hidden": h, "intermediate": i, "n_experts": e, "format": "f32", **more}


def shared_dims(i=24, **more):
    return {"intermediate": i, "format": "f32", **more}


def config_of(h=32, i=16, e=8, k=3, **more):
    return {"hidden_size": h, "moe_intermediate_size": i, "num_experts": e, "num_experts_per_tok": k, **more}


RENORM = {"renorm": "RENORM_SUM"}
R4 = {"score": "SCORE_SIGMOID", "flags": ["ROUTE_SELECT_BIAS"], "renorm": "RENORM_SUM", "renorm_eps": 1e-20}


def softmax_layers():
    golden("qwen3_moe", "Qwen3MoeSparseMoeBlock", {"top_k": 3, **RENORM}, dims(i=24), run=usual(
        "qwen3_moe", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", **config_of(i=24, norm_topk_prob=True)))
    golden("mixtral", "MixtralSparseMoeBlock", {"top_k": 2, **RENORM}, dims(), tokens=5, run=usual(
        "mixtral", "MixtralSparseMoeBlock", "MixtralConfig", hidden_size=32, intermediate_size=16, num_local_experts=8,
        num_experts_per_tok=2))
    golden("olmoe", "OlmoeSparseMoeBlock", {"top_k": 4}, dims(), tokens=7, run=usual(
        "olmoe", "OlmoeSparseMoeBlock", "OlmoeConfig", hidden_size=32, intermediate_size=16, num_experts=8,
        num_experts_per_tok=4, norm_topk_prob=False))
    sigmoid_gate = {"shared_gate": "SHARED_SIGMOID"}
    state = lambda case: state_of(case, shared="shared_expert")
    for name, cls, renorm, layout, k in (("qwen2_moe", "Qwen2Moe", {}, {}, 4),
                                         ("qwen3_next", "Qwen3Next", RENORM, {}, 3),
                                         ("qwen3_5_moe", "Qwen3_5Moe", RENORM, {"gate_layout": "GATE_CONCAT"}, 3)):
        more = {} if name == "qwen3_5_moe" else {"norm_topk_prob": bool(renorm)}
        golden(name, f"{cls}SparseMoeBlock", {"top_k": k, **renorm}, dims(**layout), shared_dims(), sigmoid_gate,
               run=usual(name, f"{cls}SparseMoeBlock", f"{cls}{'Text' if name == 'qwen3_5_moe' else ''}Config",
                         state=state, shared_expert_intermediate_size=24, **config_of(k=k, **more)))
    golden("hunyuan_v1_moe", "HunYuanMoEV1Moe", {"top_k": 3, "renorm": "RENORM_MAX", "renorm_eps": 2.0 ** -23}, dims(),
           shared_dims(16), run=usual(
               "hunyuan_v1_moe", "HunYuanMoEV1Moe", "HunYuanMoEV1Config", hidden_size=32, intermediate_size=16,
               num_experts=8, moe_topk=3, state=lambda c: state_of(c, router="gate.wg.weight", shared="shared_mlp")))


def topk_first_layers():
    def gpt_oss(case):
        t = case["tensors"]
        _, config, block = module_of("gpt_oss", "GptOssMLP", "GptOssConfig", hidden_size=32, intermediate_size=16,
                                     num_local_experts=8, num_experts_per_tok=4)
        state = {"router.weight": t["router"], "router.bias": t["router_bias"],
                 "experts.gate_up_proj": t["up"].swapaxes(1, 2), "experts.gate_up_proj_bias": t["up_bias"],
                 "experts.down_proj": t["down"].swapaxes(1, 2), "experts.down_proj_bias": t["down_bias"]}
        (_, weights, ids), y = evaluate(block(config), state, case, "router")
        return ids, weights, y
    golden("gpt_oss", "GptOssMLP, weights in the checkpoint's layout", {
        "top_k": 4, "score": "SCORE_TOPK_SOFTMAX", "flags": ["ROUTE_BIAS"]}, dims(
            activation="ACT_SWIGLU_OAI", gate_layout="GATE_INTERLEAVED", bias_type="f32"), wide=4, run=gpt_oss)

    concat = {"gate_layout": "GATE_CONCAT"}
    rule = {"top_k": 3, "score": "SCORE_TOPK_SOFTMAX"}
    golden("granitemoe", "GraniteMoeMoE", rule, dims(**concat), run=usual(
        "granitemoe", "GraniteMoeMoE", "GraniteMoeConfig", router="router", hidden_size=32, intermediate_size=16,
        num_local_experts=8, num_experts_per_tok=3, state=lambda c: state_of(c, "router.weight")))

    def hybrid(case):
        t = case["tensors"]
        modeling, config, block = module_of("granitemoehybrid", "GraniteMoeHybridMoE", "GraniteMoeHybridConfig",
                                            hidden_size=32, intermediate_size=16, shared_intermediate_size=24,
                                            mamba_n_heads=8,
                                            num_local_experts=8, num_experts_per_tok=3)
        state = {k: v for k, v in state_of(case, "router.weight").items() if not k.startswith("shared")}
        (_, weights, ids), y = evaluate(block(config), state, case, "router")
        mlp = modeling.GraniteMoeHybridMLP(config).float()
        mlp.load_state_dict({"input_linear.weight": torch.tensor(t["shared.up"][0]),
                             "output_linear.weight": torch.tensor(t["shared.down"][0])})
        return ids, weights, y + mlp(torch.tensor(t["x"]))
    golden("granitemoehybrid", "GraniteMoeHybridMoE + GraniteMoeHybridMLP", rule, dims(**concat),
           shared_dims(**concat), run=hybrid)

    def llama4(case):
        t = case["tensors"]
        _, config, block = module_of("llama4", "Llama4TextMoe", "Llama4TextConfig", hidden_size=32,
                                     intermediate_size=16, num_local_experts=8, num_experts_per_tok=1)
        state = state_of(case, "router.weight", shared="shared_expert")
        (scores, _), y = evaluate(block(config), state, case, "router")
        weights, ids = scores.topk(1)
        return ids, weights, y
    golden("llama4", "Llama4TextMoe", {"top_k": 1, "score": "SCORE_TOPK_SIGMOID"}, dims(
        format="bf16_kn", weight_on="WEIGHT_ON_INPUT", **concat), shared_dims(16), run=llama4, tokens=7)


def sigmoid_layers():
    def block(name, cls, rule, e=8, k=3, shared=1, count="n_routed_experts", **config):
        golden(name, cls, {"top_k": k, **R4, **rule}, dims(e=e), shared_dims(16 * shared) if shared else None,
               ordered=False, run=usual(
                   name, cls, config.pop("config"), hidden_size=32, moe_intermediate_size=16, num_experts_per_tok=k,
                   norm_topk_prob=True, routed_scaling_factor=rule["scale"], n_group=rule.get("n_group", 1),
                   topk_group=rule.get("topk_group", 1), n_shared_experts=shared, **{count: e}, **config))
    groups = {"n_group": 4, "topk_group": 2, "scale": 2.5}
    block("deepseek_v3", "DeepseekV3MoE", groups, e=16, k=4, config="DeepseekV3Config")
    block("bailing_hybrid", "BailingHybridMoE", {**groups, "topk_group": 3}, e=12, k=4, count="num_local_experts",
          config="BailingHybridConfig")
    block("glm4_moe", "Glm4MoeMoE", {"scale": 2.5}, config="Glm4MoeConfig")
    block("kimi_linear", "KimiLinearMoE", {"scale": 2.446}, count="num_local_experts", config="KimiLinearConfig")
    block("dots1", "Dots1MoE", {"scale": 2.5}, shared=2, config="Dots1Config")
    block("mimo_v2_flash", "MiMoV2FlashMoE", {"scale": 1.0}, shared=0, config="MiMoV2FlashConfig")
    plain = {**R4, "renorm_eps": 0.0}
    golden("minimax_m2", "MiniMaxM2SparseMoeBlock", {"top_k": 3, **plain}, dims(), ordered=False, run=usual(
        "minimax_m2", "MiniMaxM2SparseMoeBlock", "MiniMaxM2Config", hidden_size=32, intermediate_size=16,
        num_local_experts=8, num_experts_per_tok=3, state=lambda c: state_of(c, select_bias="e_score_correction_bias")))

    def m3_state(case):
        state, t = state_of(case), case["tensors"]
        for part in ("gate", "up"):
            state.pop(f"shared_experts.{part}_proj.weight", None)
        return {**state, "shared_experts.gate_up_proj.weight": t["shared.up"][0]}
    oai = {"activation": "ACT_SWIGLU_OAI", "gate_layout": "GATE_CONCAT", "act_limit": 3.0, "act_alpha": 1.25}
    golden("minimax_m3", "MiniMaxM3VLSparseMoeBlock", {"top_k": 3, **plain, "scale": 2.0}, dims(**oai),
           shared_dims(**oai), wide=2, ordered=False, run=usual(
               "minimax_m3_vl", "MiniMaxM3VLSparseMoeBlock", "MiniMaxM3VLTextConfig", scale_after=2.0, state=m3_state,
               hidden_size=32, intermediate_size=16, shared_intermediate_size=24, num_local_experts=8,
               num_experts_per_tok=3, routed_scaling_factor=2.0, swiglu_limit=3.0, swiglu_alpha=1.25))
    golden("step3p7", "Step3p7SparseMoeBlock, a layer without clamp", {"top_k": 3, **plain, "scale": 3.0}, dims(),
           shared_dims(), ordered=False, run=usual(
               "step3p7", "Step3p7SparseMoeBlock", "Step3p7TextConfig", block_args=(0,), scale_after=3.0,
               hidden_size=32, moe_intermediate_size=16, share_expert_dim=24, n_routed_experts=8,
               num_experts_per_tok=3, moe_router_scaling_factor=3.0))

    relu2 = {"activation": "ACT_RELU2", "gate_layout": "GATE_NONE"}
    nemotron = dict(hidden_size=32, moe_intermediate_size=16, moe_shared_expert_intermediate_size=24,
                    n_routed_experts=8, num_experts_per_tok=3, routed_scaling_factor=2.5, norm_topk_prob=True,
                    n_group=1, topk_group=1)
    golden("nemotron_h", "NemotronHMoE", {"top_k": 3, **R4, "scale": 2.5}, dims(**relu2), shared_dims(**relu2),
           ordered=False, run=usual("nemotron_h", "NemotronHMoE", "NemotronHConfig", **nemotron))

    # fc1 picks columns: the latent input stays short, and exact.
    pick = np.eye(48, dtype=np.float32)[5:29]

    def latent_input(t):
        t["x"] = t["route_x"] @ pick.T

    def latent(case):
        _, config, block = module_of("nemotron_h", "NemotronHMoE", "NemotronHConfig", moe_latent_size=24,
                                     **{**nemotron, "hidden_size": 48})
        block, seen = block(config), {}
        state = {name: torch.zeros(p.shape) for name, p in block.state_dict().items() if name.startswith("shared")}
        state.update(state_of(case), **{"fc1_latent_proj.weight": pick, "fc2_latent_proj.weight": pick.T})
        block.experts.register_forward_hook(lambda module, args, y: seen.update(x=args[0], y=y))
        (_, weights, ids), _ = evaluate(block, state, case, x="route_x")
        assert np.array_equal(seen["x"].numpy(), case["tensors"]["x"])
        return ids, weights, seen["y"]
    golden("nemotron_h_latent", "NemotronHMoE with moe_latent_size, the experts' sum in the latent space",
           {"top_k": 3, **R4, "scale": 2.5, "hidden": 48}, dims(h=24, **relu2), ordered=False, prepare=latent_input,
           run=latent)


def other_layers():
    def v4(hashed):
        def run(case):
            t = case["tensors"]
            _, config, block = module_of(
                "deepseek_v4", "DeepseekV4SparseMoeBlock", "DeepseekV4Config", hidden_size=32, moe_intermediate_size=16,
                n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, routed_scaling_factor=1.5,
                swiglu_limit=2.0, vocab_size=12, num_hidden_layers=4,
                mlp_layer_types=["hash_moe", "hash_moe", "hash_moe", "moe"])
            state, inputs = state_of(case), ()
            if hashed:
                state["gate.tid2eid"] = t["hash_table"]
                inputs = (torch.tensor(t["token_ids"])[None],)
            (_, weights, ids), y = evaluate(block(config, 0 if hashed else 3), state, case, inputs=inputs)
            return ids, weights, y
        return run
    clamp = {"act_limit": 2.0}
    rule = {"top_k": 3, "score": "SCORE_SQRT_SOFTPLUS", "renorm": "RENORM_SUM", "renorm_eps": 1e-20, "scale": 1.5}
    on = {"weight_on": "WEIGHT_ON_ACTIVATION", **clamp}
    golden("deepseek_v4", "DeepseekV4SparseMoeBlock", {**rule, "flags": ["ROUTE_SELECT_BIAS"]}, dims(**on),
           shared_dims(16, **clamp), wide=2, ordered=False, run=v4(False))
    golden("deepseek_v4_hash", "DeepseekV4SparseMoeBlock, a hash layer", {**rule, "flags": ["ROUTE_HASH"], "vocab": 12},
           dims(**on), shared_dims(16, **clamp), wide=2, run=v4(True))
    golden("deepseek_v4_1", "two selection biases, published formula", {
        **rule, "flags": ["ROUTE_SELECT_BIAS", "ROUTE_SELECT_BIAS_ALT"]}, dims(**on), shared_dims(16, **clamp), wide=2)

    v2 = dict(hidden_size=32, moe_intermediate_size=16, n_shared_experts=2, num_experts_per_tok=3)
    golden("deepseek_v2", "DeepseekV2Moe", {
        "top_k": 3, "n_group": 4, "topk_group": 2, "group_score": "GROUP_MAX", "scale": 16.0}, dims(e=12),
        shared_dims(32), ordered=False, run=usual(
            "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config", n_routed_experts=12, n_group=4, topk_group=2,
            topk_method="group_limited_greedy", routed_scaling_factor=16.0, **v2))
    golden("deepseek_v2_lite", "DeepseekV2Moe", {"top_k": 3}, dims(), shared_dims(32), ordered=False, run=usual(
        "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config", n_routed_experts=8, topk_method="greedy",
        routed_scaling_factor=1.0, **v2))

    def ernie_state(case):
        state = state_of(case, select_bias="gate.moe_statics.e_score_correction_bias")
        return {**state, "gate.moe_statics.e_score_correction_bias": case["tensors"]["select_bias"][None]}
    golden("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", {
        "top_k": 3, "flags": ["ROUTE_SELECT_BIAS"], "renorm": "RENORM_MAX", "renorm_eps": 1e-12}, dims(),
        shared_dims(32), run=usual(
            "ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", "Ernie4_5_MoeConfig", state=ernie_state, hidden_size=32,
            moe_intermediate_size=16, moe_num_experts=8, moe_k=3, moe_num_shared_experts=2))

    def longcat_state(case):
        state = state_of(case, "router.classifier.weight", "router.e_score_correction_bias")
        unused = np.zeros((4, *state["experts.gate_up_proj"].shape[1:]), np.float32)
        return {**state, "experts.gate_up_proj": np.concatenate([state["experts.gate_up_proj"], unused])}
    golden("longcat_flash", "LongcatFlashMoE", {
        "top_k": 4, "n_identity": 4, "flags": ["ROUTE_SELECT_BIAS"], "scale": 6.0}, dims(), ordered=False, run=usual(
            "longcat_flash", "LongcatFlashMoE", "LongcatFlashConfig", router="router", state=longcat_state,
            hidden_size=32, expert_ffn_hidden_size=16, n_routed_experts=8, zero_expert_num=4, moe_topk=4,
            routed_scaling_factor=6.0))
    golden("phimoe", "PhimoeSparseMoeBlock", {"top_k": 2, "score": "SCORE_SPARSEMIXER", "jitter": 0.01}, dims(),
           run=usual("phimoe", "PhimoeSparseMoeBlock", "PhimoeConfig", router="router", hidden_size=32,
                     intermediate_size=16, num_local_experts=8, num_experts_per_tok=2, router_jitter_noise=0.01,
                     state=lambda c: state_of(c, "router.weight")))

    def gemma4(case):
        t = {k: torch.tensor(v) for k, v in case["tensors"].items()}
        modeling, config, router = module_of("gemma4", "Gemma4TextRouter", "Gemma4TextConfig", hidden_size=32,
                                             moe_intermediate_size=16, num_experts=8, top_k_experts=3,
                                             rms_norm_eps=0.25)
        router, experts = router(config).float(), modeling.Gemma4TextExperts(config).float()
        router.load_state_dict({"scale": t["norm_weight"], "per_expert_scale": t["expert_scale"],
                                "proj.weight": t["router"]})
        experts.load_state_dict({"gate_up_proj": t["up"], "down_proj": t["down"]})
        _, weights, ids = router(t["route_x"])
        return ids, weights, experts(t["x"], ids, weights)
    golden("gemma4", "Gemma4TextRouter + Gemma4TextExperts", {
        "top_k": 3, **RENORM, "flags": ["ROUTE_INPUT_NORM", "ROUTE_EXPERT_SCALE"], "norm_eps": 0.25,
        "norm_scale": float(np.float32(32 ** -0.5))}, dims(activation="ACT_GEGLU_TANH", gate_layout="GATE_CONCAT"),
        run=gemma4)

    gelu = {"activation": "ACT_GEGLU_TANH"}
    golden("grok_1", "xAI's published formula, no renormalisation", {"top_k": 2}, dims(**gelu))
    golden("grok_2", "published formula with a softcap low enough to matter, parallel dense MLP", {
        "top_k": 2, "logit_softcap": 3.0}, dims(**gelu), shared_dims(**gelu),
        {"output_scale": float(np.float32(0.5 ** 0.5))})
    golden("kimi_k3", "SiTU in the latent space, published formula", {"top_k": 4, **R4, "hidden": 48}, dims(
        h=24, activation="ACT_SITU", act_alpha=4.0, act_limit=5.0), wide=4)


if __name__ == "__main__":
    softmax_layers()
    topk_first_layers()
    sigmoid_layers()
    other_layers()
