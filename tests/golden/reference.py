"""The MoE layer in numpy float64, written from the published step sequences. It is the second opinion on every golden
case: make_golden.py demands that it agrees with the model's own code, uses it to keep routing decisions away from
ties, and to prove that each feature of a case changes the result. Cases whose model has no public module are it."""
import numpy as np

INF = np.inf


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def descending(v, k):
    return np.argsort(-v, kind="stable")[:k]


def sparsemixer(l, eps, gaps):
    ids, weights, left = [], [], l.copy()
    for _ in range(2):
        e = int(left.argmax())
        rest = np.sort(left)[::-1]
        distance = (left[e] - l) / np.maximum(np.abs(l), left[e])
        gaps += [rest[0] - rest[1], np.abs(distance - 2 * eps).min()]
        keep = (distance <= 2 * eps) & (left > -INF)
        ids.append(e)
        weights.append(np.exp(l[e]) / np.exp(l[keep]).sum())
        left[e] = -INF
    return np.array(ids), np.array(weights)


def route_token(d, t, n, gaps):
    """ids, weights of token n; appends the margins of its decisions to gaps."""
    flags = d.get("flags", [])
    k = d["top_k"]
    x = t.get("route_x", t["x"])[n].astype(np.float64)
    if "ROUTE_INPUT_NORM" in flags:
        x = x / np.sqrt((x * x).mean() + d["norm_eps"]) * t["norm_weight"] * d["norm_scale"]
    l = t["router"].astype(np.float64) @ x
    if "ROUTE_BIAS" in flags:
        l = l + t["router_bias"]
    l = l * d.get("logit_scale", 1)
    if d.get("logit_softcap"):
        l = d["logit_softcap"] * np.tanh(l / d["logit_softcap"])
    score = d.get("score", "SCORE_SOFTMAX")
    if score == "SCORE_SPARSEMIXER":
        return sparsemixer(l, d.get("jitter", 0.01), gaps)
    s = {"SCORE_SOFTMAX": softmax, "SCORE_SIGMOID": sigmoid,
         "SCORE_SQRT_SOFTPLUS": lambda v: np.sqrt(np.log1p(np.exp(v)))}.get(score, lambda v: v)(l)
    if "ROUTE_HASH" in flags:
        ids = t["hash_table"][int(t["token_ids"][n])].astype(int)
    else:
        v = s.copy()
        if "ROUTE_SELECT_BIAS" in flags:
            alt = "ROUTE_SELECT_BIAS_ALT" in flags and t["alt_mask"][n]
            v = v + t["select_bias_alt" if alt else "select_bias"]
        if d.get("n_group", 0) > 1:
            g = np.sort(v.reshape(d["n_group"], -1))[:, ::-1]
            g = g[:, 0] if d.get("group_score") == "GROUP_MAX" else g[:, 0] + g[:, 1]
            order = descending(g, d["n_group"])
            gaps.append(g[order[d["topk_group"] - 1]] - g[order[d["topk_group"]]])
            out = np.isin(np.arange(d["n_group"]), order[d["topk_group"]:])
            v[np.repeat(out, len(v) // d["n_group"])] = -INF
        order = descending(v, len(v))
        ids = order[:k]
        if k < len(v):
            gaps += list(v[order[:k]] - v[order[1:k + 1]])
    w = s[ids]
    if score == "SCORE_TOPK_SOFTMAX":
        w = softmax(w)
    if score == "SCORE_TOPK_SIGMOID":
        w = sigmoid(w)
    if d.get("renorm") == "RENORM_SUM":
        w = w / (w.sum() + d.get("renorm_eps", 0))
    if d.get("renorm") == "RENORM_MAX":
        w = w / max(w.sum(), d["renorm_eps"])
    w = w * d.get("scale", 1)
    if "ROUTE_EXPERT_SCALE" in flags:
        w = w * t["expert_scale"][ids]
    return ids, w


def activate(d, g, u):
    name = d.get("activation", "ACT_SWIGLU")
    alpha, limit = d.get("act_alpha", 0), d.get("act_limit", 0)
    if name == "ACT_RELU2":
        return np.maximum(u, 0) ** 2
    if name == "ACT_SWIGLU":
        limit = limit or INF
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
        return g * sigmoid(g) * u
    if name == "ACT_SWIGLU_OAI":
        alpha, limit = alpha or 1.702, limit or 7
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
        return g * sigmoid(alpha * g) * (u + 1)
    if name == "ACT_GEGLU_TANH":
        return 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g ** 3))) * u
    if name == "ACT_SITU":
        alpha, limit = alpha or 4, limit or 25
        return alpha * np.tanh(g / alpha) * sigmoid(g) * limit * np.tanh(u / limit)
    raise ValueError(name)


def expert(d, t, prefix, e, x, w):
    """D_e(act(G_e x, U_e x)), times w."""
    def matrix(name):
        m = t[prefix + name][e].astype(np.float64)
        return m.T if d.get("format") == "bf16_kn" else m

    def bias(name):
        return t[prefix + name + "_bias"][e].astype(np.float64) if d.get("bias_type") else 0
    where = d.get("weight_on", "WEIGHT_ON_OUTPUT")
    layout = d.get("gate_layout", "GATE_SPLIT")
    x = x * w if where == "WEIGHT_ON_INPUT" else x
    u = matrix("up") @ x + bias("up")
    if layout == "GATE_SPLIT":
        g = matrix("gate") @ x + bias("gate")
    elif layout == "GATE_CONCAT":
        g, u = np.split(u, 2)
    elif layout == "GATE_INTERLEAVED":
        g, u = u[0::2], u[1::2]
    else:
        g = None
    a = activate(d, g, u)
    a = a * w if where == "WEIGHT_ON_ACTIVATION" else a
    o = matrix("down") @ a + bias("down")
    return o * w if where == "WEIGHT_ON_OUTPUT" else o


def layer(case):
    """ids, weights [t, k], y [t, h] and the smallest margin of any routing decision."""
    r, e, s, t = case["route"], case["experts"], case.get("shared"), case["tensors"]
    ids, weights, ys, gaps = [], [], [], []
    for n in range(case["tokens"]):
        i, w = route_token(r, t, n, gaps)
        x = t["x"][n].astype(np.float64)
        y = np.zeros(e["hidden"])
        for j in range(len(i)):
            y += w[j] * x if i[j] >= e["n_experts"] else expert(e, t, "", i[j], x, w[j])
        if s:
            xs = t.get("shared_x", t["x"])[n].astype(np.float64)
            gate = sigmoid(xs @ t["shared_gate"]) if case["moe"].get("shared_gate") == "SHARED_SIGMOID" else 1
            y += gate * expert(s, t, "shared.", 0, xs, 1.0)
        ids.append(i)
        weights.append(w)
        ys.append(y * case["moe"].get("output_scale", 1))
    return np.array(ids), np.array(weights), np.array(ys), min(gaps, default=INF)


def without(case):
    """Pairs (what, case with one feature switched off or exchanged). Each must change y."""
    def change(part, **members):
        return {**case, part: {**case[part], **members}}

    def tensors(**new):
        return {**case, "tensors": {**case["tensors"], **new}}
    r, e, t = case["route"], case["experts"], case["tensors"]
    flags = r.get("flags", [])
    for flag in flags:
        yield flag, change("route", flags=[f for f in flags if f != flag])
    for key in ("renorm", "n_group", "logit_softcap", "norm_eps"):
        if r.get(key):
            yield key, change("route", **{key: 0})
    for key in ("scale", "norm_scale"):
        if r.get(key, 1) != 1:
            yield key, change("route", **{key: 1})
    if r.get("n_group"):
        other = "GROUP_TOP2_SUM" if r.get("group_score") == "GROUP_MAX" else "GROUP_MAX"
        yield "group_score", change("route", group_score=other)
        if r["topk_group"] > 1:
            yield "topk_group", change("route", topk_group=r["topk_group"] - 1)
    if "norm_weight" in t:
        yield "norm_weight", tensors(norm_weight=np.ones_like(t["norm_weight"]))
    score = r.get("score", "SCORE_SOFTMAX")
    if score == "SCORE_SPARSEMIXER":
        yield "jitter", change("route", jitter=1e-6)
        yield "jitter twice", change("route", jitter=2 * r.get("jitter", 0.01))
    for other in ("SCORE_SOFTMAX", "SCORE_SIGMOID", "SCORE_SQRT_SOFTPLUS", "SCORE_TOPK_SOFTMAX", "SCORE_TOPK_SIGMOID"):
        same = {other, score} == {"SCORE_SOFTMAX", "SCORE_TOPK_SOFTMAX"} and r.get("renorm")
        same = same or {other, score} == {"SCORE_SIGMOID", "SCORE_TOPK_SIGMOID"} or score == "SCORE_TOPK_SOFTMAX"
        if other != score and not same:
            yield other, change("route", score=other)
    if score == "SCORE_TOPK_SOFTMAX":
        yield "SCORE_SOFTMAX", change("route", score="SCORE_SOFTMAX")
    if e.get("n_identity"):
        blind = {**case, "experts": {**e}, "tensors": {**t}}
        for name in ("gate", "up", "down"):
            if name in t:
                blind["tensors"][name] = np.concatenate([t[name], np.zeros((e["n_identity"], *t[name].shape[1:]))])
        blind["experts"]["n_experts"] = e["n_experts"] + e["n_identity"]
        yield "n_identity", blind
    for part in ("experts", "shared"):
        d = case.get(part)
        if not d:
            continue
        activation = d.get("activation", "ACT_SWIGLU")
        for other in ("ACT_SWIGLU", "ACT_SWIGLU_OAI", "ACT_GEGLU_TANH", "ACT_SITU"):
            if other != activation and activation != "ACT_RELU2":
                yield f"{part} {other}", change(part, activation=other, act_limit=0, act_alpha=0)
        if d.get("act_limit") or activation in ("ACT_SWIGLU_OAI", "ACT_SITU"):
            yield f"{part} act_limit", change(part, act_limit=1e9)
        if activation in ("ACT_SWIGLU_OAI", "ACT_SITU"):
            yield f"{part} act_alpha", change(part, act_alpha=1.0)
        layout = d.get("gate_layout", "GATE_SPLIT")
        prefix = "shared." if part == "shared" else ""
        if layout in ("GATE_CONCAT", "GATE_INTERLEAVED"):
            other = "GATE_INTERLEAVED" if layout == "GATE_CONCAT" else "GATE_CONCAT"
            yield f"{part} gate_layout", change(part, gate_layout=other)
        if layout == "GATE_SPLIT":
            gate, up = prefix + "gate", prefix + "up"
            yield f"{part} gate and up", tensors(**{gate: t[up], up: t[gate]})
        for name in ("gate_bias", "up_bias", "down_bias"):
            if prefix + name in t:
                yield prefix + name, tensors(**{prefix + name: np.zeros_like(t[prefix + name])})
    where = e.get("weight_on", "WEIGHT_ON_OUTPUT")
    for other in ("WEIGHT_ON_OUTPUT", "WEIGHT_ON_INPUT"):
        if other != where and {other, where} != {"WEIGHT_ON_OUTPUT", "WEIGHT_ON_ACTIVATION"}:
            yield other, change("experts", weight_on=other)
    if case.get("shared"):
        yield "shared", {**case, "shared": None}
        if case["moe"].get("shared_gate"):
            yield "shared_gate", change("moe", shared_gate=None)
    if case["moe"].get("output_scale", 1) != 1:
        yield "output_scale", change("moe", output_scale=1)
    for name, source in (("route_x", "x"), ("shared_x", "x")):
        if name in t and t[name].shape == t[source].shape:
            yield name, tensors(**{name: t[source]})
