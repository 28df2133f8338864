"""Classifiers of single tiles from other projects: TorchScript or ONNX beside a `config.json`.

The `config.json` is that of WSInfer's model zoo: how large a patch is, how many micrometres a pixel
has, the classes, and what is done to the pixels first.
"""

# N patches, C channels, Y rows, X columns, K classes

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from atlas_wsi.errors import (
    CheckpointMismatchError,
    ModelError,
    UnknownModelError,
    UntrustedWeightsError,
)
from atlas_wsi.models.card import ModelCard, ModelClass, class_colors
from atlas_wsi.models.hub import HUB, from_hub

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

CONFIG_FILE = "config.json"
PREFIX = "wsinfer:"

_MAX_CONFIG_BYTES = 2**20
_ONNX, _TORCHSCRIPT = ".onnx", ".pt"
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
            raise ValueError("class_names has a name twice")
        order = " ".join(step.name for step in self.transform)
        if not re.fullmatch(r"(Resize )*ToTensor( Normalize)*", order):
            raise ValueError(f"transform is '{order}', expected Resize, ToTensor, Normalize")
        return self

    def normalisation(self) -> dict[str, Any]:
        """Return the mean and the deviation of the last Normalize, or of none."""
        steps = [step.arguments for step in self.transform if isinstance(step, _Normalize)]
        last = steps[-1] if steps else _NormalizeArguments(mean=[0.0] * 3, std=[1.0] * 3)
        return {"mean": tuple(last.mean), "std": tuple(last.std)}

    def prepare(self, patches: NDArray[np.uint8]) -> torch.Tensor:
        """Do what the transform says.

        Parameters
        ----------
        patches
            uint8 `(N, rows, cols, 3)`.

        Returns
        -------
        torch.Tensor
            float32 `(N, 3, Y, X)`.
        """
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileClassifier:
    """A network that classifies one patch at a time, and knows nothing of its surroundings."""

    config: WsinferConfig
    """Patches, resolution, classes, transform."""
    card: ModelCard
    """The same in the terms of our own models; a classifier of one class gets the class other."""
    net: nn.Module
    """Prepared patches to logits."""
    sha256: str
    """Of the weights file."""

    @property
    def patch_px(self) -> int:
        """Side of a patch in pixels of `card.mpp`."""
        return self.config.patch_size_pixels

    def probabilities(
        self, patches: NDArray[np.uint8], *, device: torch.device | None = None
    ) -> NDArray[np.float32]:
        """Classify patches.

        Parameters
        ----------
        patches
            uint8 `(N, rows, cols, 3)`, `patch_size_pixels` wide at `spacing_um_px`.
        device
            Where the network is; the CPU by default.

        Returns
        -------
        NDArray
            `(N, classes)`: softmax of the logits; the sigmoid and its rest for one class.

        Raises
        ------
        CheckpointMismatchError
            If the network does not take these patches, or gives another number of classes.
        """
        x_NCYX = self.config.prepare(patches).to(device or "cpu")
        try:
            with torch.inference_mode():
                logits = self.net(x_NCYX)
        except (RuntimeError, ValueError) as error:
            raise CheckpointMismatchError(
                f"The model {self.card.name} failed on patches {tuple(x_NCYX.shape)}: {error}",
                hint="Do patch_size_pixels and Resize of its config.json fit the network?",
            ) from error
        n, k = len(patches), self.config.num_classes
        if not isinstance(logits, torch.Tensor) or logits.numel() != n * k or len(logits) != n:
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits)
            raise CheckpointMismatchError(
                f"The model {self.card.name} gives {found} for {n} patches, expected ({n}, {k})."
            )
        logits = logits.float().view(n, k)
        if k == 1:
            logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)  # softmax = sigmoid
        return np.asarray(logits.softmax(dim=1).cpu().numpy(), dtype=np.float32)


def is_tile_classifier(name_or_path: str | os.PathLike[str]) -> bool:
    """Tell whether a model asked for can only be a classifier of tiles.

    Parameters
    ----------
    name_or_path
        What the user gave.

    Returns
    -------
    bool
        Whether it is a folder, a TorchScript or ONNX file, or starts with ``wsinfer:``.
    """
    name = str(name_or_path)
    path = Path(name)
    return name.startswith(PREFIX) or path.is_dir() or path.suffix in {_ONNX, _TORCHSCRIPT}


def read_config(name_or_path: str | os.PathLike[str]) -> tuple[WsinferConfig, Path]:
    """Read and check the `config.json` of a tile classifier; no network is loaded.

    Parameters
    ----------
    name_or_path
        The folder, or the TorchScript or ONNX file in it; ``wsinfer:`` may stand before it, and
        must before ``hf://owner/name@revision``.

    Returns
    -------
    tuple
        The configuration, and the weights file.

    Raises
    ------
    UnknownModelError
        If there is no `config.json` or no weights file.
    CheckpointMismatchError
        If the configuration is not valid.
    """
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
            f"There is no {path}, which says how the tile classifier is used.",
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


def load_tile_classifier(
    name_or_path: str | os.PathLike[str], *, trust: bool = False
) -> TileClassifier:
    """Load a classifier of tiles that another project trained.

    Parameters
    ----------
    name_or_path
        The folder with `config.json`, the TorchScript or ONNX file in it, or
        ``wsinfer:hf://owner/name@revision``.
    trust
        Whether to load TorchScript, which is a program and not only weights. ONNX needs no trust.

    Returns
    -------
    TileClassifier
        In evaluation mode, on the CPU.

    Raises
    ------
    UntrustedWeightsError
        If the file is TorchScript and not trusted.
    """
    config, weights = read_config(name_or_path)
    if weights.suffix != _ONNX and not trust:
        raise UntrustedWeightsError(
            f"{weights} is TorchScript: a program, which can do what you can do. It was not loaded.",
            hint="If you trust who made it, give --trust-model (in Python: load_tile_classifier("
            "path, trust=True)); or use an ONNX file.",
        )
    net = OnnxNet(weights) if weights.suffix == _ONNX else _torchscript(weights)
    return TileClassifier(
        config=config,
        card=card_of(config, weights),
        net=net.eval(),
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
    )


def card_of(config: WsinferConfig, weights: Path) -> ModelCard:
    """Say of a tile classifier what our own models say of themselves.

    Parameters
    ----------
    config
        Its configuration.
    weights
        Its weights file; the folder's name becomes the model's.

    Returns
    -------
    ModelCard
        Licence and data are unknown: `config.json` does not tell them.
    """
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
        **config.normalisation(),
        limits="Sees one patch at a time; trained elsewhere, not measured by this program.",
        training={
            "architecture": config.architecture,
            "file": weights.name,
            "patch_px": config.patch_size_pixels,
        },
    )


def local_tile_classifiers(folder: Path) -> dict[str, Path]:
    """Return the tile classifiers in a folder.

    Parameters
    ----------
    folder
        Where to look, one level deep.

    Returns
    -------
    dict
        Folder by its name; what has no valid `config.json` and network is left out.
    """
    found = {}
    for file in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        try:
            read_config(file.parent)
        except ModelError:
            continue  # some other program's config.json
        found[str(file.parent)] = file.parent
    return found


class OnnxNet(nn.Module):
    """An ONNX network behind the call of a torch module; runs on the CPU.

    Parameters
    ----------
    path
        The file; its first input takes `(N, 3, Y, X)` and its first output is read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise UnknownModelError(
                f"{path} needs onnxruntime, which is not installed.",
                hint="pip install 'atlas-wsi[onnx]'",
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session: Any = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no other base
            raise CheckpointMismatchError(
                f"{path} is not a readable ONNX model: {error}"
            ) from error
        first = self.session.get_inputs()[0]
        self.input: str = first.name
        self.batch: int | None = first.shape[0] if isinstance(first.shape[0], int) else None

    def forward(self, x_NCYX: torch.Tensor) -> torch.Tensor:
        """Return the logits `(N, K)`."""
        parts = torch.split(x_NCYX.cpu(), self.batch or len(x_NCYX))
        try:
            found = [self._run(part.numpy()) for part in parts]
        except Exception as error:  # as above
            raise ValueError(str(error)) from error
        return torch.from_numpy(np.concatenate(found))

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        n = len(x)
        if self.batch and n < self.batch:  # the file takes batches of one size only
            x = np.concatenate([x, np.zeros((self.batch - n, *x.shape[1:]), x.dtype)])
        out: NDArray[np.float32] = self.session.run(None, {self.input: x})[0]
        return out[:n]


def _torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # torch would have models exported in another form; those of other projects are in this
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            net: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointMismatchError(
            f"{path} is not a readable TorchScript model: {str(error).splitlines()[0]}"
        ) from error
    return net


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
