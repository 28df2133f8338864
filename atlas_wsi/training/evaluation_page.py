"""An evaluation as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.files import write_text
from atlas_wsi.training.metrics import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from atlas_wsi.training.evaluation import Evaluation

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .8rem;text-align:right}
th:first-child,td:first-child{text-align:left}tr{border-bottom:1px solid #ddd}
figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top}img{max-width:100%}
.note{color:#666}
"""
_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1, mean over classes",
    "auroc": "AUROC, one class versus the others",
    "auprc": "AUPRC, one class versus the others",
}


def write_evaluation(result: Evaluation, folder: Path) -> list[Path]:
    """Write ``evaluation.json`` and ``evaluation.html``."""
    data, page = folder / "evaluation.json", folder / "evaluation.html"
    name = result.card.name if result.card is not None else ""
    facts = {"model": name, "measured_on": result.measured_on, **result.as_dict()}
    write_text(data, json.dumps(facts, indent=1, allow_nan=False))
    write_text(page, _page(result, name))
    return [data, page]


def _page(result: Evaluation, name: str) -> str:
    title = html.escape(f"{name}: evaluation")
    rows = [
        (html.escape(_NAMES[key]), f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}")
        for key, score in result.scores.items()
        if isinstance(score, Interval)
    ]
    rows.append(("expected calibration error", f"{result.reliability.ece:.3f}", ""))
    classes = [
        (
            html.escape(result.classes[k]),
            str(int(result.confusion[k].sum())),
            *(f"{score[n]:.3f}" if n in score else "" for n in ("recall", "f1", "auroc", "auprc")),
        )
        for k, score in result.scores["per_class"].items()
    ]
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
            f"<p>{html.escape(result.measured_on)}. Temperature {result.temperature:g}. Research use only.</p>",
            _table(("figure", "value", "95% bootstrap interval"), rows),
            f"<p class=note>{_intervals(result)}</p>",
            _table(("class", result.unit, "recall", "F1", "AUROC", "AUPRC"), classes),
            f"<figure><img alt='confusion matrix' src='{_confusion(result)}'></figure>",
            f"<figure><img alt='reliability' src='{_reliability(result)}'></figure>",
            f"<p class=note>{html.escape(result.card.data if result.card else '')}</p>",
        ]
    )


def _intervals(result: Evaluation) -> str:
    if result.resampled == "groups":
        return "Intervals are over whole groups, so that copies do not narrow them."
    return (
        f"Intervals are over {html.escape(result.resampled)}: all are of one group, and they do not cover how "
        "other groups differ."
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _confusion(result: Evaluation) -> str:
    from matplotlib.figure import Figure

    n = len(result.classes)
    shares = result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.55 * n + 1.6)
    figure = Figure(figsize=(side, side), layout="constrained")
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, col in np.ndindex(n, n):
        if result.confusion[row, col]:
            color = "white" if shares[row, col] > 0.5 else "#222222"
            count = str(result.confusion[row, col])
            ax.text(col, row, count, ha="center", va="center", fontsize=8, color=color)
    names = [name if len(name) < 20 else name[:18] + "…" for name in result.classes]
    ax.set_xticks(range(n), names, rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(n), names, fontsize=8)
    ax.set(xlabel="predicted", ylabel="true")
    return _embed(figure)


def _reliability(result: Evaluation) -> str:
    from matplotlib.figure import Figure

    bins = result.reliability
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", label="calibrated")
    some = bins.count > 0
    size = 20 + 180 * bins.count[some] / bins.count.max()
    ax.scatter(bins.confidence[some], bins.accuracy[some], s=size, color="#3c5488", alpha=0.8)
    ax.set(
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        xlabel="probability of the predicted class",
        ylabel="fraction correct",
        title=f"ECE {bins.ece:.3f}; larger dots: more {result.unit}",
    )
    ax.title.set_fontsize(9)
    return _embed(figure)


def _embed(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
