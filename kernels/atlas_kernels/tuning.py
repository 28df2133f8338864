"""Tables of launch sizes for a Triton kernel, of which the fastest is kept on every GPU.

A kernel comes with a few choices that all compile without spilled registers. The first call of a
shape on a GPU times each of them; later calls use the fastest. The interpreter takes the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import triton


@dataclass(frozen=True, slots=True)
class Choice:
    """Sizes of one way to launch a kernel."""

    constants: tuple[tuple[str, int], ...]
    """Name and value of every ``tl.constexpr`` that may vary."""
    warps: int
    """Warps per program."""


def is_interpreted(kernel: Any) -> bool:
    """Tell whether a kernel runs in Triton's interpreter."""
    return not isinstance(kernel, triton.JITFunction)


@cache
def tuned(kernel: Any, choices: tuple[Choice, ...], key: tuple[str, ...]) -> Any:
    """Return a kernel that picks among choices by timing them, once for each key."""
    return triton.autotune(
        configs=[triton.Config(dict(c.constants), num_warps=c.warps) for c in choices],
        key=list(key),
    )(kernel)


def launch(
    kernel: Any, choices: tuple[Choice, ...], *, key: tuple[str, ...], grid: Any, **arguments: Any
) -> None:
    """Run a kernel with the fastest of some choices."""
    if is_interpreted(kernel) or len(choices) == 1:
        first = choices[0]
        kernel[grid](**arguments, **dict(first.constants), num_warps=first.warps)
    else:
        tuned(kernel, choices, key)[grid](**arguments)
