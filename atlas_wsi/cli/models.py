"""`atlas-wsi models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atlas_wsi.cli import console

if TYPE_CHECKING:
    from atlas_wsi.models.card import ModelCard

app = typer.Typer(help="List the models that are shipped; show the card of one.")


@app.callback(invoke_without_command=True)
def models(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that are shipped; `show NAME` prints the card of one."""
    if ctx.invoked_subcommand:
        return
    from atlas_wsi.models.registry import load_model, shipped_models

    cards = [load_model(name).card for name in shipped_models()]
    if as_json:
        console.print_json([card.model_dump(mode="json") for card in cards])
        return
    from rich.table import Table

    table = Table(
        "name", "for", "um/px", "classes", "accuracy", "colour only", box=None, pad_edge=False
    )
    for card in cards:
        table.add_row(
            card.name,
            f"{card.domain}s",
            f"{card.mpp:g}",
            ", ".join(card.class_names),
            _percent(card, "accuracy"),
            _percent(card, "colour_baseline_accuracy"),
        )
    console.out.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a shipped model, or a file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the card of a model."""
    from atlas_wsi.models.registry import load_model

    model = load_model(name)
    facts = model.card.model_dump(mode="json")
    facts["weights"] = sum(p.numel() for p in model.parameters())
    facts["sha256"] = model.sha256
    if as_json:
        console.print_json(facts)
        return
    for key, value in facts.items():
        if key == "classes":
            value = ", ".join(model.card.class_names)
        if key == "confusion":
            continue
        if isinstance(value, dict):
            value = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        console.say(f"{key:>10}  {value}")
    if model.card.confusion:
        console.say("held-out tiles:")
        console.print_confusion(model.card.class_names, model.card.confusion)


def _percent(card: ModelCard, metric: str) -> str:
    return f"{card.metrics[metric]:.1%}" if metric in card.metrics else ""
