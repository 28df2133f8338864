"""Tissue found by the shipped model."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from atlas_wsi import load_model, open_slide, tissue_mask
from atlas_wsi.cli.app import app
from atlas_wsi.errors import ModelError
from atlas_wsi.inference.model_tissue import find_tissue_by_model
from atlas_wsi.slides.synthetic import make_svs


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    make_svs(path, shape=(3000, 4200), mpp=0.5, tissue=0.3)
    return path


def test_a_model_finds_no_tissue_on_glass(slide):
    with open_slide(slide) as opened:
        mask = find_tissue_by_model(opened, load_model("tissue"))
        seen = tissue_mask(opened).coverage(mask.grid)
    assert not mask.mask[seen < 0.01].any()
    assert mask.method == "model tissue"


def test_a_model_without_the_class_is_refused(slide):
    with open_slide(slide) as opened, pytest.raises(ModelError, match="no class 'tissue'"):
        find_tissue_by_model(opened, load_model("atlas_test"))


@pytest.mark.slow
def test_predict_takes_tissue_from_a_model(slide, tmp_path):
    command = ["predict", str(slide), "-o", str(tmp_path), "--model", "atlas_test", "--json"]
    done = CliRunner().invoke(app, [*command, "--tissue-model", "tissue"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)
    refused = CliRunner().invoke(app, [*command, "--tissue-model", "lung-he", "--overwrite"])
    assert refused.exit_code == 2
    assert "no class 'tissue'" in refused.stderr
