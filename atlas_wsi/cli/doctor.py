"""`atlas-wsi doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from atlas_wsi.cli import console, options

_COLORS = {"ok": "green", "missing": "yellow", "broken": "red"}


def doctor(as_json: options.AsJson = False) -> None:
    """Check the installation and suggest fixes."""
    from atlas_wsi import check_installation

    checks = check_installation()
    if as_json:
        console.print_json([asdict(check) for check in checks])
    else:
        from rich.text import Text

        console.print_table(
            (Text(check.state, style=_COLORS[check.state]), check.name, check.detail)
            for check in checks
        )
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)
