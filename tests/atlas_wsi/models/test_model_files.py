"""Model files: what is written is read, and nothing else is."""

from __future__ import annotations

import collections
import json

import easydict
import pytest
import torch
from safetensors.torch import save_file

from atlas_wsi.errors import CheckpointMismatchError, UnknownModelError, UntrustedWeightsError
from atlas_wsi.models import Model, load_model, shipped_models
from atlas_wsi.models.checkpoints import read_safetensors, read_weights
from atlas_wsi.models.model import read_card


@pytest.fixture
def model() -> Model:
    return load_model("atlas_test")


def test_a_saved_model_predicts_the_same(model, tmp_path):
    again = load_model(model.save(tmp_path / "m.safetensors"))
    x = torch.randn(1, 3, 300, 200, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again(x).cells, model(x).cells)
    assert again.card == model.card
    assert len(again.sha256) == 64


def test_half_precision_files_are_half_as_large(model, tmp_path):
    full = model.save(tmp_path / "full.safetensors").stat().st_size
    half = model.save(tmp_path / "half.safetensors", dtype=torch.float16).stat().st_size
    assert half < 0.7 * full


def test_the_first_mismatched_weight_is_named(model, tmp_path):
    path = model.save(tmp_path / "m.safetensors")

    state, metadata = read_safetensors(path)
    other = tmp_path / "other.safetensors"  # the tensors are views of the file that was read
    state["encoder.stem.conv2.weight"] = torch.zeros(5, 5)
    save_file(state, other, metadata=metadata)
    with pytest.raises(CheckpointMismatchError, match=r"encoder\.stem\.conv2\.weight.*\(5, 5\)"):
        load_model(other)
    del state["encoder.stem.conv2.weight"]
    save_file(state, other, metadata=metadata)
    with pytest.raises(CheckpointMismatchError, match=r"encoder\.stem\.conv2\.weight.*missing"):
        load_model(other)


def test_a_card_that_asks_for_more_weights_than_the_file_holds_is_refused(model, tmp_path):
    path = model.save(tmp_path / "m.safetensors")

    state, metadata = read_safetensors(path)
    facts = json.loads(metadata["atlas_wsi"])
    facts["config"]["dim"] = 65536
    larger = tmp_path / "larger.safetensors"
    save_file(state, larger, metadata={"atlas_wsi": json.dumps(facts)})
    with pytest.raises(CheckpointMismatchError, match="asks for"):
        load_model(larger)


@pytest.mark.parametrize(
    "content", [b"", b"not a model at all", b"\x10\x00\x00\x00\x00\x00\x00\x00{bad json}     "]
)
def test_a_file_that_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointMismatchError):
        load_model(path)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UnknownModelError) as caught:
        load_model("lungs")
    assert all(name in str(caught.value) for name in shipped_models())


@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_torch_checkpoints_of_all_forms_are_read(key, tmp_path):
    state = collections.OrderedDict(a=torch.ones(2), b=torch.zeros(3))
    torch.save({key: state} if key else state, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert list(found) == ["a", "b"]
    assert torch.equal(found["a"], torch.ones(2))


class _Evil:
    def __reduce__(self):
        return print, ("weights ran code",)


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save({"model": {"a": torch.ones(1)}, "extra": _Evil()}, tmp_path / "w.pth")
    with pytest.raises(UntrustedWeightsError):
        read_weights(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


def test_published_training_checkpoints_with_an_easydict_are_read(tmp_path):
    config = easydict.EasyDict(lr=0.1, nested={"dims": [1, 2]})
    torch.save({"model": {"a": torch.ones(2)}, "args": config}, tmp_path / "w.pth")
    assert torch.equal(read_weights(tmp_path / "w.pth")["a"], torch.ones(2))


def test_a_card_is_read_without_its_weights(tmp_path):
    model = load_model("mambavision_msa_test")
    path = model.save(tmp_path / "m.safetensors")
    assert read_card(path) == (model.card, "mambavision+msa")
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(CheckpointMismatchError, match="not a readable model"):
        read_card(path)


def test_a_file_with_a_key_for_each_kind_of_stem_is_read(tmp_path):
    model = load_model("mambavision_msa_test")
    path = model.save(tmp_path / "m.safetensors")
    state, metadata = read_safetensors(path)
    facts = json.loads(metadata["atlas_wsi"])
    options = facts["config"].pop("stem_options")
    facts["config"] |= {"stem": None, "timm": None, "mambavision": options}
    older = tmp_path / "older.safetensors"
    save_file(state, older, metadata={"atlas_wsi": json.dumps(facts)})
    assert load_model(older).config == model.config
