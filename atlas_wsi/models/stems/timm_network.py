"""Networks of timm: encoders of tiles, and stems of one window (no halo is wide enough)."""

# B images, N windows, C channels, Y rows, X columns

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError
from atlas_wsi.files import require_extra, sha256_of
from atlas_wsi.models.checkpoints import digest_of, read_weights, strip_prefixes
from atlas_wsi.models.hub import download
from atlas_wsi.models.stems.base import Stem, crop, times, tokens_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from atlas_wsi.grid import Box

PREFIX = "timm:"
NO_WEIGHTS = "none"
"""Asks for random weights instead of a file."""

_LEAST_VARIANCE = 0.0025  # of a component, relative to the first: less is noise
_STRIDES_PX = (16, 14)  # of the map that becomes the tokens, in order of preference
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class TimmStem(Stem):
    """Tokens from a network of timm: one of its maps, of stride 16 or else 14.

    With `project`, tokens of so many channels: principal components of the map's, of unit variance.
    """

    def __init__(self, name: str, *, window_px: int, project: int | None = None) -> None:
        super().__init__()
        self.window_px = window_px
        index, (map_dim, self.stride_px), maps = token_map(name)
        self.map_dim, self.dim = map_dim, project or map_dim
        self.project = nn.Linear(map_dim, project) if project else nn.Identity()
        # pyramids of timm take multiples of 32; networks of patches take whole patches
        self.step_px = 32 if self.stride_px == 16 else self.stride_px
        self.trunk = _make_trunk(name, index)
        # every stage holds a few maps of its size at once
        self.floats_per_pixel = 4 * sum(channels / stride**2 for channels, stride in maps)

    def reach(self, want: Box, image: tuple[int, int]) -> Box:
        """Return the pixels that the tokens of a region depend on."""
        return times(tokens_of(want, stride=self.window_px), self.window_px).clip(image)

    def part(self, x_BCYX: torch.Tensor, want: Box, image: tuple[int, int]) -> torch.Tensor:
        """Encode a region exactly as it would be encoded in the whole image."""
        tokens = self.map(x_BCYX, want, image)
        return self.project(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def map(self, x_BCYX: torch.Tensor, want: Box, image: tuple[int, int]) -> torch.Tensor:
        """Return the network's map of a region, before the projection."""
        rows, cols = (
            min(self.window_px, -(-side // self.step_px) * self.step_px) for side in image
        )
        height, width = x_BCYX.shape[-2:]
        x_BCYX = nn.functional.pad(x_BCYX, (0, -width % cols, 0, -height % rows))
        down, across = x_BCYX.shape[-2] // rows, x_BCYX.shape[-1] // cols
        n, channels = x_BCYX.shape[:2]
        x_NCYX = x_BCYX.reshape(n, channels, down, rows, across, cols)
        y_NCYX = self.trunk(x_NCYX.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))[0]
        if y_NCYX.shape[1] != self.map_dim:  # some of timm's networks keep channels last
            y_NCYX = y_NCYX.permute(0, 3, 1, 2)
        y_BCYX = y_NCYX.reshape(n, down, across, *y_NCYX.shape[1:])
        y_BCYX = y_BCYX.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        read = tokens_of(self.reach(want, image), stride=self.stride_px)
        return crop(y_BCYX, tokens_of(want.clip(image), stride=self.stride_px), read)

    @torch.no_grad()
    def fit_projection_(self, maps: Iterable[torch.Tensor]) -> None:
        """Project to the principal components of the tokens of maps `(B, C, rows, cols)`."""
        assert isinstance(self.project, nn.Linear)
        tokens_NC = torch.cat([x.transpose(0, 1).flatten(1).T for x in maps]).double()
        variances, axes = torch.linalg.eigh(torch.cov(tokens_NC.T))
        variances, axes = variances.flip(0)[: self.dim], axes.flip(1)[:, : self.dim]
        scale = variances.clamp(min=_LEAST_VARIANCE * float(variances[0])).rsqrt()
        weight = (axes * scale).T
        self.project.weight.copy_(weight)
        self.project.bias.copy_(-weight @ tokens_NC.mean(dim=0))

    def fold_(self) -> Self:
        """Lay the weights out for speed, in place."""
        return self.to(memory_format=torch.channels_last)


class TimmEncoder(nn.Module):
    """Features of single tiles from a network of timm."""

    def __init__(
        self, name: str, *, weights: str | os.PathLike[str] | None = None, mpp: float = 0.5
    ) -> None:
        super().__init__()
        self.name, self.mpp = name.removeprefix(PREFIX), mpp
        path = _weights_file(self.name, weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights are the same ones every time
            self.net = _make(self.name, path, num_classes=0).eval()
        config = self.net.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.std: tuple[float, ...] = tuple(config["std"])
        self.sha256 = digest_of(self.net.state_dict()) if path is None else sha256_of(path)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Describe uint8 tiles `(B, Y, X, 3)` by what comes before the classifier, `(B, C)`."""
        weight = next(self.net.parameters())
        mean, std = (
            torch.tensor(values, device=images.device) * 255 for values in (self.mean, self.std)
        )
        x_BCYX = ((images.to(torch.float32) - mean) / std).permute(0, 3, 1, 2).to(weight.dtype)
        try:
            found: torch.Tensor = self.net(x_BCYX)
        except (AssertionError, RuntimeError) as error:
            raise CheckpointMismatchError(
                f"timm:{self.name} does not take tiles of {x_BCYX.shape[-1]} px: {error}",
                hint=f"Give --tile-px {self.net.pretrained_cfg['input_size'][-1]}.",
            ) from error
        return found.float()


def timm_weights(name: str, weights: str | os.PathLike[str] | None) -> dict[str, torch.Tensor]:
    """Read the weights of a network for `TimmStem`."""
    index, _, _ = token_map(name)
    path = _weights_file(name, weights)
    state: dict[str, torch.Tensor] = _make_trunk(name, index, path).state_dict()
    return state


def timm_normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the deviation that a network's pretraining took off."""
    config = _timm(name).get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


def _timm(name: str) -> Any:
    timm = require_extra("timm", "timm", to=f"timm:{name}", error=UnknownModelError)
    # a name alone: with a hub's address in it, timm would fetch code and weights
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name) or not timm.is_model(name.split(".")[0]):
        raise UnknownModelError(
            f"timm {timm.__version__} has no network '{name}'.",
            hint="python -c 'import timm; print(timm.list_models())' lists them.",
        )
    return timm


def _make(name: str, weights: Path | None = None, **options: Any) -> Any:
    """Make a network of timm that takes pictures of any size, if it can."""
    timm = _timm(name)
    if weights is not None:
        state = {strip_prefixes(key): value for key, value in read_weights(weights).items()}
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    for flexible in ({"dynamic_img_size": True}, {}):
        try:
            return timm.create_model(name, **options, **flexible)
        except TypeError:
            if not flexible:
                raise
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointMismatchError(
                f"{weights or name} does not make a timm:{name}: {str(error)[:500]}"
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _make_trunk(name: str, index: int, weights: Path | None = None) -> Any:
    """Make a network of timm up to one of its maps."""
    trunk = _make(name, weights, features_only=True, out_indices=(index,))
    stages, _, last = trunk.feature_info.info[index]["module"].partition(".")
    blocks = getattr(trunk, "blocks", None)
    if stages == "blocks" and isinstance(blocks, nn.Sequential):
        trunk.blocks = blocks[: int(last) + 1]  # timm would run the others for nothing
    return trunk


def token_map(name: str) -> tuple[int, tuple[int, int], list[tuple[int, int]]]:
    """Return the index of the map that becomes the tokens, its channels and stride, and all maps'."""
    with torch.device("meta"):
        info = _make(name, features_only=True).feature_info
    maps = list(zip(info.channels(), info.reduction(), strict=True))
    for wanted in _STRIDES_PX:
        fitting = [i for i, (_, stride) in enumerate(maps) if stride == wanted]
        if fitting:
            return info.out_indices[fitting[-1]], maps[fitting[-1]], maps
    strides = ", ".join(str(stride) for _, stride in maps)
    raise UnknownModelError(
        f"timm:{name} has maps of stride {strides}; Multi-Scale Attention needs one of 16 or 14.",
        hint="`atlas-wsi embed` accepts it.",
    )


def _weights_file(name: str, weights: str | os.PathLike[str] | None) -> Path | None:
    if weights is not None:
        return None if str(weights) == NO_WEIGHTS else Path(weights)
    config = _timm(name).get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UnknownModelError(
            f"timm has no pretrained weights of {name} on a hub.",
            hint="Give --weights FILE, or --weights none for random weights.",
        )
    repo, _, revision = config.hf_hub_id.partition("@")
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    return download(repo, files, revision=revision or None, what=f"timm:{name} ({repo})")
