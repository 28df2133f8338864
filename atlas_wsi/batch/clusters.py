"""Clusters: this machine, its GPUs, SLURM, Kubernetes, or a running scheduler."""

from __future__ import annotations

import importlib
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import yaml
from distributed import Client, LocalCluster

from atlas_wsi.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("local", "cuda", "slurm", "kubernetes")
_PACKAGES = {
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
            client = _open(opened, chosen, workers, dict(options or {}))
        except ArchiveError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise ArchiveError(f"The cluster '{chosen}' cannot be opened: {error}.") from error
        yield client


def _open(opened: ExitStack, chosen: str, workers: int | None, options: dict[str, Any]) -> Client:
    address: Any = chosen
    if "://" not in chosen:
        if chosen not in KINDS:
            raise ArchiveError(
                f"There is no cluster '{chosen}'.",
                hint=f"Give one of {', '.join(KINDS)}, or a scheduler's address such as "
                "tcp://host:8786.",
            )
        address = opened.enter_context(_OPEN[chosen](workers, options))
    client: Client = opened.enter_context(Client(address, set_as_default=False))
    return client


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


def _local(workers: int | None, options: dict[str, Any]) -> Any:
    workers = options.pop("workers", None) if workers is None else workers
    defaults = {
        "n_workers": workers or 1,
        "threads_per_worker": 1,
        "dashboard_address": "localhost:0",
    }
    return LocalCluster(**(defaults | options))


def _cuda(workers: int | None, options: dict[str, Any]) -> Any:
    workers = options.pop("workers", None) if workers is None else workers
    defaults = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "localhost:0"}
    return _class_of("cuda")(**(defaults | options))


def _slurm(workers: int | None, options: dict[str, Any]) -> Any:
    defaults = {"cores": 1, "processes": 1} | options
    # one slide at a time; the cores of the job are for torch and for decoding
    defaults["worker_extra_args"] = [*defaults.get("worker_extra_args", ()), "--nthreads 1"]
    return _scaled(_class_of("slurm"), workers, defaults)


def _kubernetes(workers: int | None, options: dict[str, Any]) -> Any:
    defaults = {"name": "atlas-wsi", "worker_command": ["dask-worker", "--nthreads", "1"]} | options
    return _scaled(_class_of("kubernetes"), workers, defaults)


_OPEN = {"local": _local, "cuda": _cuda, "slurm": _slurm, "kubernetes": _kubernetes}


@contextmanager
def _scaled(kind: Any, workers: int | None, options: dict[str, Any]) -> Iterator[Any]:
    """Open a cluster, then set its number of workers."""
    adapt = options.pop("adapt", None)
    in_file = options.pop("workers", None)
    with kind(**options) as cluster:
        if workers is None and adapt is not None:
            cluster.adapt(**adapt)
        else:
            cluster.scale(workers or in_file or 1)
        yield cluster


def _class_of(kind: str) -> Any:
    package, name, install = _PACKAGES[kind]
    try:
        return getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise ArchiveError(
            f"The cluster '{kind}' needs the package {package.partition('.')[0]}: {error}.",
            hint=f"Install it where this command runs: {install}",
        ) from error
