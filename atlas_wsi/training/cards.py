"""What a card says in words: figures, split, colors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.files import write_text
from atlas_wsi.training.data.labeled import LabeledTiles
from atlas_wsi.training.metrics import MIN_CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.models.model import Model
    from atlas_wsi.training.data.labeled import Labeled
    from atlas_wsi.training.split import Split


BASELINES = {
    "linear_": "linear reading of its stem",
    "window_": "windows without context",
    "context_": "with context",
    "color_baseline_": "color alone",
}
"""What else a card has figures of, by the first part of their names."""
COMPARED = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "amid_accuracy": "accuracy amid other tiles",
    "amid_balanced_accuracy": "balanced accuracy amid other tiles",
    "ece": "expected calibration error",
}
"""Figures that a card compares, and what they are called there."""


def card_text(card: ModelCard) -> str:
    """Write a card as Markdown."""
    unit = "slides" if "slides" in card.training else "tiles"
    lines = [f"# {card.name}", "", f"For {card.domain}s at {pixel_size(card)} per pixel.", ""]
    lines += [
        f"- **{key}**: {getattr(card, key)}"
        for key in ("license", "data", "split", "limits")
        if getattr(card, key)
    ]
    columns = {"": "model"} | {
        prefix: name
        for prefix, name in BASELINES.items()
        if any(key.startswith(prefix) for key in card.metrics)
    }
    lines += ["", f"| held-out {unit} | " + " | ".join(columns.values()) + " |"]
    lines += ["|---" * (1 + len(columns)) + "|"]
    for key, name in COMPARED.items():
        if key in card.metrics:
            found = [card.metrics.get(prefix + key) for prefix in columns]
            values = ["" if value is None else f"{value:.1%}" for value in found]
            lines.append(f"| {name} | " + " | ".join(values) + " |")
    others = {
        key: value
        for key, value in card.metrics.items()
        if key not in COMPARED and not key.startswith(("recall ", *BASELINES))
    }
    if others:
        lines += ["", "Also: " + "; ".join(f"{k} {v:.4g}" for k, v in others.items()) + "."]
    lines += ["", f"Logits are divided by the temperature {card.temperature:g}."]
    if card.domain == "scene":
        lines += ["", f"Input: 8-bit colors; the reflectance {card.white_reflectance:g} is white."]
    if card.familiar is not None:
        lines += [
            "",
            f"Familiar: as near as 95% of the cells of {card.familiar.measured_on} images.",
        ]
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


def split_text(data: Labeled, split: Split, fraction: float, seed: int) -> str:
    """Describe how test tiles or slides were kept apart."""
    is_alone = isinstance(data, LabeledTiles) and not data.slides
    kind = " of copies of one original" if is_alone else ""
    drawn = (
        f"whole groups{kind}" if data.is_grouped else f"single {data.unit} (no groups were given)"
    )
    n_groups, n = len({data.groups[i] for i in split.test}), len(split.validation)
    return (
        f"{len(split.test)} of {len(data)} {data.unit} held out for testing: {fraction:.0%} of the "
        f"{drawn} of each class ({n_groups}), seed {seed}."
        + (
            f" {n} other {data.unit}, by whole groups, selected {_selected(n)}; the test {data.unit} "
            "were measured once."
            if n
            else ""
        )
    )


def table_split_text(data: Labeled, split: Split) -> str:
    """Describe a split that a table states."""
    n = len(split.validation)
    selected = f" and {n} selected {_selected(n)}" if n else ""
    return f"{len(split.test)} of {len(data)} {data.unit} held out{selected}, as the table states."


def _selected(n: int) -> str:
    return "the weights and the temperature" if n >= MIN_CALIBRATION else "the weights"


def folds_text(data: Labeled, n: int, seed: int, *, fold: int | None) -> str:
    """Describe how the parts of a cross-validation were kept apart."""
    groups = f"{len(set(data.groups))} groups" if data.is_grouped else "no groups were given"
    whole = f"{n} folds of {len(data)} {data.unit} ({groups}), every class in each, seed {seed}."
    if fold is not None:
        return f"Fold {fold} held out, of {whole}"
    return (
        f"Cross-validation: {whole} The figures are those of one model per fold on the {data.unit} "
        f"that it did not see, all folds together. This model was then trained on all {data.unit}, "
        "with the same recipe; it was not measured itself."
    )


def pixel_size(card: ModelCard) -> str:
    """Format the pixel size of a model: micrometers of slides, meters of scenes."""
    return f"{card.mpp:g} um" if card.gsd is None else f"{card.gsd:g} m"


def write_card(model: Model, path: Path) -> None:
    """Write a model's card beside its file, for people and for programs."""
    facts = model.card.model_dump(mode="json")
    write_text(path.with_suffix(".card.json"), json.dumps(facts, indent=2))
    write_text(path.with_suffix(".card.md"), card_text(model.card))


# Fingerprints -----------------------------------------------------------------------------------


def fingerprints_of(paths: Sequence[str]) -> list[str]:
    """Return digests of name and size, by which slides are recognized wherever they are copied."""
    digests = []
    for path in paths:
        size = 0 if "://" in path else Path(path).stat().st_size
        text = f"{path.rsplit('/', 1)[-1] if '://' in path else Path(path).name}:{size}"
        digests.append(hashlib.sha256(text.encode()).hexdigest()[:12])
    return digests


def digest_of(paths: Sequence[str], labels: Sequence[str]) -> str:
    """Return a digest of files and what is said of them."""
    text = json.dumps([fingerprints_of(paths), list(labels)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def trained_on(facts: Mapping[str, Any]) -> set[str]:
    """Return the fingerprints of slides that a model, or its initial weights, were trained on."""
    own, start = facts.get("trained_on"), facts.get("init")
    known = {mark for mark in own if isinstance(mark, str)} if isinstance(own, list) else set()
    before = start.get("training") if isinstance(start, dict) else None  # cards come from outside
    return known | (trained_on(before) if isinstance(before, dict) else set())
