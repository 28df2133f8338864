"""`atlas-wsi models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atlas_wsi.cli import console, options

if TYPE_CHECKING:
    from atlas_wsi import ModelCard

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: options.AsJson = False) -> None:
    """List the available models; show a model card.

    Lists the bundled models, those in the hub's cache and those in this folder.
    `show MODEL` prints a model card. Accuracy is on held-out tiles, next to that of color alone;
    models of the kind "by tile" are other projects' classifiers of single tiles.
    """
    if ctx.invoked_subcommand:
        return
    from atlas_wsi import list_models

    entries = list_models()
    if as_json:
        console.print_json(
            [
                {"where": entry.where, "id": entry.name, "backbone": entry.backbone}
                | entry.card.model_dump(mode="json")
                for entry in entries
            ]
        )
        return
    rows = [
        (
            entry.where,
            entry.name,
            entry.backbone,
            f"{entry.card.domain}s",
            console.pixel_size(entry.card.mpp, is_scene=entry.card.domain == "scene"),
            ", ".join(entry.card.class_names),
            _percent(entry.card, "accuracy"),
            _percent(entry.card, "color_baseline_accuracy"),
        )
        for entry in entries
    ]
    header = ("where", "name", "kind", "for", "pixel", "classes", "accuracy", "color")
    console.print_table(rows, header=header, wrap="classes")


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Name of a bundled model, a file, or the folder of a tile classifier.",
        ),
    ],
    as_json: options.AsJson = False,
) -> None:
    """Print a model card."""
    from atlas_wsi import describe_model

    facts = describe_model(name)
    if as_json:
        console.print_json(facts)
        return
    names = [entry["name"] for entry in facts["classes"]]
    confusion = facts.pop("confusion")
    facts["classes"] = ", ".join(names)
    for key, value in facts.items():
        console.say(f"{key:>10}  {console.format_value(value, most=20_000)}")
    if facts["domain"] == "scene":
        console.say(f"{'gsd':>10}  {console.pixel_size(facts['mpp'], is_scene=True)}")
    if confusion:
        console.say("held-out tiles:")
        console.print_confusion(names, confusion)


def _percent(card: ModelCard, metric: str) -> str:
    return f"{card.metrics[metric]:.1%}" if metric in card.metrics else ""
