"""One slide on several workers: shares of its fine windows there, the coarse scales here."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from distributed import get_client, get_worker

from atlas_wsi.inference.predict import plan_layout
from atlas_wsi.models.stem import STRIDE_PX
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.device import choose_device, choose_dtype, prepare
from atlas_wsi.streaming.shard import open_share, plan_for
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.tissue.mask import tissue_mask
from atlas_wsi.tissue.windows import plan_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from atlas_wsi.batch.journal import SlideAsked
    from atlas_wsi.batch.task import BatchWorker
    from atlas_wsi.models.layout import Layout
    from atlas_wsi.models.model import Model
    from atlas_wsi.streaming.fine_windows import Attended, Fine, FineReading, Pooled
    from atlas_wsi.streaming.plan import MemoryPlan
    from atlas_wsi.streaming.shard import OpenShares, Shares
    from atlas_wsi.streaming.working_image import WorkingImage

T = TypeVar("T", "Pooled", "Attended")
ACTOR_S = 600
"""Seconds in which a worker must have opened its share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAsked:
    """Which share of which slide: identifiers, from which a worker makes the rest itself."""

    plugin: str
    """Name of the plugin that knows the archive."""
    slide: SlideAsked
    """The slide."""
    number: int
    """Which share."""
    of: int
    """Of how many."""
    n_windows: int
    """Active windows of the slide, as the worker must find them too."""
    memory_bytes: int
    """Memory of the encoder."""
    batch_size: int | None
    """Windows that attend at once."""


def divide(n_windows: int, shares: int) -> list[NDArray[np.int64]]:
    """Divide windows, which lie in rows, into bands of about equal size."""
    return np.array_split(np.arange(n_windows, dtype=np.int64), shares)


class ShareActor:
    """A share of a slide's windows in the process of a worker: a dask actor."""

    def __init__(self, asked: ShareAsked) -> None:
        desk: Any = get_worker().plugins[asked.plugin]
        options = desk.options
        self._open = ExitStack()
        source = asked.slide
        slide = self._open.enter_context(
            open_slide(source.source, mpp=source.mpp or options.mpp, strict=options.strict)
        )
        model, _ = desk.model_for(slide)
        image = open_working_image(slide, mpp=model.card.mpp)
        windows = plan_windows(
            slide.shape,
            slide.require_mpp(),
            tissue_mask(slide, keep_fat=options.keep_fat),
            mpp=image.mpp,
            window_px=model.config.window_px,
        )
        layout = plan_layout(model, image, windows)
        if layout.scales[0].n_windows != asked.n_windows:
            raise RuntimeError(f"{slide.path} has other windows here than on the first worker")
        mine = layout.share(divide(asked.n_windows, asked.of)[asked.number])
        device = choose_device(desk.how.device)
        dtype = choose_dtype(device, options.precision)
        self._share = self._open.enter_context(
            open_share(
                prepare(model, device=device, dtype=dtype),
                mine,
                image,
                plan_for(
                    model, mine, asked.memory_bytes, itemsize=dtype.itemsize, batch=asked.batch_size
                ),
                cell_tokens=options.cell_px // STRIDE_PX,
                step=lambda *_: None,
                work=_work(desk, asked.slide, asked.number, asked.of),
            )
        )

    def encode(self) -> Pooled:
        """Read and encode every window."""
        return _to_cpu(self._share.encode())

    def attend(
        self, number: int, coarse: torch.Tensor | None, kv: Sequence[torch.Tensor]
    ) -> Attended:
        """Run one block over every window."""
        return _to_cpu(self._share.attend(number, coarse, kv))

    def reading(self) -> FineReading:
        """Return what was read after the last block."""
        return self._share.reading()

    def close(self) -> None:
        """Close the slide and forget the windows."""
        self._open.close()


class RemoteShare:
    """A share in another process, as the streamed pass sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def encode(self) -> Pooled:
        """Read and encode every window, there."""
        made: Pooled = self._actor.encode().result()
        return made

    def attend(
        self, number: int, coarse: torch.Tensor | None, kv: Sequence[torch.Tensor]
    ) -> Attended:
        """Run one block over every window, there."""
        above = None if coarse is None else coarse.cpu()
        made: Attended = self._actor.attend(number, above, [t.cpu() for t in kv]).result()
        return made

    def reading(self) -> FineReading:
        """Return what was read after the last block, there."""
        read: FineReading = self._actor.reading().result()
        return read


def spread_over_workers(
    desk: BatchWorker, slide: SlideAsked, *, memory: int, batch_size: int | None
) -> OpenShares:
    """Spread a slide over all workers of the cluster, this one among them."""
    client, here = get_client(), get_worker().address
    others = [address for address in client.scheduler_info()["workers"] if address != here]

    @contextmanager
    def opened(
        model: Model,
        layout: Layout,
        image: WorkingImage,
        plan: MemoryPlan,
        step: Callable[[str, int], None],
    ) -> Iterator[Shares]:
        n = layout.scales[0].n_windows
        members = divide(n, min(n, len(others) + 1))
        asked = [
            ShareAsked(
                plugin=desk.name,
                slide=slide,
                number=number,
                of=len(members),
                n_windows=n,
                memory_bytes=memory,
                batch_size=batch_size,
            )
            for number in range(len(members))
        ]
        futures = [
            client.submit(ShareActor, one, actor=True, workers=[address], pure=False)
            for one, address in zip(asked[1:], others, strict=False)
        ]
        actors: list[Any] = []
        try:
            actors += [future.result(timeout=ACTOR_S) for future in futures]
            with open_share(
                *(model, layout.share(members[0]), image, plan),
                cell_tokens=desk.options.cell_px // STRIDE_PX,
                step=step,
                work=_work(desk, slide, 0, len(members)),
            ) as first:
                shares: list[Fine] = [first, *(RemoteShare(actor) for actor in actors)]
                yield list(zip(members, shares, strict=True))
        finally:
            for actor in actors:
                actor.close().result()
            client.cancel(futures)

    return opened


def _work(desk: BatchWorker, slide: SlideAsked, number: int, of: int) -> Any:
    return desk.journal.work_folder / slide.name / f"{number}-of-{of}"


def _to_cpu(made: T) -> T:
    """Move the tensors of a record to the CPU: other workers may have no such GPU."""
    held = ((field.name, getattr(made, field.name)) for field in fields(made))
    return replace(made, **{name: value.cpu() for name, value in held})
