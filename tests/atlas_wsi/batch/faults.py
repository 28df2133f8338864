"""Preloaded by the workers of a test: what can happen to a process, and a record of what it did.

`dask worker --preload` loads this file; nothing in atlas-wsi knows of it.
"""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import sys

FINISHED = os.environ.get("FAULTS_FINISHED")


def _is_result(old: str, new: str) -> bool:
    return pathlib.Path(old).is_dir() and ".partial-" in old and ".partial-" not in new


def _watch(event: str, args: tuple) -> None:
    if event == "open" and str(args[0]).endswith("poison.svs"):
        os.kill(os.getpid(), signal.SIGKILL)
    if FINISHED and event == "os.rename" and _is_result(*map(str, args[:2])):
        line = os.open(FINISHED, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(line, f"{os.getpid()} {args[1]}\n".encode())
        os.close(line)


if "FAULTS_FILE_BYTES" in os.environ:  # no file may be larger: a disk that is full
    most = int(os.environ["FAULTS_FILE_BYTES"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
if not hasattr(sys, "faults"):  # dask may load a preload twice, and a hook cannot be removed
    sys.faults = True
    sys.addaudithook(_watch)
