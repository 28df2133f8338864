"""What is done with every slide of an archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from atlas_wsi.errors import CorruptResultError, ResultExistsError
from atlas_wsi.heatmap.formats import choose_formats
from atlas_wsi.heatmap.records import Positive, Record, Share
from atlas_wsi.inference.slide_run import MAX_UNREADABLE
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.plan import parse_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.batch.journal import SlideRequest
    from atlas_wsi.slides.slide import Slide

MEMORY = "4GB"


class BatchOptions(Record):
    """How slides are predicted; the same for every launcher of an archive."""

    model: str | None = None
    """Name or file of the model, or folder of a tile classifier; None takes the default for each
    kind of slide."""
    trust_model: bool = False
    """Whether a TorchScript model, which can execute code, may be loaded."""
    mpp: Positive | None = None
    """Micrometers per level-0 pixel of slides without a value in the list; None reads the file."""
    scale: tuple[float, float] | None = None
    """Stored values of black and white of samples that are not 8-bit colors."""
    image: Annotated[int, Field(ge=0)] | None = None
    """Number of the image of each file; None takes the largest."""
    allow_truncated: bool = False
    """Whether files whose end is missing are read as far as they go."""
    max_unreadable: Share = MAX_UNREADABLE
    """Fraction of the tissue above which a result counts as incomplete."""
    tissue: str | None = None
    """Tissue mask: a file, a folder with one file per slide, or a pattern with ``{name}``."""
    tissue_model: str | None = None
    """Model that finds the tissue."""
    keep_fat: bool = False
    """Whether pale adipose tissue counts as tissue."""
    roi: str | None = None
    """GeoJSON to which the tissue is restricted: a file, folder or pattern."""
    cell_px: Annotated[int, Field(ge=1)] | None = None
    """Side of a heatmap cell in working pixels; None takes 64, or the patch of a tile classifier."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the encoder."""
    memory: str = MEMORY
    """Memory of the encoder in each worker. Fixed rather than a fraction of the free memory, so that
    another worker resumes a slide to the same bits."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Windows per batch; None takes as many as fit in memory."""
    formats: tuple[str, ...] | None = None
    """Outputs to write; None takes all that suit the slide."""
    strict: bool = False
    """Whether a slide fails at the first tile that cannot be read."""
    distribute_above: Positive | None = None
    """Gigapixels, at the model's resolution, above which a slide is distributed over all workers."""

    @model_validator(mode="after")
    def _fits_together(self) -> BatchOptions:
        if self.tissue is not None and self.tissue_model is not None:
            raise ValueError("tissue and tissue_model both define the tissue; give one")
        choose_formats(self.formats)
        parse_bytes(self.memory)
        return self


class RunOptions(Record):
    """What does not change the results, and may differ from launcher to launcher."""

    device: str = "auto"
    """Where each worker computes."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Attempts after which a slide is given up."""
    heartbeat_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a heartbeat after which another worker takes over a slide."""


def open_request(request: SlideRequest, options: BatchOptions) -> Slide:
    """Open a slide of an archive."""
    return open_slide(
        request.source,
        mpp=request.mpp or options.mpp,
        scale=options.scale,
        image=options.image,
        allow_truncated=options.allow_truncated,
        strict=options.strict,
    )


def agree_on_options(path: Path, options: BatchOptions) -> None:
    """Make sure that an archive was started with the same options."""
    try:
        recorded = BatchOptions.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptResultError(
            f"{path} does not hold the options of an archive: {error.errors()[0]['msg']}."
        ) from error
    differ = [
        f"{name} was {getattr(recorded, name)!r} and is now {getattr(options, name)!r}"
        for name in BatchOptions.model_fields
        if getattr(recorded, name) != getattr(options, name)
    ]
    if differ:
        raise ResultExistsError(
            f"The archive in {path.parent.parent} was started with other options: "
            f"{'; '.join(differ)}.",
            hint="Use the same options, choose another output folder, or --overwrite.",
        )
