"""Take the napari pictures of the docs in a real window; run under xvfb-run or on a desktop."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication

from napari_atlas_wsi._open import open_viewer
from napari_atlas_wsi._shown import shown_in

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = Path(__file__).parents[1] / "docs/images"
WIDTH, HEIGHT = 1480, 880


def main(slide: str, model: str | None) -> None:
    """Predict a slide in a window and take three pictures of it."""
    viewer = open_viewer(slide)
    viewer.window.resize(WIDTH, HEIGHT)
    panels = {name.split(" (")[0]: w for name, w in viewer.window.dock_widgets.items()}
    predict, heatmap, scales = (panels[n] for n in ("Predict", "Heatmap", "Coarse scales"))
    wait(lambda: predict.card.text() != "")
    if model is not None:
        predict.model_box.setCurrentText(model)
    predict.start()
    wait(lambda: not predict.is_running)
    (shown,) = shown_in(viewer)
    shown.select(int(np.argmax(list(shown.heatmap.areas().values()))))
    heatmap.opacity.setValue(45)
    viewer.fit_to_view()
    take(viewer, heatmap, "napari-heatmap.png")

    shown.layer("probability").visible = False
    shown.layer("classes").visible = True
    heatmap.walk(1)
    viewer.scene.camera.zoom *= 2.2
    take(viewer, heatmap, "napari-classes.png")

    shown.layer("classes").visible = False
    viewer.fit_to_view()
    known = np.argwhere(np.isfinite(shown.heatmap.probabilities[0]))
    row, col = known[len(known) // 2]
    step = shown.heatmap.grid.step_px
    scales.follow.setChecked(True)
    scales.request(shown.frame.to_world((row + 0.5) * step[0], (col + 0.5) * step[1]))
    wait(lambda: scales.scale_box.count() > 0)
    scales.scale_box.setCurrentIndex(scales.scale_box.count() - 1)
    take(viewer, scales, "napari-scales.png")
    viewer.close()


def wait(is_there: Callable[[], bool], seconds: float = 600) -> None:
    """Process events until a condition holds, for some seconds at most."""
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError
        QApplication.processEvents()
        time.sleep(0.01)


def take(viewer: Any, panel: Any, name: str) -> None:
    """Write a picture of the window with a panel in front."""
    panel.parent().raise_()
    begin = time.monotonic()
    wait(lambda: time.monotonic() > begin + 1.5)
    picture = viewer.screenshot(canvas_only=False, flash=False)
    image = Image.fromarray(picture[..., :3])
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        IMAGES / name, optimize=True
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
