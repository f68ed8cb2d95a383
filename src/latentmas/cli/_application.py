"""The application behind `main`: one command per module of this package, loaded when it is asked for."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup

import latentmas
from latentmas import cli
from latentmas.cli._streams import say_error
from latentmas.cli._words import Option, understood
from latentmas.errors import ConfigError, LatentMASError

Clicks = Any
"""The context of a call and the commands, of classes that typer keeps to itself."""
# Every name can be written with dashes as well.
SETTINGS: Final = {"help_option_names": ["--help", "-h"], "token_normalize_func": lambda name: name.replace("-", "_")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How words are read, whichever command they are for."""

    abbreviations: bool


def run(words: Sequence[str], *, abbreviations: bool) -> int:
    """Run a command line and return its exit code; says what is wrong with it."""
    habits = Habits(abbreviations=abbreviations)
    try:
        code = application()(args=list(words) or ["--help"], prog_name="latentmas", standalone_mode=False, obj=habits)
    except LatentMASError as error:
        return say_error(str(error), error.exit_code)
    except typer.TyperException as error:
        return say_error(f"{error.format_message()} (--help lists what there is)", error.exit_code)
    return code if isinstance(code, int) else 0


def application() -> typer.Typer:
    """Return the typer application with every command of this folder."""
    application = typer.Typer(
        cls=_Commands,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings=SETTINGS,
    )
    application.callback()(_top)
    return application


class _Commands(TyperGroup):
    """The commands, each imported when it is run; a list of all of them needs their docstrings only."""

    _lists = False

    def list_commands(self, ctx: Clicks) -> list[str]:
        return [module.name for module in pkgutil.iter_modules(cli.__path__) if not module.name.startswith("_")]

    def get_command(self, ctx: Clicks, cmd_name: str) -> Clicks:
        if cmd_name not in self.list_commands(ctx):
            return None
        return _outline(cmd_name) if self._lists else _command(cmd_name)

    def format_help(self, ctx: Clicks, formatter: Clicks) -> None:
        self._lists = True
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Clicks, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts} | {"--help", "-h"}
        if args and args[0].startswith("--") and args[0] not in known:
            commands = ", ".join(self.list_commands(ctx))
            raise ConfigError(
                f"{args[0]} comes before any command; begin with one of {commands}, as in `latentmas run {args[0]} ...`"
            )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Clicks, args: list[str]) -> Clicks:
        if args[0].lower() in self.list_commands(ctx) and args[0] != args[0].lower():
            raise ConfigError(f"latentmas has no command {args[0]!r}; did you mean {args[0].lower()!r}?")
        self.commands = dict.fromkeys(self.list_commands(ctx), cast("Any", None))  # for "did you mean"
        name, command, rest = super().resolve_command(ctx, args)
        assert command is not None
        options = [
            Option(
                names=tuple(parameter.opts),
                takes_value=not getattr(parameter, "is_flag", False),
                number=_number(parameter),
            )
            for parameter in command.params
            if parameter.param_type_name == "option"
        ]
        takes_words = any(parameter.param_type_name == "argument" for parameter in command.params)
        habits = ctx.obj
        return (
            name,
            command,
            understood(
                rest,
                options,
                command=f"latentmas {name}",
                takes_words=takes_words,
                abbreviations=isinstance(habits, Habits) and habits.abbreviations,
            ),
        )


def _number(parameter: Clicks) -> type[int] | type[float] | None:
    """Return the kind of number that an option takes; None for text, and where typer keeps it elsewhere."""
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    return kind if kind in {int, float} else None


def _command(name: str) -> Clicks:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(name, context_settings=SETTINGS)(importlib.import_module(f"{cli.__name__}.{name}").command)
    return typer.main.get_command(single)


def _outline(name: str) -> TyperCommand:
    """Return what a list of commands shows of one, without running its module."""
    [folder] = cli.__path__
    tree = ast.parse((Path(folder) / f"{name}.py").read_bytes())
    [function] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "command"]
    return TyperCommand(name, help=inspect.cleandoc(ast.get_docstring(function) or ""))


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
