"""A training starts as the linear reading of its stem, and is measured beside it."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import atlas_wsi
from atlas_wsi.models import load_model
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.training.amid import sheets
from atlas_wsi.training.cards import card_text
from atlas_wsi.training.data.tile_folder import read_tile_folder, read_tiles
from atlas_wsi.training.evaluation import predict_logits
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
from atlas_wsi.training.train import train

ALWAYS = {"accuracy", "balanced_accuracy", "amid_accuracy", "amid_balanced_accuracy", "ece"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def trained(folder, weights, *, rate, freeze=True, validation=0.0, **options):
    recipe = Recipe(
        encoder="timm:test_resnet",
        freeze=freeze,
        color_jitter=0.0,
        epochs=2,
        megapixels=0.1,
        learning_rate=rate,
    )
    return train(
        read_tile_folder(folder, mpp=1.0),
        CardSpec(name="small", domain="scene"),
        recipe,
        TrainOptions(encoder_weights=weights, validation_fraction=validation, **options),
    )


def figures(card, first):
    return {k: card.metrics[first + k] for k in ALWAYS}


def test_a_fine_tuned_encoder_is_compared_with_the_reading_of_the_frozen_one(tile_folder, weights):
    card = trained(tile_folder, weights, rate=1e-3, freeze=False).card
    frozen = trained(tile_folder, weights, rate=1e-3).card
    assert figures(card, "linear_") == figures(frozen, "linear_")
    assert "window_accuracy" not in card.metrics


def test_a_training_without_a_step_is_the_linear_reading_of_its_stem(tile_folder, weights):
    card = trained(tile_folder, weights, rate=1e-12).card
    assert figures(card, "") == pytest.approx(figures(card, "linear_"), abs=2e-3)
    assert figures(card, "") == pytest.approx(figures(card, "window_"), abs=2e-3)
    assert card.metrics["linear_accuracy"] > 0.5  # of three classes, random weights
    assert card.training["reading"] == "context"
    text = card_text(card)
    assert "linear reading of its stem | windows without context | color alone |" in text
    assert "| balanced accuracy amid other tiles |" in text


def test_the_best_on_the_validation_part_becomes_the_model(tile_folder, weights, tmp_path):
    path = tmp_path / "small.safetensors"
    model = trained(tile_folder, weights, rate=1.0, validation=0.3, out=path)  # far too high
    facts = model.card.training
    assert facts["reading"] == "linear"
    assert facts["validation"]["linear"] == max(facts["validation"].values())
    assert set(facts["validation"]) == {"context", "window", "linear"}
    assert set(model.card.metrics) >= {"context_accuracy", "window_accuracy"}
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == []
    loaded = load_model(path)
    assert (loaded.config.depths, facts["depths"]) == ((), [])
    slide = tmp_path / "slide.svs"
    make_svs(slide, shape=(1100, 1500), mpp=1.0, tissue=0.8)
    heatmap = atlas_wsi.predict(slide, loaded)
    inside = ~np.isnan(heatmap.probabilities[0])
    assert inside.any()
    tiles = read_tiles(tile_folder)
    with torch.inference_mode():
        x = loaded.normalize(torch.from_numpy(tiles.images[:2]))
        mean = loaded(x).cells.mean(dim=(2, 3))
        torch.testing.assert_close(loaded(x).slide, mean)


def test_baselines_can_be_left_out(tile_folder, weights):
    card = trained(tile_folder, weights, rate=1e-3, validation=0.3, baselines=False).card
    assert set(card.metrics) >= {"accuracy", "amid_accuracy", "color_baseline_accuracy"}
    assert not [name for name in card.metrics if name.startswith(("linear_", "window_"))]
    assert "validation" not in card.training


def test_without_context_no_window_knows_of_another(tile_folder):
    rng = np.random.default_rng(0)
    model = train(
        read_tile_folder(tile_folder, mpp=1.0),
        CardSpec(name="small", domain="scene"),
        Recipe(dim=32, depths=(1,), epochs=1, megapixels=0.1, context=False),
    )
    images = torch.from_numpy(rng.integers(0, 256, (1, 512, 512, 3), dtype=np.uint8))
    with torch.inference_mode():
        whole = model(model.normalize(images)).cells
        images[:, :160] = 0  # beyond the reach of the stem from the last window
        assert torch.equal(model(model.normalize(images)).cells[..., 6:, 6:], whole[..., 6:, 6:])


@pytest.mark.parametrize("shape", [(64, 64), (100, 70)])
def test_every_tile_lies_once_where_its_tokens_are_read(shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, *shape, 3), dtype=np.uint8)
    seen = []
    for picture, places in sheets(images, token_px=16):
        for tile, rows, cols in places:
            top, left = rows.start * 16, cols.start * 16
            inside = images[tile][top % shape[0] :, left % shape[1] :][:16, :16]
            assert np.array_equal(picture[top : top + 16, left : left + 16], inside)
            assert rows.stop * 16 <= top - top % shape[0] + shape[0]
            seen.append(tile)
    assert sorted(seen) == list(range(300))


def test_predictions_of_the_stored_model_are_those_of_its_card(tile_folder, weights, tmp_path):
    path = tmp_path / "small.safetensors"
    model = trained(tile_folder, weights, rate=1e-3, validation=0.3, out=path)
    tiles = read_tiles(tile_folder)
    stored, valid = predict_logits(load_model(path), tiles)
    now, _ = predict_logits(model, tiles)
    assert valid.all()
    np.testing.assert_allclose(stored, now, atol=1e-4)
