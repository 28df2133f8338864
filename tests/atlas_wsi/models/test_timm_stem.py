"""Networks of timm in the stem's place and as encoders of tiles."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError
from atlas_wsi.grid import Box
from atlas_wsi.models import Model, ModelCard, ModelClass
from atlas_wsi.models.atlas import make_config
from atlas_wsi.models.stems.timm_network import TimmEncoder, TimmStem
from atlas_wsi.slides.synthetic import make_svs

NETWORKS = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
CARD = ModelCard(
    name="mixed",
    domain="slide",
    classes=(ModelClass(name="a", color="#ff0000"), ModelClass(name="b", color="#0000ff")),
    mpp=1.0,
)


def make_model(name: str) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = make_config("timm+msa", dim=0, depths=(1, 1), n_scales=2, n_classes=2, timm=name)
        return Model(config, CARD).eval()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "tissue.svs"
    make_svs(path, shape=(1500, 2100), mpp=0.5, tissue=0.5)
    return path


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_tokens_of_a_window_are_those_of_the_network_on_it_alone(name):
    stem = TimmStem(name, window_px=64).eval()
    x = torch.randn(2, 3, 100, 130)
    tokens = stem(x)
    assert tokens.shape == (2, stem.dim, 7, 9)
    padded = torch.nn.functional.pad(x, (0, 62, 0, 28))
    for row, col in np.ndindex(2, 3):
        alone = stem.trunk(padded[..., row * 64 : row * 64 + 64, col * 64 : col * 64 + 64])[0]
        part = tokens[..., row * 4 : row * 4 + 4, col * 4 : col * 4 + 4]
        expected = alone[..., : part.shape[-2], : part.shape[-1]]
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_lies_behind_the_map_is_left_out_and_the_tokens_stay():
    whole = timm.create_model("test_efficientnet", features_only=True).eval()
    stem = TimmStem("test_efficientnet", window_px=64).eval()
    kept = stem.trunk.state_dict()
    assert len(kept) < len(whole.state_dict())
    stem.trunk.load_state_dict({k: v for k, v in whole.state_dict().items() if k in kept})
    x = torch.randn(1, 3, 64, 64)
    expected = next(y for y in whole(x) if y.shape[-1] == 4)
    assert torch.equal(stem.trunk(x)[0], expected)


@torch.no_grad()
def test_a_part_is_encoded_as_in_the_whole_image():
    stem = TimmStem("test_resnet", window_px=64).eval()
    x, image = torch.randn(1, 3, 200, 150), (200, 150)
    whole = stem(x)
    for want in (Box(row=64, col=0, rows=64, cols=128), Box(row=128, col=64, rows=96, cols=96)):
        read = stem.reach(want, image)
        pixels = x[..., read.row : read.row_end, read.col : read.col_end]
        found = stem.part(pixels, want, image)
        expected = whole[
            ..., want.row // 16 : want.row_end // 16, want.col // 16 : want.col_end // 16
        ]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_slide_streams_to_what_the_dense_pass_gives(path):
    model = make_model("test_resnet")
    streamed = atlas_wsi.predict(path, model, precision="float32")
    known = np.isfinite(streamed.probabilities[0])
    assert known.any()
    with atlas_wsi.open_slide(path) as slide:
        pixels = slide.read_region(0, 0, 750, 1050, mpp=1.0)
        windows = atlas_wsi.predict(slide, model, precision="float32", memory="300MB")
        everywhere = slide_windows(slide)
    np.testing.assert_allclose(
        windows.probabilities[:, known], streamed.probabilities[:, known], atol=1e-4
    )
    dense = model(model.normalize(torch.from_numpy(pixels.copy())[None]), everywhere)
    expected = dense.cells[0].softmax(dim=0).numpy()
    np.testing.assert_allclose(streamed.probabilities[:, known], expected[:, known], atol=1e-4)


def slide_windows(slide) -> torch.Tensor:
    from atlas_wsi.tissue.windows import plan_windows

    mask = atlas_wsi.tissue_mask(slide)
    found = plan_windows(slide.shape, slide.mpp, mask, mpp=(1.0, 1.0), window_px=256)
    return torch.from_numpy(found.active)


def test_a_model_file_knows_its_network(tmp_path):
    model = make_model("test_vit")
    again = Model.load(model.save(tmp_path / "m.safetensors"))
    assert again.config.stem == "timm"
    assert again.config.stem_options == {"name": "test_vit", "project": 64}
    assert again.config.backbone == "timm+msa"
    x = torch.randn(1, 3, 300, 200)
    with torch.no_grad():
        torch.testing.assert_close(again(x).cells, model(x).cells)


def test_networks_that_cannot_stand_under_attention_are_refused():
    with pytest.raises(UnknownModelError, match=r"stride 32, 32, 32; .* one of 16 or 14"):
        make_model("vit_base_patch32_224")
    for name in ("resnet", "hf-hub:owner/name", "../resnet18"):
        with pytest.raises(UnknownModelError, match="no network"):
            make_model(name)


@torch.no_grad()
def test_features_are_what_timm_gives_before_its_classifier(tmp_path):
    torch.manual_seed(1)
    net = timm.create_model("test_convnext", pretrained=False).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pth"
    )
    tiles = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    mean, std = torch.tensor(net.pretrained_cfg["mean"]), torch.tensor(net.pretrained_cfg["std"])
    x = ((tiles / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = net.forward_head(net.forward_features(x), pre_logits=True)
    for file in ("w.safetensors", "w.pth"):
        encoder = TimmEncoder("timm:test_convnext", weights=tmp_path / file)
        torch.testing.assert_close(encoder.features(tiles), expected, atol=1e-5, rtol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path):
    net = timm.create_model("test_resnet", pretrained=False)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointMismatchError, match="test_convnext"):
        TimmEncoder("timm:test_convnext", weights=tmp_path / "w.safetensors")


def test_without_network_or_cache_pretrained_weights_are_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownModelError, match="not in the cache") as error:
        TimmEncoder("timm:test_vit")
    assert "give its path" in str(error.value)


def test_pretrained_weights_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(2)
    net = timm.create_model("test_vit", pretrained=False)
    repo = tmp_path / ("models--" + net.pretrained_cfg["hf_hub_id"].replace("/", "--"))
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    save_file(net.state_dict(), repo / "snapshots" / "abc" / "model.safetensors")
    encoder = TimmEncoder("timm:test_vit")
    assert torch.equal(encoder.net.state_dict()["cls_token"], net.state_dict()["cls_token"])


def test_embed_writes_features_of_a_timm_network(tmp_path, path):
    asked = ["embed", str(path), "-o", str(tmp_path / "f.h5"), "--encoder", "timm:test_vit"]
    asked += ["--weights", "none", "--work-mpp", "1", "--tile-px", "160"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"].shape[1] == 64
        assert file["features"].attrs["encoder"] == "test_vit"
        assert file["coords"].attrs["patch_size_level0"] == 320
        assert np.ptp(file["features"][:], axis=0).max() > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--encoder", "resnet18"), "timm:NAME"),
        (("--encoder", "timm:resnet18", "--model", "tissue"), "replaces --model"),
        (("--weights", "x"), "--encoder"),
    ],
)
def test_embed_refuses_what_does_not_go_together(tmp_path, path, arguments, told):
    done = CliRunner().invoke(app, ["embed", str(path), "-o", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert told in done.output
