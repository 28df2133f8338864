"""A hook of mkdocs: make pages from other files of the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line, the cards, and the pages at the top of the repository."""
    made = {"cli.md": _command_line()}
    for card in sorted((ROOT / "atlas_wsi" / "models" / "zoo").glob("*.card.md")):
        made[f"cards/{card.name.removesuffix('.card.md')}.md"] = card.read_text()
    made |= {page: _from_top((ROOT / name).read_text()) for name, page in PAGES.items()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, config: MkDocsConfig, **_: object) -> str:
    """Make links to files of the repository absolute."""
    return re.sub(
        r"\]\((?:\.\./)+(?!docs/)([^)]+)\)",
        rf"]({config.extra['repository']}/blob/main/\1)",
        markdown,
    )


def _command_line() -> str:
    command = [
        sys.executable,
        "-m",
        "typer",
        "atlas_wsi.cli.app",
        "utils",
        "docs",
        "--name",
        "atlas-wsi",
    ]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return _whole_sentences(made).replace("# `atlas-wsi`", "# Command line", 1)


def _whole_sentences(text: str) -> str:
    """Put back the first sentence of each command, which typer cuts after 45 characters."""
    section = ""
    lines = text.splitlines()
    about = {
        name: " ".join(first.split())
        for name, first in re.findall(r"^#+ `([^`]+)`\n\n(.+?)\n\n", text, re.MULTILINE | re.DOTALL)
    }
    for i, line in enumerate(lines):
        if heading := re.match(r"#+ `([^`]+)`$", line):
            section = heading[1]
        elif item := re.match(r"\* `([a-z]+)`: .*\.\.\.$", line):
            lines[i] = f"* `{item[1]}`: {about[f'{section} {item[1]}']}"
    return "\n".join(lines) + "\n"


def _from_top(text: str) -> str:
    """Turn links relative to the top of the repository into links of the site."""

    def turned(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        target = PAGES.get(
            target, target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
        )
        return f"]({target}{anchor})"

    return LINK.sub(turned, text)
