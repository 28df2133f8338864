"""The Atlas encoder: a stem under Multi-Scale Attention.

Source: arXiv 2503.12355; published implementation (Apache-2.0), whose checkpoints load.
"""

# B images, C channels, Y rows, X columns, N windows, T tokens per window

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from atlas_wsi.errors import CheckpointMismatchError
from atlas_wsi.models.checkpoints import load_exactly, rename_published
from atlas_wsi.models.layout import Alignment, Layout, Pooling, plan_layout
from atlas_wsi.models.mambavision import MambaVisionConfig
from atlas_wsi.models.mambavision_blocks import initialize
from atlas_wsi.models.msa import MsaBlock, ScaleUnit, coarse_tokens, pool
from atlas_wsi.models.stems.registry import make_stem
from atlas_wsi.models.stems.timm_network import token_map

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Backbone = Literal["atlas", "mambavision", "mambavision+msa", "timm+msa"]
"""The backbones that can be trained by name; see `AtlasConfig.backbone`."""
Readout = Literal["mean", "attention"]
"""How the score of a whole image is read; see `AtlasConfig.readout`."""

_DIM, _DIM_STEP = 128, 32
_PROJECTED = 256  # most channels that a network's tokens are projected to by default


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasConfig:
    """What an Atlas is made of; stored beside its weights."""

    dim: int = 768
    """Channels of a token; four times the stem's features."""
    heads: int = 12
    """Attention heads."""
    depths: tuple[int, ...] = (2, 10)
    """Blocks a stage; after each stage the finest scale is dropped. Empty for a MambaVision alone."""
    n_scales: int = 2
    """Scales with parameters of their own."""
    window: int = 16
    """Tokens along a window's side (`merge_ratio`)."""
    ratio: int = 4
    """Tokens of a scale per token of the next one, along one side (`local2global`)."""
    n_classes: int = 100
    """Classes of the readout."""
    in_channels: int = 3
    """Channels of an image."""
    alignment: Alignment = "spatial"
    """Which coarse window a window looks up to."""
    stem: str = "convolution"
    """Name of the stem: a key of `STEMS`, or an entry point of another package."""
    stem_options: Mapping[str, Any] = field(default_factory=dict)
    """What else the stem is made of: the fields of a `MambaVisionConfig`, timm's ``name``."""
    token_px: int = 16
    """Working pixels along a token's side: the stride of the stem."""
    pooling: Pooling = "max"
    """How tokens become those of the next scale."""
    one_path: bool = False
    """Whether the finest scale is dropped after the first stage also where it is alone, so that a
    tile passes the blocks that a slide's tokens pass. Published classifiers pass all stages."""
    plain_reading: bool = False
    """Whether the dense head reads the finest tokens as they are, without a norm."""
    context: bool = True
    """Whether there are coarser scales than that of the windows; without them no window knows of
    another."""
    readout: Readout = "mean"
    """The score of a whole image: read from the mean of the tokens left at the end, or the mean of
    the heatmap's logits weighted by attention."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))
        options = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.stem_options.items()
        }
        object.__setattr__(self, "stem_options", options)
        if self.dim % self.heads or self.window % self.ratio:
            raise ValueError(
                f"dim {self.dim} must be divisible by heads {self.heads}, "
                f"window {self.window} by ratio {self.ratio}"
            )
        if not self.depths and self.n_scales != 1:
            raise ValueError(f"a stem without blocks has one scale, not {self.n_scales}")

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> AtlasConfig:
        """Read the fields from JSON, also of files with a key of its own for each kind of stem."""
        fields = {name: value for name, value in stored.items() if value is not None}
        trunk, timm = fields.pop("mambavision", None), fields.pop("timm", None)
        if trunk is not None:
            fields |= {"stem": "mambavision", "stem_options": trunk}
        elif timm is not None:
            fields |= {"stem": "timm", "stem_options": {"name": timm}}
        return cls(**fields)

    @property
    def backbone(self) -> str:
        """What makes the tokens, and whether coarse scales lie over them."""
        if self.stem == "convolution":
            return "atlas"
        return f"{self.stem}+msa" if self.depths else self.stem

    @property
    def window_px(self) -> int:
        """Working pixels along a window's side."""
        return self.window * self.token_px


def make_config(
    backbone: Backbone,
    *,
    dim: int | None,
    depths: tuple[int, ...],
    n_scales: int,
    n_classes: int,
    timm: str | None = None,
    readout: Readout = "mean",
    context: bool = True,
) -> AtlasConfig:
    """Choose the sizes of a small model of a backbone; `dim` None: the default."""
    stem: dict[str, Any] = {}
    if timm is not None:
        channels, token_px = token_map(timm)[1]
        dim = dim or min(_PROJECTED, channels // _DIM_STEP * _DIM_STEP) or channels
        options = {"name": timm, "project": dim}
        stem = {"stem": "timm", "stem_options": options, "token_px": token_px, "pooling": "mean"}
    dim = dim or _DIM
    heads = next(n for n in range(max(1, dim // 32), 0, -1) if dim % n == 0)
    if backbone.startswith("mambavision"):
        trunk = MambaVisionConfig(
            dim=dim // 4,
            in_dim=32,
            depths=(1, 1, 4, 2),
            num_heads=(1, 1, heads, 2 * heads),
            window_size=(8, 8, 16, 8),
        )
        stem = {"stem": "mambavision", "stem_options": asdict(trunk)}
    if backbone == "mambavision":
        dim, depths, n_scales = 2 * dim, (), 1
    return AtlasConfig(
        dim=dim,
        heads=heads,
        depths=depths,
        n_scales=n_scales,
        n_classes=n_classes,
        one_path=True,
        plain_reading=True,
        readout=readout,
        context=context,
        **stem,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Tokens of a batch of images after every stage."""

    layout: Layout
    """Windows of every scale."""
    initial: tuple[torch.Tensor, ...]
    """Tokens before the first block, one `(N, T, C)` a scale, finest first."""
    stages: tuple[tuple[torch.Tensor, ...], ...]
    """Tokens after each stage, one `(N, T, C)` a scale that was left in it, finest first."""

    def last(self) -> list[torch.Tensor]:
        """Return the tokens of every scale after the last stage that had it, finest first."""
        return last_of_each([self.initial, *self.stages])


def last_of_each(stages: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Return the tokens of every scale after the last stage that had it."""
    n = len(stages[0])
    return [
        next(s[scale - (n - len(s))] for s in reversed(stages) if n - len(s) <= scale)
        for scale in range(n)
    ]


class Atlas(nn.Module):
    """Image encoder whose coarse scales see the whole image."""

    def __init__(self, config: AtlasConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = make_stem(config)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                MsaBlock(config.dim, config.heads, n_scales=max(1, config.n_scales - i))
                for _ in range(depth)
            )
            for i, depth in enumerate(config.depths)
        )
        self.readout_norm = nn.LayerNorm(config.dim)
        self.fc_norm = nn.LayerNorm(config.dim)
        self.fc = nn.Linear(config.dim, config.n_classes)
        for module in (self.stages, self.fc):
            module.apply(initialize)

    @classmethod
    def from_published(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        *,
        stages: Sequence[Mapping[str, Any]],
        alignment: Alignment = "raster",
    ) -> Atlas:
        """Build the model of a published checkpoint."""
        state, unknown = rename_published(state_dict)
        if unknown:
            raise CheckpointMismatchError(
                f"'{unknown[0]}' is not a name of the published Atlas.",
                hint="Is this an Atlas checkpoint?",
            )
        first = stages[0]
        n_scales = 1 + max(
            int(key.split(".")[4]) for key in state if key.startswith("stages.0.0.scales.")
        )
        config = AtlasConfig(
            dim=int(first["embed_dim"]),
            heads=int(first["num_heads"]),
            depths=tuple(int(stage["depths"]) for stage in stages),
            n_scales=n_scales,
            window=int(first["merge_ratio"]),
            ratio=int(first["local2global"]),
            n_classes=len(state["fc.weight"]),
            in_channels=int(first.get("in_chans", 3)),
            alignment=alignment,
        )
        model = cls(config)
        load_exactly(model, state, source="published Atlas weights")
        return model.eval()

    def plan(
        self,
        shape_px: tuple[int, int],
        *,
        n_images: int = 1,
        active_windows: torch.Tensor | np.ndarray[Any, Any] | None = None,
        observed: torch.Tensor | np.ndarray[Any, Any] | None = None,
        n_scales: int | None = None,
    ) -> Layout:
        """List the windows of images; `active_windows`: bool `([B,] rows, cols)`, None for all.

        `observed`: bool `([B,] rows, cols)` of tokens, None for all.
        """
        step = self.config.token_px
        tokens = (-(-shape_px[0] // step), -(-shape_px[1] // step))
        side = min(self.config.window, max(tokens))
        if not self.stages or not self.config.context:
            n_scales = 1
        if active_windows is None:
            active = np.ones((n_images, -(-tokens[0] // side), -(-tokens[1] // side)), dtype=bool)
        else:
            active = np.asarray(active_windows, dtype=bool)
            if active.ndim == 2:
                active = np.broadcast_to(active, (n_images, *active.shape))
        return plan_layout(
            tokens,
            active=active,
            observed=None if observed is None else np.asarray(observed, dtype=bool),
            window=self.config.window,
            ratio=self.config.ratio,
            alignment=self.config.alignment,
            pooling=self.config.pooling,
            n_scales=n_scales,
        )

    def blocks(self, n_scales: int) -> list[list[MsaBlock]]:
        """Return the blocks of every stage that an image of so many scales passes."""
        stages = []
        for stage in self.stages[: n_scales if self.config.one_path else None]:
            assert isinstance(stage, nn.ModuleList)
            stages.append([block for block in stage if isinstance(block, MsaBlock)])
        return stages

    def start_as_identity(self) -> None:
        """Let all blocks pass their tokens unchanged until they are trained."""
        for module in self.stages.modules():
            if isinstance(module, ScaleUnit):
                module.start_as_identity()

    def encode(self, x_BCYX: torch.Tensor, layout: Layout | None = None) -> Encoding:
        """Compute the tokens of all scales of normalized images after every stage."""
        if layout is None:
            layout = self.plan((x_BCYX.shape[-2], x_BCYX.shape[-1]), n_images=len(x_BCYX))
        layout = layout.to(x_BCYX.device)
        return self.encode_tokens(layout.from_map(self.stem(x_BCYX)), layout)

    def encode_tokens(self, x_NTC: torch.Tensor, layout: Layout) -> Encoding:
        """Compute the tokens of all scales from the stem's `(N, T, C)` after every stage."""
        tokens, finest = [x_NTC], layout.scales[0]
        if len(layout.scales) > 1:
            tokens += coarse_tokens(pool(x_NTC, finest, layout.ratio), layout)
        initial, done = tuple(tokens), []
        for i, blocks in enumerate(self.blocks(len(tokens))):
            if i and len(tokens) > 1:
                tokens = tokens[1:]
            for block in blocks:
                tokens = block(tokens, layout)
            done.append(tuple(tokens))
        return Encoding(layout=layout, initial=initial, stages=tuple(done))

    def pooled(self, encoding: Encoding) -> torch.Tensor:
        """Average the normalized valid tokens of the last stage's scales, to `(B, C)`."""
        tokens = encoding.stages[-1] if encoding.stages else encoding.initial
        layout = encoding.layout
        total = tokens[0].new_zeros(layout.n_images, self.config.dim)
        count = tokens[0].new_zeros(layout.n_images, 1)
        for x_NTC, at in zip(tokens, layout.scales[-len(tokens) :], strict=True):
            valid_NT1 = at.valid[..., None]
            image = torch.from_numpy(at.where[:, 0]).to(x_NTC.device)
            x_NC = torch.where(valid_NT1, self.readout_norm(x_NTC), 0).sum(dim=1)
            total = total.index_add(0, image, x_NC.to(total.dtype))
            count = count.index_add(0, image, valid_NT1.sum(dim=1).to(count.dtype))
        return total / count.clamp(min=1)

    def forward(
        self, x_BCYX: torch.Tensor, active_windows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits `(B, n_classes)` of normalized images."""
        shape = (x_BCYX.shape[-2], x_BCYX.shape[-1])
        layout = self.plan(shape, n_images=len(x_BCYX), active_windows=active_windows)
        return self.fc(self.fc_norm(self.pooled(self.encode(x_BCYX, layout))))
