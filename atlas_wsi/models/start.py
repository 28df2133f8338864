"""Weights that a training starts from: taken where they fit, and said where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_wsi.errors import CheckpointMismatchError
from atlas_wsi.models.atlas import AtlasConfig
from atlas_wsi.models.checkpoints import (
    is_safetensors,
    read_plain,
    read_weights,
    rename_published,
    tensors_of,
)
from atlas_wsi.models.registry import TEST_CONFIGS, find_file, is_model, load_model
from atlas_wsi.models.stems.timm_network import NO_WEIGHTS, PREFIX, timm_normalization, timm_weights

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

    from atlas_wsi.models.model import Model

_HEADS = ("head.", "pool.")
_HEAD_CHANNELS = 64  # of an attention head of the published models
_LISTED = 6
_COUNTS = "num_batches_tracked"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """Where a training starts."""

    name: str
    """What the user gave."""
    config: AtlasConfig | None
    """Sizes of the encoder; None if the weights are of a stem alone."""
    weights: Mapping[str, torch.Tensor]
    """By the names of `Model`."""
    classes: tuple[str, ...] = ()
    """The classes of its head; empty if its classes have no names."""
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and deviation of each channel that the weights expect to be taken off."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, from its card."""
    unknown: tuple[str, ...] = ()
    """Names in the file that no Atlas has."""

    @classmethod
    def of(cls, model: Model) -> Start:
        """Start from a model."""
        return cls(
            name=model.card.name,
            config=model.config,
            weights={k: v for k, v in model.state_dict().items() if not k.startswith("familiar")},
            classes=model.card.class_names,
            normalization=(model.card.mean, model.card.std),
            training=model.card.training,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a model took from a start."""

    name: str
    """Of the start."""
    tensors: int
    """Tensors that were taken."""
    weights: int
    """Numbers in them."""
    fresh: tuple[str, ...]
    """Parts of the model that start with random weights."""
    left: tuple[str, ...]
    """Parts of the start that were not taken."""

    def __str__(self) -> str:
        text = f"{self.name}: {self.tensors} tensors ({self.weights:,} weights) taken"
        for what, parts in (("fresh", self.fresh), ("not taken", self.left)):
            if parts:
                more = f" and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
                text += f"; {what}: {', '.join(parts[:_LISTED])}{more}"
        return text


def load_start(name_or_path: str | os.PathLike[str]) -> Start:
    """Load what a training starts from."""
    name = str(name_or_path)
    if name in TEST_CONFIGS:
        return Start.of(load_model(name))
    path = find_file(name, files=("model.safetensors", "pytorch_model.bin", "latest.ckpt"))
    if path.is_file() and is_model(path):
        return Start.of(load_model(path))
    return _published(name, path)


def timm_start(encoder: str, weights: str | os.PathLike[str] | None = None) -> Start | None:
    """Load a network of timm that a training starts from."""
    name = encoder.removeprefix(PREFIX)
    if str(weights) == NO_WEIGHTS:
        return None
    state = timm_weights(name, weights)
    return Start(
        name=f"{PREFIX}{name}",
        config=None,
        weights={f"encoder.stem.trunk.{key}": value for key, value in state.items()},
        normalization=timm_normalization(name),
    )


def take_weights(model: Model, start: Start) -> Taken:
    """Copy what fits of a start into a model; the head only if its classes are the same."""
    own = model.state_dict()
    same_classes = start.classes == model.card.class_names
    fits = {
        name: value.float()
        for name, value in start.weights.items()
        if name in own
        and own[name].shape == value.shape
        and not name.endswith(_COUNTS)
        and (same_classes or not name.startswith((*_HEADS, "encoder.fc.")))
    }
    if not any(name.startswith(("encoder.stem.", "encoder.stages.")) for name in fits):
        example = next(iter(start.weights), next(iter(start.unknown), "nothing"))
        raise CheckpointMismatchError(
            f"{start.name}: no weight fits the encoder; its first is '{example}'.",
            hint="Is this an Atlas checkpoint, and do --backbone and --dim agree with it?",
        )
    model.load_state_dict(fits, strict=False)
    return Taken(
        name=start.name,
        tensors=len(fits),
        weights=sum(value.numel() for value in fits.values()),
        fresh=_parts(n for n in own if n not in fits and not n.endswith(_COUNTS)),
        left=_parts(n for n in start.weights if n not in fits and not n.endswith(_COUNTS))
        + _parts(start.unknown),
    )


def _published(name: str, path: Path) -> Start:
    heads = None
    if not path.is_file() or is_safetensors(path):
        found = read_weights(path)
    else:
        stored = read_plain(path)
        found, heads = tensors_of(stored, path), _heads(stored)
    state, unknown = rename_published(found)
    config = _config_of(state, heads)
    if config is None:
        first = next(iter(unknown or state))
        raise CheckpointMismatchError(
            f"{name} is neither a model of this program nor a published Atlas: its first weight is "
            f"'{first}'.",
            hint="A timm network replaces the stem with --encoder timm:NAME --weights FILE.",
        )
    return Start(
        name=name,
        config=config,
        weights={f"encoder.{key}": value for key, value in state.items()},
        normalization=_IMAGENET,
        unknown=tuple(unknown),
    )


def _config_of(state: Mapping[str, torch.Tensor], heads: int | None) -> AtlasConfig | None:
    """Read the sizes off the shapes; windows are those that training works with."""
    blocks = {tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("stages.")}
    norm = state.get("stages.0.0.scales.0.norm_q.weight")
    conv = state.get("stem.conv1.weight")
    if norm is None or conv is None or conv.ndim != 4:
        return None
    scales = {int(key.split(".")[4]) for key in state if key.startswith("stages.0.0.scales.")}
    stages = [max(j for i, j in blocks if i == stage) + 1 for stage in {i for i, _ in blocks}]
    dim = len(norm)
    try:
        return AtlasConfig(
            dim=dim,
            heads=heads or max(1, dim // _HEAD_CHANNELS),
            depths=tuple(stages),
            n_scales=len(scales),
            in_channels=conv.shape[1],
        )
    except (ValueError, TypeError) as error:
        raise CheckpointMismatchError(
            f"The sizes of the checkpoint are not those of an Atlas: {error}"
        ) from error


def _heads(found: Any) -> int | None:
    """Find the number of heads in what a checkpoint holds beside its weights, however deep."""
    waiting = [found]
    while waiting:
        at = waiting.pop(0)
        if isinstance(at, dict):
            if isinstance(at.get("num_heads"), int):
                return int(at["num_heads"])
            at = list(at.values())
        waiting += [part for part in at if isinstance(part, (dict, list, tuple))]
    return None


def _parts(names: Iterable[str]) -> tuple[str, ...]:
    """Name the modules of weights, each once, in order; a head is one."""
    modules = (
        name.partition(".")[0] if name.startswith(_HEADS) else name.rpartition(".")[0] or name
        for name in names
    )
    return tuple(dict.fromkeys(modules))
