"""A linear layer that runs on the CPU through oneDNN, with its GELU; see docs/kernels.md."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster on the CPU where no gradient is needed; same weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W' + b``."""
        if self._is_fast(x):
            return torch.ops.mkldnn._linear_pointwise(
                x.contiguous(), self.weight, self.bias, "none", [], ""
            )
        return super().forward(x)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer, then an erf GELU."""
        if self._is_fast(x):
            return torch.ops.mkldnn._linear_pointwise(
                x.contiguous(), self.weight, self.bias, "gelu", [], "none"
            )
        return functional.gelu(super().forward(x))

    def _is_fast(self, x: torch.Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and x.dtype == self.weight.dtype
            and x.numel() > 0
            and _has_onednn(x.dtype)
        )


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN multiplies a type here; asked of it once, with a small product."""
    if dtype not in {torch.float32, torch.bfloat16} or not hasattr(torch.ops, "mkldnn"):
        return False
    try:
        one = torch.ones(1, 1, dtype=dtype)
        found = torch.ops.mkldnn._linear_pointwise(one, one, one[0], "gelu", [], "none")
    except (AttributeError, RuntimeError):  # another build of torch, or no bfloat16 in hardware
        return False
    return bool(torch.allclose(found.float(), functional.gelu(2 * one.float()), atol=0.02))
