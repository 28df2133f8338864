"""`--help` of every command, as a terminal of 80 columns shows it; and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import typer
from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.slides.synthetic import make_svs

WIDTH = 78


def verbs(command=None, path=()):
    """Every command and group, as its words."""
    command = command or typer.main.get_command(app)
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from verbs(below, (*path, name))


VERBS = list(verbs())


def help_of(verb) -> str:
    done = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


def description(text: str) -> list[list[str]]:
    """Paragraphs between the usage and the first table, as lines."""
    body = text.split("\n\n", 1)[1]
    for title in ("Arguments:", "Options:"):
        body = body.split(f"\n{title}")[0]
    return [part.splitlines() for part in body.split("\n\n") if part.strip()]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_fills_80_columns_and_cuts_no_sentence(verb):
    text = help_of(verb)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "..." not in text.split("Commands:")[-1] or "Commands:" not in text
    for lines in description(text):
        for line, following in pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) > WIDTH, line


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_value_has_a_name_in_the_help(verb):
    """`FOLDER` or a list of choices, not the type of the programming language."""
    names = ("<str>", "<path>", "<int", "<float", "<list")
    table = help_of(verb).split("\nOptions:")[-1]
    assert [name for name in names if name in table] == []


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    make_svs(path, (300, 400), mpp=1.0, levels=1)
    return path


TWO_SIZES = ("--mpp", "0.5", "--gsd", "10m")
REFUSED = [
    ("--mpp", "0"),
    ("--mpp", "-1"),
    ("--mpp", "inf"),
    ("--mpp", "much"),
    ("--gsd", "abc"),
    ("--gsd", "0m"),
    TWO_SIZES,
]
PREDICT = [
    ("-f", "foo"),
    ("--tissue", "a.png", "--tissue-model", "tissue"),
    ("--memory", "plenty"),
    ("--cell-px", "0"),
    ("--cell-px", "48", "--model", "atlas_test"),
    ("--batch-size", "0"),
    ("--precision", "float8"),
]


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        *((verb, bad) for verb in ("predict", "batch") for bad in (*REFUSED, *PREDICT)),
        *((verb, bad) for verb in ("info", "tissue", "embed", "bench") for bad in REFUSED),
        ("bench", ("--memory", "plenty")),
        ("embed", ("--work-mpp", "1")),
        ("embed", ("--encoder", "timm:resnet18", "--work-mpp", "1", "--work-gsd", "1m")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_bad_arguments_are_refused_before_any_work(verb, arguments, slide, tmp_path):
    out = () if verb in ("info", "bench") else ("-o", str(tmp_path / "out"))
    done = CliRunner().invoke(app, [verb, str(slide), *out, *arguments])
    assert done.exit_code == 2, done.output
    assert any(word in done.stderr for word in arguments)
    assert "find tissue" not in done.stderr
    assert not any(tmp_path.iterdir())
