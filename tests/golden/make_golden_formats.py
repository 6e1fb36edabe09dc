#!/usr/bin/env python3
"""Writes formats_*.txt beside itself: bytes of every weight format and the floats they mean, by code that shares
nothing with moiety. `decode` of a file names the code that gave the floats:
  gguf     the gguf package's dequantize, on random blocks
  torch    torch's float8_e4m3fn, float16 and bfloat16
  numpy    the published definition, written here: OCP MX 1.0 for E2M1 and E8M0; for the int4 formats values are packed
           into words the way their writers do it, so that unpacking is never written down twice
Packages: formats-requirements.txt. The same seed gives the same files."""
import pathlib

import gguf
import ml_dtypes
import numpy as np
import torch

OUT = pathlib.Path(__file__).resolve().parent
SEED = 20260901


def write(case, fmt, decode, w, data, scales=None, zeros=None, global_scale=None):
    w = np.asarray(w)
    assert w.dtype == np.float32 and w.ndim == 2
    lines = [f"format {fmt}", f"decode {decode}", f"n {w.shape[0]}", f"k {w.shape[1]}"]
    for name, stream in (("data", data), ("scales", scales), ("zeros", zeros)):
        if stream is None:
            continue
        text = np.ascontiguousarray(stream).tobytes().hex()
        lines += [f"bytes {name} {len(text) // 2}"] + [text[i : i + 112] for i in range(0, len(text), 112)]
    if global_scale is not None:
        lines += ["tensor global_scale 1", "%.9g" % global_scale]
    lines += [f"tensor w {w.shape[0]} {w.shape[1]}"]
    for row in w:
        texts = ["nan" if np.isnan(v) else "%.9g" % v for v in row]
        assert all(np.isnan(v) or np.float32(t) == v for t, v in zip(texts, row))
        lines += [" ".join(texts[i : i + 16]) for i in range(0, len(texts), 16)]
    path = OUT / f"formats_{case}.txt"
    path.write_text("\n".join(lines) + "\n")
    assert path.stat().st_size < 150_000, path


# ---- codes


def floats(codes, dtype):
    """torch's reading of integer codes as a float type."""
    signed = codes.astype(np.uint16).view(np.int16) if dtype.itemsize == 2 else codes.astype(np.uint8)
    return torch.from_numpy(signed.copy()).view(dtype).float().numpy()


def e2m1(code):
    """OCP MX: 1 sign, 2 exponent bits with bias 1, 1 mantissa bit."""
    sign, exponent, mantissa = code >> 3 & 1, code >> 1 & 3, code & 1
    magnitude = np.where(exponent == 0, mantissa * 0.5, (1 + mantissa * 0.5) * 2.0 ** (exponent - 1.0))
    return np.where(sign == 1, -magnitude, magnitude)


def e8m0(byte):
    return np.where(byte == 255, np.nan, 2.0 ** (byte - 127.0))


def check_codes():
    """The definitions written above against ml_dtypes, a second implementation."""
    codes = np.arange(16, dtype=np.uint8)
    assert np.array_equal(e2m1(codes.astype(int)), codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64))
    codes = np.arange(256, dtype=np.uint8)
    ours, theirs = e8m0(codes.astype(int)), codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert np.array_equal(ours, theirs, equal_nan=True)
    ours, theirs = floats(codes, torch.float8_e4m3fn), codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(ours, theirs, equal_nan=True)


def nibbles_even_odd(q):
    """[n, k] codes -> [n, k/2] bytes, the low nibble the even k."""
    return (q[:, 0::2] | q[:, 1::2] << 4).astype(np.uint8)


def words(codes):
    """[..., 8] nibbles, the first in the lowest bits -> [...] int32 words."""
    return (codes.astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)


def f16_scales(rng, shape):
    return (rng.uniform(0.25, 1, shape) * 2.0 ** rng.integers(-12, 3, shape)).astype(np.float16)


# ---- formats


def dense(rng):
    specials16 = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3555, 0x3BFF, 0x3C00, 0x3C01,
                  0xBC00, 0x7BFF, 0xFBFF, 0x4248]
    b_specials = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x807F, 0x0080, 0x8080, 0x3EAB, 0x3F7F, 0x3F80, 0x3F81,
                  0xBF80, 0x7F7F, 0xFF7F, 0x4049]
    endless16, b_endless = [0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01], [0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81]
    for name, dtype, specials, endless in (("f16", torch.float16, specials16, endless16),
                                           ("bf16", torch.bfloat16, b_specials, b_endless)):
        codes = rng.integers(0, 0x7C00 if name == "f16" else 0x7F80, (6, 64)) | rng.integers(0, 2, (6, 64)) << 15
        codes[0, :16] = specials
        codes[3, 40:56] = specials
        codes = codes.astype(np.uint16)
        write(name, name, "torch", floats(codes, dtype), codes)
        # a column alone: no other element's zero product meets the infinities and NaN
        column = np.array(specials + endless, dtype=np.uint16)[:, None]
        write(f"{name}_specials", name, "torch", floats(column, dtype), column)
        if name == "bf16":
            write("bf16_kn", "bf16_kn", "torch", floats(codes, dtype), codes.T)
    x = rng.standard_normal((5, 48)).astype(np.float32)
    x[0, :8] = np.array([0x80000000, 1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800001, 0x3EAAAAAB],
                        dtype=np.uint32).view(np.float32)
    write("f32", "f32", "numpy", x, x)


def fp8(rng):
    codes = np.arange(256, dtype=np.uint8)[:, None]
    scales = np.array([[0.0078125 * 1.7], [3.25e-5]], dtype=np.float32)
    tile = np.repeat(scales, 128, 0)
    write("fp8_b128_codes", "fp8_b128", "torch", floats(codes, torch.float8_e4m3fn) * tile, codes, scales)
    for case, n, k in (("tall", 133, 8), ("wide", 4, 272)):  # ragged last tiles
        codes = (rng.integers(0, 0x7F, (n, k)) | rng.integers(0, 2, (n, k)) << 7).astype(np.uint8)
        scales = (rng.uniform(0.5, 2, ((n + 127) // 128, (k + 127) // 128)) / 448).astype(np.float32)
        tile = scales.repeat(128, 0).repeat(128, 1)[:n, :k]
        write(f"fp8_b128_{case}", "fp8_b128", "torch", floats(codes, torch.float8_e4m3fn) * tile, codes, scales)


def all_codes(rng, n, k):
    """[n, k] E2M1 codes; each 32 hold all sixteen twice."""
    return np.stack([np.concatenate([rng.permutation(np.tile(np.arange(16), 2)) for _ in range(k // 32)])
                     for _ in range(n)])


def mxfp4(rng):
    q, scales = all_codes(rng, 8, 256), rng.integers(117, 136, (8, 8))
    w = (e2m1(q) * e8m0(scales).repeat(32, 1)).astype(np.float32)
    write("mxfp4", "mxfp4", "numpy", w, nibbles_even_odd(q), scales.astype(np.uint8))
    # 2^125 * 6 is the largest product that fp32 holds for every code; 0 is a subnormal scale, 255 NaN
    edge = np.array([[0], [1], [2], [3], [23], [24], [126], [127], [128], [251], [252], [255]])
    q = all_codes(rng, len(edge), 32)
    w = (e2m1(q) * e8m0(edge).repeat(32, 1)).astype(np.float32)
    write("mxfp4_scales", "mxfp4", "numpy", w, nibbles_even_odd(q), edge.astype(np.uint8))


def nvfp4(rng):
    q = all_codes(rng, 8, 256)
    scales = rng.permutation(np.arange(128) % 127).reshape(8, 16).astype(np.uint8)  # every positive finite E4M3
    global_scale = np.float32(0.0117)
    block = floats(scales, torch.float8_e4m3fn).repeat(16, 1)
    w = (e2m1(q) * block).astype(np.float32) * global_scale
    write("nvfp4", "nvfp4", "torch+numpy", w, nibbles_even_odd(q), scales, global_scale=global_scale)


def int4(rng):
    for group in (32, 128):
        n, k = (4, 96) if group == 32 else (4, 256)
        q = rng.integers(-8, 8, (n, k))
        q[0, :16] = np.arange(-8, 8)
        # compressed-tensors pack-quantized: int32 words of eight k, the value plus 8
        packed = words((q + 8).reshape(n, k // 8, 8))
        scale_codes = torch.from_numpy(f16_scales(rng, (n, k // group)).astype(np.float32)).bfloat16()
        w = (q * scale_codes.float().numpy().repeat(group, 1)).astype(np.float32)
        write(f"int4_g{group}", f"int4_g{group}", "numpy", w, packed, scale_codes.view(torch.int16).numpy())
        # moiety's own format: only its definition in moiety.h
        q, z = rng.integers(0, 16, (n, k)), rng.integers(0, 17, (n, k // group))
        z[0, 0], z[1, 0], z[2, 0], z[3, 0] = 255, 16, 0, 8
        scales = f16_scales(rng, (n, k // group))
        w = ((q - z.repeat(group, 1)) * scales.astype(np.float64).repeat(group, 1)).astype(np.float32)
        write(f"int4z_g{group}", f"int4z_g{group}", "numpy", w, nibbles_even_odd(q), scales, z.astype(np.uint8))


def gptq_awq(rng):
    for group in (32, 128):
        n, k = (16, 96) if group == 32 else (8, 256)
        scales = f16_scales(rng, (k // group, n))
        spread = scales.astype(np.float64).repeat(group, 0)
        q, z = rng.integers(0, 16, (k, n)), rng.integers(1, 17, (k // group, n))
        z[0, :2] = 1, 16  # stored as 0 and 15
        w = ((q - z.repeat(group, 0)) * spread).astype(np.float32).T
        data = words(q.reshape(k // 8, 8, n).transpose(0, 2, 1))  # [k/8, n]
        write(f"gptq_g{group}", f"gptq_g{group}", "numpy", w, data, scales,
              words((z - 1).reshape(k // group, n // 8, 8)))
        z = rng.integers(0, 16, (k // group, n))
        w = ((q - z.repeat(group, 0)) * spread).astype(np.float32).T
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # the column that nibble p of a word holds
        data = words(q.reshape(k, n // 8, 8)[..., order])
        write(f"awq_g{group}", f"awq_g{group}", "numpy", w, data, scales,
              words(z.reshape(k // group, n // 8, 8)[..., order]))


def gguf_blocks(rng):
    kinds = gguf.GGMLQuantizationType
    #        name         type         bytes, elements, offsets of the f16 scales
    table = [("q8_0", kinds.Q8_0, 34, 32, [0]), ("q4_0", kinds.Q4_0, 18, 32, [0]),
             ("iq4_nl", kinds.IQ4_NL, 18, 32, [0]), ("mxfp4_gguf", kinds.MXFP4, 17, 32, []),
             ("q4_k", kinds.Q4_K, 144, 256, [0, 2]), ("q5_k", kinds.Q5_K, 176, 256, [0, 2]),
             ("q6_k", kinds.Q6_K, 210, 256, [208])]
    for name, kind, size, elements, halves in table:
        n, k = 3, 512 if elements == 256 else 288
        blocks = rng.integers(0, 256, (n * k // elements, size)).astype(np.uint8)
        for offset in halves:
            d = f16_scales(rng, (len(blocks), 1)) * rng.choice([-1, 1], (len(blocks), 1))
            d = d.astype(np.float16)
            d[-1] = np.array(0x0155, dtype=np.uint16).view(np.float16)  # subnormal
            d[-3] = 0
            blocks[:, offset : offset + 2] = d.view(np.uint8)
        if name == "mxfp4_gguf":
            blocks[:, 0] = rng.integers(110, 136, len(blocks))
            blocks[-8:, 0] = [0, 1, 2, 3, 126, 127, 128, 252]
        w = gguf.quants.dequantize(blocks.reshape(n, -1), kind)
        assert w.shape == (n, k) and np.isfinite(w).all()
        write(name, name, "gguf", w, blocks)


def rows_of_16(rng):
    """moiety.h's order R, of GGUF's blocks: whatever moves bytes alone leaves the floats as they were."""
    kinds = gguf.GGMLQuantizationType
    #        name     type         bytes, elements, offsets of f16 scales, bytes of scale before what is interleaved
    table = [("q4_0", kinds.Q4_0, 18, 32, [0], 2), ("iq4_nl", kinds.IQ4_NL, 18, 32, [0], 2),
             ("mxfp4", kinds.MXFP4, 17, 32, [], 1), ("q8_0", kinds.Q8_0, 34, 32, [0], 2),
             ("q4_k", kinds.Q4_K, 144, 256, [0, 2], 0)]
    for name, kind, size, elements, halves, head in table:
        n, k = (32, 96) if elements == 32 else (16, 512)
        count = k // elements
        blocks = rng.integers(0, 256, (n, count, size)).astype(np.uint8)
        for offset in halves:
            d = f16_scales(rng, (n, count)) * rng.choice([-1, 1], (n, count))
            d = d.astype(np.float16)
            d[-1, -1] = np.array(0x0155, dtype=np.uint16).view(np.float16)  # subnormal
            d[-3, 0] = 0
            blocks[..., offset : offset + 2] = d[..., None].view(np.uint8)
        if name == "mxfp4":
            blocks[..., 0] = rng.integers(110, 136, (n, count))
            blocks[-8:, 1, 0] = [0, 1, 2, 3, 126, 127, 128, 252]
        w = gguf.quants.dequantize(blocks.reshape(n, -1), kind)
        assert w.shape == (n, k) and np.isfinite(w).all()
        groups = blocks.reshape(n // 16, 16, count, size)
        words = groups[..., head:].reshape(n // 16, 16, count, -1, 4).transpose(0, 2, 3, 1, 4)
        write(f"{name}_r16", f"{name}_r16", "gguf", w, words, groups[..., :head].transpose(0, 2, 1, 3) if head else None)


def fp4_g16(rng):
    q, scales = all_codes(rng, 8, 96)[:, :80], rng.integers(117, 136, (8, 5))
    scales[:, 4] = [0, 1, 2, 24, 127, 128, 251, 252]
    w = (e2m1(q) * e8m0(scales).repeat(16, 1)).astype(np.float32)
    write("fp4_g16", "fp4_g16", "numpy", w, nibbles_even_odd(q), scales.astype(np.uint8))


def fp8_unscaled(rng):
    codes = np.arange(256, dtype=np.uint8)[:, None]  # a column alone: see dense
    write("fp8_codes", "fp8", "torch", floats(codes, torch.float8_e4m3fn), codes)
    codes = (rng.integers(0, 0x7F, (6, 80)) | rng.integers(0, 2, (6, 80)) << 7).astype(np.uint8)
    global_scale = np.float32(0.0073)
    write("fp8", "fp8", "torch", floats(codes, torch.float8_e4m3fn) * global_scale, codes, global_scale=global_scale)


if __name__ == "__main__":
    check_codes()
    for i, make in enumerate((dense, fp8, mxfp4, nvfp4, int4, gptq_awq, gguf_blocks, fp4_g16,
                              fp8_unscaled, rows_of_16)):
        make(np.random.default_rng([SEED, i]))
