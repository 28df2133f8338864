"""`atlas-wsi models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

    `show NAME` prints the card of one. Accuracy is that on held-out tiles, beside that of color
    alone; of kind by tile are other projects' classifiers of single tiles.
    """
    if ctx.invoked_subcommand:
        return
    from atlas_wsi.models.model import read_card
    from atlas_wsi.models.registry import cached_models, is_model, shipped_models
    from atlas_wsi.models.wsinfer import card_of, local_tile_classifiers, read_config

    local = {str(p): p for p in sorted(Path().glob("*.safetensors")) if is_model(p)}
    places = {"shipped": shipped_models(), "cached": cached_models(), "local": local}
    found = [
        (where, name, *read_card(path))
        for where, files in places.items()
        for name, path in files.items()
    ]
    found += [
        ("local", name, card_of(*read_config(path)), "by tile")
        for name, path in local_tile_classifiers(Path()).items()
    ]
    if as_json:
        console.print_json(
            [
                {"where": where, "id": name, "backbone": backbone, **card.model_dump(mode="json")}
                for where, name, card, backbone in found
            ]
        )
        return
    from rich.table import Column, Table

    table = Table(
        *(
            Column(name, no_wrap=name != "classes", overflow="fold")
            for name in ("where", "name", "kind", "for", "um/px", "classes", "accuracy", "color")
        ),
        box=None,
        pad_edge=False,
    )
    for where, name, card, backbone in found:
        table.add_row(
            where,
            name,
            backbone,
            f"{card.domain}s",
            f"{card.mpp:g}",
            ", ".join(card.class_names),
            _percent(card, "accuracy"),
            _percent(card, "colour_baseline_accuracy"),
        )
    console.out.print(table)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(help="Name of a shipped model, a file, or the folder of a tile classifier."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the card of a model."""
    from atlas_wsi.models.registry import is_tile_classifier

    card, more = _of_tile_classifier(name) if is_tile_classifier(name) else _of_model(name)
    facts = card.model_dump(mode="json") | more
    if as_json:
        console.print_json(facts)
        return
    for key, value in facts.items():
        if key == "classes":
            value = ", ".join(card.class_names)
        if key == "confusion":
            continue
        if isinstance(value, dict):
            value = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        console.say(f"{key:>10}  {value}")
    if card.confusion:
        console.say("held-out tiles:")
        console.print_confusion(card.class_names, card.confusion)


def _of_model(name: str) -> tuple[ModelCard, dict[str, Any]]:
    from atlas_wsi.models.registry import load_model

    model = load_model(name)
    weights = sum(p.numel() for p in model.parameters())
    return model.card, {
        "backbone": model.config.backbone,
        "weights": weights,
        "sha256": model.sha256,
    }


def _of_tile_classifier(name: str) -> tuple[ModelCard, dict[str, Any]]:
    """Read the configuration alone: the network may be a program that nobody trusted yet."""
    from atlas_wsi.files import sha256_of
    from atlas_wsi.models.wsinfer import card_of, read_config

    config, weights = read_config(name)
    return card_of(config, weights), {
        "backbone": "tile classifier: sees one patch at a time",
        "transform": [step.model_dump(mode="json") for step in config.transform],
        "sha256": sha256_of(weights),
    }


def _percent(card: ModelCard, metric: str) -> str:
    return f"{card.metrics[metric]:.1%}" if metric in card.metrics else ""
