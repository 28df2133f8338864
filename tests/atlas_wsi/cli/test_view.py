"""`atlas-wsi view`: what is told before a window opens; what it shows is in tests/napari."""

from __future__ import annotations

import sys

from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.slides.synthetic import make_svs


def test_a_missing_slide_is_told_before_a_window_opens(tmp_path):
    done = CliRunner().invoke(app, ["view", str(tmp_path / "none.svs")])
    assert done.exit_code == 2
    assert "does not exist" in done.output


def test_without_napari_it_says_what_to_install(tmp_path, monkeypatch):
    make_svs(tmp_path / "a.svs", shape=(300, 400), levels=1)
    monkeypatch.setitem(sys.modules, "qtpy", None)
    done = CliRunner().invoke(app, ["view", str(tmp_path / "a.svs")])
    assert done.exit_code == 1
    assert "atlas-wsi[napari]" in done.output
