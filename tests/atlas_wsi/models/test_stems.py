"""Every stem against the contract of stems, and a stem of another package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import atlas_wsi
from atlas_wsi.errors import UnknownModelError
from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
from atlas_wsi.models.mambavision import MambaVisionConfig
from atlas_wsi.models.stems.convolution import ConvolutionStem
from atlas_wsi.models.stems.mambavision_tokens import MambaVisionStem
from atlas_wsi.models.stems.timm_network import TimmStem
from atlas_wsi.testing import PatchStem, StemTests, make_svs

CARD = ModelCard(
    name="outside",
    domain="slide",
    mpp=1.0,
    classes=tuple(ModelClass(name=c, color="#123456") for c in "abc"),
)


def with_statistics(stem):
    """Batch norms that do something."""
    for module in stem.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return stem.eval()


class TestConvolution(StemTests):
    @pytest.fixture
    def stem(self):
        torch.manual_seed(0)
        return with_statistics(ConvolutionStem(4))


class TestMambaVision(StemTests):
    window_px = 128

    @pytest.fixture
    def stem(self):
        torch.manual_seed(0)
        config = MambaVisionConfig(
            dim=4, in_dim=4, depths=(1, 1, 2, 2), num_heads=(1, 1, 2, 2), window_size=(8, 8, 4, 2)
        )
        return with_statistics(MambaVisionStem(config, last_level=2))


class TestTimm(StemTests):
    @pytest.fixture
    def stem(self):
        return with_statistics(TimmStem("test_resnet", window_px=64))


class TestPatches(StemTests):
    window_px = 14 * 4

    @pytest.fixture
    def stem(self):
        torch.manual_seed(0)
        return PatchStem(8).eval()


def make_model(stem):
    torch.manual_seed(0)
    config = AtlasConfig(
        dim=16, heads=2, depths=(1, 1), n_scales=2, n_classes=3, stem=stem, token_px=14
    )
    return Model(config, CARD).eval()


def test_a_model_of_stride_14_predicts_cells_of_its_own_tokens(outside_stem, tmp_path):
    make_svs(tmp_path / "slide.svs", (1100, 1500), tissue=0.6)
    saved = make_model(outside_stem).save(tmp_path / "outside.safetensors")
    model = atlas_wsi.load_model(saved)
    assert model.config.window_px == 224
    result = atlas_wsi.predict(tmp_path / "slide.svs", model, precision="float32")
    assert result.grid.step_px == pytest.approx((112, 112))  # 4 tokens of 14 px at 1 um, 0.5 um/px
    assert np.isfinite(result.probabilities).any()
    finer = atlas_wsi.predict(tmp_path / "slide.svs", model, cell_px=14, precision="float32")
    assert finer.grid.step_px == pytest.approx((28, 28))
    with pytest.raises(ValueError, match="cells of 14, 28, 56 px"):
        atlas_wsi.predict(tmp_path / "slide.svs", model, cell_px=64)


@pytest.mark.slow
def test_batch_takes_a_model_of_stride_14(outside_stem, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    make_svs(slides / "slide.svs", (1100, 1500), tissue=0.6)
    saved = make_model(outside_stem).save(tmp_path / "outside.safetensors")
    alone = atlas_wsi.predict(slides / "slide.svs", str(saved), precision="float32")
    options = atlas_wsi.BatchOptions(model=str(saved), precision="float32")
    status = atlas_wsi.predict_archive(slides, tmp_path / "out", options=options)
    assert status.count("done") == 1
    result = atlas_wsi.open_result(tmp_path / "out/slide")
    np.testing.assert_allclose(result.probabilities, alone.probabilities, atol=1e-3)


def test_a_vit_of_14_px_patches_gives_the_tokens():
    stem = TimmStem("vit_tiny_patch16_224", window_px=256)
    assert (stem.stride_px, stem.dim) == (16, 192)
    stem = TimmStem("vit_small_patch14_dinov2", window_px=224)
    assert (stem.stride_px, stem.dim) == (14, 384)
    with torch.no_grad():
        assert stem.eval()(torch.randn(1, 3, 224, 230)).shape == (1, 384, 16, 17)


def test_a_stem_that_no_package_provides_is_named():
    with pytest.raises(UnknownModelError, match=r"provides the stem nowhere"):
        make_model("nowhere")


def test_a_stem_that_cannot_be_loaded_is_named_with_its_package(tmp_path, monkeypatch):
    info = tmp_path / "broken_stem-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-stem\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[atlas_wsi.stems]\nbad = no_such_module:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownModelError, match="stem bad of broken-stem cannot be loaded"):
        make_model("bad")


def test_tokens_of_another_size_are_refused():
    with pytest.raises(ValueError, match="16 px, the configuration says 16 and 14"):
        Model(AtlasConfig(dim=16, heads=2, depths=(1,), n_classes=3, token_px=14), CARD)
