"""The words of a command line before they become options: spelled in full, and each with what belongs to it.

What cannot be meant is a `ConfigError` that names the word and a way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from latentmas.errors import ConfigError

_LONG_DASHES: Final = ("\u2013", "\u2014", "\u2212")
_TRUTHS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0", "none"})
_OFF: Final = "--no_"
_ALSO_CALLED: Final = {
    "--batch_size": "--generate_bs",
    "--limit": "--max_samples",
    "--num_samples": "--max_samples",
    "--max_length": "--max_new_tokens",
    "--resume": "--output_dir",
}
"""Names that other programs have for the same thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of a command.

    Attributes:
        names: With their dashes; further underscores.
        takes_value: It is no switch.
        number: What its value must be read as, if it is a number.
    """

    names: tuple[str, ...]
    takes_value: bool
    number: type[int] | type[float] | None = None


def understood(
    words: Sequence[str], options: Sequence[Option], *, command: str, takes_words: bool, abbreviations: bool
) -> list[str]:
    """Return the words with every option in its full name.

    Args:
        command: As a person calls it, for errors.
        takes_words: It has arguments beside its options.
        abbreviations: The beginning of a name stands for the name where no other name begins like that.

    Raises:
        ConfigError: A word is no option of the command, has no value or one too many.
    """
    table = {name: option for option in options for name in option.names} | {
        name: Option(names=(name,), takes_value=False) for name in ("--help", "-h")
    }
    left, found = iter(words), list[str]()
    for word in left:
        if word == "--":
            return [*found, word, *left]
        if not word.startswith("--"):
            if not word.startswith("-") or word == "-" or word in table:
                _check_alone(word, found, table, command, takes_words=takes_words)
            elif (long := f"-{_canonical(word.partition('=')[0])}") in table:
                raise ConfigError(f"{word} has one dash; write {long}")
            elif not takes_words:
                raise ConfigError(f"{command} has no option {word}; `{command} --help` lists them")
            found.append(word)
            continue
        given, equals, value = word.partition("=")
        name = _named(given, table, command, abbreviations=abbreviations)
        if not table[name].takes_value:
            if equals:
                raise _no_value(name, value, table)
            found.append(name)
            continue
        if not equals:
            value = _next(name, left, table)
        elif value.startswith("~/"):
            value = str(Path(value).expanduser())  # a shell does that only where a word begins
        if not value.strip():
            raise ConfigError(f"{name} is given without a value; write a value behind it, or leave {name} out")
        _check_number(name, value, table[name].number, command)
        found += [name, value]
    return found


def _canonical(name: str) -> str:
    """Return a name with its dashes inside as underscores."""
    bare = name.lstrip("-")
    return name[: len(name) - len(bare)] + bare.replace("-", "_")


def _named(given: str, table: dict[str, Option], command: str, *, abbreviations: bool) -> str:
    name = _canonical(given)
    if name in table:
        return name
    longer = sorted(known for known in table if known.startswith(name) and known.startswith("--") and len(name) > 2)
    if abbreviations and len(longer) == 1:
        return longer[0]
    if abbreviations and longer:
        raise ConfigError(f"{given} could be {', '.join(longer)}; write more of it")
    near = _near(name, longer, table)
    if near:
        raise ConfigError(f"{command} has no option {given}; did you mean {' or '.join(near)}?")
    raise ConfigError(f"{command} has no option {given}; `{command} --help` lists them")


def _near(name: str, longer: Sequence[str], table: dict[str, Option]) -> list[str]:
    """Return up to three names that may have been meant: longer ones first, then similar ones, then those within."""
    shown = {known.lower(): known for known in table if not known.startswith(_OFF) or name.startswith(_OFF)}
    if name in _ALSO_CALLED and _ALSO_CALLED[name] in table:
        return [_ALSO_CALLED[name]]
    if begun := [known for known in longer if known in shown.values()]:
        return begun[:3]
    if close := difflib.get_close_matches(name.lower(), shown, n=1, cutoff=0.7):
        return [shown[close[0]]]
    bare = name.lower().lstrip("-")
    return [known for low, known in shown.items() if len(bare) > 3 and bare in low][:3]


def _next(name: str, left: Iterator[str], table: dict[str, Option]) -> str:
    value = next(left, None)
    if value is None:
        raise ConfigError(f"{name} is the last word and has no value; write one behind it")
    if value.startswith("--") and (following := _canonical(value.partition("=")[0])) in table:
        raise ConfigError(f"{name} has no value: {following} follows it; write a value between the two")
    return value


def _check_number(name: str, value: str, number: type[int] | type[float] | None, command: str) -> None:
    if number is None:
        return
    try:
        number(value)
    except ValueError as error:
        kind = "a whole number, such as 10" if number is int else "a number, such as 0.5"
        if name == "--max_samples" and value.strip().lower() == "all" and command == "latentmas run":
            kind = "a whole number, and -1 is all"
        raise ConfigError(f"{name} is {value!r}; it takes {kind}") from error


def _no_value(name: str, value: str, table: dict[str, Option]) -> ConfigError:
    off = f"{_OFF}{name.removeprefix('--')}"
    if name.startswith(_OFF) and (on := f"--{name.removeprefix(_OFF)}") in table:
        way = f"{name} turns {on} off"
    elif off in table:
        way = f"{name} turns it on and {off} off"
    else:
        way = f"{name} turns it on, and without it it is off"
    return ConfigError(f"{name} is a switch and takes no value, so not {value!r}: {way}")


def _check_alone(word: str, found: Sequence[str], table: dict[str, Option], command: str, *, takes_words: bool) -> None:
    """Refuse a word that is neither an option nor the value of one, where a command has no room for it."""
    if word.startswith(_LONG_DASHES):
        bare = _canonical(f"--{word.lstrip(''.join(_LONG_DASHES))}".partition("=")[0])
        if bare in table:
            raise ConfigError(f"{word} begins with a long dash, as word processors make it; write {bare}")
    if word in table:
        return
    last = found[-1] if found else ""
    if last in table and not table[last].takes_value and (not takes_words or word.lower() in _TRUTHS):
        raise _no_value(last, word, table)
    if not takes_words:
        raise ConfigError(
            f"{word!r} belongs to no option; {command} takes options only, such as --NAME VALUE, and a value with "
            "spaces in quotes"
        )
