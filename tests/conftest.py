"""Standing guards of all tests."""

from __future__ import annotations

import os

# Kernels run in Triton's interpreter: it is chosen when Triton is first imported, by whomever.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _poisoned_memory():
    """Fill tensors that are made empty with NaN, so that a cell nobody wrote cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
