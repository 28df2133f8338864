"""The formats in which results are exported: one table, read by exports and the command line."""

from __future__ import annotations

from atlas_wsi.heatmap.formats import RESULT_FORMATS, Format

_HERE, _HDF5 = "atlas_wsi.interop", (".h5", ".hdf5")
_QUPATH = "atlas_wsi.heatmap.formats.geojson:write_qupath"
EXPORT_FORMATS = {
    "qupath": Format(writer=_QUPATH, suffixes=(".geojson", ".json")),
    "cog": Format(writer=RESULT_FORMATS["geotiff"].writer, suffixes=(".tif", ".tiff")),
    "dsa": Format(writer=f"{_HERE}.dsa:write_dsa", suffixes=(".json",)),
    "wsinfer-csv": Format(writer=f"{_HERE}.tiles:write_csv", suffixes=(".csv",)),
    **{
        f"{flavor}-h5": Format(
            writer=f"{_HERE}.tiles:write_hdf5", suffixes=_HDF5, options={"flavor": flavor}
        )
        for flavor in ("trident", "clam", "stamp")
    },
    "spatialdata": Format(
        writer=f"{_HERE}.spatial:write_spatialdata",
        suffixes=(".zarr",),
        shows_slide=True,
        marker="spatialdata_attrs",
    ),
    "png": Format(writer=RESULT_FORMATS["png"].writer, suffixes=(".png",), shows_slide=True),
    "html": Format(writer=f"{_HERE}.html:write_html", suffixes=(".html", ".htm"), shows_slide=True),
}
"""What `export_result` writes, by name."""
