"""Training starts from what fits of other weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from easydict import EasyDict
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError
from atlas_wsi.models import ModelCard, ModelClass, load_model
from atlas_wsi.models.start import Start, load_start, take_weights, timm_start
from atlas_wsi.training.data.tile_folder import read_tile_folder
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
from atlas_wsi.training.train import train
from atlas_wsi.training.trainer import new_model

GOLDEN = Path(__file__).parents[2] / "golden" / "atlas" / "a01_256_m8_l2_2s"
WRAPPED = "module._orig_mod."


def card_of(*names: str) -> ModelCard:
    classes = tuple(ModelClass(name=name, color="#000000") for name in names)
    return ModelCard(name="new", domain="slide", classes=classes, mpp=1.0)


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN.with_suffix(".safetensors"))
    return {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write what the published training script stores: wrapped names, arguments as EasyDict."""
    stages = json.loads(GOLDEN.with_suffix(".json").read_text())["kwargs_list"]
    arguments = EasyDict({"lr": 1e-3, "model": EasyDict(kwargs_list=stages)})
    path = folder / "latest.ckpt"
    wrapped = {WRAPPED + name: value for name, value in state.items()}
    torch.save({"model": wrapped, "args": arguments, "epoch": 3}, path)
    return path


def test_a_published_checkpoint_gives_its_encoder_and_its_sizes(tmp_path, published):
    start = load_start(write_checkpoint(tmp_path, published))
    model = new_model(2, card_of("a", "b"), Recipe(), start)
    assert (model.config.dim, model.config.heads) == (32, 4)
    stem = model.get_parameter("encoder.stem.conv1.weight")
    assert torch.equal(stem, published["atlas_models.0.patch_embed.conv0.0.weight"])
    assert torch.equal(model.get_parameter("encoder.fc_norm.weight"), published["fc_norm.weight"])
    fresh = new_model(2, card_of("a", "b"), Recipe(dim=32, seed=1), None)
    assert model.encoder.fc.weight.shape == fresh.encoder.fc.weight.shape  # 2 classes, not 10
    told = model.card.training["init"]["taken"]
    assert "fresh: encoder.fc, head; not taken: encoder.fc" in told


def test_safetensors_of_the_same_names_start_a_training_too(tmp_path, published):
    path = tmp_path / "atlas.safetensors"
    save_file({k: v.contiguous() for k, v in published.items()}, path)
    from_torch = load_start(write_checkpoint(tmp_path, published))
    found = load_start(path)
    assert found.weights.keys() == from_torch.weights.keys()
    assert found.config.dim == 32
    assert found.config.heads == 1  # no arguments: 64 channels a head, as all published models


def test_what_does_not_fit_is_left_and_told(tmp_path, published):
    published["atlas_models.1.levels.0.blocks.0.blocks.0.attn.extra.weight"] = torch.zeros(3)
    published["teacher.weight"] = torch.zeros(3)
    del published["fc_norm.weight"]
    start = load_start(write_checkpoint(tmp_path, published))
    model = new_model(2, card_of("a", "b"), Recipe(n_scales=1), start)
    assert model.config.n_scales == 1
    taken = take_weights(model, start)
    assert "encoder.fc_norm" in taken.fresh
    assert any(".scales.1." in part for part in taken.left)
    assert any("teacher" in part for part in taken.left)


def test_a_model_starts_one_with_other_classes_with_a_fresh_head():
    start = load_model("atlas_test")
    model = new_model(2, card_of("a", "b"), Recipe(), Start.of(start))
    assert model.config.dim == start.config.dim
    own, given = model.state_dict(), start.state_dict()
    for name, value in own.items():
        if name.startswith("encoder.") and not name.startswith("encoder.fc."):
            assert torch.equal(value, given[name]), name
    assert model.head.reads[0].weight.shape[0] == 2


def test_the_head_goes_on_only_with_the_same_classes_in_the_same_order():
    start = load_model("atlas_test")
    names = start.card.class_names
    same = new_model(3, card_of(*names), Recipe(seed=7), Start.of(start))
    turned = new_model(3, card_of(*names[::-1]), Recipe(seed=7), Start.of(start))
    assert torch.equal(same.head.reads[0].weight, start.head.reads[0].weight)
    assert not torch.equal(turned.head.reads[0].weight, start.head.reads[0].weight)


def test_weights_of_something_else_are_an_error(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, path)
    with pytest.raises(CheckpointMismatchError, match=r"layer1\.0\.conv1"):
        load_start(path)
    nothing = Start(name="x", config=None, weights={"encoder.stem.conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointMismatchError, match="no weight fits"):
        take_weights(load_model("atlas_test"), nothing)


def test_another_size_than_the_starts_is_an_error():
    with pytest.raises(CheckpointMismatchError, match="has the dim 16; requested was 64"):
        new_model(2, card_of("a", "b"), Recipe(dim=64), Start.of(load_model("atlas_test")))


def test_a_checkpoint_in_the_hubs_cache_starts_a_training(tmp_path, published, monkeypatch):
    cache = tmp_path / "hub"
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = cache / "models--owner--atlas"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    write_checkpoint(repo / "snapshots" / commit, published)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_start("hf://owner/atlas@main").config.dim == 32
    with pytest.raises(UnknownModelError, match="not in the cache"):
        load_start("hf://owner/other@main")


@pytest.mark.slow
def test_tiles_train_from_a_published_checkpoint(tmp_path, published, tile_folder):
    model = train(
        read_tile_folder(tile_folder, mpp=1.0),
        CardSpec(name="on", domain="scene"),
        Recipe(epochs=0.3, megapixels=0.1, n_validations=1, learning_rate=1e-6),
        TrainOptions(test_fraction=0.25, init=load_start(write_checkpoint(tmp_path, published))),
    )
    known = published["atlas_models.0.patch_embed.conv0.0.weight"]
    torch.testing.assert_close(model.encoder.stem.conv1.weight, known, atol=1e-3, rtol=0)
    assert model.card.training["dim"] == 32
    model.save(tmp_path / "on.safetensors")
    assert load_model(tmp_path / "on.safetensors").config == model.config


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_weights_of_a_timm_network_get_under_the_attention(tmp_path, name):
    torch.manual_seed(4)
    net = timm.create_model(name, pretrained=False)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    start = timm_start(f"timm:{name}", tmp_path / "w.safetensors")
    model = new_model(2, card_of("a", "b"), Recipe(encoder=f"timm:{name}"), start)
    given = net.state_dict()
    for key, value in model.encoder.stem.trunk.state_dict().items():
        assert torch.equal(value, given[key.removeprefix("model.")]), key
    assert model.card.mean == net.pretrained_cfg["mean"]
    with pytest.raises(CheckpointMismatchError, match="test_convnext"):
        timm_start("timm:test_convnext", tmp_path / "w.safetensors")


@pytest.mark.slow
def test_tiles_train_on_a_timm_network(tmp_path, tile_folder):
    out = tmp_path / "mixed.safetensors"
    asked = ["train", "tiles", str(tile_folder), "-o", str(out), "--mpp", "1"]
    asked += ["--encoder", "timm:test_resnet", "--weights", "none"]
    asked += ["--epochs", "0.3", "--megapixels", "0.1", "--test-fraction", "0.25", "--quiet"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    model = load_model(out)
    assert model.config.stem_options == {"name": "test_resnet", "project": 192}
    assert model.card.training["encoder"] == "timm:test_resnet"
    assert model.card.training["backbone"] == "timm+msa"
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_the_command_says_what_was_taken(tmp_path, tile_folder):
    asked = [
        "train",
        "tiles",
        str(tile_folder),
        "-o",
        str(tmp_path / "m.safetensors"),
        "--mpp",
        "1",
    ]
    asked += [
        "--init",
        "tissue",
        "--epochs",
        "0.1",
        "--megapixels",
        "0.05",
        "--test-fraction",
        "0.25",
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "Started from tissue: 187 tensors" in " ".join(done.output.split())


def test_an_encoder_goes_with_no_other_start(tmp_path, tile_folder):
    asked = ["train", "tiles", str(tile_folder), "-o", str(tmp_path / "m.safetensors")]
    asked += ["--mpp", "1", "--encoder", "timm:test_resnet", "--init", "tissue"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert "not both" in done.output
    with pytest.raises(CheckpointMismatchError, match="is the backbone"):
        new_model(2, card_of("a", "b"), Recipe(encoder="timm:test_resnet", backbone="atlas"), None)


@pytest.mark.parametrize("recipe", [Recipe(dim=32), Recipe(encoder="timm:test_resnet", dim=64)])
@pytest.mark.parametrize("side", [64, 700])
@torch.no_grad()
def test_a_training_starts_as_the_linear_reading_of_the_tokens_of_its_stem(recipe, side):
    model = new_model(2, card_of("a", "b"), recipe, None).eval()
    x = torch.randn(1, 3, side, side)
    tokens = model.encoder.stem(x)
    read = model.head.reads[0](tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    found = model(x, cell_tokens=1)
    assert torch.equal(found.cells, read)
    alone = model(x, cell_tokens=1, n_scales=1)
    assert torch.equal(alone.cells, read)


@torch.no_grad()
def test_fine_tokens_pass_the_same_blocks_in_a_tile_and_on_a_slide():
    model = new_model(2, card_of("a", "b"), Recipe(dim=32, depths=(1, 1, 2)), None).eval()
    for weight in model.encoder.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x = torch.randn(1, 3, 256, 256)
    tile = model.encoder.encode(x)
    assert len(tile.stages) == 1
    slide = model.encoder.encode(x, model.encoder.plan((256, 256), n_scales=3))
    assert [len(stage) for stage in slide.stages] == [3, 2, 1]


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_is_but_for_its_projection(tmp_path, tile_folder):
    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    out = tmp_path / "m.safetensors"
    asked = ["train", "tiles", str(tile_folder), "-o", str(out), "--mpp", "1", "--freeze"]
    asked += ["--encoder", "timm:test_resnet", "--weights", str(tmp_path / "net.safetensors")]
    asked += ["--epochs", "0.5", "--megapixels", "0.1", "--dim", "64", "--quiet"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    trained = load_model(out)
    for name, value in trained.encoder.stem.trunk.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    with torch.no_grad():
        tiles = read_tile_folder(tile_folder, mpp=1).prepared().images
        tokens = trained.encoder.stem(trained.normalize(torch.from_numpy(tiles)))
    spread = tokens.transpose(0, 1).flatten(1).var(dim=1)
    assert 0.5 < float(spread[:8].mean()) < 1.5  # whitened on the tiles of the training part
    assert trained.card.training["freeze"]


def test_what_suits_a_training_depends_on_its_start():
    recipe = Recipe(mosaics=0.1)
    assert recipe.suited("slide", is_pretrained=True).color_jitter == 0.6
    assert recipe.suited("scene", is_pretrained=False).color_jitter == 1.0
    assert recipe.suited("scene", is_pretrained=True).mosaics == 0.1
    assert recipe.suited("slide", is_pretrained=True).readout == "mean"
    assert recipe.suited("slide", is_pretrained=True, unit="slides").readout == "attention"
    mean = replace(recipe, readout="mean")
    assert mean.suited("slide", is_pretrained=True, unit="slides").readout == "mean"


def test_a_model_that_reads_the_mean_starts_a_fresh_attention():
    start = load_model("atlas_test")
    recipe = Recipe(readout="attention")
    model = new_model(3, card_of(*start.card.class_names), recipe, Start.of(start))
    assert model.config.readout == "attention"
    assert "fresh: pool" in model.card.training["init"]["taken"]
    again = new_model(3, card_of(*start.card.class_names), recipe, Start.of(model))
    assert torch.equal(again.pool.weigh.weight, model.pool.weigh.weight)
    other = new_model(3, card_of("a", "b", "c"), recipe, Start.of(model))
    assert "fresh: encoder.fc, head, pool" in other.card.training["init"]["taken"]
    back = new_model(3, card_of(*start.card.class_names), Recipe(), Start.of(model))
    assert "not taken: pool" in back.card.training["init"]["taken"]
