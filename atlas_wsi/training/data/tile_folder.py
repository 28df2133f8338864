"""Tiles on disk: one subfolder per class, with an optional table of groups."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from atlas_wsi.errors import DatasetError
from atlas_wsi.files import BoundedFile, read_csv
from atlas_wsi.training.data.labeled import LabeledTiles

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from atlas_wsi.progress import Progress

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
GROUPS_FILE = "groups.csv"
_MIN_PX, _MAX_PX = 64, 2048
_MAX_NAME = 100
_DEEP_MODES = {"I", "F"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TileFolder:
    """A folder with one subfolder of tiles per class; read when it is used."""

    path: Path
    """The folder."""
    mpp: float | None = None
    """Micrometers per pixel of the tiles; None in evaluation: those of the training tiles."""

    def prepared(
        self,
        *,
        mpp: float | None = None,
        seed: int = 0,  # noqa: ARG002
        progress: Progress | None = None,
    ) -> LabeledTiles:
        """Read the tiles, resized to the resolution that the model sees."""
        zoom = self.mpp / mpp if self.mpp and mpp else 1.0
        return read_tiles(self.path, zoom=zoom, mpp=mpp or self.mpp, progress=progress)


def read_tile_folder(path: str | os.PathLike[str], *, mpp: float | None = None) -> TileFolder:
    """Describe a folder of labeled tiles; the tiles are read when they are used.

    Parameters
    ----------
    path
        Folder with one subfolder per class. A ``groups.csv`` in it (columns path, class, group)
        keeps duplicates and tiles of one patient in the same split.
    mpp
        Micrometers per pixel of the tiles. Training needs it; in evaluation the default is that of
        the tiles that the model was trained on.

    Returns
    -------
    TileFolder
        For `atlas_wsi.train`, `atlas_wsi.cross_validate` and `atlas_wsi.evaluate`.

    Raises
    ------
    DatasetError
        If `path` is not a folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a folder.", hint="Give a folder with one subfolder per class."
        )
    return TileFolder(path=folder, mpp=mpp)


def read_tiles(
    folder: str | os.PathLike[str],
    *,
    zoom: float = 1.0,
    mpp: float | None = None,
    progress: Progress | None = None,
) -> LabeledTiles:
    """Read the tiles of a folder, enlarged by `zoom`."""
    root = read_tile_folder(folder).path
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))
    long = next((name for name in classes if len(name) > _MAX_NAME), None)
    if long is not None:
        raise DatasetError(f"The class folder {long} has a name over {_MAX_NAME} characters.")
    files = [
        (label, path)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    counts = np.bincount([label for label, _ in files], minlength=len(classes))
    if len(classes) < 2 or counts.min() < 2:
        listed = ", ".join(f"{n} ({c} tiles)" for n, c in zip(classes, counts, strict=True))
        raise DatasetError(
            f"{root} needs two or more class folders with two or more tiles each, "
            f"found {listed or 'none'}.",
            hint=f"Tiles are {', '.join(sorted(SUFFIXES))} files.",
        )
    images: list[NDArray[np.uint8]] = []
    paths = tuple(path.relative_to(root).as_posix() for _, path in files)
    digest = hashlib.blake2b(digest_size=12)
    for done, (name, (_, path)) in enumerate(zip(paths, files, strict=True), start=1):
        picture = _read_tile(path)
        digest.update(name.encode() + picture.tobytes())
        images.append(_resize(picture, zoom))
        if images[-1].shape != images[0].shape:
            raise DatasetError(
                f"{path} has {images[-1].shape[0]} x {images[-1].shape[1]} pixels, the tiles "
                f"before it {images[0].shape[0]} x {images[0].shape[1]}; all must be of one size."
            )
        if progress is not None:
            progress("read tiles", done, len(files))
    group_of = _read_groups(root / GROUPS_FILE)
    missing = next((path for path in paths if group_of and path not in group_of), None)
    if missing is not None:
        raise DatasetError(f"{root / GROUPS_FILE} has no group for {missing}.")
    return LabeledTiles(
        images=np.stack(images),
        labels=np.array([label for label, _ in files], dtype=np.int64),
        groups=tuple(group_of.get(path, path) for path in paths),
        paths=paths,
        classes=classes,
        is_grouped=bool(group_of),
        mpp=mpp,
        facts={"zoom": zoom},
        fingerprint=digest.hexdigest(),
    )


def _read_tile(path: Path) -> Image.Image:
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            if not all(_MIN_PX <= n <= _MAX_PX for n in image.size):
                raise DatasetError(
                    f"{path} has {image.height} x {image.width} pixels, "
                    f"expected {_MIN_PX} to {_MAX_PX} per side."
                )
            if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
                raise DatasetError(
                    f"{path} has more than 8 bits per channel (mode {image.mode}), expected 8.",
                    hint="Convert the tiles to 8 bits first.",
                )
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}") from error


def _resize(picture: Image.Image, zoom: float) -> NDArray[np.uint8]:
    if zoom != 1:
        size = max(16, round(picture.width * zoom)), max(16, round(picture.height * zoom))
        method = Image.Resampling.BOX if zoom < 1 else Image.Resampling.BILINEAR
        picture = picture.resize(size, method)
    return np.asarray(picture)


def _read_groups(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {row["path"]: row["group"] for row in read_csv(path, ("path", "group"))[1]}
