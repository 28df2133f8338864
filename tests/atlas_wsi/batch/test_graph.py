"""What is sent to the scheduler stays small, however many slides there are."""

from __future__ import annotations

import pytest
from distributed import Client, LocalCluster
from distributed.protocol import dumps

from atlas_wsi.batch.journal import Journal, SlideRequest
from atlas_wsi.batch.options import BatchOptions, RunOptions
from atlas_wsi.batch.run import Launcher
from atlas_wsi.batch.task import Outcome
from atlas_wsi.progress import CancelToken

N = 20_000


def no_op(_run: str, _place: int, *, sharded: bool = False) -> Outcome:
    return Outcome("done")


@pytest.fixture
def client():
    """A scheduler without workers."""
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


def test_twenty_thousand_slides_are_less_than_a_megabyte(client, tmp_path, monkeypatch):
    slides = [
        SlideRequest(name=f"a slide with a long name {n}", source=f"/archive/{n:040}.svs")
        for n in range(N)
    ]
    launcher = Launcher(
        *(Journal(tmp_path), slides, range(N), BatchOptions(), RunOptions()),
        cancel=CancelToken(),
        task=no_op,
    )
    sent = []
    send = Client._send_to_scheduler

    def watch(self, message):
        sent.append(sum(len(frame) for frame in dumps(message)))
        send(self, message)

    monkeypatch.setattr(Client, "_send_to_scheduler", watch)
    futures = launcher.submit(client, launcher.waiting())
    assert len(futures) == N
    assert 20_000 < sum(sent) < 1_000_000
