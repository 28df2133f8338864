"""Clusters: this machine, its GPUs, SLURM, Kubernetes, or a running scheduler."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import yaml
from distributed import Client
from distributed.utils import get_mp_context

from atlas_wsi.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLASSES = {
    "local": ("distributed", "LocalCluster", "pip install distributed"),
    "cuda": ("dask_cuda", "LocalCUDACluster", "pip install dask-cuda"),
    "slurm": ("dask_jobqueue", "SLURMCluster", "pip install 'atlas-wsi[cluster]'"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster", "pip install 'atlas-wsi[cluster]'"),
}
_SETTINGS = {
    # attempts of a slide that kills its workers are counted on disk; dask counts every task
    # that was assigned to a worker that died
    "distributed.scheduler.allowed-failures": 1_000_000,
    # workers prefetch no slide: what waits at the scheduler can go to any worker
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.pause": False,
}
_IMPORTED_ONCE = (
    *("distributed", "matplotlib.backends.backend_agg", "matplotlib.figure", "skimage.filters"),
    *(
        "atlas_wsi.batch.task",
        "atlas_wsi.slides.formats.omezarr",
        "atlas_wsi.slides.formats.raster",
    ),
)
"""Modules of all workers of this machine."""


@contextmanager
def connect(
    cluster: str | None = None,
    *,
    workers: int | None = None,
    options: dict[str, Any] | None = None,
) -> Iterator[Client]:
    """Open a cluster."""
    chosen = cluster or "local"
    with dask.config.set(_SETTINGS), ExitStack() as opened:
        try:
            address: Any = chosen
            if "://" not in chosen:
                address = opened.enter_context(_start(chosen, workers, dict(options or {})))
            client = opened.enter_context(Client(address, set_as_default=False))
        except ArchiveError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise ArchiveError(f"The cluster '{chosen}' cannot be opened: {error}.") from error
        yield client


def read_cluster_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the options of a cluster from a YAML file."""
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArchiveError(f"{os.fspath(path)} cannot be read: {error}.") from error
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ArchiveError(
            f"{os.fspath(path)} has no options.", hint="Write lines such as `queue: gpu`."
        )
    return options


@contextmanager
def _start(kind: str, workers: int | None, options: dict[str, Any]) -> Iterator[Any]:
    """Start a cluster with workers that do one slide at a time."""
    start = _class_of(kind)
    in_file, adapt = options.pop("workers", None), None
    n_workers = workers or in_file
    defaults: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": "localhost:0"}
    if kind == "local":
        defaults["n_workers"] = n_workers or 1
        share_imports()
    elif kind == "cuda":
        defaults["n_workers"] = n_workers
    elif kind == "slurm":
        defaults = {"cores": 1, "processes": 1}
        # the cores of the job are for torch and for decoding
        options["worker_extra_args"] = [*options.get("worker_extra_args", ()), "--nthreads 1"]
    else:
        command = ["dask-worker", "--nthreads", "1"]
        defaults = {"name": "atlas-wsi", "worker_command": command}
    if "n_workers" not in defaults:
        adapt = options.pop("adapt", None)
    with start(**(defaults | options)) as cluster:
        if workers is None and adapt is not None:
            cluster.adapt(**adapt)
        elif "n_workers" not in defaults:
            cluster.scale(n_workers or 1)
        yield cluster


def share_imports() -> None:
    """Fork the next workers from a process that has imported what they need, where that works."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
        get_mp_context().set_forkserver_preload(list(_IMPORTED_ONCE))


def _class_of(kind: str) -> Any:
    if kind not in _CLASSES:
        raise ArchiveError(
            f"There is no cluster '{kind}'.",
            hint=f"Give one of {', '.join(_CLASSES)}, or a scheduler's address such as "
            "tcp://host:8786.",
        )
    package, name, install = _CLASSES[kind]
    try:
        return getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise ArchiveError(
            f"The cluster '{kind}' needs the package {package.partition('.')[0]}: {error}.",
            hint=f"Install it where this command runs: {install}",
        ) from error
