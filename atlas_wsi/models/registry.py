"""Names to models: what is shipped, and how to open anything else."""

from __future__ import annotations

import threading
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError
from atlas_wsi.models.atlas import AtlasConfig
from atlas_wsi.models.card import ModelCard, ModelClass
from atlas_wsi.models.checkpoints import digest_of, read_metadata
from atlas_wsi.models.hub import HUB, from_hub
from atlas_wsi.models.mambavision import MambaVisionConfig
from atlas_wsi.models.model import Model
from atlas_wsi.models.wsinfer import ONNX, PREFIX, TORCHSCRIPT

if TYPE_CHECKING:
    import os

_seeding = threading.Lock()  # torch's generator is that of all threads

DEFAULTS: dict[Literal["slide", "scene"], str] = {"slide": "lung-he", "scene": "landcover-rgb"}
"""The shipped model for slides and for georeferenced scenes."""

HUB_FILE = "model.safetensors"

_TEST_CARD = ModelCard(
    name="atlas_test",
    domain="slide",
    classes=(
        ModelClass(name="red", color="#e64b35"),
        ModelClass(name="green", color="#00a087"),
        ModelClass(name="blue", color="#3c5488"),
    ),
    mpp=1.0,
    license="Apache-2.0",
    data="none: random weights",
    limits="for tests and benchmarks only",
)
_TEST_TRUNK = MambaVisionConfig(
    dim=8, in_dim=8, depths=(1, 1, 2, 2), num_heads=(1, 1, 2, 2), window_size=(8, 8, 14, 7)
)
_TEST_STEM: dict[str, Any] = {"stem": "mambavision", "stem_options": asdict(_TEST_TRUNK)}
TEST_CONFIGS = {
    "atlas_test": AtlasConfig(dim=16, heads=2, depths=(1, 1), n_scales=2, n_classes=3),
    "mambavision_test": AtlasConfig(
        dim=64, heads=2, depths=(), n_scales=1, n_classes=3, **_TEST_STEM
    ),
    "mambavision_msa_test": AtlasConfig(
        dim=32, heads=2, depths=(1, 1), n_scales=2, n_classes=3, **_TEST_STEM
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
    """Load a model by its shipped name, from a file, or from a hub.

    The names of `TEST_CONFIGS` are tiny models with random weights, for tests and benchmarks.

    Parameters
    ----------
    name_or_path
        Such as ``"lung-he"``, ``"model.safetensors"`` or ``"hf://owner/name@revision"``: the file
        ``model.safetensors`` of a repository, from the cache if it is there.

    Returns
    -------
    Model
        In evaluation mode, float32, on the CPU.

    Raises
    ------
    UnknownModelError
        If there is neither a model of this name nor such a file, or the hub is out of reach.
    """
    name = str(name_or_path)
    if name in TEST_CONFIGS:
        return _test_model(name)
    if is_tile_classifier(name):
        raise UnknownModelError(
            f"{name} is not a model of this program; tile classifiers have no context.",
            hint="Only `atlas-wsi predict --model` (in Python: atlas_wsi.predict(slide, "
            "atlas_wsi.load_tile_classifier(path))) runs a folder with config.json.",
        )
    return Model.load(find_file(name, files=(HUB_FILE,)))


def is_tile_classifier(name_or_path: str | os.PathLike[str]) -> bool:
    """Tell whether a model asked for can only be a classifier of tiles."""
    name = str(name_or_path)
    if name in TEST_CONFIGS or name in shipped_models():
        return False
    path = Path(name)
    return name.startswith(PREFIX) or path.is_dir() or path.suffix in {ONNX, TORCHSCRIPT}


def find_file(name: str, *, files: tuple[str, ...]) -> Path:
    """Find the file of a model, which may not exist; of a hub's, the first of `files`."""
    shipped = shipped_models()
    if name in shipped:
        return shipped[name]
    if name.startswith(HUB):
        return from_hub(name, files)
    if Path(name).exists() or "/" in name or name.endswith(".safetensors"):
        return Path(name)
    raise UnknownModelError(
        f"There is no model '{name}'; bundled are {', '.join(shipped) or 'none'}.",
        hint="Give one of these names or the path of a .safetensors file.",
    )


def cached_models() -> dict[str, Path]:
    """Return the hub models that are in the cache of huggingface_hub."""
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError:
        return {}
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return {}
    found = {}
    for repo in repos:
        for revision in repo.revisions:
            for file in revision.files:
                if file.file_name == HUB_FILE and is_model(file.file_path):
                    found[f"{HUB}{repo.repo_id}@{revision.commit_hash}"] = Path(file.file_path)
    return found


def is_model(path: Path) -> bool:
    """Tell whether a file is a model that this program wrote."""
    try:
        return "atlas_wsi" in read_metadata(path)
    except CheckpointMismatchError:
        return False


def _test_model(name: str) -> Model:
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        card = _TEST_CARD.model_copy(update={"name": name})
        model = Model(TEST_CONFIGS[name], card).eval()
    model.sha256 = digest_of(model.state_dict())
    return model
