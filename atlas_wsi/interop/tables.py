"""What is in JSON, CSV and Parquet files."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from atlas_wsi.errors import CorruptResultError, UnsupportedFormatError
from atlas_wsi.interop.found import MAX_PARTS, Inspection, Part, plain

if TYPE_CHECKING:
    from pathlib import Path

MAX_JSON_BYTES = 32 * 2**20
MAX_CSV_BYTES = 2**30
_HEAD = 64 * 1024
_THRIFT = {"thrift_string_size_limit": 64 * 2**20, "thrift_container_size_limit": 10**6}
_AREAS = (
    "atlas-wsi predict SLIDE -o OUT --tissue FILE",
    "atlas-wsi predict SLIDE -o OUT --roi FILE",
)


def inspect_json(path: Path) -> Inspection:
    """Tell what a JSON file is."""
    data = read_json(path)
    for look in (_geojson, _dsa, _known_keys):
        found = look(data)
        if found is not None:
            return found
    keys = list(data)[:MAX_PARTS] if isinstance(data, dict) else []
    shape = "list" if isinstance(data, list) else "object"
    return Inspection(kind=f"JSON {shape}", facts={"length": len(data), "keys": plain(keys)})


def read_json(path: Path) -> Any:
    """Read JSON from anybody."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CorruptResultError(
                f"{path} has {size / 2**20:.0f} MiB of JSON, at most {MAX_JSON_BYTES >> 20} are read."
            )
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CorruptResultError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CorruptResultError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, (list, dict)):
        raise CorruptResultError(f"{path} holds a single {type(data).__name__}, nothing more.")
    return data


def _geojson(data: Any) -> Inspection | None:
    whole = data if isinstance(data, dict) else {}
    features = whole.get("features") if whole else data
    if whole.get("type") == "Feature":
        features = [whole]
    if not isinstance(features, list):
        if "coordinates" in whole:
            return Inspection(kind="GeoJSON geometry", uses=_AREAS)
        return None
    features = [f for f in features if isinstance(f, dict) and f.get("type") == "Feature"]
    if not features and whole.get("type") != "FeatureCollection":
        return None
    properties = [p for f in features if isinstance(p := f.get("properties"), dict)]
    geometries = [g for f in features if isinstance(g := f.get("geometry"), dict)]
    classes = Counter(filter(None, map(_class_of, properties)))
    measured = [m for p in properties if isinstance(m := p.get("measurements"), dict)]
    facts = {
        "features": len(features),
        "geometries": dict(Counter(str(g.get("type")) for g in geometries)),
        "object_types": dict(
            Counter(str(p["objectType"]) for p in properties if "objectType" in p)
        ),
        "classes": dict(classes.most_common()),
        "measurements": sorted({str(k) for m in measured[:100] for k in m}),
        "crs": whole.get("crs"),
    }
    writer = ""
    if isinstance(whole.get("atlas"), dict):
        writer, facts = "atlas-wsi", {**facts, **whole["atlas"]}
    elif any("tissue_id" in p for p in properties):
        writer = "TRIDENT"
    elif facts["object_types"]:
        writer = "QuPath"
    learn = ("atlas-wsi train regions (docs/training.md)",) if classes else ()
    facts = {k: plain(v) for k, v in facts.items() if v not in (None, {}, [])}
    return Inspection(kind="GeoJSON features", writer=writer, facts=facts, uses=_AREAS + learn)


def _class_of(properties: dict[str, Any]) -> str:
    found = properties.get("classification")
    if isinstance(found, dict):
        return str(found.get("name") or found.get("names") or "")
    return found if isinstance(found, str) else ""


def _dsa(data: Any) -> Inspection | None:
    documents = [
        d["annotation"] if isinstance(d.get("annotation"), dict) else d
        for d in (data if isinstance(data, list) else [data])
        if isinstance(d, dict)
    ]
    documents = [d for d in documents if isinstance(d.get("elements"), list) and "name" in d]
    if not documents:
        return None
    elements = [e for d in documents for e in d["elements"] if isinstance(e, dict)]
    about = documents[0].get("attributes")
    ours = isinstance(about, dict) and about.get("creator") == "atlas-wsi"
    facts = {
        "annotations": [d["name"] for d in documents],
        "elements": dict(Counter(str(e.get("type")) for e in elements)),
        "groups": dict(Counter(str(e["group"]) for e in elements if "group" in e)),
        "attributes": about,
    }
    return Inspection(
        kind="annotations of the Digital Slide Archive",
        writer="atlas-wsi" if ours else "",
        facts={k: plain(v) for k, v in facts.items() if v},
        uses=("HistomicsUI: upload as annotation of the slide",),
    )


_KEYS: tuple[tuple[set[str], str, str, tuple[str, ...]], ...] = (
    (
        {"num_classes", "patch_size_pixels", "spacing_um_px", "class_names"},
        "configuration of a tile classifier",
        "WSInfer",
        ("atlas-wsi predict SLIDE -o OUT --model FOLDER (with its torchscript_model.pt)",),
    ),
    ({"models"}, "registry of models", "WSInfer", ()),
    ({"model", "runtime", "timestamp"}, "record of a run", "WSInfer", ()),
    ({"slide", "tasks"}, "state of a slide", "TRIDENT", ()),
)


def _known_keys(data: Any) -> Inspection | None:
    if not isinstance(data, dict):
        return None
    if data.get("kind") == "atlas-wsi result":
        return Inspection(
            kind="summary of a result",
            writer="atlas-wsi",
            facts={"schema_version": plain(data.get("schema_version"))},
            uses=("atlas-wsi inspect FOLDER (the folder that it lies in)",),
        )
    for keys, kind, writer, uses in _KEYS:
        if keys <= set(data):
            facts = {k: plain(v) for k, v in data.items() if not isinstance(v, dict)}
            return Inspection(kind=kind, writer=writer, facts=facts, uses=uses)
    return None


_COLUMNS: tuple[tuple[set[str], str, str, tuple[str, ...]], ...] = (
    (
        {"minx", "miny", "width", "height"},
        "class probabilities of tiles",
        "WSInfer",
        ("QuPath: extension WSInfer", "pandas.read_csv"),
    ),
    (
        {"case_id", "slide_id", "label"},
        "labels of slides",
        "CLAM",
        (),
    ),
    ({"slide_id", "status", "process"}, "list of slides with settings", "CLAM", ()),
    (
        {"wsi"},
        "list of slides",
        "TRIDENT",
        ("atlas-wsi batch FILE -o OUT",),
    ),
)


def inspect_csv(path: Path) -> Inspection:
    """Tell what a CSV file is, by its columns."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(0)
            blocks = iter(lambda: file.read(2**20), b"")
            n_lines = sum(block.count(b"\n") for block in blocks) if size <= MAX_CSV_BYTES else None
        first = head.decode("utf-8-sig").splitlines() or [""]
        columns = next(csv.reader(io.StringIO(first[0])), [])
    except OSError as error:
        raise CorruptResultError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnsupportedFormatError(f"{path} is not a table of text: {error}.") from error
    if len(columns) < 2 and columns != ["wsi"]:
        raise UnsupportedFormatError(f"{path} is text, but no table with a line of columns.")
    facts: dict[str, Any] = {"columns": plain(columns[:MAX_PARTS])}
    if n_lines is not None:
        facts["rows"] = max(0, n_lines - 1)
    classes = [c.removeprefix("prob_") for c in columns if c.startswith("prob_")]
    if classes:
        facts["classes"] = plain(classes)
    for names, kind, writer, uses in _COLUMNS:
        if names <= set(columns):
            return Inspection(kind=kind, writer=writer, facts=facts, uses=uses)
    return Inspection(kind="CSV table", facts=facts)


def inspect_parquet(path: Path) -> Inspection:
    """Tell what a Parquet file is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, **_THRIFT) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
            ours = {"name", "source", "state", "mpp_source", "model_sha256"} <= set(schema.names)
            states: dict[str, int] = {}
            if ours:
                batches = file.iter_batches(columns=["state"], batch_size=65536)
                counted = Counter(s for b in batches for s in b.column("state").to_pylist())
                states = {str(plain(k)): n for k, n in counted.items()}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise CorruptResultError(f"{path} is not Parquet that can be read: {error}") from error
    parts = tuple(
        Part(name=plain(f.name), shape=(n_rows,), dtype=str(f.type))
        for f in list(schema)[:MAX_PARTS]
    )
    if not ours:
        return Inspection(kind="Parquet table", facts={"rows": n_rows}, parts=parts)
    classes = [plain(n.removeprefix("area:")) for n in schema.names if n.startswith("area:")]
    return Inspection(
        kind="how the slides of an archive ended",
        writer="atlas-wsi",
        facts={"slides": n_rows, "states": states, "classes": classes},
        parts=parts,
        uses=("atlas-wsi status OUT", "atlas-wsi report OUT"),
    )
