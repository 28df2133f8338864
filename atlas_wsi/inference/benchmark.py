"""How fast this machine predicts a slide, and the bottleneck."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import SlideError
from atlas_wsi.inference.predict import plan_slide, predict
from atlas_wsi.inference.provenance import peak_memory_bytes
from atlas_wsi.models.registry import DEFAULTS, load_model
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.streaming.device import Precision, choose_device, choose_dtype, prepare
from atlas_wsi.streaming.fine_windows import FineWindows
from atlas_wsi.streaming.forward import SlideLogits, StreamedPass
from atlas_wsi.streaming.prefetch import prefetch
from atlas_wsi.streaming.shard import macro_tiles
from atlas_wsi.streaming.token_store import RamTokens
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.tissue.mask import tissue_mask

if TYPE_CHECKING:
    import os

    import torch
    from numpy.typing import NDArray

    from atlas_wsi.models.layout import Layout
    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import Progress

_SAMPLE_TILES = 24
_BATCH = 32
_SIDE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Speeds in millions of working pixels per second; halos are not counted."""

    windows: int
    """Active windows of the slide."""
    megapixels: float
    """Working pixels in them."""
    decode_mpx_s: float
    """Reading alone, with all reading threads."""
    encode_mpx_s: float
    """Encoding alone, pixels in memory."""
    whole_mpx_s: float
    """`predict` of the whole slide, without finding tissue and writing."""
    peak_memory_bytes: int
    """Largest resident memory of the process."""
    bound_by: str
    """The bottleneck: ``"decoding"`` or ``"encoding"``."""
    fraction_of_slower: float
    """Speed of the whole relative to the slower of the two alone."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types.

        Returns
        -------
        dict
            Value by field.
        """
        return asdict(self)


def benchmark(
    slide: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    mpp: float | None = None,
    gigapixels: float = 0.1,
    device: str = "auto",
    precision: Precision = "auto",
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Time decoding, encoding and end-to-end prediction of a slide.

    Parameters
    ----------
    slide
        Slide to time; None generates one.
    model
        Name or file of a model; by default that for slides.
    mpp
        Micrometers per pixel, overriding the file.
    gigapixels
        Size of the generated slide.
    device
        As for `predict`.
    precision
        As for `predict`.
    memory
        As for `predict`.
    progress
        Called as the work proceeds.

    Returns
    -------
    Benchmark
        Speeds, and the bottleneck.

    Raises
    ------
    SlideError
        If the slide has no tissue.
    """
    loaded = load_model(model or DEFAULTS["slide"])
    computer = choose_device(device)
    with ExitStack() as opened:
        if slide is None:
            folder = opened.enter_context(TemporaryDirectory(prefix="atlas-wsi-benchmark-"))
            slide, side = Path(folder, "generated.svs"), round((gigapixels * 1e9) ** 0.5)
            make_svs(slide, shape=(side, side), mpp=0.5, tissue=0.3)
        source = opened.enter_context(open_slide(slide, mpp=mpp))
        mask = tissue_mask(source)
        image = open_working_image(source, mpp=loaded.card.mpp, white=loaded.card.white_reflectance)
        layout = plan_slide(loaded, image, mask)
        if layout is None:
            raise SlideError(f"{source.name} has no tissue; there is nothing to time.")
        tiles = macro_tiles(loaded, layout, image.shape, _SIDE)
        window_mpx = (layout.scales[0].side * loaded.config.token_px) ** 2 / 1e6
        sample = tiles[:: max(1, len(tiles) // _SAMPLE_TILES)]
        start = time.perf_counter()
        for _ in prefetch(lambda t: image.read(t.read), sample):
            pass
        seconds = time.perf_counter() - start
        decode = sum(len(tile.windows) for tile in sample) * window_mpx / seconds
        encode = _encode_speed(loaded, computer, precision)
        result = predict(
            source,
            loaded,
            tissue=mask,
            device=device,
            precision=precision,
            memory=memory,
            progress=progress,
        )
    n_windows = layout.scales[0].n_windows
    megapixels = n_windows * window_mpx
    whole = megapixels / result.run.stages_s["encode"]
    slower = min(decode, encode)
    return Benchmark(
        windows=n_windows,
        megapixels=megapixels,
        decode_mpx_s=decode,
        encode_mpx_s=encode,
        whole_mpx_s=whole,
        peak_memory_bytes=peak_memory_bytes(),
        bound_by="decoding" if decode < encode else "encoding",
        fraction_of_slower=whole / slower,
    )


def _encode_speed(model: Model, device: torch.device, precision: Precision) -> float:
    """Time the streamed pass over noise in memory: a square of 2 x 2 macro-tiles."""
    dtype = choose_dtype(device, precision)
    ready = prepare(model, device=device, dtype=dtype)
    side_px = 2 * _SIDE * model.config.window_px
    pixels = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    layout = model.encoder.plan((side_px, side_px))
    best = np.inf
    for _ in range(2):
        start = time.perf_counter()
        encode_array(ready, layout, pixels, batch=_BATCH, side=_SIDE)
        best = min(best, time.perf_counter() - start)
    return float(side_px**2 / 1e6 / best)


def encode_array(
    model: Model,
    layout: Layout,
    pixels: NDArray[np.uint8],
    *,
    batch: int,
    side: int,
    cell_tokens: int = 4,
    state: NDArray[np.uint8] | None = None,
) -> SlideLogits:
    """Run the streamed pass over an image in memory.

    `pixels`: uint8 `(rows, cols, 3)`. `state`: what is known of them, uint8 `(rows, cols)`; None if
    all are observed.
    """
    at = layout.scales[0]
    shape = (pixels.shape[0], pixels.shape[1])
    store = RamTokens(
        (at.n_windows, at.side**2, model.config.dim), dtype=model.encoder.fc.weight.dtype
    )
    share = FineWindows(
        model,
        layout,
        (
            (tile, (pixels[tile.read.slices], None if state is None else state[tile.read.slices]))
            for tile in macro_tiles(model, layout, shape, side)
        ),
        store=store,
        image_shape=shape,
        batch=batch,
        cell_tokens=cell_tokens,
        step=lambda *_: None,
    )
    whole = [(np.arange(at.n_windows), share)]
    return StreamedPass(model, layout, whole, batch=batch).run(cell_tokens=cell_tokens)
