"""Every format of results against the contract of writers."""

from __future__ import annotations

import csv

import h5py
import numpy as np
import pytest
import rasterio
import spatialdata

from atlas_wsi.heatmap.formats import RESULT_FORMATS
from atlas_wsi.heatmap.formats.omezarr import read_omezarr
from atlas_wsi.interop.formats import EXPORT_FORMATS
from atlas_wsi.testing.writers import CellWriterTests, WriterTests


class TestOmeZarr(CellWriterTests):
    form = RESULT_FORMATS["ome-zarr"]

    def read_cells(self, path):
        heatmap = read_omezarr(path)
        rows, cols = np.nonzero(heatmap.argmax() >= 0)
        step = heatmap.grid.step_px
        corners = np.column_stack([cols * step[1], rows * step[0]])
        return corners, heatmap.probabilities[:, rows, cols].T


class TestGeoTiff(CellWriterTests):
    form = EXPORT_FORMATS["cog"]

    def read_cells(self, path):
        with rasterio.open(path) as file:
            values, transform = file.read(), file.transform
        rows, cols = np.nonzero(np.isfinite(values).all(0))
        return np.column_stack(transform * (cols, rows)), values[:, rows, cols].T


class TestWSInferCsv(CellWriterTests):
    form = EXPORT_FORMATS["wsinfer-csv"]

    def read_cells(self, path):
        with path.open(newline="") as file:
            rows = np.array([[float(v) for v in row] for row in list(csv.reader(file))[1:]])
        return rows[:, :2], rows[:, 4:]


class Hdf5Tests(CellWriterTests):
    def read_cells(self, path):
        with h5py.File(path) as file:
            return file["coords"][:], file["features"][:]


class TestTrident(Hdf5Tests):
    form = EXPORT_FORMATS["trident-h5"]


class TestClam(Hdf5Tests):
    form = EXPORT_FORMATS["clam-h5"]


class TestStamp(CellWriterTests):
    form = EXPORT_FORMATS["stamp-h5"]

    def read_cells(self, path):
        with h5py.File(path) as file:
            return file["coords"][:] / 0.5, file["feats"][:]  # micrometers; the slide has 0.5 um/px


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestSpatialData(CellWriterTests):
    form = EXPORT_FORMATS["spatialdata"]

    def read_cells(self, path):
        store = spatialdata.read_zarr(path)
        (table,) = store.tables.values()
        return store["tiles"].bounds[["minx", "miny"]].to_numpy(), table.X


class TestQuPath(WriterTests):
    form = EXPORT_FORMATS["qupath"]


class TestDsa(WriterTests):
    form = EXPORT_FORMATS["dsa"]


class TestPng(WriterTests):
    form = EXPORT_FORMATS["png"]


class TestHtml(WriterTests):
    form = EXPORT_FORMATS["html"]


def test_every_format_is_held_to_the_contract():
    tested = [case.form for case in _leaves(WriterTests)]
    assert all(form in tested for form in EXPORT_FORMATS.values())
    writers = {form.writer for form in tested} | {RESULT_FORMATS["geojson"].writer}  # as QuPath's
    assert {form.writer for form in RESULT_FORMATS.values()} <= writers


def _leaves(case):
    below = case.__subclasses__()
    return [leaf for sub in below for leaf in _leaves(sub)] if below else [case]
