"""How long work reports its progress, and how it is stopped."""

from __future__ import annotations

import threading
from typing import Protocol

from atlas_wsi.errors import Cancelled


class Progress(Protocol):
    """Called as work proceeds; one type for the command line, napari and dask."""

    def __call__(self, step: str, done: int, total: int, /) -> None:
        """Take a report.

        Parameters
        ----------
        step
            The step in the user's words, such as ``"encode"``.
        done
            Units of the step that are done.
        total
            Units of the step in all.
        """


def silent(step: str, done: int, total: int) -> None:
    """Ignore a report."""


class CancelToken:
    """A flag that stops work at its next safe point; may be set from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop."""
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether the work was asked to stop."""
        return self._event.is_set()

    def raise_if_cancelled(self) -> None:
        """Stop here if the work was asked to stop.

        Raises
        ------
        Cancelled
            If `cancel` was called.
        """
        if self.is_cancelled:
            raise Cancelled("The work was cancelled; nothing was written.")
