"""What a model computes with is told to its user."""

from __future__ import annotations

import json

import torch
from typer.testing import CliRunner

from atlas_kernels import explain
from atlas_wsi.cli.app import app


def test_kernels_are_named_with_a_reason():
    named = explain(torch.device("cpu"), dtype=torch.float32)
    assert named == explain("cpu")
    assert named["selective_scan"].startswith("numba: ")


def test_the_choice_follows_the_type():
    named = explain(torch.device("cpu"), dtype=torch.float64)
    assert named["selective_scan"].startswith("torch: ")


def test_doctor_names_the_kernels():
    checks = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    told = {check["name"]: check for check in checks}
    for kernel in explain("cpu"):
        assert told[kernel]["state"] == "ok"
        assert "on c" in told[kernel]["detail"]  # cpu or cuda
