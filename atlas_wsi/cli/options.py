"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlas_wsi import EXPORT_FORMATS, RESULT_FORMATS


def _um(text: str | float) -> float:
    """Read a ground sampling distance as micrometers per pixel."""
    from atlas_wsi import parse_gsd

    try:
        return parse_gsd(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _scale(text: str) -> tuple[float, float]:
    """Read two numbers, the lower first."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise typer.BadParameter(f"'{text}' is not two numbers, the lower first, such as 0,3000")
    return low, high


def _bytes(text: str | int) -> str:
    """Check a memory size."""
    from atlas_wsi import parse_bytes

    try:
        parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return str(text)


def one_mpp(mpp: float | None, gsd: float | None, *, name: str = "") -> float | None:
    """Return the pixel size that was given, as micrometers or as a ground sampling distance."""
    if mpp is not None and gsd is not None:
        raise typer.BadParameter(f"--{name}mpp and --{name}gsd both state the pixel size; give one")
    if mpp is not None and not 0 < mpp < float("inf"):
        raise typer.BadParameter(f"--{name}mpp is {mpp:g}, expected a number above 0")
    return mpp if gsd is None else gsd


def require_mpp(mpp: float | None, gsd: float | None, *, name: str = "") -> float:
    """Return the pixel size, which the command needs."""
    size = one_mpp(mpp, gsd, name=name)
    if size is None:
        raise typer.BadParameter(
            f"give --{name}mpp (micrometers per pixel) or --{name}gsd (such as 10m)"
        )
    return size


def one_tissue(tissue: Path | None, tissue_model: str | None) -> None:
    """Refuse two sources of tissue."""
    if tissue is not None and tissue_model is not None:
        raise typer.BadParameter("--tissue and --tissue-model both define the tissue; give one")


def _gsd(name: str, text: str) -> Any:
    return typer.Option(name, help=text, metavar="SIZE", parser=_um)


def _memory(text: str) -> Any:
    return typer.Option("--memory", help=text, metavar="SIZE", parser=_bytes)


SlidePath = Annotated[str, typer.Argument(metavar="SLIDE", help="Slide or scene: a file or URL.")]
ArchiveFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Output folder of `atlas-wsi batch`.")
]
OutFolder = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="Folder for results, with one subfolder per slide."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Name of a bundled model, a .safetensors file, hf://owner/name@revision, or a tile "
        "classifier: a folder with WSInfer's config.json. Default: chosen by the kind of file.",
    ),
]
TrustModel = Annotated[
    bool,
    typer.Option(
        "--trust-model",
        help="Allow TorchScript models, which can execute arbitrary code with your permissions.",
    ),
]
Mpp = Annotated[
    float | None,
    typer.Option(
        "--mpp", metavar="UM", help="Micrometers per pixel; overrides the file's resolution."
    ),
]
Gsd = Annotated[
    float | None,
    _gsd("--gsd", "Pixel size of a scene, such as 10m or 30cm, instead of --mpp."),
]
Scale = Annotated[
    Any,
    typer.Option(
        "--scale",
        metavar="LOW,HIGH",
        parser=_scale,
        help="Stored values that are black and white, such as 0,3000, for samples that are not "
        "8-bit colors.",
    ),
]
ImageNumber = Annotated[
    int | None,
    typer.Option(
        "--image",
        metavar="N",
        min=0,
        help="Which image of the file to read; `atlas-wsi info` lists them. Default: the largest.",
    ),
]
AllowTruncated = Annotated[
    bool,
    typer.Option("--allow-truncated", help="Read a file whose end is missing as far as it goes."),
]
MaxUnreadable = Annotated[
    float,
    typer.Option(
        "--max-unreadable",
        metavar="FRACTION",
        min=0,
        max=1,
        help="Fraction of the tissue that may be unreadable before the result counts as "
        "incomplete (exit code 4).",
    ),
]
WorkMpp = Annotated[
    float | None,
    typer.Option("--work-mpp", metavar="UM", help="Micrometers per pixel that the model sees."),
]
WorkGsd = Annotated[
    float | None,
    _gsd("--work-gsd", "Pixel size that the model sees, such as 10m, instead of --work-mpp."),
]
CellPx = Annotated[
    int | None,
    typer.Option(
        "--cell-px",
        metavar="PIXELS",
        min=1,
        help="Side of a heatmap cell in pixels at the model's resolution, such as 16, 32 or 64. "
        "Default: 64, or the patch of a tile classifier.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="Where to compute: auto, cpu, cuda, cuda:1, mps."
    ),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option("--precision", help="auto uses bfloat16 where the hardware supports it."),
]
Memory = Annotated[
    str | None,
    _memory("Memory for the encoder, such as 4GB. Default: half of the free memory."),
]
FixedMemory = Annotated[str, _memory("Memory for the encoder, such as 4GB.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Windows processed per batch. Default: as many as fit in memory.",
    ),
]


if TYPE_CHECKING:
    ResultFormat = str
    ExportFormat = str
else:  # the choices that completion, --help and the parser know are those of the tables
    ResultFormat = StrEnum("ResultFormat", {name: name for name in (*RESULT_FORMATS, "json")})
    ExportFormat = StrEnum("ExportFormat", {name: name for name in EXPORT_FORMATS})

Formats = Annotated[
    list[ResultFormat] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help=f"Output to write: {', '.join(RESULT_FORMATS)} or json; repeatable. Default: all that "
        "suit the file.",
    ),
]
To = Annotated[
    ExportFormat,
    typer.Option("--to", metavar="FORMAT", help=f"Format: {', '.join(EXPORT_FORMATS)}."),
]
Tissue = Annotated[
    Path | None,
    typer.Option(
        "--tissue",
        metavar="PATH",
        help="Tissue mask from another tool: an image of the whole slide (black is background), "
        "GeoJSON polygons, or HDF5 tiles of CLAM, TRIDENT, WSInfer or STAMP. For several slides: "
        "a folder with one file per slide, named for it, or a pattern such as masks/{name}.png.",
    ),
]
TissueModel = Annotated[
    str | None,
    typer.Option(
        "--tissue-model",
        metavar="MODEL",
        help="Model with a class 'tissue' that finds the tissue, such as the bundled 'tissue'.",
    ),
]
Roi = Annotated[
    Path | None,
    typer.Option(
        "--roi",
        metavar="PATH",
        help="GeoJSON polygons: predict only the tissue inside them. For several slides: a folder "
        "or a pattern, as for --tissue.",
    ),
]
KeepFat = Annotated[bool, typer.Option("--keep-fat", help="Count pale adipose tissue as tissue.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail at the first tile that cannot be read.")
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="timm:NAME",
        help="A timm model to use as the encoder, such as timm:resnet18.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights file of --encoder, or 'none' for random weights. Default: timm's pretrained "
        "weights, from the cache or the hub.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite existing results.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
