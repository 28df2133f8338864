from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from atlas_wsi.heatmap.formats.png import write_png

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.heatmap.heatmap import Heatmap


def drawn(heatmap: Heatmap, path: Path, thumbnail: np.ndarray | None = None) -> np.ndarray:
    assert write_png(heatmap, path, thumbnail) == ()
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def thumbnail_of(heatmap: Heatmap, color=(120, 200, 230)) -> np.ndarray:
    rows, cols = (max(1, n // 20) for n in heatmap.slide.shape)
    return np.full((rows, cols, 3), color, np.uint8)


def share(picture: np.ndarray, color) -> float:
    return (np.abs(picture - color).max(-1) <= 4).mean()


@pytest.mark.parametrize(
    "shape", [(30, 40), (200, 20), (20, 200), (1, 1), (2, 300), (300, 2)], ids=str
)
def test_slides_of_any_shape_give_a_picture_that_fits_a_screen(
    make_heatmap, tmp_path: Path, shape
) -> None:
    heatmap = make_heatmap(shape, tissue=1)
    picture = drawn(heatmap, tmp_path / "a.png", thumbnail_of(heatmap))
    assert 400 <= picture.shape[0] <= 1600
    assert 700 <= picture.shape[1] <= 2600
    assert share(picture, (120, 200, 230)) > 0.001


def test_the_slide_is_drawn_in_its_colors_and_the_classes_over_it_in_gray(
    make_heatmap, tmp_path: Path
) -> None:
    heatmap = make_heatmap(winner=np.where(np.arange(40) < 20, -1, 0)[None].repeat(30, 0))
    picture = drawn(heatmap, tmp_path / "a.png", thumbnail_of(heatmap))
    assert share(picture, (120, 200, 230)) > 0.2  # the whole slide on the left
    gray = round(np.dot((120, 200, 230), (0.299, 0.587, 0.114)))
    assert share(picture, (gray,) * 3) > 0.1  # glass in the overlay
    reddish = (picture[..., 0] - picture[..., 1] > 50) & (picture[..., 0] - picture[..., 2] > 50)
    assert reddish.mean() > 0.1


def test_a_certain_class_is_stronger_than_a_doubtful_one(make_heatmap, tmp_path: Path) -> None:
    made = make_heatmap(winner=np.zeros((30, 40), int), n_classes=2)
    certain, doubtful = made.probabilities.copy(), made.probabilities.copy()
    certain[0], certain[1] = 1, 0
    doubtful[0], doubtful[1] = 0.51, 0.49
    strength = []
    for values in (certain, doubtful):
        made.probabilities[...] = values
        picture = drawn(made, tmp_path / "a.png", thumbnail_of(made, (200, 200, 200)))
        strength.append((picture[..., 0] - picture[..., 1]).clip(0).mean())
    assert strength[0] > 2 * strength[1]


def test_without_tissue_the_picture_says_so(make_heatmap, tmp_path: Path) -> None:
    empty = make_heatmap(tissue=0)
    picture = drawn(empty, tmp_path / "a.png", thumbnail_of(empty, (240, 240, 240)))
    background = (np.abs(picture - 240).max(-1) <= 3) | (picture.min(-1) == 255)
    assert (~background).mean() < 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("n_channels", [1, 2, 4, 6])
def test_bands_of_a_scene_are_stretched_to_what_the_eye_sees(
    make_heatmap, tmp_path: Path, dtype, n_channels
) -> None:
    scene = make_heatmap(tissue=0, is_scene=True)
    dim = np.linspace(10, 60, 200 * 250).reshape(200, 250, 1).repeat(n_channels, -1).astype(dtype)
    if dtype == np.float32:
        dim[:10] = np.nan
    picture = drawn(scene, tmp_path / "a.png", dim)
    inside = picture[200:-200, 100 : picture.shape[1] // 3]
    assert inside.std() > 30


def test_without_a_thumbnail_the_tissue_mask_stands_in(heatmap: Heatmap, tmp_path: Path) -> None:
    assert share(drawn(heatmap, tmp_path / "a.png"), (222,) * 3) > 0.05


def test_names_from_anywhere_can_be_drawn(make_heatmap, tmp_path: Path) -> None:
    names = ("$x^2$ {not} \\maths", "日本語 😐", "a\nb", "n" * 300)
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            heatmap = make_heatmap((6, 8), name=name)
            drawn(heatmap, tmp_path / "a.png", thumbnail_of(heatmap))


def test_the_picture_leaves_no_trace_in_matplotlib(heatmap: Heatmap, tmp_path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams), mpl.get_backend()
    drawn(heatmap, tmp_path / "a.png")
    assert (dict(mpl.rcParams), mpl.get_backend()) == before
    assert plt.get_fignums() == []
