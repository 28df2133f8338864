"""Training on labels of whole slides: the plain label is learned, bad tables are refused."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from atlas_wsi import open_slide, predict
from atlas_wsi.cli.app import app
from atlas_wsi.errors import Cancelled, DatasetError
from atlas_wsi.models import load_model
from atlas_wsi.progress import CancelToken
from atlas_wsi.training.cards import trained_on
from atlas_wsi.training.data.slide_table import read_slide_table
from atlas_wsi.training.history import History
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
from atlas_wsi.training.split import split, table_split
from atlas_wsi.training.train import train

STAIN = {"pink": (205, 120, 180), "violet": (110, 80, 170)}
SIDE_PX = 320
SPEC = CardSpec(name="t", mpp=1.0)
TINY = Recipe(
    dim=32,
    depths=(1, 1),
    n_scales=2,
    color_jitter=0.5,
    learning_rate=1.5e-3,
    epochs=8,
    n_validations=4,
)


def make_slide(path, color, seed):
    """Write glass with three round pieces of tissue of one color."""
    rng = np.random.default_rng(seed)
    pixels = np.full((SIDE_PX, SIDE_PX, 3), 242.0)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    for _ in range(3):
        row, col = rng.integers(64, SIDE_PX - 64, 2)
        pixels[(y - row) ** 2 + (x - col) ** 2 < rng.integers(40, 64) ** 2] = color
    pixels += rng.normal(0, 5, 3) + rng.normal(0, 5, pixels.shape)
    tifffile.imwrite(
        path,
        pixels.clip(0, 255).astype(np.uint8),
        photometric="rgb",
        tile=(128, 128),
        resolution=(10000, 10000),
        resolutionunit="CENTIMETER",
    )


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve slides, two a patient."""
    folder = tmp_path_factory.mktemp("slides")
    rows = [("slide", "label", "group")]
    for k, (name, color) in enumerate(STAIN.items()):
        for i in range(6):
            make_slide(folder / f"{name}-{i}.tif", color, 100 * k + i)
            rows.append((f"{name}-{i}.tif", name, f"patient-{name}-{i // 2}"))
    return write_table(folder / "slides.csv", rows)


@pytest.fixture
def few(table):
    """Four slides, ready to be trained on."""
    slides = read_slide_table(table, windows=2, batch=1)
    rows = tuple(row for row in slides.rows if row.slide.endswith(("-0.tif", "-2.tif")))
    return replace(slides, rows=rows)


@pytest.mark.slow
def test_a_plain_label_is_learned_and_predict_says_it_of_slides_not_seen(table):
    slides = read_slide_table(table, windows=2, batch=2)
    model = train(slides, SPEC, TINY, TrainOptions(test_fraction=0.34))
    assert model.card.metrics["balanced_accuracy"] > 0.9
    assert model.card.training["slides"] == 8
    assert "4 of 12 slides held out" in model.card.split
    for i in split(slides, test=0.34, validation=0, seed=TINY.seed).test:
        scores = predict(slides.paths[i], model).scores
        assert max(scores, key=scores.get) == slides.rows[i].label


@pytest.mark.slow
def test_a_training_on_slides_that_was_stopped_goes_on_with_the_same_curve(few, tmp_path):
    recipe, out = replace(TINY, epochs=3, n_validations=3), tmp_path / "m.safetensors"
    whole, parts, again, cancel = History(), History(), History(), CancelToken()
    call, options = (few, SPEC, recipe), TrainOptions(test_fraction=0.5)
    first = train(*call, options, history=whole)
    options = replace(options, out=out)

    def stop(what, done, total):
        if what.startswith("train") and parts.rows:
            cancel.cancel()

    with pytest.raises(Cancelled):
        train(*call, options, history=parts, progress=stop, cancel=cancel)
    assert 0 < len(parts.rows) < len(whole.rows)
    second = train(*call, options, history=again)
    assert again.rows == whole.rows
    assert second.card.confusion == first.card.confusion
    assert not list(tmp_path.glob("*.resume.pt"))


@pytest.mark.slow
def test_the_command_takes_the_split_of_the_table_and_writes_a_model_that_loads(table, tmp_path):
    sides = ("train", "validation", "test")
    rows = [("slide", "label", "split")] + [
        (table.parent / f"{name}-{i}.tif", name, side)
        for name in STAIN
        for i, side in enumerate(sides)
    ]
    given = write_table(tmp_path / "given.csv", rows)
    out = tmp_path / "mine.safetensors"
    command = ["train", "slides", str(given), "-o", str(out), "--work-mpp", "1", "--windows", "1"]
    done = CliRunner().invoke(app, [*command, "--dim", "32", "--epochs", "2", "-q"])
    assert done.exit_code == 0, done.output
    card = load_model(out).card
    assert card.class_names == tuple(STAIN)
    assert np.sum(card.confusion) == 2
    assert "2 of 6 slides held out and 2 selected" in card.split
    assert "held-out slides" in out.with_suffix(".card.md").read_text()
    with out.with_suffix(".training.csv").open() as file:
        assert all(row["validation_loss"] for row in csv.DictReader(file))
    done = CliRunner().invoke(app, [*command, "--folds", "2", "--overwrite"])
    assert done.exit_code == 2
    assert "column split replaces" in " ".join(done.output.replace("│", " ").split())


@pytest.mark.slow
def test_folds_hold_out_every_slide_once(table, tmp_path):
    rows = read_slide_table(table).rows
    rows = [row for row in rows if row.slide.endswith(("-0.tif", "-2.tif"))]
    names = [("slide", "label")] + [(row.slide, row.label) for row in rows]
    given = write_table(tmp_path / "four.csv", names)
    out = tmp_path / "m.safetensors"
    options = (
        "--work-mpp",
        "1",
        "--windows",
        "1",
        "--dim",
        "32",
        "--epochs",
        "1",
        "--folds",
        "2",
        "-q",
    )
    done = CliRunner().invoke(app, ["train", "slides", str(given), "-o", str(out), *options])
    assert done.exit_code == 0, done.output
    assert np.sum(load_model(out).card.confusion) == 4
    with out.with_suffix(".predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "lacks the column slide, label"),
        ([("slide", "label")], "lists no slides"),
        ([("slide",), ("pink-0.tif",)], "lacks the column label"),
        ([("slide", "label"), ("pink-0.tif", " ")], "line 2: the column label is empty"),
        ([("slide", "label"), ("gone.tif", "pink")], "names gone.tif, but .* does not exist"),
        ([("slide", "label"), *[("pink-0.tif", "a")] * 2], "pink-0.tif twice"),
        ([("slide", "label", "split"), ("pink-0.tif", "a", "maybe")], "the split is 'maybe'"),
        (
            [
                ("slide", "label", "group", "split"),
                ("pink-0.tif", "a", "p", "train"),
                ("pink-1.tif", "a", "p", "test"),
            ],
            "group p are in two parts",
        ),
        (
            [
                ("slide", "label", "split"),
                ("pink-0.tif", "a", "train"),
                ("pink-1.tif", "b", "test"),
            ],
            "No slide of b is marked for training",
        ),
    ],
)
def test_a_bad_table_is_refused_with_what_is_wrong(table, rows, message):
    with pytest.raises(DatasetError, match=message):
        table_split(read_slide_table(write_table(table.parent / "bad.csv", rows)))


def test_slides_of_one_label_or_without_tissue_are_refused(table, tmp_path):
    slides = read_slide_table(table)
    with pytest.raises(DatasetError, match="have the label pink"):
        replace(slides, rows=slides.rows[:6], classes=("pink",)).prepared(mpp=1.0)
    make_slide(tmp_path / "glass.tif", (242, 242, 242), 0)
    with open_slide(tmp_path / "glass.tif") as slide:
        assert slide.shape == (SIDE_PX, SIDE_PX)
    glass = replace(slides.rows[0], slide=str(tmp_path / "glass.tif"))
    with pytest.raises(DatasetError, match="No tissue was found"):
        replace(slides, rows=(glass, slides.rows[-1])).prepared(mpp=1.0)


@pytest.mark.slow
def test_slides_that_a_model_was_trained_on_are_not_held_out(table, tmp_path):
    """Whatever another table says."""

    def write(name, sides):
        rows = [("slide", "label", "split")]
        rows += [
            (table.parent / f"{k}-{i}.tif", k, side) for k in STAIN for i, side in sides.items()
        ]
        return write_table(tmp_path / name, rows)

    def evaluate(given, *more):
        command = ["evaluate", "slides", str(given), "--model", str(out), *more]
        return CliRunner().invoke(app, command)

    given = write("given.csv", {0: "train", 1: "test"})
    out = tmp_path / "mine.safetensors"
    command = ["train", "slides", str(given), "-o", str(out), "--work-mpp", "1", "--windows", "1"]
    done = CliRunner().invoke(app, [*command, "--dim", "32", "--epochs", "1", "-q"])
    assert done.exit_code == 0, done.output
    assert "trained_on" not in out.with_suffix(".card.md").read_text()

    held = evaluate(given)
    assert held.exit_code == 0, held.output
    assert "card does not" not in held.output
    new = evaluate(write("new.csv", {2: "test"}))  # a table for measuring alone
    assert new.exit_code == 0, new.output
    swapped = write("swapped.csv", {0: "held-out", 1: "train"})
    again = evaluate(swapped)
    assert again.exit_code != 0
    assert "was trained on 2 of the 2" in " ".join(again.stderr.split())
    assert evaluate(swapped, "--split", "all").exit_code == 0
    nothing = evaluate(write("nothing.csv", {0: "train"}))
    assert "no slide as test" in " ".join(nothing.stderr.split())


@pytest.mark.slow
def test_two_processes_share_the_slides_of_a_step_and_follow_the_curve_of_one(table, tmp_path):
    command = ["train", "slides", str(table), "--work-mpp", "1", "--windows", "1", "--batch", "2"]
    command += ["--dim", "32", "--epochs", "1", "--lr", "1e-4", "--color-jitter", "0", "-q", "-o"]
    alone = CliRunner().invoke(app, [*command, str(tmp_path / "one.safetensors")])
    assert alone.exit_code == 0, alone.output
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*two, "-m", "atlas_wsi", *command, tmp_path / "two.safetensors"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    losses = []
    for name in ("one", "two"):
        with (tmp_path / f"{name}.training.csv").open(newline="") as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert len(losses[0]) == len(losses[1]) > 1
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    ours, theirs = (load_model(tmp_path / f"{name}.safetensors").card for name in ("one", "two"))
    assert ours.training["trained_on"] == theirs.training["trained_on"]


def test_a_card_tells_what_its_start_was_trained_on_and_nonsense_tells_nothing():
    start = {"trained_on": ["b", 3]}
    assert trained_on({"trained_on": ["a"], "init": {"training": start}}) == {"a", "b"}
    for facts in ({}, {"trained_on": 3, "init": "x"}, {"init": {"training": ["a"]}}):
        assert trained_on(facts) == set()
