"""What a confined program is given to read, and the rules of Landlock for it."""

from __future__ import annotations

import os
import struct
import sys

import pytest

from latentmas.sandbox import _bubblewrap, _landlock
from latentmas.sandbox._view import View, view

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement is a matter of Linux")

SOMEWHERE = View(interpreter="/python", standard_library=(), hidden=(), folders=("/",), files=(), packages=())


def rules(abi: int, seen: View = SOMEWHERE) -> _landlock.Ruleset:
    return _landlock.ruleset(seen, scratch="/scratch", packages="/packages", abi=abi)


@pytest.mark.parametrize(("abi", "size"), [(1, 8), (2, 8), (3, 8), (4, 16), (5, 16), (6, 24), (7, 24), (9, 24)])
def test_an_old_kernel_is_not_asked_for_what_it_does_not_know(abi, size):
    assert len(rules(abi).attributes) == size


@pytest.mark.parametrize(("abi", "count"), [(1, 13), (2, 14), (3, 15), (4, 15), (5, 16), (7, 16), (9, 16)])
def test_all_rights_a_kernel_knows_are_handled_and_no_others_given(abi, count):
    (handled,) = struct.unpack_from("<Q", rules(abi).attributes)
    assert handled == 2**count - 1
    assert all(rights and rights & ~handled == 0 for _, rights in rules(abi).rules)


def test_only_the_scratch_folder_and_the_null_device_can_be_written():
    writable = {path for path, rights in rules(7, view(("numpy",))).rules if rights & ~(1 << 2 | 1 << 3)}
    assert writable == {"/scratch", "/dev/null"}


def test_nothing_can_be_executed():
    assert all(rights & 1 == 0 for _, rights in rules(7, view(())).rules)


def test_installed_packages_are_not_part_of_the_standard_library():
    seen = view(())
    assert all(os.path.basename(path) in {"site-packages", "dist-packages"} for path in seen.hidden)
    readable = {path for path, rights in rules(7, seen).rules if rights & 1 << 2}
    assert not readable & {*seen.hidden, *seen.standard_library}


def test_folders_of_people_are_not_given():
    given = {path for path, _ in rules(7, view(())).rules}
    assert not given & {"/", "/home", "/root", "/etc", "/tmp", "/proc", "/sys", "/usr", "/var", os.path.expanduser("~")}


def test_packages_bring_the_libraries_beside_them():
    numpy = pytest.importorskip("numpy")
    (folder, *rest) = view(("numpy",)).packages
    assert os.path.samefile(folder, os.path.dirname(numpy.__file__))
    assert all(path.endswith("numpy.libs") for path in rest)


def test_bubblewrap_binds_for_reading_only():
    if not _bubblewrap.shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    words = _bubblewrap.command(view(()), scratch_bytes=99)
    assert "--bind" not in words
    assert {words[at + 1] for at, word in enumerate(words) if word == "--dev-bind"} == {
        "/dev/null",
        "/dev/urandom",
        "/dev/zero",
    }
    assert words[words.index("--size") : words.index("--size") + 4] == ["--size", "99", "--tmpfs", "/tmp"]
