"""What a GGUF file says before its weights are read: that it is one, that all of it is there, and what was made of it.

transformers turns such a file into a model, and leaves out of it what it has no place for. So the header is read here
first, without torch: a file that would become another model, or none, is refused in one sentence.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Final

from latentmas.errors import CapabilityError, ConfigError

SUFFIX: Final = ".gguf"
INSTALL: Final = "pip install 'latentmas[gguf]'"

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_FIXED: Final = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {10: "Q", 11: "q", 12: "d"}
"""Numbers of the value types with a fixed size, and how `struct` calls them."""
_STRING: Final = 8
_ARRAY: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The part of a GGUF file that is not weights.

    Attributes:
        architecture: As llama.cpp names it, for one "llama".
        metadata: Numbers, truth values and texts by their key; arrays, such as the vocabulary, are left out.
        tensors: Names of the tensors in the file.
    """

    architecture: str
    metadata: Mapping[str, str | int | float | bool]
    tensors: frozenset[str]

    def rotary_scaling(self) -> str | None:
        """Return what the file says of scaled rotary frequencies; None where they are plain."""
        if tensors := sorted(name for name in self.tensors if name.startswith("rope_f")):
            return f"the tensor {tensors[0]}"
        for key in ("rope.scaling.type", "rope.scale_linear"):
            value = self.metadata.get(f"{self.architecture}.{key}", "none")
            if value not in ("none", 1.0):
                return f"{self.architecture}.{key} = {value}"
        return None


def is_gguf(model_name: str) -> bool:
    """Whether a model name means a GGUF file, which need not be there. A folder of such a name is a folder."""
    return model_name.lower().endswith(SUFFIX) and not Path(model_name).is_dir()


def check_file(path: Path) -> Header:
    """Return the header of a GGUF file that can be loaded as far as that can be told without loading it.

    Raises:
        ConfigError: There is no such file, it is none, or a part of it is missing.
        CapabilityError: The package ``gguf`` is not installed, or knows less than this file needs.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}; give the path of a {SUFFIX} file that is there")
    if find_spec("gguf") is None:
        raise CapabilityError(f"a {SUFFIX} file needs the package gguf: {INSTALL}")
    try:
        header, needed = _read(path)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the header of {str(path)!r} is broken, or the file ends inside of it; get the file again"
        ) from error
    if needed > (size := path.stat().st_size):
        raise ConfigError(f"{str(path)!r} has {size:,} bytes, and its tensors need {needed:,}; get the whole file")
    if (parts := header.metadata.get("split.count", 1)) not in (0, 1):
        raise CapabilityError(
            f"{str(path)!r} is one of {parts} parts of a model; join them to one file with llama-gguf-split --merge"
        )
    return header


def _read(path: Path) -> tuple[Header, int]:
    """Return the header of a file, and how many bytes the whole file has at least."""
    if path.stat().st_size == 0:
        raise ConfigError(f"{str(path)!r} is empty; get the file again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != _MAGIC:
            raise ConfigError(f"{str(path)!r} is no GGUF file: it begins with {content[:4]!r}, not with {_MAGIC!r}")
        reader = _Reader(content)
        version, tensors, keys = reader.take("IQQ")
        if version not in _VERSIONS:
            raise ConfigError(
                f"{str(path)!r} is GGUF of version {version}; versions {' and '.join(map(str, _VERSIONS))} can be read"
            )
        metadata: dict[str, str | int | float | bool] = {}
        for _ in range(keys):
            key = reader.text()
            value = reader.value()
            if value is not None:
                metadata[key] = value
        found = [reader.tensor() for _ in range(tensors)]
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not found:
        raise ConfigError(f"{str(path)!r} names no architecture or holds no tensors; it is not a model")
    alignment = int(metadata.get("general.alignment", 32))
    if alignment < 1:
        raise IndexError
    first = -(-reader.position // alignment) * alignment
    names = frozenset(name for name, _ in found)
    return Header(architecture=architecture, metadata=metadata, tensors=names), first + max(end for _, end in found)


class _Reader:
    """Takes values from the front of a file; whatever is not there raises `struct.error` or `IndexError`."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.position = len(_MAGIC)

    def take(self, kinds: str) -> tuple[int, ...]:
        values = struct.unpack_from(f"<{kinds}", self._content, self.position)
        self.position += struct.calcsize(f"<{kinds}")
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        self._skip(length)
        return self._content[self.position - length : self.position].decode("utf-8")

    def value(self) -> str | int | float | bool | None:
        """Return the next value; None for an array, which is passed over."""
        (kind,) = self.take("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.take(_fixed(kind))[0]
        of, count = self.take("IQ")
        if of != _STRING:
            self._skip(count * struct.calcsize(f"<{_fixed(of)}"))
            return None
        for _ in range(count):
            (length,) = self.take("Q")
            self._skip(length)
        return None

    def tensor(self) -> tuple[str, int]:
        """Return the name of the next tensor, and where it ends behind the header."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.text()
        (axes,) = self.take("I")
        shape = self.take(f"{axes}Q")
        kind, offset = self.take("IQ")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError as error:
            raise CapabilityError(
                f"tensor {name} is of type {kind}, which this version of the package gguf does not know; update it"
            ) from error
        return name, offset + prod(shape) // block * size

    def _skip(self, length: int) -> None:
        self.position += length
        if self.position > len(self._content):
            raise IndexError


def _fixed(kind: int) -> str:
    if kind not in _FIXED:
        raise IndexError
    return _FIXED[kind]
