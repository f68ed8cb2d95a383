"""Filters by name: a file of this package, an entry point of ``latentmas.filters``, or ``path.py:Name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint
from pathlib import Path
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


@lru_cache(maxsize=256)
def open_filter(spec: KeepSpec) -> Filter:
    """Return the filter a hand-over names, with its parameters.

    Raises:
        UnknownNameError: There is none of this name.
        ConfigError: Its file cannot be used, or it does not take these parameters.
        CapabilityError: What the name stands for is no filter.
    """
    build = _builder(spec.name)
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
    """Return 16 hexadecimal digits over the code of a filter in a file; empty for one of this package."""
    path, colon, _ = name.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if colon else ""


def takes(name: str, parameter: str) -> bool:
    """Return whether a filter has a parameter of this name."""
    try:
        return parameter in inspect.signature(_builder(name)).parameters
    except ValueError:
        return False


def _builder(name: str) -> Any:
    path, colon, attribute = name.rpartition(":")
    if colon:
        return _from_file(path, attribute)
    if name in (own := _own()):
        return importlib.import_module(own[name]).build
    outside = _outside()
    if name.endswith(".py"):
        raise ConfigError(f"filter {name!r} is a file without a class; name both: {name}:CLASS")
    if name not in outside:
        raise UnknownNameError("filter", name, [*own, *outside])
    return load("filter", outside[name])


@lru_cache(maxsize=64)
def _from_file(path: str, attribute: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no file {path!r}; a filter of your own is named path.py:Name")
    specification = importlib.util.spec_from_file_location(f"latentmas_filter_{file.stem}", file)
    if specification is None or specification.loader is None:
        raise ConfigError(f"{path!r} is no Python file; a filter of your own is named path.py:Name")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path!r} cannot be run: {one_line(error)}") from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UnknownNameError(f"filter in {path}", attribute, public)
    return getattr(module, attribute)


def _own() -> dict[str, str]:
    package = latentmas.filters
    return {
        module.name: f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    }


def _outside() -> dict[str, EntryPoint]:
    return plugins(GROUP)
