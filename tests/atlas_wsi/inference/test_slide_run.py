"""From a slide to a result folder: why a model was chosen, when a result is taken as finished."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import atlas_wsi
from atlas_wsi.slides.synthetic import make_svs

OPTIONS = {"model": "atlas_test", "precision": "float32", "memory": "400MB"}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    make_svs(path, (600, 800), mpp=1.0, tissue=0.5, levels=2)
    picture = np.zeros((60, 80), np.uint8)
    picture[:30] = 255
    Image.fromarray(picture).save(path.with_suffix(".png"))
    return path


@pytest.mark.slow
def test_the_summary_states_why_the_model_was_chosen(slide, tmp_path):
    named = atlas_wsi.predict_to_folder(slide, tmp_path / "named", **OPTIONS)
    default = atlas_wsi.predict_to_folder(slide, tmp_path / "default", memory="400MB")
    loaded = OPTIONS | {"model": atlas_wsi.load_model("atlas_test")}
    given = atlas_wsi.predict_to_folder(slide, tmp_path / "given", **loaded)
    reasons = [
        atlas_wsi.open_result(result.folder).run.model.reason for result in (named, default, given)
    ]
    assert reasons == [
        "named by the user",
        "the default for slides without georeference",
        "given by the caller",
    ]


def test_without_a_folder_nothing_is_written(slide, tmp_path):
    result = atlas_wsi.predict_to_folder(slide, None, **OPTIONS, work=tmp_path / "work")
    assert result.folder is None
    assert result.heatmap.scores
    assert not any(tmp_path.iterdir())


def test_a_result_with_other_tissue_or_areas_is_another_result(slide, tmp_path):
    first = atlas_wsi.predict_to_folder(slide, tmp_path, **OPTIONS)
    assert not atlas_wsi.predict_to_folder(slide, tmp_path, **OPTIONS).is_new
    area = [np.array([(0, 0), (0, 400), (400, 400), (400, 0)], float)]
    for other in ({"tissue": slide.with_suffix(".png")}, {"roi": area}, {"keep_fat": True}):
        with pytest.raises(atlas_wsi.ResultExistsError, match="another result"):
            atlas_wsi.predict_to_folder(slide, tmp_path, **OPTIONS, **other)
    again = atlas_wsi.predict_to_folder(slide, tmp_path, **OPTIONS, roi=area, overwrite=True)
    assert again.is_new
    assert (
        np.isfinite(again.heatmap.probabilities).sum()
        < np.isfinite(first.heatmap.probabilities).sum()
    )


def test_a_changed_result_is_kept_unless_it_may_be_repaired(slide, tmp_path):
    first = atlas_wsi.predict_to_folder(slide, tmp_path, **OPTIONS)
    first.files["png"].write_bytes(b"half")
    with pytest.raises(atlas_wsi.ResultExistsError, match=r"heatmap\.png has 4 bytes"):
        atlas_wsi.predict_to_folder(slide, tmp_path, **OPTIONS)
    assert first.files["png"].read_bytes() == b"half"
    again = atlas_wsi.predict_to_folder(slide, tmp_path, **OPTIONS, repair=True)
    assert again.is_new
    assert again.files["png"].stat().st_size > 4


def test_each_slide_gets_its_own_file_of_a_folder_or_pattern(slide, tmp_path):
    masks = slide.parent
    by_pattern = atlas_wsi.predict_to_folder(
        slide, tmp_path / "pattern", **OPTIONS, tissue=f"{masks}/{{name}}.png"
    )
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(slide.with_suffix(".png").read_bytes())
    by_folder = atlas_wsi.predict_to_folder(
        slide, tmp_path / "folder", **OPTIONS, tissue=tmp_path / "masks"
    )
    np.testing.assert_array_equal(by_pattern.heatmap.probabilities, by_folder.heatmap.probabilities)
    with pytest.raises(atlas_wsi.DatasetError, match="no file for a"):
        atlas_wsi.predict_to_folder(slide, tmp_path / "none", **OPTIONS, roi=tmp_path / "masks")
