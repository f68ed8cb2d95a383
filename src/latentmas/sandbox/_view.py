"""What a confined program may read: the interpreter, its standard library, the system's libraries, a few packages."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path

from latentmas.errors import CapabilityError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What there is to read.

    Attributes:
        interpreter: The real program, not the link in a virtual environment.
        standard_library: Its folders.
        hidden: Folders inside these that hold installed packages, which are no part of it.
        folders: Other folders that can be read with all they hold.
        files: Files that can be read.
        packages: Folders and modules that can be imported.
    """

    interpreter: str
    standard_library: tuple[str, ...]
    hidden: tuple[str, ...]
    folders: tuple[str, ...]
    files: tuple[str, ...]
    packages: tuple[str, ...]


@cache
def view(packages: tuple[str, ...]) -> View:
    """Return what is to be seen. Packages that are not installed are left out.

    Raises:
        CapabilityError: This interpreter does not know where it is.
    """
    standard = _standard_library()
    return View(
        interpreter=interpreter(),
        standard_library=standard,
        hidden=_existing(f"{folder}/{name}" for folder in standard for name in ("site-packages", "dist-packages")),
        folders=_existing((*_library_folders(), "/etc/alternatives", "/usr/share/zoneinfo")),
        files=_existing(
            (
                interpreter(),
                *_zipped_library(),
                *glob(f"{sys.base_prefix}/lib/*.so*"),
                *glob("/lib/ld-*.so*"),
                "/etc/ld.so.cache",
            )
        ),
        packages=tuple(path for name in packages for path in _package(name)),
    )


def interpreter() -> str:
    """Return the real path of the interpreter under the virtual environment, if there is one.

    Raises:
        CapabilityError: This interpreter does not know where it is.
    """
    executable = getattr(sys, "_base_executable", None) or sys.executable
    if not executable:
        raise CapabilityError("this Python does not know its own executable, so it cannot start a confined one")
    return os.path.realpath(executable)


def _standard_library() -> tuple[str, ...]:
    # In a virtual environment "platbase" would be the environment.
    places = {sysconfig.get_path(name, vars={"platbase": sys.base_exec_prefix}) for name in ("stdlib", "platstdlib")}
    return _existing(sorted(os.path.realpath(place) for place in places))


def _zipped_library() -> tuple[str, ...]:
    return (f"{sys.base_prefix}/lib/python{sys.version_info.major}{sys.version_info.minor}.zip",)


def _library_folders() -> tuple[str, ...]:
    """Return the folders of shared libraries: those of this kind of machine where the system keeps them apart."""
    machine = platform.machine()
    multiarch = _existing(f"{root}/{machine}-linux-{libc}" for root in ("/lib", "/usr/lib") for libc in ("gnu", "musl"))
    return (*(multiarch or ("/lib", "/usr/lib")), "/lib64", "/usr/lib64")


def _package(name: str) -> tuple[str, ...]:
    if not name.isidentifier():
        raise ConfigError(f"{name!r} is no package; give the name of a top-level package, such as 'numpy'")
    spec = importlib.util.find_spec(name)
    if spec is None:
        return ()
    if spec.submodule_search_locations is None:
        return (spec.origin,) if spec.has_location and spec.origin else ()
    places = [os.path.realpath(place) for place in spec.submodule_search_locations]
    # Wheels keep the shared libraries of a package beside it.
    return (*places, *_existing(str(Path(place).with_name(f"{name}.libs")) for place in places))


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(path for path in dict.fromkeys(paths) if os.path.exists(path))
