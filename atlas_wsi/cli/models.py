"""`atlas-wsi models`."""

from __future__ import annotations

from pathlib import Path
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
    """List the models that are shipped, cached from a hub, or in this folder.

    `show NAME` prints the card of one.
    """
    if ctx.invoked_subcommand:
        return
    from atlas_wsi.models.registry import cached_models, is_model, load_model, shipped_models

    local = {str(p): p for p in sorted(Path().glob("*.safetensors")) if is_model(p)}
    places = {"shipped": shipped_models(), "cached": cached_models(), "local": local}
    found = [
        (where, name, load_model(path).card)
        for where, files in places.items()
        for name, path in files.items()
    ]
    if as_json:
        console.print_json(
            [{"where": where, "id": n, **c.model_dump(mode="json")} for where, n, c in found]
        )
        return
    from rich.table import Table

    table = Table(
        "where",
        "name",
        "for",
        "um/px",
        "classes",
        "accuracy",
        "colour only",
        box=None,
        pad_edge=False,
    )
    for where, name, card in found:
        table.add_row(
            where,
            name,
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
