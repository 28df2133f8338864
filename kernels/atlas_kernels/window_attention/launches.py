"""The launches of window attention at the shapes of Atlas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kernels.compile import Launch
from atlas_kernels.window_attention.gpu import block_d, tiles
from atlas_kernels.window_attention.kernel import (
    attention_forward_kernel,
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = {
    "Atlas-B down, 64 per head": (12, 64, 256, 256, "bf16", True),
    "Atlas-B up, 64 per head": (12, 64, 16, 256, "bf16", False),
    "Atlas-S down, 32 per head": (12, 32, 256, 256, "bf16", True),
    "Atlas-S down, 32 per head, fp32": (12, 32, 256, 256, "fp32", True),
    "Atlas-B down, 64 per head, fp32": (12, 64, 256, 256, "fp32", True),
}
"""Heads, channels per head, queries, keys, type, whether coarse keys are seen."""


def attention_launches() -> Iterator[Launch]:
    """Yield the forward kernel and both gradients, with validity masks."""
    for name, (heads, dim, tokens, keys, kind, has_coarse) in SHAPES.items():
        channels = heads * dim
        count = {"tokens": tokens, "keys": keys, "channels": channels, "dim": dim, "heads": heads}
        strides = {
            "q_n": tokens * channels,
            "q_t": channels,
            "kv_n": keys * 2 * channels,
            "kv_t": 2 * channels,
        }
        tensors = {"q": f"*{kind}", "kv": f"*{kind}", "valid": "*u8", "scale": "fp32"}
        table = {"coarse": f"*{kind}", "coarse_valid": "*u8", "starts": "*i64", "counts": "*i32"}
        grads = {"dout": f"*{kind}", "lse": "*fp32", "delta": "*fp32"}
        pointers = {
            attention_forward_kernel: {**tensors, **table, "out": f"*{kind}", "lse": "*fp32"},
            attention_query_gradient_kernel: {**tensors, **table, **grads, "dq": f"*{kind}"},
            attention_key_gradient_kernel: {
                **tensors, **grads, "order": "*i64", "bounds": "*i64", "dkv": f"*{kind}",
            },
        }  # fmt: skip
        for kernel, types in pointers.items():
            step = kernel.__name__.removeprefix("attention_").removesuffix("_kernel")
            constants = {"HAS_VALID": True, "UPCAST": False, "BLOCK_D": block_d(dim)}
            if kernel is attention_key_gradient_kernel:
                integers = {"windows": 4096, "splits": 1}
            else:
                integers = {"n_scales": int(has_coarse), "coarse_t": 2 * channels}
                constants["HAS_COARSE_VALID"] = True
            entry_bytes = 4 if kind == "fp32" else 2
            for choice in tiles(step, entry_bytes, dim, tokens=tokens, keys=keys):
                yield Launch(
                    kernel=kernel,
                    shape=name,
                    types=types,
                    integers={**count, **strides, **integers},
                    constants={**constants, **dict(choice.constants)},
                    num_warps=choice.warps,
                )
