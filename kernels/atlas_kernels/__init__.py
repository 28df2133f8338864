"""Kernels with a plain reference, a fast CPU path and a Triton form each."""

from __future__ import annotations
