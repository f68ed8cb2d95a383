"""Plugins of other packages, which may be broken: only who asks for that very plugin gets its error.

They are found through entry points; what a name stands for is imported when it is asked for.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points

from latentmas.errors import ConfigError

logger = logging.getLogger(__name__)


def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the plugins of a group by their name; imports none of them."""
    try:
        return {entry.name: entry for entry in entry_points(group=group)}
    except Exception:  # noqa: BLE001 - a package whose list cannot be read breaks that of all packages
        pass
    found: dict[str, EntryPoint] = {}
    for package in distributions():
        try:
            found |= {entry.name: entry for entry in package.entry_points if entry.group == group}
        except Exception as error:  # noqa: BLE001 - of a stranger
            _warn_once(f"the entry points of the package {package.name} cannot be read ({one_line(error)}); update it")
    return found


@cache
def _warn_once(sentence: str) -> None:
    """Warn, but not again each time that plugins are looked for."""
    logger.warning(sentence)


def load(kind: str, entry: EntryPoint) -> object:
    """Import what a plugin stands for.

    Args:
        kind: What it should be, for errors.

    Raises:
        ConfigError: It cannot be imported; names the package and its error.
    """
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # code of strangers, some of which ends the process when imported
        raise broken(kind, entry, error) from error


def broken(kind: str, entry: EntryPoint, error: BaseException) -> ConfigError:
    """Return the error of a plugin that does not work."""
    return ConfigError(
        f"the {kind} {entry.name!r} of the package {package_of(entry)} does not work ({one_line(error)}); "
        "update that package, or uninstall it"
    )


def package_of(entry: EntryPoint) -> str:
    """Return the name of the package a plugin comes with."""
    return entry.dist.name if entry.dist is not None else entry.value


def one_line(error: BaseException) -> str:
    """Return class and message of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
