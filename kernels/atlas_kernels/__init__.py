"""Kernels with a plain reference, a fast CPU path and a Triton form each."""

from __future__ import annotations

from atlas_kernels.selective_scan import selective_scan

__all__ = ["selective_scan"]
