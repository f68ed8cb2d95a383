"""The scratch folder is counted and removed whatever is in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from latentmas.sandbox._scratch import excess, scratch

MUCH = {"max_bytes": 10**6, "max_files": 100}


def test_it_can_be_entered_by_its_owner_only(temporary):
    with scratch(()) as place:
        for path in (place.root, place.folder, place.packages):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
            assert Path(path).is_relative_to(temporary)


def test_packages_are_links(temporary, tmp_path):
    with scratch((str(tmp_path),)) as place:
        assert os.readlink(f"{place.packages}/{tmp_path.name}") == str(tmp_path)


def test_nothing_is_left_of_it(temporary):
    with scratch(()) as place:
        Path(place.folder, "file").write_text("x")
        Path(place.folder, "folder").mkdir()
        Path(place.folder, "link").symlink_to("nowhere")
        os.mkfifo(f"{place.folder}/pipe")
    assert list(temporary.iterdir()) == []


def test_what_links_point_to_is_left(temporary, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("x")
    with scratch(()) as place:
        Path(place.folder, "folder").symlink_to(tmp_path / "kept")
        Path(place.folder, "file").symlink_to(tmp_path / "kept/file")
    assert (tmp_path / "kept/file").read_text() == "x"


def test_folders_deeper_than_a_path_can_say_are_removed(temporary, monkeypatch):
    with scratch(()) as place:
        monkeypatch.chdir(place.folder)
        for _ in range(1500):
            os.mkdir("a" * 100)
            os.chdir("a" * 100)
        os.chdir(temporary)
    assert list(temporary.iterdir()) == []


def test_folders_that_may_not_be_entered_are_removed(temporary):
    with scratch(()) as place:
        inner = Path(place.folder, "outer", "inner")
        inner.mkdir(parents=True)
        (inner / "file").write_text("x")
        inner.chmod(0)
        inner.parent.chmod(0o500)
    assert list(temporary.iterdir()) == []


def test_little_is_not_too_much(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(bytes(10_000))
    assert excess(str(tmp_path), **MUCH) is None


@pytest.mark.parametrize(("files", "too_many"), [(100, False), (101, True)])
def test_files_and_folders_are_counted_at_every_depth(tmp_path, files, too_many):
    for number in range(files // 2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/file").touch()
    for number in range(files % 2):
        (tmp_path / f"odd{number}").touch()
    assert (excess(str(tmp_path), **MUCH) is not None) is too_many


def test_bytes_are_those_on_the_disk(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**9)
    assert excess(str(tmp_path), **MUCH) is None
    (tmp_path / "real").write_bytes(os.urandom(1_100_000))
    assert excess(str(tmp_path), **MUCH) == "more than 1000000 bytes in the scratch folder"


def test_links_are_not_followed(tmp_path):
    (tmp_path / "link").symlink_to("/")
    assert excess(str(tmp_path), **MUCH) is None


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_counted_is_too_much(tmp_path):
    (tmp_path / "folder").mkdir(mode=0o300)
    assert excess(str(tmp_path), **MUCH) == "a folder in the scratch folder that cannot be counted"


def test_a_folder_that_is_gone_is_not_too_much(tmp_path):
    assert excess(str(tmp_path / "gone"), **MUCH) is None
