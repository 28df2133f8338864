"""One slide on several workers: shards of its fine windows there, the coarse scales here."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from distributed import get_client, get_worker

from atlas_wsi.batch.options import open_request
from atlas_wsi.inference.predict import check_cell_px, choose_model
from atlas_wsi.models.model import Model
from atlas_wsi.streaming.device import choose_device, choose_dtype, prepare
from atlas_wsi.streaming.shard import open_share, plan_for
from atlas_wsi.streaming.working_image import open_working_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from atlas_wsi.batch.journal import SlideRequest
    from atlas_wsi.batch.worker import BatchWorker
    from atlas_wsi.models.layout import Layout
    from atlas_wsi.streaming.fine_windows import Attended, Fine, FineReading, Pooled
    from atlas_wsi.streaming.plan import MemoryPlan
    from atlas_wsi.streaming.shard import OpenShares, Shares
    from atlas_wsi.streaming.working_image import WorkingImage

T = TypeVar("T", "Pooled", "Attended")
ACTOR_S = 600
"""Seconds in which a worker must have opened its shard."""


class ShardActor:
    """A shard in the process of another worker: a dask actor that opens the slide and the model.

    `active`: bool `(rows, cols)`, the windows of the whole slide that are encoded.
    """

    def __init__(
        self,
        plugin: str,
        request: SlideRequest,
        active: NDArray[np.bool_],
        memory_bytes: int,
        batch_size: int | None,
        *,
        number: int,
        of: int,
    ) -> None:
        worker: Any = get_worker().plugins[plugin]
        options = worker.options
        self._open = ExitStack()
        slide = self._open.enter_context(open_request(request, options))
        model, _ = choose_model(slide, options.model)
        assert isinstance(model, Model)
        image = open_working_image(slide, mpp=model.card.mpp, white=model.card.white_reflectance)
        layout = model.encoder.plan(image.shape, active_windows=active)
        members = _divide(layout.scales[0].n_windows, of)[number]
        shard = layout.share(members)
        device = choose_device(worker.run_options.device)
        dtype = choose_dtype(device, options.precision)
        plan = plan_for(*(model, shard, memory_bytes), itemsize=dtype.itemsize, batch=batch_size)
        self._shard = self._open.enter_context(
            open_share(
                *(prepare(model, device=device, dtype=dtype), shard, image, plan),
                cell_tokens=check_cell_px(model, options.cell_px) // model.config.token_px,
                step=lambda *_: None,
                work=_work(worker, request, number, of),
            )
        )

    def encode(self) -> Pooled:
        """Read and encode every window."""
        return _to_cpu(self._shard.encode())

    def attend(
        self,
        number: int,
        coarse: torch.Tensor | None,
        kv: Sequence[torch.Tensor],
        valid: Sequence[torch.Tensor],
    ) -> Attended:
        """Run one block over every window."""
        return _to_cpu(self._shard.attend(number, coarse, kv, valid))

    def reading(self) -> FineReading:
        """Return what was read after the last block."""
        return self._shard.reading()

    def close(self) -> None:
        """Close the slide and drop the windows."""
        self._open.close()


class RemoteShard:
    """A shard in another process, as the streamed pass sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def encode(self) -> Pooled:
        """Read and encode every window, there."""
        return cast("Pooled", self._actor.encode().result())

    def attend(
        self,
        number: int,
        coarse: torch.Tensor | None,
        kv: Sequence[torch.Tensor],
        valid: Sequence[torch.Tensor],
    ) -> Attended:
        """Run one block over every window, there."""
        above = None if coarse is None else coarse.cpu()
        given = [t.cpu() for t in kv], [t.cpu() for t in valid]
        return cast("Attended", self._actor.attend(number, above, *given).result())

    def reading(self) -> FineReading:
        """Return what was read after the last block, there."""
        return cast("FineReading", self._actor.reading().result())


def shards_over_workers(
    worker: BatchWorker, slide: SlideRequest
) -> Callable[[int, int | None], OpenShares]:
    """Distribute a slide over all workers of the cluster, this one among them."""
    client, here = get_client(), get_worker().address
    others = [address for address in client.scheduler_info()["workers"] if address != here]

    def shards(memory: int, batch_size: int | None) -> OpenShares:
        @contextmanager
        def opened(
            model: Model,
            layout: Layout,
            image: WorkingImage,
            plan: MemoryPlan,
            step: Callable[[str, int], None],
        ) -> Iterator[Shares]:
            window_px = model.config.window_px
            active = np.zeros([-(-n // window_px) for n in image.shape], dtype=bool)
            active[tuple(layout.scales[0].where[:, 1:].T)] = True
            members = _divide(layout.scales[0].n_windows, len(others) + 1)
            futures = [
                client.submit(
                    *(ShardActor, worker.name, slide, active, memory, batch_size),
                    number=number,
                    of=len(members),
                    actor=True,
                    workers=[address],
                    pure=False,
                )
                for number, address in enumerate(others[: len(members) - 1], start=1)
            ]
            actors: list[Any] = []
            try:
                actors += [future.result(timeout=ACTOR_S) for future in futures]
                with open_share(
                    *(model, layout.share(members[0]), image, plan),
                    cell_tokens=check_cell_px(model, worker.options.cell_px)
                    // model.config.token_px,
                    step=step,
                    work=_work(worker, slide, 0, len(members)),
                ) as first:
                    windows: list[Fine] = [first, *(RemoteShard(actor) for actor in actors)]
                    yield list(zip(members, windows, strict=True))
            finally:
                for actor in actors:
                    actor.close().result()
                client.cancel(futures)

        return opened

    return shards


def _divide(n_windows: int, shards: int) -> list[NDArray[np.int64]]:
    """Divide windows, in row order, into bands of about equal size."""
    return np.array_split(np.arange(n_windows, dtype=np.int64), min(shards, n_windows))


def _work(worker: BatchWorker, slide: SlideRequest, number: int, of: int) -> Path:
    return worker.journal.work_folder / slide.name / f"{number}-of-{of}"


def _to_cpu(record: T) -> T:
    """Move the tensors of a record to the CPU: other workers may have no such GPU."""
    values = ((field.name, getattr(record, field.name)) for field in fields(record))
    return replace(record, **{name: value.cpu() for name, value in values})
