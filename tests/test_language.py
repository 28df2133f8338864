"""Plain American English in pages, templates, notebooks, `--help` and code."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from atlas_wsi.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

SPELLINGS = (
    r"\w*colour\w*|grey\w*|licen[c]e\w*|\w*metre|\w*metres|cent(?:re|res|red)|labell\w+|catalogue\w*"
    r"|behaviour\w*|neighbour\w*|favour\w*|modell\w+|artefact\w*|tumour\w*|fibre\w*"
    r"|analys(?:e|ed|ing)"
    r"|(?:recogn|normal|optim|summar|initial|memor|organ|vector|general|standard|visual|minim"
    r"|maxim)is(?:e|ed|es|er|ers|ing|ation|ations)"
)
THINGS = (
    "pixel|slide|scene|class|band|cell|window|tile|channel|scale|fold|step|file|row|group|side"
    "|second|token|level|patient|worker|process|thread|head|program|line|shape|dimension|axis"
)
RATES = (
    r"(?:micrometers?|meters?|um|px|MB|MiB|GiB|KiB|bytes?|floats?|seconds?|times|vectors?|pixels"
    rf"|numbers?|values?|one|each|per cent) an? (?:{THINGS})"
    rf"|an? (?!few|lot|such)[\w-]+ an? (?:{THINGS})"
)
IDIOMS = (
    r"gone on with|go(?:es)? on (?:where|there|with it)|anew|told|tells|in the places? of|somebody|whoever"
    r"|nobody|anybody|(?:do|does) not suffice|(?:that|what) is there|learned by heart|at hand"
    r"|put together of|say(?:s)? of (?:itself|themselves)|is of no concern|up to now|in small"
)
BANNED = re.compile(rf"\b(?:{SPELLINGS}|{RATES}|{IDIOMS})\b", re.IGNORECASE)
PAGES = ["*.md", "docs/**/*.md", "atlas_wsi/**/*.html.j2"]


def _mistakes(text: str) -> list[str]:
    flat = " ".join(text.split())
    return [flat[max(m.start() - 30, 0) : m.end() + 20] for m in BANNED.finditer(flat)]


def _pages() -> list[Path]:
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


@pytest.mark.parametrize("page", _pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_pages(page: Path) -> None:
    assert not _mistakes(page.read_text())


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.name)
def test_notebooks(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert not _mistakes(text)


def _verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from _verbs(below, (*path, name))


@pytest.mark.parametrize("verb", _verbs(typer.main.get_command(app)), ids=" ".join)
def test_help(verb: tuple[str, ...]) -> None:
    assert not _mistakes(CliRunner().invoke(app, [*verb, "--help"]).stdout)


CODE = [
    path
    for folder in ("atlas_wsi", "kernels", "plugins", "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def _texts(source: str) -> Iterator[str]:
    """Yield strings and comments, and the names with blanks instead of underscores."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace("_", " ")
    names = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
        elif token.type == tokenize.NAME:
            names.append(token.string.replace("_", " "))
    yield " | ".join(names)


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_code(path: Path) -> None:
    mistakes = [m for text in _texts(path.read_text()) for m in _mistakes(text)]
    assert not mistakes
