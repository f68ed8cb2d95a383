"""Filters by name: a file of this package, an entry point of ``latentmas.filters``, or ``path.py:Name``.

A file of one's own is read once and both its code and its digest come from what was read, so that a digest names the
code that ran: neither Python's cached bytecode nor a module loaded earlier in this process stands in for it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import latentmas.filters
from latentmas.errors import CapabilityError, ConfigError, LatentMASError, UnknownNameError
from latentmas.filters import Filter, Grain, Need
from latentmas.plugins import load, one_line, plugins
from latentmas.program import KeepSpec

GROUP: Final = "latentmas.filters"


def filter_names() -> list[str]:
    """Return the names of all filters that are installed."""
    return sorted({*_own(), *_outside()})


def open_filter(spec: KeepSpec) -> Filter:
    """Return the filter a hand-over names, with its parameters; a file of one's own as `KeepSpec.source` says.

    Raises:
        UnknownNameError: There is none of this name.
        ConfigError: Its file cannot be used, is no longer what it was, or it does not take these parameters.
        CapabilityError: What the name stands for is no filter.
    """
    return _opened(spec if spec.source else replace(spec, source=source_digest(spec.name)))


@lru_cache(maxsize=256)
def _opened(spec: KeepSpec) -> Filter:
    build = _builder(spec.name, spec.source)
    parameters = dict(spec.parameters)
    try:
        inspect.signature(build).bind(**parameters)
    except TypeError as error:
        raise ConfigError(f"filter {spec.name!r} does not take these parameters: {error}") from error
    except ValueError:
        pass  # built without a signature that Python could tell
    try:
        found = build(**parameters)
    except LatentMASError:
        raise
    except Exception as error:
        raise ConfigError(f"filter {spec.name!r} cannot be built: {one_line(error)}") from error
    if not callable(getattr(found, "score", None)):
        raise CapabilityError(f"{spec.name!r} is no filter: it has no method 'score'")
    _check_claims(spec.name, getattr(found, "needs", ()), getattr(found, "grain", Grain.TOKEN))
    return found  # type: ignore[no-any-return]


def _check_claims(name: str, needs: object, grain: object) -> None:
    """Refuse a filter that asks for what nobody supplies: it would get None in its place."""
    known = [need.value for need in Need]
    if isinstance(needs, str) or not isinstance(needs, Iterable):
        raise ConfigError(f"filter {name!r} has needs {needs!r}; expected a set of some of: {', '.join(known)}")
    for need in needs:
        if need not in known:
            raise UnknownNameError(f"need of filter {name!r}", str(need), known)
    if grain not in (grains := [grain.value for grain in Grain]):
        raise ConfigError(f"filter {name!r} has grain {grain!r}; expected one of {', '.join(grains)}")


def source_digest(name: str) -> str:
    """Return 16 hexadecimal digits over the code of a filter in a file, as it is now; empty for any other.

    Raises:
        ConfigError: There is no such file.
    """
    path, colon, _ = name.rpartition(":")
    return _digest(_content(path)) if colon else ""


def takes(name: str, parameter: str) -> bool:
    """Return whether a filter has a parameter of this name."""
    try:
        return parameter in inspect.signature(_builder(name, source_digest(name))).parameters
    except ValueError:
        return False


def _builder(name: str, source: str) -> Any:
    path, colon, attribute = name.rpartition(":")
    if colon:
        module = _module(path, source)
        if not hasattr(module, attribute):
            public = [name for name in vars(module) if not name.startswith("_")]
            raise UnknownNameError(f"filter in {path}", attribute, public)
        return getattr(module, attribute)
    if name in (own := _own()):
        return importlib.import_module(own[name]).build
    outside = _outside()
    if name.endswith(".py"):
        raise ConfigError(f"filter {name!r} is a file without a class; name both: {name}:CLASS")
    if name not in outside:
        raise UnknownNameError("filter", name, [*own, *outside])
    return load("filter", outside[name])


@lru_cache(maxsize=64)
def _module(path: str, source: str) -> ModuleType:
    """Return the module that a file with this digest is."""
    content = _content(path)
    if (now := _digest(content)) != source:
        raise ConfigError(
            f"{path!r} has changed while it was in use: its digest was {source} and is now {now}; start again"
        )
    file = Path(path)
    name = f"latentmas_filter_{file.stem}_{source}"
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise ConfigError(f"{path!r} is no Python file; a filter of your own is named path.py:Name")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(content, str(file), "exec"), vars(module))  # not the loader: it may take cached bytecode
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"{path!r} cannot be run: {one_line(error)}") from error
    return module


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        if Path(path).is_file():
            raise ConfigError(f"cannot read the filter's file {path!r}: {error.strerror}") from error
        raise ConfigError(f"there is no file {path!r}; a filter of your own is named path.py:Name") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _own() -> dict[str, str]:
    package = latentmas.filters
    return {
        module.name: f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    }


def _outside() -> dict[str, EntryPoint]:
    return plugins(GROUP)
