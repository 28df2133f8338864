"""Figures against scikit-learn's, their intervals, and calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.models import load_model
from atlas_wsi.training.metrics import (
    class_scores,
    fit_temperature,
    mean_probabilities,
    reliability,
)


def draw(seed, n=300, classes=3, skill=1.0, rounded=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + skill * np.eye(classes)[labels]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, (np.round(p, 1) if rounded else p).astype(np.float32), logits


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans())
def test_figures_are_those_of_scikit_learn(seed, classes, rounded):
    labels, p, _ = draw(seed, n=80, classes=classes, rounded=rounded)
    found = class_scores(labels, p)
    seen = np.unique(labels)
    truth = np.eye(classes, dtype=bool)[labels]
    auroc = np.mean([roc_auc_score(truth[:, k], p[:, k]) for k in seen])
    auprc = np.mean([average_precision_score(truth[:, k], p[:, k]) for k in seen])
    f1 = f1_score(labels, p.argmax(axis=1), average="macro", labels=seen, zero_division=0)
    assert found["auroc"].value == pytest.approx(auroc)
    assert found["auprc"].value == pytest.approx(auprc)
    assert found["f1"].value == pytest.approx(f1)
    assert found["accuracy"].value == (p.argmax(axis=1) == labels).mean()
    for name in ("accuracy", "auroc"):
        assert found[name].low <= found[name].high


@pytest.mark.slow
def test_an_interval_covers_what_new_samples_give_and_copies_do_not_narrow_it():
    labels, p, _ = draw(0)
    many, sure, _ = draw(9, n=20000)
    expected = (sure.argmax(axis=1) == many).mean()
    found = [class_scores(*draw(100 + seed)[:2])["accuracy"] for seed in range(8)]
    assert sum(one.low <= expected <= one.high for one in found) >= 6
    groups = np.tile(np.arange(len(labels)), 4)
    copies = class_scores(np.tile(labels, 4), np.tile(p, (4, 1)), groups=groups)["accuracy"]
    alone = class_scores(labels, p)["accuracy"]
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.15)


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_a_temperature_undoes_too_much_and_too_little_confidence(factor):
    labels, p, logits = draw(1, n=4000)
    cells = (factor * logits).astype(np.float32)[:, :, None, None]
    valid = np.ones((len(labels), 1, 1), bool)
    fitted = fit_temperature(cells, valid, labels)
    assert fitted == pytest.approx(factor, rel=0.15)
    after = mean_probabilities(cells, valid, temperature=fitted)
    before = mean_probabilities(cells, valid)
    assert reliability(labels, after).ece < 0.03 < reliability(labels, before).ece
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    assert reliability(labels, p).ece < 0.03


@pytest.mark.slow
def test_the_command_fits_stores_and_reports(tile_folder, tmp_path):
    model = tmp_path / "m.safetensors"
    arguments = ["train", "tiles", str(tile_folder), "--out", str(model), "--mpp", "0.5"]
    arguments += ["--epochs", "4", "--dim", "32", "--quiet", "--half"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    size = model.stat().st_size
    arguments = ["evaluate", "tiles", str(tile_folder), "--model", str(model), "--split", "all"]
    done = CliRunner().invoke(
        app, [*arguments, "--fit-temperature", "--mosaics", "-o", str(tmp_path / "e")]
    )
    assert done.exit_code == 0, done.output
    assert "AUROC" in done.output
    stored = load_model(model).card.temperature
    assert stored != 1
    assert abs(model.stat().st_size - size) < 200
    facts = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert facts["temperature"] == stored
    assert facts["tiles"] == sum(facts["reliability"]["tiles"])
    assert 0 <= facts["metrics"]["mosaic_dice_without_context"] <= 1
    assert 0 < facts["metrics"]["mosaic_dice"] <= 1
    low, high = facts["intervals"]["auroc"][1:]
    assert low <= facts["intervals"]["auroc"][0] <= high
    page = (tmp_path / "e" / "evaluation.html").read_text()
    assert page.count("data:image/png;base64") == 2
    shipped = CliRunner().invoke(
        app, ["evaluate", "tiles", str(tile_folder), "--model", "lung-he", "--fit-temperature"]
    )
    assert shipped.exit_code == 2
