"""YAML files that people write: read strictly, and every error names the line and the field.

What a field may hold is said by a pydantic model of whoever reads the file; this module knows YAML, places in it, and
plain words for what is wrong.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml
from pydantic_core import ErrorDetails

from latentmas.errors import ConfigError

PLACEHOLDERS: Final = ("question", "answer_format", "context", "old_prompts")
"""What a prompt may leave to be filled in, in braces."""


def read_text(path: Path, what: str) -> str:
    """Return the text of a file; `what` it is names it in errors, such as ``team file``.

    Raises:
        ConfigError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {str(path)!r} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from error


def read_yaml(text: str, source: str, what: str) -> tuple[yaml.Node | None, object]:
    """Return the nodes, which know their lines, and the values of a YAML text.

    Args:
        source: Names the text in errors.
        what: It describes, such as ``a team``.

    Raises:
        ConfigError: It is no YAML, a key is no text, or a key stands twice in one mapping.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        faults = list(_key_faults(root))
        content = None if faults else yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply to be {what}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: no valid YAML: {getattr(error, 'problem', error)}") from error
    except (AttributeError, LookupError, ValueError) as error:  # PyYAML's own, for the date 2020-13-45 or !!bool x
        raise ConfigError(f"{source}: a value is not what its form says; put it in quotes ({error})") from error
    if faults:
        number, fault = faults[0]
        raise ConfigError(f"{source}, line {number}: {fault}")
    return root, content


_KINDS: Final = {dict: "a mapping", list: "a list", str: "text", bool: "yes or no", int: "a number", float: "a number"}
_EXPECTED: Final = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "text, in quotes if need be",
    "int_type": "a whole number",
}
_HALF_PAIR: Final = "holds half of a surrogate pair, which is no Unicode text; write the character itself"


def kind_of(value: object) -> str:
    """Return what a YAML value is, in plain words."""
    return "nothing" if value is None else _KINDS.get(type(value), "a date or another special value")


def sentence(error: ErrorDetails, what: str, expected: str | None = None) -> str:
    """Return what is wrong with a value of a file, in plain words.

    Args:
        what: The kind of file, such as ``team file``.
        expected: What should stand in this place, where there is more to say than its type.
    """
    limits = error.get("ctx", {})
    match error["type"]:
        case kind if kind in _EXPECTED:
            said = f"expected {expected or _EXPECTED[kind]}, found {kind_of(error['input'])}"
        case "too_short" | "too_long" as kind:
            bound = f"at least {limits['min_length']}" if kind == "too_short" else f"at most {limits['max_length']}"
            said = f"expected {bound} in the list, found {limits['actual_length']}"
        case "string_unicode":
            said = _HALF_PAIR
        case "missing":
            said = "is missing"
        case "extra_forbidden":
            said = f"is no field of a {what}"
        case _:
            said = error["msg"].replace("Input should", "it should").replace("String should", "it should")
    return said


def _key_faults(root: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Yield line and fault of each key that is no text or stands twice in its mapping."""
    waiting: list[yaml.Node | None] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if key.tag.rpartition(":")[2] not in {"str", "merge"}:
                    given = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                    yield line, f"a key must be text, and this one is {given}"
                elif key.value in lines:
                    yield line, f"{key.value!r} stands here a second time, the first is in line {lines[key.value]}"
                else:
                    lines[key.value] = line
            waiting += [value for _, value in reversed(node.value)]


def prompt_fault(prompt: str, placeholders: Sequence[str] = PLACEHOLDERS) -> str | None:
    """Return what is wrong with a prompt; None where nothing is. Braces of LaTeX are left alone.

    Args:
        placeholders: What it may leave to be filled in.
    """
    if not prompt.strip():
        return "the prompt is blank"
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        return f"the prompt {_HALF_PAIR}"
    plain = re.sub(r"\\[A-Za-z]+\*?(\{[^{}]*\})+", "", prompt)
    for word in re.findall(r"\{(\s*[\w-]+\s*)\}", plain):
        near = difflib.get_close_matches(word.strip().lower(), placeholders, n=1, cutoff=0.75)
        if near and word != near[0]:
            return f"{{{word}}} is no placeholder; did you mean {{{near[0]}}}?"
    return None


def line_of(root: yaml.Node | None, place: Sequence[str | int]) -> int:
    """Return the line, counted from 1, of the deepest node on the way to `place`."""
    node = root
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if key.value == part]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = node.value[part : part + 1]
        else:
            found = []
        if not found:
            # An unknown key is itself the place.
            keys = [key for key, _ in node.value if key.value == part] if isinstance(node, yaml.MappingNode) else []
            node = keys[0] if keys else node
            break
        node = found[0]
    return node.start_mark.line + 1 if node is not None else 1


def field_of(place: Sequence[str | int]) -> str:
    """Return a place as ``agents[1].name``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "top level"
