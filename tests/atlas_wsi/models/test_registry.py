"""Names to models: hub ids from the cache, and clear words when there is none."""

from __future__ import annotations

import shutil

import pytest

from atlas_wsi.errors import UnknownModelError
from atlas_wsi.models.registry import cached_models, load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out, holding one model."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--lab--lungs"
    folder = repo / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    load_model("atlas_test").save(folder / "model.safetensors")
    return tmp_path


def test_a_hub_model_in_the_cache_needs_no_network(hub):
    for name in ("hf://lab/lungs", f"hf://lab/lungs@{COMMIT}"):
        assert load_model(name).card.name == "atlas_test"


def test_cached_models_are_listed_by_the_id_that_loads_them(hub):
    (name,) = cached_models()
    assert name == f"hf://lab/lungs@{COMMIT}"
    assert load_model(name).card.name == "atlas_test"


def test_a_hub_model_that_is_not_there_says_what_to_do(hub):
    shutil.rmtree(hub / "models--lab--lungs")
    with pytest.raises(UnknownModelError, match="not in the cache"):
        load_model("hf://lab/lungs@v1")


def test_a_malformed_hub_id_is_refused():
    with pytest.raises(UnknownModelError, match="not a hub id"):
        load_model("hf://lungs")
