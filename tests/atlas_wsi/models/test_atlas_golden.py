"""Atlas gives the numbers of the published implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atlas_wsi.models import Atlas, AtlasConfig

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = sorted(path.stem for path in (GOLDEN / "atlas").glob("a*.safetensors"))
MASKED = sorted(path.stem for path in (GOLDEN / "atlas_masked").glob("*.safetensors"))

LOGITS = {"atol": 2e-5, "rtol": 0.0}
FEATURES = {"atol": 1e-4, "rtol": 0.0}


def load_case(folder: str, name: str):
    tensors = load_file(GOLDEN / folder / f"{name}.safetensors")
    return tensors, json.loads((GOLDEN / folder / f"{name}.json").read_text())


def published_model(name: str, alignment: str) -> Atlas:
    tensors, facts = load_case("atlas", name)
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    return Atlas.from_published(state, stages=facts["kwargs_list"], alignment=alignment)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vectors_are_reproduced(name):
    tensors, _ = load_case("atlas", name)
    model = published_model(name, "raster")
    x = tensors["input_u8"].float() / 64 - 2
    with torch.no_grad():
        encoding = model.encode(x)
        logits = model(x)
    torch.testing.assert_close(logits, tensors["logits"], **LOGITS)
    torch.testing.assert_close(logits.double(), tensors["logits_f64"], **LOGITS)
    for key, expected in tensors.items():
        if key.startswith("feat.tokens.scale"):
            found = encoding.initial[int(key[-1])]
        elif key.startswith("feat.stage"):
            stage, scale = key.removeprefix("feat.stage").split(".out")
            found = encoding.stages[int(stage)][int(scale)]
        elif key == "feat.pooled":
            found = model.fc_norm(model.pooled(encoding))
            expected = expected.view_as(found)
        else:
            continue
        torch.testing.assert_close(found, expected, **FEATURES, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", MASKED)
def test_masked_vectors_of_any_shape_are_reproduced(name):
    tensors, facts = load_case("atlas_masked", name)
    model = published_model(facts["state_from"].removesuffix(".safetensors"), facts["alignment"])
    x = tensors["input_u8"].float() / 64 - 2
    active = tensors["active_windows"].bool()
    with torch.no_grad():
        layout = model.plan(tuple(x.shape[-2:]), active_windows=active)
        tokens = model.encode(x, layout).stages[-1]
        logits = model(x, active_windows=active)
    torch.testing.assert_close(logits[0].double(), tensors["logits_f64"], **LOGITS)
    n_maps = sum(key.startswith("feat.map") for key in tensors)
    assert n_maps == len(tokens)
    for i, x_NTC in enumerate(tokens):
        found = layout.to_map(len(layout.scales) - n_maps + i, x_NTC)[0].permute(1, 2, 0)
        rows, cols = found.shape[:2]
        expected, valid = tensors[f"feat.map{i}"], tensors[f"feat.valid{i}"].bool()
        assert not valid[rows:].any()
        assert not valid[:, cols:].any()
        torch.testing.assert_close(found.double(), expected[:rows, :cols].double(), **FEATURES)


def test_a_batch_with_a_mask_an_image_equals_the_images_alone():
    model = published_model("a03_256_m4_l2_3s_misaligned", "spatial")
    x = torch.randn(2, 3, 203, 251, generator=torch.Generator().manual_seed(0))
    active = torch.zeros(2, 4, 4, dtype=torch.bool)
    active[0, :2, 1] = True
    active[1, 3, :] = True
    with torch.no_grad():
        both = model(x, active_windows=active)
        alone = [model(x[i : i + 1], active_windows=active[i]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_atlas_b_has_the_published_names_and_shapes():
    facts = json.loads((GOLDEN / "atlas" / "keys_atlas_b_1024.json").read_text())
    state = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype))
        for key, (shape, dtype) in facts["state_dict"].items()
    }
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    model = Atlas.from_published(wrapped, stages=facts["config"]["kwargs_list"])
    assert model.config == AtlasConfig(
        dim=768, heads=12, depths=(2, 10), n_scales=2, n_classes=100, alignment="raster"
    )
    unused = {
        k for k in state if k.startswith("atlas_models") and k.split(".")[2] in ("norm", "head")
    }
    assert len(model.state_dict()) == len(state) - len(unused)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (130, 1000), (1, 1)])
def test_more_scales_than_were_trained_stay_finite(size):
    config = AtlasConfig(dim=16, heads=2, depths=(1, 1), n_scales=1, window=4, ratio=2, n_classes=3)
    torch.manual_seed(0)
    model = Atlas(config).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, *size))
    assert torch.isfinite(logits).all()


def test_no_active_window_is_a_clear_error():
    model = published_model("a04_128_m8_l4_1s", "spatial")
    with pytest.raises(ValueError, match="no window is active"):
        model(torch.zeros(1, 3, 128, 128), active_windows=torch.zeros(1, 1, dtype=torch.bool))


def test_a_mask_of_another_shape_is_a_clear_error():
    model = published_model("a04_128_m8_l4_1s", "spatial")
    with pytest.raises(ValueError, match=r"expected \(batch, 1, 1\)"):
        model(torch.zeros(1, 3, 128, 128), active_windows=torch.ones(2, 2, dtype=torch.bool))
