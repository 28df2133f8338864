"""Kernels run in Triton's interpreter: it is chosen when a kernel is defined, so before imports."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
