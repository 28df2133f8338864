"""Training and evaluation, by a tiny model on tiny tiles."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.errors import Cancelled, CheckpointMismatchError, DatasetError
from atlas_wsi.models import load_model
from atlas_wsi.progress import CancelToken
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.training.cards import write_card
from atlas_wsi.training.data.tile_folder import read_tile_folder, read_tiles
from atlas_wsi.training.evaluation import evaluate, unseen_part
from atlas_wsi.training.metrics import color_baseline, confusion, summarize
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
from atlas_wsi.training.segmentation import evaluate_mosaics
from atlas_wsi.training.train import train

SMALL = {"dim": 32, "depths": (1, 1), "n_scales": 2, "megapixels": 0.25, "learning_rate": 4e-3}


def train_small(folder, **recipe):
    return train(
        read_tile_folder(folder, mpp=1.0),
        CardSpec(name="small", domain="scene"),
        Recipe(**SMALL | recipe),
        TrainOptions(test_fraction=0.25, dtype="float16"),
    )


@pytest.fixture(scope="module")
def trained(tile_folder, tmp_path_factory):
    model = train_small(tile_folder, epochs=40)
    path = model.save(tmp_path_factory.mktemp("model") / "small.safetensors", dtype=torch.float16)
    write_card(model, path)
    return path


@pytest.mark.slow
def test_textures_are_learned_that_color_cannot_tell(trained):
    metrics = load_model(trained).card.metrics
    assert metrics["balanced_accuracy"] > 0.6
    assert set(metrics) >= {"accuracy", "color_baseline_accuracy", "recall dots"}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mambavision", "mambavision+msa"])
def test_a_mambavision_learns_the_same_textures_and_predicts_slides(
    tile_folder, tmp_path, backbone
):
    model = train_small(tile_folder, epochs=20, backbone=backbone)
    assert model.config.backbone == backbone
    assert model.card.metrics["balanced_accuracy"] > 0.5
    loaded = load_model(model.save(tmp_path / "mine.safetensors"))
    assert loaded.config == model.config
    slide = tmp_path / "slide.svs"
    make_svs(slide, shape=(1100, 1500), mpp=1.0, tissue=0.8)
    result = atlas_wsi.predict(slide, loaded)
    assert np.isfinite(result.probabilities).any()
    assert result.run.parameters["scales"] == (1 if backbone == "mambavision" else 3)


@pytest.mark.slow
def test_evaluate_reproduces_the_card_from_the_stored_file(trained, tile_folder):
    model = load_model(trained)
    found = evaluate(model, read_tile_folder(tile_folder))
    assert {k: round(v, 4) for k, v in found.metrics.items()} == {
        k: v for k, v in model.card.metrics.items() if not k.startswith(("color", "ece", "amid"))
    }
    assert found.confusion.tolist() == [list(row) for row in model.card.confusion]


@pytest.mark.slow
def test_borders_are_measured_on_mosaics_of_test_tiles(trained, tile_folder):
    model = load_model(trained)
    tiles = unseen_part(model, read_tiles(tile_folder))
    found, again = (evaluate_mosaics(model, tiles, n=3, side_px=512) for _ in range(2))
    assert found == again
    assert found["mosaic_cell_accuracy"] > 0.5
    last = len(tiles.classes) - 1
    turned = replace(tiles, classes=tiles.classes[::-1], labels=last - tiles.labels)
    assert evaluate_mosaics(model, turned, n=1, side_px=512)["mosaic_cell_accuracy"] > 0.5
    assert set(found) == {"mosaic_cell_accuracy", "mosaic_dice", "mosaic_dice_without_context"}


@pytest.mark.slow
def test_the_command_evaluates_what_the_card_says(trained, tile_folder):
    done = CliRunner().invoke(
        app, ["evaluate", "tiles", str(tile_folder), "--model", str(trained), "--json"]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["tiles"] == 18
    assert said["confusion"] == [list(row) for row in load_model(trained).card.confusion]


@pytest.mark.slow
def test_the_command_trains_and_writes_the_card_beside(tile_folder, tmp_path):
    out = tmp_path / "new" / "mine.safetensors"
    arguments = ["train", "tiles", str(tile_folder), "--out", str(out), "--mpp", "0.5"]
    arguments += ["--epochs", "2", "--dim", "32", "--quiet"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert load_model(out).card.name == "mine"
    assert "balanced accuracy" in (tmp_path / "new" / "mine.card.md").read_text()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "mine.card.json",
        "mine.card.md",
        "mine.safetensors",
        "mine.training.csv",
        "mine.training.png",
    ]


def test_a_name_that_no_model_can_have_is_refused_at_once(tile_folder, tmp_path):
    out = tmp_path / "my model.safetensors"
    done = CliRunner().invoke(
        app, ["train", "tiles", str(tile_folder), "--out", str(out), "--mpp", "1"]
    )
    assert done.exit_code == 2
    assert "is not a valid model name" in done.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_data_set_writes_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "m.safetensors"
    done = CliRunner().invoke(
        app, ["train", "tiles", str(tmp_path / "empty"), "--out", str(out), "--mpp", "1"]
    )
    assert done.exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(tile_folder):
    first, again, other = (train_small(tile_folder, epochs=1, seed=s) for s in (14, 14, 33))
    a, b, c = (torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.slow
def test_training_goes_on_from_a_model(trained, tile_folder):
    start = load_model(trained)
    recipe = Recipe(**SMALL | {"learning_rate": 1e-6}, epochs=0.5)
    data, spec = read_tile_folder(tile_folder, mpp=1.0), CardSpec(name="on", domain="scene")
    options = TrainOptions(test_fraction=0.25, init=start)
    more = train(data, spec, recipe, options)
    for name, value in start.named_parameters():
        assert torch.allclose(value, more.get_parameter(name), atol=1e-3)
    assert more.card.training["init"]["training"] == start.card.training
    wider = Recipe(**SMALL | {"dim": 64}, epochs=0.5)
    with pytest.raises(CheckpointMismatchError, match="dim"):
        train(data, spec, wider, options)


@pytest.mark.slow
def test_training_leaves_the_callers_random_numbers_alone(tile_folder):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train_small(tile_folder, epochs=0.1)
    assert torch.equal(torch.rand(3), expected)


def test_cancelling_stops_the_training(tile_folder):
    token = CancelToken()

    def stop(what, done, total):
        if what.startswith("train"):
            token.cancel()

    with pytest.raises(Cancelled):
        train(
            read_tile_folder(tile_folder, mpp=1.0),
            CardSpec(name="small"),
            Recipe(**SMALL, epochs=50),
            progress=stop,
            cancel=token,
        )


@pytest.mark.slow
def test_classes_that_the_model_does_not_know_are_named(trained, make_folder):
    folder = make_folder(n=3, classes=("dots", "rings"))
    with pytest.raises(DatasetError, match="does not know rings"):
        evaluate(trained, read_tile_folder(folder))


@pytest.mark.slow
def test_another_folder_is_measured_whole_and_has_no_test_part(trained, make_folder):
    """Also one with as many tiles of each class, under the same names."""
    folder = make_folder(n=24, side=80)
    command = ["evaluate", "tiles", str(folder), "--model", str(trained)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "not the training data: 72 tiles measured" in " ".join(done.output.split())
    refused = CliRunner().invoke(app, [*command, "--split", "test"])
    assert refused.exit_code == 2
    assert "72 tiles are others" in " ".join(refused.stderr.split())


@pytest.mark.slow
def test_all_of_the_training_folder_is_measured_on_request(trained, tile_folder):
    command = ["evaluate", "tiles", str(tile_folder), "--model", str(trained), "--json"]
    whole = json.loads(CliRunner().invoke(app, [*command, "--split", "all"]).stdout)
    assert (whole["tiles"], whole["split"]) == (72, "all")
    own = json.loads(CliRunner().invoke(app, command).stdout)
    assert (own["tiles"], own["split"]) == (18, "test")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dim", "33"], "multiple of 32"),
        (["--patience", "2"], "patience needs a validation part"),
        (["--weights", "none"], "weights of an encoder need an encoder"),
        (["--encoder", "resnet18"], "expected timm:NAME"),
        (["--gsd", "10m"], "give one"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_any_work(tmp_path, more, message):
    command = ["train", "tiles", str(tmp_path / "gone"), "-o", str(tmp_path / "m.safetensors")]
    done = CliRunner().invoke(app, [*command, "--mpp", "1", *more])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_figures_come_from_the_confusion_matrix():
    counts = confusion(np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0]), 3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]
    figures = summarize(counts)
    assert figures["accuracy"] == pytest.approx(3 / 5)
    assert figures["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_color_alone_tells_colors_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    colors = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    tiles = np.clip(colors[labels][:, None, None] + rng.normal(0, 20, (60, 16, 16, 3)), 0, 255)
    tiles = tiles.astype(np.uint8)
    found = color_baseline(tiles[:30], labels[:30], tiles[30:], 3)
    assert (found == labels[30:]).all()
