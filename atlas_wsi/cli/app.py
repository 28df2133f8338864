"""The command `atlas-wsi`."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from atlas_wsi import __version__
from atlas_wsi.cli import (
    batch,
    bench,
    console,
    doctor,
    embed,
    evaluate,
    export,
    info,
    inspect,
    models,
    predict,
    report,
    sample,
    status,
    tissue,
    train,
    view,
)
from atlas_wsi.errors import AtlasError, Cancelled


class _Handled(TyperGroup):
    """Turns errors into messages and exit codes, for all commands."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AtlasError as error:
            if ctx.params.get("debug"):
                raise
            console.fail(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            console.fail(Cancelled("Stopped; no partial result was left."))
            raise typer.Exit(Cancelled.exit_code) from error


app = typer.Typer(
    cls=_Handled,
    name="atlas-wsi",
    help="Class heatmaps for whole-slide images and satellite scenes.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: paragraphs are filled, on screens of any width
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(*, value: bool) -> None:
    if value:
        console.say(f"atlas-wsi {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[  # noqa: ARG001 - read by the group
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool,
        typer.Option(
            "--version",
            callback=lambda v: _version(value=v),
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    # what tifffile logs about a damaged file reaches the user as our error, once
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


for command in (
    *(predict.predict, batch.batch, status.status, report.report, info.info, view.view),
    *(tissue.tissue, embed.embed, inspect.inspect, export.export),
    *(sample.sample, doctor.doctor, bench.bench),
):
    app.command()(command)
app.add_typer(models.app, name="models")
app.add_typer(train.train_app, name="train")
app.add_typer(evaluate.evaluate_app, name="evaluate")


def main() -> None:
    """Run the command line; ``--debug`` may be anywhere in it."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(a for a in arguments if a != "--debug")]
    for name in ("SIGTERM", "SIGHUP"):  # these end a run as Ctrl-C does
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        app(arguments)
    except Exception as error:
        if "--debug" in arguments:
            raise
        console.fail(
            AtlasError(
                f"Unexpected {type(error).__name__}: {error}",
                hint="This is a bug in atlas-wsi; run again with --debug and report it.",
            )
        )
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
