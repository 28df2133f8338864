from __future__ import annotations

import pytest

import atlas_wsi
from atlas_wsi.slides.synthetic import make_svs


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    make_svs(path, shape=(1500, 2200), mpp=0.5, tissue=0.7, seed=3, levels=2)
    return path


@pytest.fixture(scope="session")
def result(slide_path):
    return atlas_wsi.predict(slide_path, "atlas_test", precision="float32", memory="500MB")


@pytest.fixture(scope="session")
def result_folder(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    result.write(out, formats=("ome-zarr",))
    return out / "tissue"
