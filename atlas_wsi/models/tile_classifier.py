"""Classifiers of single tiles from other projects: TorchScript or ONNX beside a `config.json`."""

# N patches, C channels, Y rows, X columns, K classes

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError, UntrustedWeightsError
from atlas_wsi.files import require_extra, sha256_of
from atlas_wsi.models.wsinfer import ONNX, card_of, read_config

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.models.wsinfer import WsinferConfig


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
    if weights.suffix != ONNX and not trust:
        raise UntrustedWeightsError(
            f"{weights} is TorchScript: a program, which can execute arbitrary code. It was not loaded.",
            hint="If you trust its author, give --trust-model (in Python: load_tile_classifier("
            "path, trust=True)); or use an ONNX file.",
        )
    net = OnnxNet(weights) if weights.suffix == ONNX else _torchscript(weights)
    return TileClassifier(
        config=config,
        card=card_of(config, weights),
        net=net.eval(),
        sha256=sha256_of(weights),
    )


class OnnxNet(nn.Module):
    """The first input and output of an ONNX file as a torch module; runs on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        onnxruntime = require_extra("onnxruntime", "onnx", to=str(path), error=UnknownModelError)
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
