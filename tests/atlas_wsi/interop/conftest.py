"""A real result of a small slide, and the command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.slides.synthetic import make_svs


@pytest.fixture(scope="session")
def run():
    """Run a command as a user does."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="session")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "tissue 1.svs"
    make_svs(path, shape=(1500, 2100), mpp=0.5, tissue=0.5)
    return path


@pytest.fixture(scope="session")
def result(slide, tmp_path_factory, run):
    """The folder of a prediction."""
    out = tmp_path_factory.mktemp("results")
    done = run("predict", slide, "-o", out, "--model", "atlas_test", "--precision", "float32")
    assert done.exit_code == 0, done.output
    return out / "tissue 1"


@pytest.fixture(scope="session")
def heatmap(result):
    return atlas_wsi.open_result(result)
