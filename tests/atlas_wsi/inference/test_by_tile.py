"""Classifiers of tiles that other projects trained: TorchScript and ONNX with a config.json."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from huggingface_hub import constants
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn
from torchvision import transforms
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError, UntrustedWeightsError
from atlas_wsi.slides.synthetic import make_svs

PATCH, MPP, SIDE = 100, 0.8, 64
MEAN, STD = [0.7, 0.6, 0.7], [0.2, 0.25, 0.2]
CONFIG = {
    "spec_version": "1.0",
    "architecture": "tiny",
    "num_classes": 2,
    "class_names": ["Benign", "Tumor cells"],
    "patch_size_pixels": PATCH,
    "spacing_um_px": MPP,
    "transform": [
        {"name": "Resize", "arguments": {"size": SIDE}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": MEAN, "std": STD}},
    ],
}
NORMALIZE = CONFIG["transform"][2]


def make_net(classes: int = 2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        ).eval()
        nn.init.normal_(net[4].weight, std=6.0)
        nn.init.zeros_(net[4].bias)
    return net


def write_torchscript(net: nn.Module, path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        torch.jit.script(net).save(str(path))


def write_onnx(net: nn.Sequential, path, *, batch: int | str = "n") -> None:
    weights = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], strides=[4, 4]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "4.weight", "4.bias"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, len(weights["4.bias"])])
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [x], [y], stored)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)


def write_model(folder, kind: str, config: dict | None = None, **options):
    folder.mkdir()
    config = {**CONFIG, **(config or {})}
    (folder / "config.json").write_text(json.dumps(config))
    net = make_net(config["num_classes"] if isinstance(config.get("num_classes"), int) else 2)
    if kind == "onnx":
        write_onnx(net, folder / "model.onnx", **options)
    else:
        write_torchscript(net, folder / "torchscript_model.pt")
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "tissue.svs"
    make_svs(path, shape=(1500, 2100), mpp=0.5, tissue=0.5)
    return path


@pytest.fixture(scope="module")
def by_hand(path):
    """Probabilities of every patch, one at a time through torchvision's own transforms."""
    prepare = transforms.Compose(
        [transforms.Resize(SIDE), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    net, step = make_net(), PATCH * MPP / 0.5
    with atlas_wsi.open_slide(path) as slide, torch.inference_mode():
        rows, cols = (int(np.ceil(n / step)) for n in slide.shape)
        found = np.empty((2, rows, cols))
        for row, col in np.ndindex(rows, cols):
            pixels = slide.read_region(row * step, col * step, PATCH, PATCH, mpp=MPP)
            x = prepare(Image.fromarray(pixels))[None]
            found[:, row, col] = net(x).softmax(dim=1)[0]
    return found


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_cells_are_what_the_network_says_of_each_patch(tmp_path, path, by_hand, kind, batch_size):
    model = atlas_wsi.load_tile_classifier(write_model(tmp_path / "m", kind), trust=True)
    result = atlas_wsi.predict(path, model, batch_size=batch_size)
    assert result.classes == ("Benign", "Tumor cells")
    assert result.probabilities.shape == by_hand.shape
    assert result.grid.step_px == pytest.approx((160, 160))
    known = np.isfinite(result.probabilities[0])
    assert known.any()
    assert not known.all()
    np.testing.assert_allclose(result.probabilities[:, known], by_hand[:, known], atol=1e-5)
    assert np.ptp(by_hand[0]) > 0.01  # the patches do differ
    assert result.scores["Benign"] == pytest.approx(by_hand[0][known].mean(), abs=1e-5)
    assert result.run.model.sha256 == model.sha256


def test_patches_that_reach_over_the_border_are_filled_with_background(tmp_path, path, by_hand):
    model = atlas_wsi.load_tile_classifier(write_model(tmp_path / "m", "onnx"))
    with atlas_wsi.open_slide(path) as slide:
        mask = atlas_wsi.tissue_mask(slide)
        everywhere = replace(mask, mask=np.ones_like(mask.mask))
        result = atlas_wsi.predict(slide, model, tissue=everywhere)
    known = np.isfinite(result.probabilities[0])
    assert known[-1].any()
    np.testing.assert_allclose(result.probabilities[:, known], by_hand[:, known], atol=1e-5)


def test_onnx_that_takes_one_patch_at_a_time_gives_the_same(tmp_path, path, by_hand):
    model = atlas_wsi.load_tile_classifier(write_model(tmp_path / "m", "onnx", batch=4))
    result = atlas_wsi.predict(path, model, batch_size=7)
    known = np.isfinite(result.probabilities[0])
    np.testing.assert_allclose(result.probabilities[:, known], by_hand[:, known], atol=1e-5)


def test_one_class_is_read_as_a_sigmoid_beside_the_rest(tmp_path, path):
    config = {"num_classes": 1, "class_names": ["Tumor"]}
    model = atlas_wsi.load_tile_classifier(write_model(tmp_path / "m", "onnx", config))
    assert model.card.class_names == ("Tumor", "other")
    patches = np.random.default_rng(0).integers(0, 256, (3, PATCH, PATCH, 3), dtype=np.uint8)
    logits = make_net(1)(model.config.prepare(patches))[:, 0]
    found = model.probabilities(patches)
    np.testing.assert_allclose(found[:, 0], torch.sigmoid(logits).detach(), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_torchscript_is_not_loaded_without_trust(tmp_path, path):
    folder = write_model(tmp_path / "m", "torchscript")
    with pytest.raises(UntrustedWeightsError, match="a program"):
        atlas_wsi.load_tile_classifier(folder)
    told = CliRunner().invoke(
        app, ["predict", str(path), "-o", str(tmp_path), "--model", str(folder)]
    )
    assert told.exit_code == 2
    assert "--trust-model" in told.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"transform": [{"name": "CenterCrop", "arguments": {"size": 64}}]}, "CenterCrop"),
        ({"transform": [NORMALIZE, {"name": "ToTensor"}]}, "Normalize ToTensor"),
        ({"transform": [{"name": "Resize", "arguments": {"sise": 64}}]}, "size"),
        ({"transform": []}, "transform is ''"),
        ({"class_names": ["one"]}, "2 classes, but 1 class_names"),
        ({"spacing_um_px": -1}, "spacing_um_px"),
        ({"patch_size_pixels": "large"}, "patch_size_pixels"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(tmp_path, change, told):
    folder = write_model(tmp_path / "m", "onnx", change)
    with pytest.raises(CheckpointMismatchError, match=r"config\.json") as error:
        atlas_wsi.load_tile_classifier(folder)
    assert told in str(error.value)


def test_a_network_that_does_not_fit_its_config_is_a_clear_error(tmp_path, path):
    change = {"num_classes": 3, "class_names": ["a", "b", "c"]}
    folder = write_model(tmp_path / "m", "onnx")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(CheckpointMismatchError, match=r"expected \(\d+, 3\)"):
        atlas_wsi.predict(path, atlas_wsi.load_tile_classifier(folder))
    unscaled = {**CONFIG, "transform": CONFIG["transform"][1:]}
    (folder / "config.json").write_text(json.dumps(unscaled))
    with pytest.raises(CheckpointMismatchError, match="Resize"):
        atlas_wsi.predict(path, atlas_wsi.load_tile_classifier(folder))


@pytest.mark.parametrize("name", ["model.onnx", "torchscript_model.pt"])
def test_damaged_files_are_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(b"\x80\x02 no model")
    with pytest.raises(CheckpointMismatchError, match="not a readable"):
        atlas_wsi.load_tile_classifier(tmp_path / name, trust=True)


def test_a_folder_without_config_or_network_says_what_is_missing(tmp_path):
    with pytest.raises(UnknownModelError, match=r"config\.json"):
        atlas_wsi.load_tile_classifier(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UnknownModelError, match="neither"):
        atlas_wsi.load_tile_classifier(tmp_path)


def test_predict_writes_results_and_says_done_the_second_time(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "lymphocytes", "torchscript")
    model = ("--model", "wsinfer:lymphocytes", "--trust-model")
    first = CliRunner().invoke(app, ["predict", str(path), "-o", "out", *model])
    assert first.exit_code == 0, first.output
    result = atlas_wsi.open_result(tmp_path / "out" / "tissue")
    assert result.run.model.name == "lymphocytes"
    assert result.run.parameters["cell_px"] == PATCH
    again = CliRunner().invoke(app, ["predict", str(path), "-o", "out", *model])
    assert "already done" in again.output


def test_tile_classifiers_are_listed_and_shown_without_being_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "lymphocytes", "torchscript")
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).output)
    mine = [m for m in listed if m["id"] == "lymphocytes"]
    assert [(m["where"], m["backbone"]) for m in mine] == [("local", "by tile")]
    shown = CliRunner().invoke(app, ["models", "show", "lymphocytes"]).output
    assert "Tumor cells" in shown
    assert "Resize" in shown


def test_what_needs_context_refuses_tile_classifiers(tmp_path, path):
    folder = write_model(tmp_path / "m", "onnx")
    with pytest.raises(UnknownModelError, match="tile classifiers"):
        atlas_wsi.load_model(folder)
    with pytest.raises(ValueError, match="no context"):
        atlas_wsi.predict(path, atlas_wsi.load_tile_classifier(folder), context=True)


def test_cells_of_another_size_are_refused(tmp_path, path):
    folder = write_model(tmp_path / "m", "onnx")
    asked = ["predict", str(path), "-o", str(tmp_path), "--model", str(folder), "--cell-px", "32"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 2
    assert "patches" in told.output


def test_a_tile_classifier_in_the_hubs_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--lab--lymphocytes"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots").mkdir()
    write_model(repo / "snapshots" / "abc", "torchscript")
    model = atlas_wsi.load_tile_classifier("wsinfer:hf://lab/lymphocytes@main", trust=True)
    assert model.card.name == "lab-lymphocytes"
    with pytest.raises(UnknownModelError, match="not in the cache"):
        atlas_wsi.load_tile_classifier("wsinfer:hf://lab/other@main", trust=True)


def test_a_folder_with_the_name_of_a_shipped_model_hides_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tissue").mkdir()
    assert atlas_wsi.load_model("tissue").card.name == "tissue"
    shown = CliRunner().invoke(app, ["models", "show", "tissue"])
    assert "out_of_focus" in shown.output
