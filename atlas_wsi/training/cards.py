"""What a card says in words: figures, split, colours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from atlas_wsi.training.calibration import FEWEST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.models.model import Model
    from atlas_wsi.training.tiles import Labeled


def card_text(card: ModelCard) -> str:
    """Write a card as Markdown."""
    unit = "slides" if "slides" in card.training else "tiles"
    lines = [f"# {card.name}", "", f"For {card.domain}s at {card.mpp:g} um/px.", ""]
    lines += [
        f"- **{key}**: {getattr(card, key)}"
        for key in ("licence", "data", "split", "limits")
        if getattr(card, key)
    ]
    has_base = unit == "tiles"
    lines += ["", f"| held-out {unit} | model |" + " colour alone |" * has_base]
    lines += ["|---|---|" + "---|" * has_base]
    for key in ("accuracy", "balanced_accuracy"):
        if key in card.metrics:
            base = card.metrics.get(f"colour_baseline_{key}")
            lines.append(
                f"| {key.replace('_', ' ')} | {card.metrics[key]:.1%} |"
                + (f" {'' if base is None else f'{base:.1%}'} |" if has_base else "")
            )
    others = {
        key: value
        for key, value in card.metrics.items()
        if key not in ("accuracy", "balanced_accuracy")
        and not key.startswith(("recall ", "colour_baseline_"))
    }
    if others:
        lines += ["", "Also: " + "; ".join(f"{k} {v:.4g}" for k, v in others.items()) + "."]
    lines += ["", f"Logits are divided by the temperature {card.temperature:g}."]
    if card.confusion:
        names = card.class_names
        lines += ["", f"Held-out {unit} by true class (row) and predicted class (column):", ""]
        lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for name, row in zip(names, card.confusion, strict=True):
            lines.append(f"| {name} | " + " | ".join(str(n) for n in row) + " |")
    if card.training:
        facts = _readable(card.training)
        lines += ["", "Training: " + ", ".join(f"{k} {v}" for k, v in facts.items()) + "."]
    return "\n".join(lines) + "\n"


def _readable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the digests of slides, also of the model that it started from."""
    return {
        key: _readable(value) if isinstance(value, dict) else value
        for key, value in facts.items()
        if key != "trained_on"
    }


def split_text(tiles: Labeled, held: Labeled, share: float, seed: int, *, n_chosen: int) -> str:
    """Say how held-out tiles were kept apart."""
    kind = " of copies of one original" if tiles.unit == "tiles" else ""
    how = (
        f"whole groups{kind}" if tiles.is_grouped else f"single {tiles.unit} (no groups were given)"
    )
    n_groups = len(set(held.groups))
    return (
        f"{len(held)} of {len(tiles)} {tiles.unit} held out: {share:.0%} of the {how} of each class "
        f"({n_groups}), seed {seed}."
        + (
            f" {n_chosen} other {tiles.unit}, by whole groups, chose {_chosen(n_chosen)}; the "
            "held-out ones were measured once."
            if n_chosen
            else ""
        )
    )


def given_text(tiles: Labeled, *, n_held: int, n_chosen: int) -> str:
    """Say that the split was given."""
    chosen = f" and {n_chosen} chose {_chosen(n_chosen)}" if n_chosen else ""
    return f"{n_held} of {len(tiles)} {tiles.unit} held out{chosen}, as the table says."


def _chosen(n: int) -> str:
    return "the weights and the temperature" if n >= FEWEST else "the weights"


def folds_text(tiles: Labeled, n: int, seed: int, *, fold: int | None) -> str:
    """Say how the tiles of a cross-validation were kept apart."""
    groups = f"{len(set(tiles.groups))} groups" if tiles.is_grouped else "no groups were given"
    whole = f"{n} folds of {len(tiles)} {tiles.unit} ({groups}), every class in each, seed {seed}."
    if fold is not None:
        return f"Fold {fold} held out, of {whole}"
    return (
        f"Cross-validation: {whole} The figures are those of a model a fold on the {tiles.unit} that it "
        f"did not see, all folds together. This model was then trained on all {tiles.unit}, with the same "
        "recipe; it was not measured itself."
    )


def write_card(model: Model, path: Path) -> tuple[Path, Path]:
    """Write a model's card beside its file, for people and for programs."""
    text, data = path.with_suffix(".card.md"), path.with_suffix(".card.json")
    data.write_text(json.dumps(model.card.model_dump(mode="json"), indent=2), encoding="utf-8")
    text.write_text(card_text(model.card), encoding="utf-8")
    return text, data
