"""Errors that a user can act on.

Subclasses never override ``__init__``: another signature breaks the pickling by which an error
reaches a worker's caller.
"""

from __future__ import annotations


class AtlasError(Exception):
    """Base of all errors of atlas-wsi: a message and a hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """What happened, without the hint."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ArgumentError(AtlasError, ValueError):
    """Arguments contradict each other."""

    exit_code = 2


class SlideError(AtlasError):
    """A slide or scene cannot be used as requested."""

    exit_code = 2


class UnreadableSlideError(SlideError, OSError):
    """The file is missing, truncated or damaged."""


class UnreachableSlideError(SlideError, OSError):
    """The server of the file cannot be reached, or refuses access."""


class UnsupportedFormatError(SlideError):
    """No reader supports this kind of file."""


class MissingResolutionError(SlideError):
    """The file has no pixel size."""


class MissingScaleError(SlideError):
    """The file does not say what its samples mean: which values are black and white."""


class RegionOutsideSlideError(SlideError, ValueError):
    """The requested region does not touch the slide."""


class ModelError(AtlasError):
    """A model cannot be found, read or used."""

    exit_code = 2


class UnknownModelError(ModelError):
    """No model has this name."""


class CheckpointMismatchError(ModelError):
    """The weights do not match the model."""


class CellSizeError(ModelError, ValueError):
    """The model cannot make heatmap cells of the requested size."""


class UntrustedWeightsError(ModelError):
    """The weights file can execute code."""


class ResultError(AtlasError):
    """A result cannot be written or read."""

    exit_code = 2


class ResultExistsError(ResultError, FileExistsError):
    """A result exists at the output path."""


class CorruptResultError(ResultError):
    """A result folder is incomplete or damaged."""


class OutputNotWritableError(ResultError, OSError):
    """The output folder cannot be written to."""


class DatasetError(AtlasError):
    """Labeled data, a mask or a table of them cannot be used."""

    exit_code = 2


class ArchiveError(AtlasError):
    """The slides of an archive cannot be listed, or its cluster cannot be used."""

    exit_code = 2


class BudgetError(AtlasError):
    """There is not enough memory or disk space."""

    exit_code = 3


class MemoryBudgetError(BudgetError, MemoryError):
    """The work does not fit the memory budget."""


class DiskFullError(BudgetError, OSError):
    """The disk is full."""


class Cancelled(AtlasError):
    """The user stopped the work."""

    exit_code = 130
