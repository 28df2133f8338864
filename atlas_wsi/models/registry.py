"""Names to models: what is shipped, and how to open anything else."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from atlas_wsi.errors import UnknownModelError
from atlas_wsi.models.atlas import AtlasConfig
from atlas_wsi.models.card import ModelCard, ModelClass
from atlas_wsi.models.mambavision import MambaVisionConfig
from atlas_wsi.models.model import Model

if TYPE_CHECKING:
    import os

DEFAULTS: dict[Literal["slide", "scene"], str] = {"slide": "lung-he", "scene": "landcover-rgb"}
"""The shipped model for slides and for georeferenced scenes."""

_TEST_CARD = ModelCard(
    name="atlas_test",
    domain="slide",
    classes=(
        ModelClass(name="red", color="#e64b35"),
        ModelClass(name="green", color="#00a087"),
        ModelClass(name="blue", color="#3c5488"),
    ),
    mpp=1.0,
    licence="Apache-2.0",
    data="none: random weights",
    limits="for tests and benchmarks only",
)
_TEST_TRUNK = MambaVisionConfig(
    dim=8, in_dim=8, depths=(1, 1, 2, 2), num_heads=(1, 1, 2, 2), window_size=(8, 8, 14, 7)
)
TEST_CONFIGS = {
    "atlas_test": AtlasConfig(dim=16, heads=2, depths=(1, 1), n_scales=2, n_classes=3),
    "mambavision_test": AtlasConfig(
        dim=64, heads=2, depths=(), n_scales=1, n_classes=3, mambavision=_TEST_TRUNK
    ),
    "mambavision_msa_test": AtlasConfig(
        dim=32, heads=2, depths=(1, 1), n_scales=2, n_classes=3, mambavision=_TEST_TRUNK
    ),
}
"""Tiny models with random weights, one a backbone, for tests and benchmarks."""


def shipped_models() -> dict[str, Path]:
    """Return the models of the package.

    Returns
    -------
    dict
        File by name.
    """
    zoo = Path(str(resources.files("atlas_wsi.models") / "zoo"))
    return {path.stem: path for path in sorted(zoo.glob("*.safetensors"))}


def load_model(name_or_path: str | os.PathLike[str]) -> Model:
    """Load a model by its shipped name or from a file.

    The names of `TEST_CONFIGS` are tiny models with random weights, for tests and benchmarks.

    Parameters
    ----------
    name_or_path
        Such as ``"lung-he"`` or ``"model.safetensors"``.

    Returns
    -------
    Model
        In evaluation mode, float32, on the CPU.

    Raises
    ------
    UnknownModelError
        If there is neither a model of this name nor such a file.
    """
    shipped = shipped_models()
    name = str(name_or_path)
    if name in shipped:
        return Model.load(shipped[name])
    if name in TEST_CONFIGS:
        return _test_model(name)
    if Path(name).exists() or "/" in name or name.endswith(".safetensors"):
        return Model.load(name)
    raise UnknownModelError(
        f"There is no model '{name}'; shipped are {', '.join(shipped) or 'none'}.",
        hint="Give one of these names or the path of a .safetensors file.",
    )


def _test_model(name: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        card = _TEST_CARD.model_copy(update={"name": name})
        model = Model(TEST_CONFIGS[name], card).eval()
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    model.sha256 = digest.hexdigest()
    return model
