"""Make a model ready to run fast: device, precision, folded batch norm, channels last."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import torch

from atlas_wsi.errors import ModelError

if TYPE_CHECKING:
    from atlas_wsi.models import Model

Precision = Literal["auto", "float32", "bfloat16"]


def choose_device(device: str = "auto") -> torch.device:
    """Choose where to compute."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device '{device}' cannot be used: {str(error).splitlines()[0]}.",
            hint="`atlas-wsi doctor` lists the devices of this machine.",
        ) from error
    return chosen


def choose_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Choose the type to compute in.

    `precision`: ``"auto"`` takes bfloat16 where the hardware multiplies it (AMX or AVX512-BF16,
    recent GPUs), else float32. Returns: bfloat16 or float32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    asked = (
        getattr(torch.cpu, name, None)
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return any(bool(ask()) for ask in asked if ask is not None)


def prepare(model: Model, *, device: torch.device, dtype: torch.dtype) -> Model:
    """Return a copy of a model that only predicts.

    Batch norm is folded into the convolutions (the sum is done in float32), the stem runs
    channels-last, and no gradient is kept.
    """
    ready = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    ready.encoder.stem.fold_()
    return ready.to(device=device, dtype=dtype)
