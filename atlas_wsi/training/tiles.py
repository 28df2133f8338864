"""Labeled tiles: class folders on disk, split so that copies never cross."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
from PIL import Image

from atlas_wsi.errors import DatasetError
from atlas_wsi.files import BoundedFile, read_csv
from atlas_wsi.training.loop import TileWork
from atlas_wsi.training.metrics import tile_logits

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import Progress
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.steps import Work

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
GROUPS_FILE = "groups.csv"
_MIN_PX, _MAX_PX = 64, 2048
_MAX_NAME = 100
_DRAWS = 1000
_DEEP_MODES = {"I", "F"}


class Labeled(Protocol):
    """What a model is trained and measured on: tiles, or whole slides."""

    unit: ClassVar[str]
    """``"tiles"`` or ``"slides"``."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """Pictures, `(n, rows, cols, 3)`: the tiles, or a sample of windows of the slides."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """`(N,)` index into `classes`."""

    @property
    def groups(self) -> tuple[str, ...]:
        """`N` names; one group is kept on one side of a split."""

    @property
    def paths(self) -> tuple[str, ...]:
        """`N` names of files."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def is_grouped(self) -> bool:
        """Whether the groups were given."""

    @property
    def arguments(self) -> dict[str, int]:
        """What decides a training beside recipe and pictures."""

    def __len__(self) -> int: ...

    def subset(self, which: NDArray[np.int64]) -> Self:
        """Return some of them, with the same classes."""

    def work(self, model: Model, recipe: Recipe) -> Work:
        """Return the steps of a training on them."""

    def logits(
        self, model: Model, *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return a model's logits, `(N, K, Y, X)`, and where they are valid, `(N, Y, X)`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileSet:
    """Tiles of one size with a class and a group each."""

    unit: ClassVar[str] = "tiles"

    images: NDArray[np.uint8]
    """`(N, rows, cols, 3)`."""
    labels: NDArray[np.int64]
    """`(N,)` index into `classes`."""
    groups: tuple[str, ...]
    """`N` names; tiles of one group are kept on one side of a split."""
    paths: tuple[str, ...]
    """`N` paths relative to the folder."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted."""
    is_grouped: bool
    """Whether the groups were given, or every tile stands for itself."""

    @property
    def arguments(self) -> dict[str, int]:
        """Nothing: recipe and tiles decide a training."""
        return {}

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, which: NDArray[np.int64]) -> TileSet:
        """Return some of the tiles."""
        return TileSet(
            images=self.images[which],
            labels=self.labels[which],
            groups=tuple(self.groups[i] for i in which),
            paths=tuple(self.paths[i] for i in which),
            classes=self.classes,
            is_grouped=self.is_grouped,
        )

    def work(self, model: Model, recipe: Recipe) -> Work:
        """Return the steps of a training on these tiles."""
        return TileWork(model, self, recipe)

    def logits(
        self, model: Model, *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Run a model on the tiles, one by one."""
        return tile_logits(model, self.images, progress=progress)


def read_tiles(
    folder: str | os.PathLike[str], *, zoom: float = 1.0, progress: Progress | None = None
) -> TileSet:
    """Read a folder of class folders of tiles."""
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder.", hint="Give a folder with a folder a class.")
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
        found = ", ".join(f"{n} ({c} tiles)" for n, c in zip(classes, counts, strict=True))
        raise DatasetError(
            f"{root} needs two or more class folders with two or more tiles each, "
            f"found {found or 'none'}.",
            hint=f"Tiles are {', '.join(sorted(SUFFIXES))} files.",
        )
    images: list[NDArray[np.uint8]] = []
    for done, (_, path) in enumerate(files, start=1):
        images.append(_read_tile(path, zoom))
        if images[-1].shape != images[0].shape:
            raise DatasetError(
                f"{path} has {images[-1].shape[0]} x {images[-1].shape[1]} pixels, the tiles "
                f"before it {images[0].shape[0]} x {images[0].shape[1]}; all must be alike."
            )
        if progress is not None:
            progress("read tiles", done, len(files))
    paths = tuple(path.relative_to(root).as_posix() for _, path in files)
    given = _read_groups(root / GROUPS_FILE)
    missing = next((path for path in paths if given and path not in given), None)
    if missing is not None:
        raise DatasetError(f"{root / GROUPS_FILE} has no group for {missing}.")
    return TileSet(
        images=np.stack(images),
        labels=np.array([label for label, _ in files], dtype=np.int64),
        groups=tuple(given.get(path, path) for path in paths),
        paths=paths,
        classes=classes,
        is_grouped=bool(given),
    )


def split(
    tiles: Labeled, *, held_out: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide tiles into training and held-out ones, class by class and by whole groups."""
    rng = np.random.default_rng(seed)
    classes_of: dict[str, set[int]] = {}
    for group, label in zip(tiles.groups, tiles.labels.tolist(), strict=True):
        classes_of.setdefault(group, set()).add(label)
    if any(len(found) > 1 for found in classes_of.values()):
        out = _draw_mixed(tiles, classes_of, held_out, rng)
    else:
        out = _draw_pure(tiles, classes_of, held_out, rng)
    is_out = np.array([group in out for group in tiles.groups])
    return np.flatnonzero(~is_out), np.flatnonzero(is_out)


def _draw_pure(
    tiles: Labeled, classes_of: dict[str, set[int]], held_out: float, rng: np.random.Generator
) -> set[str]:
    """Draw groups class by class."""
    out: set[str] = set()
    for label, name in enumerate(tiles.classes):
        groups = sorted(group for group, owners in classes_of.items() if label in owners)
        n = round(len(groups) * held_out)
        if not 0 < n < len(groups):
            raise DatasetError(
                f"The class {name} has {len(groups)} groups; holding out {held_out:.0%} of them "
                "leaves one side empty."
            )
        out.update(rng.permutation(groups)[:n].tolist())
    return out


def _draw_mixed(
    tiles: Labeled, classes_of: dict[str, set[int]], held_out: float, rng: np.random.Generator
) -> set[str]:
    """Draw groups of several classes, such as slides, so that both sides have every class."""
    groups = sorted(classes_of)
    n = round(len(groups) * held_out)
    everything = set(range(len(tiles.classes)))
    for _ in range(_DRAWS if 0 < n < len(groups) else 0):
        out = set(rng.permutation(groups)[:n].tolist())
        sides = (out, set(groups) - out)
        if all(set().union(*(classes_of[g] for g in side)) == everything for side in sides):
            return out
    raise DatasetError(
        f"No {held_out:.0%} of the {len(groups)} groups leave every class on both sides.",
        hint="Label every class in more groups (slides, patients), or hold out another share.",
    )


def split_three(
    tiles: Labeled, *, held_out: float, validation: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Divide tiles into those to train on, to choose by, and to measure once at the end."""
    known, asked = split(tiles, held_out=held_out, seed=seed)
    if not validation:
        return known, np.empty(0, np.int64), asked
    rest, chosen = split(tiles.subset(known), held_out=validation, seed=seed + 1)
    return known[rest], known[chosen], asked


def _read_tile(path: Path, zoom: float) -> NDArray[np.uint8]:
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            if not all(_MIN_PX <= n <= _MAX_PX for n in image.size):
                raise DatasetError(
                    f"{path} has {image.height} x {image.width} pixels, "
                    f"expected {_MIN_PX} to {_MAX_PX} a side."
                )
            if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
                raise DatasetError(
                    f"{path} has more than 8 bits a channel (mode {image.mode}), expected 8.",
                    hint="Convert the tiles to 8 bits first.",
                )
            picture = image.convert("RGB")
            if zoom != 1:
                size = max(16, round(image.width * zoom)), max(16, round(image.height * zoom))
                how = Image.Resampling.BOX if zoom < 1 else Image.Resampling.BILINEAR
                picture = picture.resize(size, how)
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}") from error


def _read_groups(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {row["path"]: row["group"] for row in read_csv(path, ("path", "group"))[1]}
