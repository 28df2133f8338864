"""The tokens of a frozen stem, computed once for every slide and kept between runs."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from atlas_wsi.models.checkpoints import digest_of
from atlas_wsi.streaming.token_store import StoredTokens
from atlas_wsi.training import distributed

if TYPE_CHECKING:
    import os

    from atlas_wsi.models.layout import Layout
    from atlas_wsi.models.model import Model
    from atlas_wsi.slides.slide import Slide
    from atlas_wsi.streaming.working_image import WorkingImage

_END_BYTES = 2**20


@dataclass(slots=True)
class Store:
    """The tokens of a slide, and whether all of them are there."""

    tokens: StoredTokens
    is_filled: bool


class FeatureStores:
    """A store of tokens per slide, float16, in a folder that stays or in a temporary one."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="atlas-wsi-features-")
        self.folder = Path(self._temporary.name if folder is None else folder)
        if distributed.n_ranks() > 1:  # a store is written by one process
            self.folder = self.folder / f"process-{distributed.rank()}"
        self._stores: dict[str, Store] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for store in self._stores.values():
            store.tokens.close()
        self._temporary.cleanup()

    def of(self, model: Model, image: WorkingImage, layout: Layout) -> Store:
        """Open the store of a slide, once; it is empty unless an earlier run has filled it."""
        path = image.slide.path
        if path not in self._stores:
            key = store_key(model, image, layout)
            name = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:24]
            at = layout.scales[0]
            shape = (at.n_windows, at.side**2, model.config.dim)
            tokens = StoredTokens(self.folder / name, key, shape, dtype=torch.float16)
            self._stores[path] = Store(tokens, is_filled=len(tokens.stored) == at.n_windows)
        return self._stores[path]


def store_key(model: Model, image: WorkingImage, layout: Layout) -> dict[str, Any]:
    """Tell what the tokens of a slide depend on."""
    return {
        "slide": content_digest(image.slide),
        "encoder": digest_of(model.encoder.stem.state_dict()),
        "mean": list(model.card.mean),
        "std": list(model.card.std),
        "mpp": list(image.mpp),
        "channels": list(image.channels),
        "range": [image.low.tolist(), image.high.tolist()],
        "windows": hashlib.sha256(layout.scales[0].where.tobytes()).hexdigest(),
    }


def content_digest(slide: Slide) -> str:
    """Return a digest of what a slide is, whatever it is called and wherever it lies."""
    path = Path(slide.path)
    digest = hashlib.sha256(repr(list(slide.level_shapes)).encode())
    if path.is_file():
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(0, size - _END_BYTES))
            digest.update(file.read())
    else:
        digest.update(slide.path.partition("?")[0].encode())
    return digest.hexdigest()
