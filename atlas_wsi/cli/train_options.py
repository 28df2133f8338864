"""What the commands of `atlas-wsi train` share: options, and what is printed at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_wsi.cli import console

if TYPE_CHECKING:
    from atlas_wsi import CardSpec, CrossValidation, LabeledData, Model, Recipe, TrainOptions

Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="Model file to write (.safetensors).")
]
Domain = Annotated[
    Literal["slide", "scene"], typer.Option(help="Stained tissue (slide) or land (scene).")
]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the model. Default: that of the file.")
]
TestFraction = Annotated[
    float,
    typer.Option(
        metavar="FRACTION",
        help="Fraction of the groups that the model is tested on, once, at the end.",
        min=0.01,
        max=0.9,
    ),
]
ValidationFraction = Annotated[
    float,
    typer.Option(
        metavar="FRACTION",
        help="Fraction of the training groups used to select weights and fit the temperature; 0 "
        "for none.",
        min=0,
        max=0.9,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Property or column of the class in GeoJSON and vector files. Default: "
        "classification, class, label or name.",
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="CSV with the columns value and class, for label rasters; other values have no class.",
    ),
]
Patience = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Stop after this many validations without improvement; 0 disables.",
        min=0,
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Initial weights: bundled name, model file, published Atlas checkpoint or "
        "hf://owner/name@revision. Weights are taken where they fit.",
    ),
]
Epochs = Annotated[
    float, typer.Option(metavar="N", help="Passes over the training data.", min=0.01)
]
Dim = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Channels per token, a multiple of 32. Default: those of --init, else 128.",
        min=32,
    ),
]
LearningRate = Annotated[
    float, typer.Option("--lr", metavar="RATE", help="Highest learning rate.", min=1e-6)
]
Freeze = Annotated[
    bool,
    typer.Option("--freeze", help="Keep the encoder (or the stem of --init) as it is."),
]
Features = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep what a frozen encoder makes of the slides for other trainings.",
    ),
]
EncoderLearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr-encoder",
        metavar="RATE",
        help="Highest learning rate of the encoder. Default: --lr.",
        min=1e-8,
    ),
]
Jitter = Annotated[
    float | None,
    typer.Option(
        "--color-jitter",
        metavar="STRENGTH",
        help="How strongly colors vary; 0: not at all. Default: 1 from random weights, else 0.6 "
        "for slides and 0.3 for scenes.",
        min=0,
        max=2,
    ),
]
Mosaics = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="Fraction of the steps that show mosaics of tiles. Default: 2/3 from random weights, "
        "else 1/2; of annotated slides 0.",
        min=0,
        max=1,
    ),
]
Megapixels = Annotated[
    float,
    typer.Option(metavar="N", help="Megapixels per step, summed over all processes.", min=0.01),
]
Context = Annotated[
    bool,
    typer.Option(
        "--context/--no-context", help="Whether windows see the whole image, or only themselves."
    ),
]
Baselines = Annotated[
    bool,
    typer.Option(
        "--baselines/--no-baselines",
        help="Fit simpler readings of a pretrained encoder, too, and write the best on the "
        "validation part.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="The same seed gives the same model.", min=0)]
Folds = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Cross-validate: one model per fold, then a final model on all data; "
        "--test-fraction is not used. 0: no folds.",
        min=0,
        max=100,
    ),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option(
        help="Folder for event files of TensorBoard, beside the CSV curve.", metavar="FOLDER"
    ),
]


def run(
    data: LabeledData,
    spec: CardSpec,
    recipe: Recipe,
    options: TrainOptions,
    *,
    folds: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train once or by folds, and print the card; under torchrun only the first process prints."""
    from atlas_wsi import cross_validate, train

    is_first = os.environ.get("RANK", "0") == "0"
    result = None
    with console.progress_of(spec.name, quiet=quiet or as_json or not is_first) as report:
        if folds:
            model, result = cross_validate(
                data, spec, recipe, options, n_folds=folds, progress=report
            )
        else:
            model = train(data, spec, recipe, options, progress=report)
    if not is_first:
        return
    if as_json:
        card = model.card.model_dump(mode="json")
        console.print_json({"model": str(options.out), "card": card})
    elif not quiet:
        _show(model, options.path, result)


def _show(model: Model, out: Path, result: CrossValidation | None) -> None:
    console.say(out.with_suffix(".card.md").read_text(encoding="utf-8"))
    if "init" in model.card.training:
        console.say(f"Started from {model.card.training['init']['taken']}\n")
    console.say(f"{out}\n{out.with_suffix('.card.md')}\n{out.with_suffix('.training.csv')}")
    if result is None:
        return
    for name, (mean, sd) in result.mean_and_sd().items():
        if name in ("accuracy", "balanced_accuracy", "ece"):
            console.say(f"{name:<20} {mean:.3f} +- {sd:.3f} over the folds")
    for fold in result.folds:
        console.say(str(fold.path))
    for suffix in (".folds.json", ".folds.csv", ".predictions.csv"):
        console.say(str(out.with_suffix(suffix)))
