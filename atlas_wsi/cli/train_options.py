"""What the commands of `atlas-wsi train` share: options, checks, what is written at the end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlas_wsi.cli import console
from atlas_wsi.errors import OutputNotWritableError, ResultExistsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from atlas_wsi.models.model import Model
    from atlas_wsi.models.start import Start
    from atlas_wsi.progress import Progress
    from atlas_wsi.training.cross import CrossValidation
    from atlas_wsi.training.fitting import About, Parts
    from atlas_wsi.training.history import History
    from atlas_wsi.training.labels import Labels
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.tiles import Labeled

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

Out = Annotated[Path, typer.Option("--out", "-o", help="Model file to write (.safetensors).")]
Domain = Annotated[Literal["slide", "scene"], typer.Option(help="Stained tissue, or land.")]
Name = Annotated[str | None, typer.Option(help="Name of the model; the file's by default.")]
HeldOut = Annotated[
    float, typer.Option(help="Share kept for measuring, by whole groups.", min=0.01, max=0.9)
]
Validation = Annotated[
    float,
    typer.Option(
        help="Share of the other groups that choose the weights and the temperature; 0 for none.",
        min=0,
        max=0.9,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Property or column that holds the class in GeoJSON and vector files; classification, "
        "class, label or name by default."
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        help="CSV with the columns value and class, for label rasters; other values are no class.",
    ),
]
Patience = Annotated[
    int, typer.Option(help="Checks without progress on --validation that end it; 0: never.", min=0)
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Where to start: shipped name, model file, published Atlas checkpoint or "
        "hf://owner/name@revision. Weights are taken where they fit."
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(help="A network of timm in the place of the stem, such as timm:resnet18."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights file of --encoder, or none for random ones. By default timm's pretrained "
        "ones, from the cache or the hub."
    ),
]
Epochs = Annotated[float, typer.Option(help="How often the tiles are seen.", min=0.01)]
Dim = Annotated[
    int | None,
    typer.Option(help="Channels of a token, a multiple of 32; 128, or those of --init.", min=32),
]
Rate = Annotated[float, typer.Option(help="Highest learning rate.", min=1e-6)]
Megapixels = Annotated[
    float,
    typer.Option(help="Millions of pixels a step, of all processes together.", min=0.01),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="Of the products; auto takes bfloat16 where the processor has it."),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same model.", min=0)]
Folds = Annotated[
    int,
    typer.Option(
        help="Cross-validate: a model a fold, then one of all tiles; --held-out is not used. "
        "0: no folds.",
        min=0,
        max=100,
    ),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option(
        help="Folder for event files of TensorBoard, beside the CSV curve.", metavar="DIR"
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def starting(init: str | None, encoder: str | None, weights: str | None) -> Start | None:
    """Load what a training starts from; None for random weights."""
    from atlas_wsi.models.start import load_start, timm_start
    from atlas_wsi.models.timm_stem import PREFIX

    if weights is not None and encoder is None:
        raise typer.BadParameter("--weights goes with --encoder")
    if encoder is not None and (init is not None or not encoder.startswith(PREFIX)):
        raise typer.BadParameter(f"--encoder is {PREFIX}NAME and takes the place of --init")
    if encoder is not None:
        return timm_start(encoder, weights)
    return load_start(init) if init else None


def labels(column: str | None, classes: Path | None) -> Labels:
    """Return where the classes stand in files of labels."""
    from atlas_wsi.training.labels import Labels, read_names

    return Labels(column=column, names=read_names(classes) if classes else None)


def check(
    out: Path,
    *,
    name: str | None = None,
    dim: int | None,
    overwrite: bool,
    patience: int = 0,
    validation: float = 0.0,
    folds: int = 0,
) -> str:
    """Refuse what would fail after hours of training; return the model's name."""
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out} must end in .safetensors")
    if dim is not None and dim % 32:
        raise typer.BadParameter(f"--dim is {dim}, expected a multiple of 32")
    name = name or out.stem
    if not re.fullmatch(_NAME, name):
        raise typer.BadParameter(
            f"'{name}' is no name for a model: letters, digits, '.', '_' and '-', at most 64"
        )
    if folds == 1:
        raise typer.BadParameter("--folds must be 2 or more, or 0")
    if patience and not validation:
        raise typer.BadParameter("--patience needs --validation")
    if out.exists() and not overwrite:
        raise ResultExistsError(f"{out} is there.", hint="--overwrite replaces it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f".{out.name}.partial")
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same training may do this
    except OSError as error:
        raise OutputNotWritableError(f"{out} cannot be written: {error.strerror}.") from error
    return name


def train_labeled(
    read: Callable[[Progress], Labeled],
    out: Path,
    about: About,
    recipe: Recipe,
    *,
    start: Callable[[], Start | None],
    facts: dict[str, Any],
    held_out: float,
    validation: float,
    folds: int,
    dtype: torch.dtype,
    parts: Parts | None = None,
    tensorboard: Path | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool = False,
) -> None:
    """Read what is labeled, train once or by folds, write and tell; also under torchrun."""
    from atlas_wsi.training import parallel
    from atlas_wsi.training.cross import train_folds
    from atlas_wsi.training.history import History
    from atlas_wsi.training.run import train_set

    history = History(tensorboard=tensorboard)
    found = None
    with parallel.joined():
        quiet = quiet or parallel.rank() != 0
        with console.progress_of(out.stem, quiet=quiet or as_json) as report:
            init, tiles = start(), read(report)
            if folds:
                model, found = train_folds(
                    tiles,
                    about,
                    recipe,
                    n=folds,
                    out=out,
                    validation=validation,
                    facts=facts,
                    stored=dtype,
                    init=init,
                    overwrite=overwrite,
                    history=history,
                    progress=report,
                )
            else:
                model = train_set(
                    tiles,
                    name=about.name,
                    domain=about.domain,
                    mpp=about.mpp,
                    recipe=recipe,
                    held_out=held_out,
                    validation=validation,
                    parts=parts,
                    facts=facts,
                    stored=dtype,
                    init=init,
                    checkpoint=out.with_suffix(".resume.pt"),
                    history=history,
                    progress=report,
                )
        if parallel.rank() == 0:
            finish(model, out, dtype=dtype, history=history, quiet=quiet, as_json=as_json)
            if found is not None:
                say_folds(found, out, quiet=quiet or as_json)


def finish(
    model: Model,
    out: Path,
    *,
    dtype: torch.dtype,
    history: History,
    quiet: bool,
    as_json: bool = False,
) -> None:
    """Write the model, its card and its curve, and say so."""
    from atlas_wsi.training.run import write_card

    model.save(out, dtype=dtype)
    card, _ = write_card(model, out)
    curve, _ = history.write(out)
    if as_json:
        console.print_json({"model": str(out), "card": model.card.model_dump(mode="json")})
        return
    console.say(card.read_text(encoding="utf-8"), quiet=quiet)
    if "init" in model.card.training:
        console.say(f"Started from {model.card.training['init']['taken']}\n", quiet=quiet)
    console.say(f"{out}\n{card}\n{curve}", quiet=quiet)


def say_folds(found: CrossValidation, out: Path, *, quiet: bool) -> None:
    """Tell the figures of the folds."""
    for name, (mean, sd) in found.spread().items():
        if not name.startswith(("recall ", "colour_baseline_")):
            console.say(f"{name:<20} {mean:.3f} +- {sd:.3f} over the folds", quiet=quiet)
    for fold in found.folds:
        console.say(str(fold.path), quiet=quiet)
    for suffix in (".folds.json", ".folds.csv", ".predictions.csv"):
        console.say(str(out.with_suffix(suffix)), quiet=quiet)
