"""What is done with every slide of an archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from atlas_wsi.errors import CorruptResultError, ResultExistsError
from atlas_wsi.heatmap.heatmap import Positive, Record

if TYPE_CHECKING:
    from pathlib import Path

MEMORY = "4GB"


class BatchOptions(Record):
    """How slides are predicted; the same for every launcher of an archive."""

    model: str | None = None
    """Name or file of the model; None takes the default for each kind of slide."""
    mpp: Positive | None = None
    """Micrometers a level-0 pixel of slides for which the list says nothing; None asks the file."""
    cell_px: Literal[16, 32, 64] = 64
    """Side of a heatmap cell in working pixels."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in."""
    memory: str = MEMORY
    """Memory of the encoder in each worker. Fixed rather than a share of what happens to be free,
    so that a slide taken up by another worker is gone on with to the same bits."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Windows that attend at once; None takes what fits the memory."""
    formats: tuple[str, ...] | None = None
    """Outputs to write; None takes all that suit the slide."""
    keep_fat: bool = False
    """Whether pale fat is tissue."""
    strict: bool = False
    """Whether a slide fails at the first tile that cannot be read."""
    split_over: Positive | None = None
    """Gigapixels, at the model's resolution, above which a slide is spread over all workers."""


class HowToRun(Record):
    """What does not change the results, and may differ from launcher to launcher."""

    device: str = "auto"
    """Where each worker computes."""
    max_tries: Annotated[int, Field(ge=1)] = 3
    """Tries after which a slide is given up."""
    lease_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a sign of life after which a slide is taken from its worker."""


def agree_on_options(path: Path, options: BatchOptions) -> None:
    """Make sure that an archive was begun with the same options."""
    try:
        begun = BatchOptions.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptResultError(
            f"{path} does not hold the options of an archive: {error.errors()[0]['msg']}."
        ) from error
    differ = [
        f"{name} was {getattr(begun, name)!r} and is now {getattr(options, name)!r}"
        for name in BatchOptions.model_fields
        if getattr(begun, name) != getattr(options, name)
    ]
    if differ:
        raise ResultExistsError(
            f"The archive in {path.parent.parent} was begun with other options: "
            f"{'; '.join(differ)}.",
            hint="Go on with the same options, choose another output folder, or --overwrite.",
        )
