"""The `config.json` beside a tile classifier, as in WSInfer's model zoo; loads no network."""

# N patches, C channels, Y rows, X columns, K classes

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atlas_wsi.errors import CheckpointMismatchError, ModelError, UnknownModelError
from atlas_wsi.models.card import ModelCard, ModelClass, class_colors
from atlas_wsi.models.hub import HUB, from_hub

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

CONFIG_FILE = "config.json"
PREFIX = "wsinfer:"
ONNX, TORCHSCRIPT = ".onnx", ".pt"

_MAX_CONFIG_BYTES = 2**20
_OTHER = "other"
_Side = Annotated[int, Field(ge=1, le=8192)]
_Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _ResizeArguments(_Part):
    size: _Side | Annotated[list[_Side], Field(min_length=1, max_length=2)]
    interpolation: Literal["bilinear", 2] = "bilinear"
    antialias: bool = True


class _NormalizeArguments(_Part):
    mean: _Triple
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class _NoArguments(_Part):
    pass


class _Resize(_Part):
    name: Literal["Resize"]
    arguments: _ResizeArguments


class _ToTensor(_Part):
    name: Literal["ToTensor"]
    arguments: _NoArguments | None = None


class _Normalize(_Part):
    name: Literal["Normalize"]
    arguments: _NormalizeArguments


_Transform = Annotated[_Resize | _ToTensor | _Normalize, Field(discriminator="name")]


class WsinferConfig(BaseModel):
    """The `config.json` of a tile classifier; keys that are not listed here are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_classes: Annotated[int, Field(ge=1, le=1000)]
    class_names: list[Annotated[str, Field(min_length=1, max_length=100)]]
    patch_size_pixels: Annotated[int, Field(ge=8, le=4096)]
    """Side of a patch in pixels of `spacing_um_px`."""
    spacing_um_px: Annotated[float, Field(gt=0, le=1e12)]
    architecture: str = ""
    transform: Annotated[list[_Transform], Field(max_length=10)]
    """What is done to a patch, in order: any Resize, one ToTensor, any Normalize."""

    @model_validator(mode="after")
    def _fits_together(self) -> WsinferConfig:
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes, but {len(self.class_names)} class_names")
        if len(set(self.class_names)) != self.num_classes:
            raise ValueError("class_names has a duplicate")
        order = " ".join(step.name for step in self.transform)
        if not re.fullmatch(r"(Resize )*ToTensor( Normalize)*", order):
            raise ValueError(f"transform is '{order}', expected Resize, ToTensor, Normalize")
        return self

    def normalization(self) -> dict[str, Any]:
        """Return the mean and the deviation of the last Normalize, or of none."""
        steps = [step.arguments for step in self.transform if isinstance(step, _Normalize)]
        last = steps[-1] if steps else _NormalizeArguments(mean=[0.0] * 3, std=[1.0] * 3)
        return {"mean": tuple(last.mean), "std": tuple(last.std)}

    def prepare(self, patches: NDArray[np.uint8]) -> torch.Tensor:
        """Apply the transform to uint8 `(N, rows, cols, 3)`; return float32 `(N, 3, Y, X)`."""
        for step in self.transform:
            if isinstance(step, _Resize):
                patches = _resize(patches, step.arguments.size)
        x_NCYX = torch.from_numpy(patches).permute(0, 3, 1, 2).to(torch.float32) / 255
        for step in self.transform:
            if isinstance(step, _Normalize):
                mean, std = (
                    torch.tensor(values).view(1, 3, 1, 1)
                    for values in (step.arguments.mean, step.arguments.std)
                )
                x_NCYX = (x_NCYX - mean) / std
        return x_NCYX


def read_config(name_or_path: str | os.PathLike[str]) -> tuple[WsinferConfig, Path]:
    """Read and check the `config.json` of a tile classifier; no network is loaded."""
    name = str(name_or_path).removeprefix(PREFIX)
    if name.startswith(HUB):
        # both lie in the folder of the commit
        from_hub(name, (CONFIG_FILE,))
        given = from_hub(name, ("model.onnx", "torchscript_model.pt"))
    else:
        given = Path(name)
    folder = given if given.is_dir() else given.parent
    path = folder / CONFIG_FILE
    if not given.exists() or not path.is_file():
        raise UnknownModelError(
            f"There is no {path}, which configures the tile classifier.",
            hint="Give a folder with config.json (WSInfer's) and a TorchScript or ONNX file.",
        )
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointMismatchError(f"{path} is larger than 1 MiB.")
    try:
        config = WsinferConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointMismatchError(
            f"{path} is not the configuration of a tile classifier: {where}: {first['msg']}."
        ) from error
    return config, _weights(folder) if given.is_dir() else given


def card_of(config: WsinferConfig, weights: Path) -> ModelCard:
    """Return the model card of a tile classifier."""
    names = list(config.class_names)
    if len(names) == 1:
        names.append(_OTHER if names[0] != _OTHER else f"not {_OTHER}")
    folder = weights.absolute().parent
    name = folder.name
    if folder.parent.name == "snapshots":  # of a hub's cache: models--OWNER--NAME/snapshots/COMMIT
        name = folder.parents[1].name.removeprefix("models--").replace("--", "-")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64]
    return ModelCard(
        name=name or "tile-classifier",
        domain="slide",
        classes=tuple(
            ModelClass(name=n, color=c)
            for n, c in zip(names, class_colors(len(names)), strict=True)
        ),
        mpp=config.spacing_um_px,
        **config.normalization(),
        limits="Sees one patch at a time; trained elsewhere, not measured by this program.",
        training={
            "architecture": config.architecture,
            "file": weights.name,
            "patch_px": config.patch_size_pixels,
        },
    )


def local_tile_classifiers(folder: Path) -> dict[str, Path]:
    """Return the tile classifiers in a folder."""
    found = {}
    for file in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        try:
            read_config(file.parent)
        except ModelError:
            continue  # some other program's config.json
        found[str(file.parent)] = file.parent
    return found


def _weights(folder: Path) -> Path:
    for pattern in ("model.onnx", "*.onnx", "torchscript_model.pt", "*.pt"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UnknownModelError(
                f"{folder} holds {names}; which is the model?", hint="Give the path of the file."
            )
        if found:
            return found[0]
    raise UnknownModelError(
        f"{folder} holds neither a TorchScript (.pt) nor an ONNX (.onnx) file.",
        hint="Weights alone (.safetensors, .bin) cannot be run without their network.",
    )


def _resize(patches: NDArray[np.uint8], size: int | list[int]) -> NDArray[np.uint8]:
    """Resize as torchvision does with pictures of PIL: bilinear, wide when reducing."""
    rows, cols = (size, size) if isinstance(size, int) else (size[0], size[-1])
    if patches.shape[1:3] == (rows, cols):
        return patches
    return np.stack(
        [
            np.asarray(Image.fromarray(patch).resize((cols, rows), Image.Resampling.BILINEAR))
            for patch in patches
        ]
    )
