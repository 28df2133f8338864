"""A real scheduler and real workers, each a process that can be killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest
import torch
from distributed import LocalCluster
from torch import nn
from typer.testing import CliRunner

from atlas_wsi.cli.app import app, main
from atlas_wsi.slides.synthetic import make_svs

HERE = Path(__file__).parent
DEADLINE_S = 300.0
FAULTS = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(HERE / "faults.py")}
ATLAS_WSI = (sys.executable, "-m", "atlas_wsi.cli.app")
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "False",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
}


class Command:
    """`atlas-wsi` as a process of its own."""

    with_faults = FAULTS
    plain = ("--model", "atlas_test", "--precision", "float32", "--memory", "400MB")

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def here(self, *arguments: object):
        """Run it in this process, which has imported all of it."""
        return CliRunner().invoke(app, [str(a) for a in arguments])

    def run(self, *arguments: object) -> int | None:
        """Run it in a process that has imported what workers do, and done nothing else."""
        before, sys.argv = sys.argv, ["atlas-wsi", *(str(a) for a in arguments)]
        process = multiprocessing.get_context("forkserver").Process(target=main)
        try:
            process.start()
        finally:
            sys.argv = before
        process.join(DEADLINE_S)
        return process.exitcode

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*ATLAS_WSI, *(str(a) for a in arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT | environment,
            start_new_session=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def command():
    """The command line; what it started ends with the test."""
    made = Command()
    yield made
    for process in made.started:
        kill_all(process)


@pytest.fixture
def wait_until():
    """Wait for something that another process does; gives what it gives."""

    def wait(holds, *, what: str):
        deadline = time.monotonic() + DEADLINE_S
        while not (found := holds()):
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            time.sleep(0.01)
        return found

    return wait


def kill_all(process: subprocess.Popen) -> None:
    """Kill a process and those that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


class Processes:
    """`dask scheduler` and `dask worker`, started and killed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.folder = folder
        self.environment = ENVIRONMENT | environment
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.started: list[subprocess.Popen[bytes]] = []

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"dask-{len(self.started)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            stdout=log,
            stderr=log,
            env=self.environment,
            cwd=self.folder,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def start_scheduler(self) -> None:
        self.scheduler = self._start(
            *("scheduler", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--no-dashboard", "--no-jupyter"),
        )

    def start_workers(self, count: int) -> None:
        self._start(
            *("worker", self.address, "--nworkers", str(count), "--nthreads", "1"),
            *("--no-dashboard", "--memory-limit", "0", "--death-timeout", "60"),
            *("--preload", str(HERE / "faults.py"), "--preload-nanny", str(HERE / "nanny.py")),
        )

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        os.kill(self.scheduler.pid, signal.SIGKILL)
        self.scheduler.wait()

    def end(self) -> None:
        for process in self.started:
            kill_all(process)


@pytest.fixture
def processes(tmp_path):
    """A scheduler's and workers' processes, ended with the test."""
    made: list[Processes] = []

    def make(**environment: str) -> Processes:
        made.append(Processes(tmp_path, environment))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def cluster():
    """A cluster of one worker that many archives may share, for it takes seconds to start."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as opened:
        yield opened


@pytest.fixture(scope="session")
def few_slides(tmp_path_factory) -> Path:
    """Three small slides."""
    folder = tmp_path_factory.mktemp("few")
    for seed in range(3):
        make_svs(folder / f"slide{seed}.svs", (512, 768), mpp=1.0, seed=seed, tissue=0.5, levels=2)
    return folder


@pytest.fixture(scope="session")
def tile_classifier(tmp_path_factory) -> Path:
    """The folder of a TorchScript classifier of patches, as WSInfer has them."""
    folder = tmp_path_factory.mktemp("classifier")
    layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        torch.manual_seed(0)
        torch.jit.script(nn.Sequential(*layers)).save(str(folder / "torchscript_model.pt"))
    size = {"name": "Resize", "arguments": {"size": 64}}
    config = {
        "spec_version": "1.0",
        "architecture": "tiny",
        "num_classes": 2,
        "class_names": ["a", "b"],
        "patch_size_pixels": 100,
        "spacing_um_px": 1.0,
        "transform": [size, {"name": "ToTensor"}],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
