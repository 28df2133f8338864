"""Standing guards of all tests."""

from __future__ import annotations

import os
import signal

# Read when the libraries are first imported, and inherited by the processes that tests start:
# kernels run in Triton's interpreter, and tests use the cores by running side by side, because
# thread pools spin on tensors as small as these.
os.environ["TRITON_INTERPRET"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
torch.set_num_threads(1)

# Processes started in the background, and pytest-xdist's workers, ignore Ctrl-C, and so would all
# that they start: what these tests interrupt must not depend on where they run.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _poisoned_memory():
    """Fill tensors that are made empty with NaN, so that a cell nobody wrote cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items):
    """Begin with the files of slow tests, so that processes side by side end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
