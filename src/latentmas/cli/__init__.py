"""The command line. Only this package prints.

Each module here whose name does not begin with ``_`` is a command of that name. Its `command` function is
what runs; it returns the exit code and brings the help text.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import latentmas
from latentmas.errors import LatentMASError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is done, 1 failed while running, 2 asked for what cannot be run, 130 interrupted. What is wrong is said
    in one line on stderr.

    Args:
        argv: Words after the program's name; None takes those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        code = application()(args=words or ["--help"], prog_name="latentmas", standalone_mode=False)
    except LatentMASError as error:
        return _refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        return _refuse(f"{error.format_message()} (--help lists what there is)", error.exit_code)
    return code if isinstance(code, int) else 0


def application() -> typer.Typer:
    """Return the typer application with every command of this folder."""
    application = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        # Every name can be written with dashes as well.
        context_settings={"help_option_names": ["--help", "-h"], "token_normalize_func": _underscored},
    )
    application.callback()(_top)
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            command = importlib.import_module(f"{__name__}.{module.name}").command
            application.command(module.name)(command)
    return application


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"latentmas {latentmas.__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Agents that share one language model and hand over working memory instead of text, measured."""


def _refuse(message: str, exit_code: int) -> int:
    typer.secho(f"error: {' '.join(message.split())}", fg=typer.colors.RED, err=True)
    return exit_code
