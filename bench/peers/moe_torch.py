"""PyTorch's grouped GEMM and the operations around it: what a model of today does on one card."""
import torch
import torch.nn.functional as F

KERNEL = "grouped_mm"


def missing(device):
    return None if grouped_mm() else f"torch {torch.__version__} has no grouped_mm"


def grouped_mm():
    return getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def route(x, router, top_k):
    logits = torch.mm(x, router.T, out_dtype=torch.float32) if x.is_cuda else x.float() @ router.float().T
    w, ids = torch.softmax(logits, -1).topk(top_k)
    return ids, (w / w.sum(-1, keepdim=True)).to(x.dtype)


def call_of(layer, v):
    """A function of no arguments that computes the variant and gives its output."""
    multiply, top_k, experts = grouped_mm(), layer.top_k, layer.experts

    def call():
        ids, w = (v.ids.long(), v.weights) if v.ids is not None else route(v.x, v.router, top_k)
        expert = ids.reshape(-1)
        order = torch.argsort(expert, stable=True)
        counts = torch.zeros(experts, dtype=torch.int32, device=v.x.device)
        counts.scatter_add_(0, expert, torch.ones_like(expert, dtype=torch.int32))
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        rows = v.x[order // top_k]
        gate, up = multiply(rows, v.up.transpose(1, 2), offs=ends).chunk(2, -1)
        y = multiply(F.silu(gate) * up, v.down.transpose(1, 2), offs=ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return torch.bmm(w.to(y.dtype)[:, None, :], y[back].view(*ids.shape, -1))[:, 0]

    return call
