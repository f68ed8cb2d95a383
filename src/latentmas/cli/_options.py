"""Command-line options made from the fields of `RunConfig`, which is their only source."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Final, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from latentmas.errors import ConfigError
from latentmas.experiment.config import Flag, RunConfig, flags

_OFF: Final = "no_"


def run_signature() -> inspect.Signature:
    """Return one keyword-only parameter per option of a run, and one more to turn each switch off.

    An option that is not given is None; `explicit` makes options of them again.
    """
    parameters = [
        parameter for name, flag in flags() for parameter in _parameters(name, RunConfig.model_fields[name], flag)
    ]
    return inspect.Signature(parameters, return_annotation=int)


def explicit(values: Mapping[str, object]) -> dict[str, object]:
    """Return the options that were given, by their name in `RunConfig`.

    Raises:
        ConfigError: A switch is turned on and off.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name in [name for name in given if name.startswith(_OFF)]:
        del given[name]
        switch = name.removeprefix(_OFF)
        if switch in given:
            raise ConfigError(f"--{switch} and --{name} were both given; give one")
        given[switch] = False
    return given


def _parameters(name: str, field: FieldInfo, flag: Flag) -> Iterator[inspect.Parameter]:
    kind = _kind(field.annotation)
    help_text = field.description or ""
    if not field.is_required() and field.default is not None and kind is not bool and not flag.says_default:
        help_text += f" Default: {field.default}."
    option = typer.Option(f"--{name}", help=help_text, rich_help_panel=flag.panel, show_default=False)
    if field.is_required():
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option])
        return
    yield _optional(name, kind, option)
    if kind is bool:
        # Hidden: side by side the two names would leave an ordinary terminal no room for the help.
        yield _optional(f"{_OFF}{name}", bool, typer.Option(f"--{_OFF}{name}", hidden=True))


def _optional(name: str, kind: type, option: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind | None, option], default=None
    )


def _kind(annotation: object) -> type:
    """Return what a word on the command line is read as.

    Choices and days are read as text, because `RunConfig` checks them and says what there is.
    """
    parts = get_args(annotation)
    if NoneType in parts:
        [annotation] = [part for part in parts if part is not NoneType]
    if get_origin(annotation) is Literal or annotation is datetime.date:
        return str
    assert isinstance(annotation, type)
    return annotation
