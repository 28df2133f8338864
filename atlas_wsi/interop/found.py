"""What `inspect_file` says: facts in plain types, cut to a size that a person reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_PARTS = 1000
MAX_TEXT = 1000
MAX_ITEMS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An array, table or file inside."""

    name: str
    """Its path inside."""
    shape: tuple[int, ...] = ()
    """Its size; empty if it has none."""
    dtype: str = ""
    """Type of its values."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What it says of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is in a file or folder."""

    kind: str
    """What it is."""
    writer: str = ""
    """Which program writes such files; empty if many do."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Classes, resolution and the like, in JSON types."""
    parts: tuple[Part, ...] = ()
    """What it is made of, at most `MAX_PARTS`."""
    uses: tuple[str, ...] = ()
    """Commands that take it."""
    warnings: tuple[str, ...] = ()
    """What is wrong with it."""


def plain(value: Any) -> Any:
    """Bring a value from a file to JSON types that are safe to print."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[:MAX_ITEMS].tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value[: 4 * MAX_TEXT].decode(errors="replace")
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(plain(str(k))): plain(v) for k, v in list(value.items())[:MAX_ITEMS]}
    if isinstance(value, (list, tuple, set)):
        return [plain(one) for one in list(value)[:MAX_ITEMS]]
    text = str(value)
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:MAX_TEXT]
    )
    return shown if len(text) <= MAX_TEXT else f"{shown}..."
