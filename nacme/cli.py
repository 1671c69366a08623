"""The command line ``nacme``. Each command imports what it needs, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

import nacme
from nacme.errors import NacmeError

app = typer.Typer(
    name="nacme",
    help="Choose domain-generalization checkpoints by neuron activation coverage, and study the choice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nacme {nacme.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set up what every command shares."""


def report_errors(run: object) -> None:
    """Run a command; print a user's mistake as one line on standard error and exit with 1.

    Parameters
    ----------
    run : callable
        The command without arguments.
    """
    assert callable(run)

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"nacme: warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    try:
        run()
    except NacmeError as error:
        print(f"nacme: {error}", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Enter the command line."""
    report_errors(app)


if __name__ == "__main__":
    main()
