"""``archive.parquet``: one row per slide."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from atlas_wsi.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.batch.journal import Journal, Row

_COLUMNS: dict[str, Any] = {
    "name": pa.string(),
    "source": pa.string(),
    "state": pa.string(),
    "error": pa.string(),
    "reason": pa.string(),
    "attempts": pa.int32(),
    "worker": pa.string(),
    "started": pa.timestamp("ms", tz="UTC"),
    "ended": pa.timestamp("ms", tz="UTC"),
    "wall_s": pa.float64(),
    "peak_memory_bytes": pa.int64(),
    "result_bytes": pa.int64(),
    "slide_bytes": pa.int64(),
    "rows_px": pa.int64(),
    "cols_px": pa.int64(),
    "mpp_y": pa.float64(),
    "mpp_x": pa.float64(),
    "mpp_source": pa.string(),
    "mpp_used_y": pa.float64(),
    "mpp_used_x": pa.float64(),
    "model": pa.string(),
    "model_sha256": pa.string(),
    "windows": pa.int64(),
    "tissue_fraction": pa.float64(),
    "area_unit": pa.string(),
    "predicted_area": pa.float64(),
    "familiarity": pa.float64(),
    "unreadable_fraction": pa.float64(),
    "is_incomplete": pa.bool_(),
    "n_unreadable": pa.int64(),
    "warnings": pa.list_(pa.string()),
}


def write_archive(journal: Journal) -> Path:
    """Write the outcome of all slides of an archive as one table."""
    rows = list(journal.read_rows().values())
    classes = list(dict.fromkeys(name for row in rows for name in row.areas))
    extra = {f"{kind}:{name}": pa.float64() for kind in ("area", "score") for name in classes}
    table = pa.Table.from_pylist(
        [_flat(row) for row in rows], schema=pa.schema(list((_COLUMNS | extra).items()))
    )
    path = journal.out / "archive.parquet"
    with write_whole(path) as partial:
        pq.write_table(table, partial)
    return path


def _flat(row: Row) -> dict[str, Any]:
    flat = row.model_dump(include=set(_COLUMNS))
    for name in ("started", "ended"):
        flat[name] = dt.datetime.fromisoformat(flat[name]) if flat[name] else None
    for name, pair in (("mpp", row.mpp), ("mpp_used", row.mpp_used)):
        flat[f"{name}_y"], flat[f"{name}_x"] = pair or (None, None)
    flat["rows_px"], flat["cols_px"] = row.shape or (None, None)
    flat |= {f"area:{name}": area for name, area in row.areas.items()}
    return flat | {f"score:{name}": score for name, score in row.scores.items()}
