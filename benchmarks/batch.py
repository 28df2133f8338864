"""Measure how an archive scales: submitting 20,000 slides, and two workers against one.

    python benchmarks/batch.py [--slides 20000] [--archive 12] [--latency 1.0] [--json batch.json]

1. No-op slides through the launcher: bytes sent to the scheduler, seconds until all are submitted,
   slides per second from submission to the last answer.
2. One archive with one worker and with two. The slides are on an HTTP server on this machine that
   waits before each answer. The slides are small, so that a few long waits represent the many short
   ones of a large slide in an object store: the bottleneck is the store, not the cores that both
   workers share. Workers are started, and each predicts one slide, before timing begins, so that
   loading the model is not measured. The results of both runs are compared to the bit; if they
   differ, nothing is printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from distributed import Client, LocalCluster
from distributed.protocol import dumps

import atlas_wsi
from atlas_wsi.batch.journal import Journal, SlideRequest
from atlas_wsi.batch.options import BatchOptions, RunOptions
from atlas_wsi.batch.run import Launcher, predict_archive
from atlas_wsi.batch.task import Outcome
from atlas_wsi.progress import CancelToken
from atlas_wsi.slides.synthetic import make_svs

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = BatchOptions(
    model="atlas_test", precision="float32", memory="400MB", formats=("ome-zarr",)
)


def no_op(_run: str, _place: int, *, sharded: bool = False) -> Outcome:  # noqa: ARG001
    return Outcome("done")


def submit(n: int, folder: Path) -> dict[str, float]:
    slides = [SlideRequest(name=f"slide{k:06}", source=f"/archive/{k:060}.svs") for k in range(n)]
    sent: list[int] = []
    send = Client._send_to_scheduler

    def watch(self: Client, message: object) -> None:
        sent.append(sum(len(frame) for frame in dumps(message)))
        send(self, message)

    launcher = Launcher(
        *(Journal(folder), slides, range(n), OPTIONS, RunOptions()),
        cancel=CancelToken(),
        task=no_op,
    )
    with cluster_of(2) as client:
        Client._send_to_scheduler = watch
        begun = time.perf_counter()
        futures = launcher.submit(client, launcher.waiting())
        client.scheduler_info()
        submitted = time.perf_counter() - begun
        Client._send_to_scheduler = send
        client.gather(futures)
        whole = time.perf_counter() - begun
    return {
        "slides": n,
        "sent_bytes": sum(sent),
        "submit_s": round(submitted, 3),
        "no_op_slides_a_second": round(n / whole, 1),
    }


@contextmanager
def cluster_of(workers: int) -> Iterator[Client]:
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        yield client


class FarAway(BaseHTTPRequestHandler):
    """Serve files in parts, each after a delay."""

    protocol_version = "HTTP/1.1"
    folder: Path
    latency_s: float

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.latency_s)
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size, asked = file.stat().st_size, self.headers.get("Range")
        first, last = 0, size - 1
        if asked:
            low, high = asked.removeprefix("bytes=").split("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as source:
                source.seek(first)
                self.wfile.write(source.read(last - first + 1))


def serve(folder: str, latency_s: float, port: object) -> None:
    FarAway.folder, FarAway.latency_s = Path(folder), latency_s
    server = ThreadingHTTPServer(("127.0.0.1", 0), FarAway)
    port.send(server.server_port)
    server.serve_forever()


def scale(n: int, latency_s: float, folder: Path) -> dict[str, float]:
    slides = folder / "slides"
    slides.mkdir()
    for k in range(n + 2):
        make_svs(slides / f"slide{k:02}.svs", (1024 + 16 * k, 1536), mpp=1.0, tissue=0.4, levels=2)
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve, args=(str(slides), latency_s, there), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{here.recv()}"
    names = sorted(p.name for p in slides.iterdir())
    seconds = {}
    try:
        for workers in (1, 2):
            with cluster_of(workers) as client:
                address = client.scheduler.address
                for part, chosen in (("warm", names[-2:]), ("all", names[:n])):
                    table = folder / f"{part}.csv"
                    table.write_text("\n".join(["slide", *(f"{base}/{name}" for name in chosen)]))
                    begun = time.perf_counter()
                    status = predict_archive(
                        table, folder / f"{part}{workers}", options=OPTIONS, cluster=address
                    )
                    seconds[workers] = time.perf_counter() - begun
                    if status.count("done") != len(chosen):
                        sys.exit(f"not all slides were finished: {status.as_json()}")
    finally:
        server.kill()
    for name in names[:n]:
        one, two = (
            atlas_wsi.open_result(folder / f"all{k}" / Path(name).stem).probabilities
            for k in (1, 2)
        )
        if not np.array_equal(one, two, equal_nan=True):
            sys.exit(f"{name} differs between one worker and two")
    return {
        "archive": n,
        "latency_s": latency_s,
        "one_worker_s": round(seconds[1], 2),
        "two_workers_s": round(seconds[2], 2),
        "speed_up": round(seconds[1] / seconds[2], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=20_000)
    parser.add_argument("--archive", type=int, default=12)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "scaling": scale(asked.archive, asked.latency, Path(folder)),
            "submitting": submit(asked.slides, Path(folder) / "no-op"),
        }
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
