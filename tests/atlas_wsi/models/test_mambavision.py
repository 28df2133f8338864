"""MambaVision against the published implementation's outputs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atlas_wsi.errors import CheckpointMismatchError
from atlas_wsi.models import mambavision
from atlas_wsi.models.mambavision import VARIANTS, MambaVision, make_variant

GOLDEN = Path(__file__).parents[2] / "golden" / "mambavision"
CASES = sorted(path.stem for path in GOLDEN.glob("m*.json"))
KEYS = json.loads((GOLDEN / "keys_TSBL.json").read_text())
SMALL = {
    "depths": (1, 1, 2, 2),
    "num_heads": (1, 1, 2, 2),
    "dim": 8,
    "in_dim": 4,
    "mlp_ratio": 2,
    "num_classes": 3,
}


def open_case(name):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    stored = load_file(GOLDEN / f"{name}.safetensors")
    model = MambaVision(**facts["kwargs"]).eval()
    model.load_state_dict(
        {k.removeprefix("state."): v for k, v in stored.items() if k.startswith("state.")}
    )
    return facts, stored, model


def small_model(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = MambaVision(**SMALL, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_published_outputs_are_reproduced(name):
    facts, stored, model = open_case(name)
    heard = {}
    mixer = model.get_submodule(facts["last_mixer"])
    mixer.register_forward_hook(lambda _, x, y: heard.update(x=x[0], y=y))
    model.norm.register_forward_hook(lambda _, x, y: heard.update(pooled=y.mean(dim=(2, 3))))
    x = stored["input_u8"].float() / 64 - 2

    torch.testing.assert_close(model(x), stored["logits"], atol=2e-5, rtol=0)

    features = model.features(x)
    for i, feature in enumerate(features):
        assert feature.shape[2:] == (-(-x.shape[2] // 2 ** (i + 2)), -(-x.shape[3] // 2 ** (i + 2)))
        if f"feat.level{i}" in stored:
            after = model.levels[i].downsample
            found = feature if after is None else after(feature)
            torch.testing.assert_close(found, stored[f"feat.level{i}"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(heard["x"], stored["feat.last_mixer_in"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(heard["y"], stored["feat.last_mixer_out"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(heard["pooled"], stored["feat.pooled"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_folding_batch_norms_changes_nothing(name):
    _, stored, model = open_case(name)
    x = stored["input_u8"].float() / 64 - 2
    folded = model.fold_()
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()) == 1
    torch.testing.assert_close(folded(x), stored["logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["T", "S", "B", "L"])
def test_variants_have_the_published_names_and_shapes(name):
    with torch.device("meta"):
        model = make_variant(name)
    published = KEYS[f"mamba_vision_{name}"]
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == {key: shape for key, (shape, _) in published["state_dict"].items()}
    assert sum(p.numel() for p in model.parameters()) == published["params"]


@pytest.mark.parametrize("name", ["T2", "L2", "L3"])
def test_the_other_variants_can_be_made(name):
    with torch.device("meta"):
        model = make_variant(name)
    assert [len(level.blocks) for level in model.levels] == list(VARIANTS[name].depths)


@pytest.mark.parametrize("size", [(1, 1), (33, 250), (224, 448), (225, 17)])
@torch.no_grad()
def test_images_of_any_size_are_encoded(size):
    model = small_model()
    features = model.features(torch.randn(2, 3, *size))
    for i, feature in enumerate(features):
        stride = 2 ** (i + 2)
        assert feature.shape == (2, 8 * 2**i, -(-size[0] // stride), -(-size[1] // stride))
        assert feature.isfinite().all()


@torch.no_grad()
def test_windows_do_not_see_each_other_at_stride_16():
    model = small_model()
    level = model.levels[2]
    x = torch.randn(1, 32, 28, 28)
    y = x.clone()
    y[:, :, :14, :14] += 1
    changed = (level(x) - level(y)).abs().amax(dim=(0, 1)) > 0
    assert changed[:14, :14].all()
    assert not changed[14:].any()
    assert not changed[:, 14:].any()


def test_every_weight_learns():
    model = small_model(layer_scale=0.5, layer_scale_conv=0.5).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    silent = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a convolution's bias does nothing before a batch norm
    assert not [k for k in silent if not k.endswith(("conv1.bias", "conv2.bias"))]


@torch.no_grad()
def test_bfloat16_stays_near_float32():
    model = small_model()
    x = torch.randn(1, 3, 224, 224)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x)
    torch.testing.assert_close(rough.float(), model(x), atol=2e-2, rtol=5e-2)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder.", "model."])
@pytest.mark.parametrize("kind", ["model.safetensors", "model.pth.tar"])
def test_checkpoints_load_with_any_published_prefix(prefix, kind, tmp_path):
    model = small_model()
    state = {prefix + key: value.contiguous() for key, value in model.state_dict().items()}
    path = tmp_path / kind
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = MambaVision.from_published(path, **SMALL)
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_the_license_of_published_weights_is_reported_once():
    mambavision._report_license.cache_clear()
    state = small_model().state_dict()
    with pytest.warns(UserWarning, match="CC-BY-NC-SA"):
        MambaVision.from_published(state, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MambaVision.from_published(state, **SMALL)


def test_the_variant_is_found_from_the_weights():
    with torch.device("meta"):
        state = make_variant("T2", num_classes=7, in_chans=4).state_dict()
    found = mambavision._find_variant(state, "x")
    assert (found.depths, found.num_classes, found.in_chans) == ((1, 3, 11, 4), 7, 4)


def test_weights_of_no_variant_name_what_is_wrong():
    with pytest.raises(CheckpointMismatchError, match="8 channels in \\(1, 1, 2, 2\\) blocks"):
        MambaVision.from_published(small_model().state_dict())
    with pytest.raises(CheckpointMismatchError, match=r"head\.weight"):
        MambaVision.from_published({"patch_embed.conv_down.3.weight": torch.zeros(8, 1, 1, 1)})
    state = small_model().state_dict()
    del state["levels.2.blocks.0.mixer.A_log"]
    with pytest.raises(CheckpointMismatchError, match="A_log"):
        MambaVision.from_published(state, **SMALL)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="four numbers"):
        MambaVision(depths=(1, 1))
    with pytest.raises(ValueError, match="do not fit 3 heads"):
        MambaVision(dim=8, num_heads=(1, 1, 3, 4))
    with pytest.raises(ValueError, match="there is no MambaVision-X"):
        make_variant("X")
