"""A model that predicts: encoder, dense head and card, in one file."""

# B images, K classes, Y rows, X columns

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from atlas_wsi.errors import CheckpointMismatchError, OutputNotWritableError, UnknownModelError
from atlas_wsi.files import sha256_of, write_whole
from atlas_wsi.models.atlas import Atlas, AtlasConfig, Encoding
from atlas_wsi.models.card import ModelCard
from atlas_wsi.models.checkpoints import (
    is_safetensors,
    load_exactly,
    read_metadata,
    read_safetensors,
)
from atlas_wsi.models.familiarity import CELL_TOKENS, Familiarity
from atlas_wsi.models.heads import AttentionPool, DenseHead, valid_map

_FORMAT = "atlas-wsi model 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model says of a batch of images."""

    cells: torch.Tensor
    """Logits `(B, K, rows, cols)` a heatmap cell."""
    valid: torch.Tensor
    """bool `(B, rows, cols)`: cells with a valid token."""
    slide: torch.Tensor
    """Logits `(B, K)` of the whole image; see `AtlasConfig.readout`."""


class Model(nn.Module):
    """Encoder, dense head and card.

    Parameters
    ----------
    config
        Sizes of the encoder; its classes must be those of the card.
    card
        The model card.
    """

    def __init__(self, config: AtlasConfig, card: ModelCard) -> None:
        super().__init__()
        if config.n_classes != len(card.classes):
            raise ValueError(
                f"the encoder has {config.n_classes} classes, the card {len(card.classes)}"
            )
        self.card = card
        self.encoder = Atlas(config)
        self.head = DenseHead(
            config.dim,
            config.n_classes,
            n_scales=config.n_scales,
            is_plain=config.plain_reading,
        )
        self.pool = (
            AttentionPool(config.dim, config.n_classes, n_scales=config.n_scales)
            if config.readout == "attention"
            else None
        )
        self.familiarity = Familiarity(config.dim, card.familiar) if card.familiar else None
        self.sha256 = ""

    @property
    def config(self) -> AtlasConfig:
        """Sizes of the encoder."""
        return self.encoder.config

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Bring pixels to what the encoder takes.

        Parameters
        ----------
        images
            uint8 `(B, Y, X, 3)`, or float `(B, Y, X, 3)` in 0-255.

        Returns
        -------
        torch.Tensor
            float32 `(B, 3, Y, X)`, channels last in memory.
        """
        mean = torch.tensor(self.card.mean, device=images.device) * 255
        std = torch.tensor(self.card.std, device=images.device) * 255
        x = (images.to(torch.float32) - mean) / std
        return x.permute(0, 3, 1, 2)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Describe tiles by the features that the readout is made of.

        Parameters
        ----------
        images
            uint8 `(B, Y, X, 3)`.

        Returns
        -------
        torch.Tensor
            float32 `(B, C)`.
        """
        x_BCYX = self.normalize(images).to(self.encoder.fc.weight.dtype)
        layout = self.encoder.plan((x_BCYX.shape[-2], x_BCYX.shape[-1]), n_images=len(images))
        return self.encoder.pooled(self.encoder.encode(x_BCYX, layout)).float()

    def forward(
        self,
        x_BCYX: torch.Tensor,
        active_windows: torch.Tensor | None = None,
        *,
        observed: torch.Tensor | None = None,
        cell_tokens: int = 4,
        n_scales: int | None = None,
    ) -> Prediction:
        """Predict whole images that fit in memory.

        Parameters
        ----------
        x_BCYX
            Normalized images.
        active_windows
            bool `(rows, cols)` or `(B, rows, cols)`; None computes all.
        observed
            bool `(B, rows, cols)`: which tokens were observed; None takes all.
        cell_tokens
            Fine tokens along a cell's side; 4 makes cells of 64 working pixels.
        n_scales
            Number of scales; by default what the size asks for.

        Returns
        -------
        Prediction
            Logits per cell and a slide.
        """
        shape = (x_BCYX.shape[-2], x_BCYX.shape[-1])
        planned = self.encoder.plan(
            shape, n_images=len(x_BCYX), active_windows=active_windows, n_scales=n_scales
        )
        layout = planned
        if observed is not None:
            layout = self.encoder.plan(
                shape,
                n_images=len(x_BCYX),
                active_windows=active_windows,
                observed=observed,
                n_scales=n_scales,
            )
        encoding = self.encoder.encode(x_BCYX, layout)
        cells = self.head(encoding.last(), encoding.layout, cell_tokens=cell_tokens)
        n_valid, n_planned = (
            nn.functional.avg_pool2d(
                valid_map(one, 0, like=cells).float(),
                cell_tokens,
                ceil_mode=True,
                divisor_override=1,
            )[:, 0]
            for one in (encoding.layout, planned.to(cells.device))
        )
        valid = (n_valid > 0) & (2 * n_valid >= n_planned)
        return Prediction(cells=cells, valid=valid, slide=self._slide(encoding))

    def _slide(self, encoding: Encoding) -> torch.Tensor:
        if self.pool is None:
            return self.encoder.fc(self.encoder.fc_norm(self.encoder.pooled(encoding)))
        tokens, layout = encoding.last(), encoding.layout
        cells = self.head(tokens, layout, cell_tokens=CELL_TOKENS)
        gates = self.pool.gate(tokens, layout, cell_tokens=CELL_TOKENS)
        valid = valid_map(layout, 0, like=cells)
        valid = nn.functional.max_pool2d(valid, CELL_TOKENS, ceil_mode=True)
        return self.pool(gates, cells, valid > 0)

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Path:
        """Write weights, sizes and card to one safetensors file.

        Parameters
        ----------
        path
            File to write; replaced whole or not at all.
        dtype
            Type of the stored weights.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        OutputNotWritableError
            If the disk is full or the folder protected.
        """
        path = Path(path)
        tensors = {
            name: value.to("cpu", _stored_type(name, value, dtype)).contiguous()
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        facts = {
            "format": _FORMAT,
            "backbone": self.config.backbone,
            "config": asdict(self.config),
            "card": self.card.model_dump(mode="json"),
        }
        with write_whole(path) as partial:
            try:
                save_file(tensors, partial, metadata={"atlas_wsi": json.dumps(facts)})
            except SafetensorError as error:
                raise OutputNotWritableError(
                    f"{path} cannot be written: {error}.", hint="Is there room on the disk?"
                ) from error
            mask = os.umask(0)
            os.umask(mask)
            partial.chmod(0o666 & ~mask)  # safetensors makes files that only their owner reads
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path
            A safetensors file.

        Returns
        -------
        Model
            In evaluation mode, float32, on the CPU.

        Raises
        ------
        UnknownModelError
            If there is no such file.
        CheckpointMismatchError
            If the file is not a model of ours, or its weights do not fit its sizes.
        """
        path = Path(path)
        if not path.is_file():
            raise UnknownModelError(f"There is no model file at {path}.")
        if not is_safetensors(path):
            raise CheckpointMismatchError(
                f"{path} is not a safetensors file.",
                hint="`atlas-wsi train tiles` writes model files.",
            )
        state, metadata = read_safetensors(path)
        facts = _facts(metadata, path)
        try:
            config = AtlasConfig.of_stored(facts["config"])
            card = ModelCard.model_validate(facts["card"])
            with torch.device("meta"):
                _check_size(Model(config, card), state, path)
            model = cls(config, card)
        except (TypeError, ValueError, KeyError, AttributeError, ValidationError) as error:
            raise CheckpointMismatchError(f"{path}: its card is damaged: {error}") from error
        load_exactly(model, {k: v.float() for k, v in state.items()}, source=str(path))
        model.sha256 = sha256_of(path)
        return model.eval()


def read_card(path: str | os.PathLike[str]) -> tuple[ModelCard, str]:
    """Read the card of a model file and leave its weights."""
    path = Path(path)
    facts = _facts(read_metadata(path), path)
    try:
        return ModelCard.model_validate(facts["card"]), str(facts.get("backbone", "atlas"))
    except (KeyError, ValidationError) as error:
        raise CheckpointMismatchError(f"{path}: its card is damaged: {error}") from error


def stored_dtype(path: str | os.PathLike[str]) -> torch.dtype:
    """Return the type that the weights of a model file are stored in: float16 or float32."""
    state, _ = read_safetensors(Path(path))
    return state["encoder.fc.weight"].dtype


def _stored_type(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    is_weight = value.is_floating_point() and not name.startswith("familiarity.")
    return dtype if is_weight else value.dtype


def _facts(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(metadata["atlas_wsi"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointMismatchError(
            f"{path} carries no atlas-wsi card; it is not a model of this program.",
            hint="Weights alone load with atlas_wsi.models.Atlas.from_published.",
        ) from error
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise CheckpointMismatchError(f"{path}: expected the format '{_FORMAT}'.")
    return facts


def _check_size(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse sizes that the file cannot fill, before memory is taken for them."""
    expected = sum(p.numel() for p in model.parameters())
    found = sum(v.numel() for v in state.values())
    if expected > 2 * found + 1024:
        raise CheckpointMismatchError(
            f"{path}: the card asks for {expected} weights, the file holds {found}."
        )
