"""bubblewrap: the command that starts a program in namespaces of its own, where only what it may read exists."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from latentmas.errors import CapabilityError
from latentmas.sandbox._view import View

SCRATCH: Final = "/tmp"
PACKAGES: Final = "/packages"
NOBODY: Final = "65534"


@cache
def executable() -> str:
    """Return the path of bubblewrap.

    Raises:
        CapabilityError: It is not installed.
    """
    if found := shutil.which("bwrap"):
        return found
    raise CapabilityError(
        "bubblewrap is not installed; get it with the system's packages, such as: apt install bubblewrap"
    )


def command(view: View, *, scratch_bytes: int) -> list[str]:
    """Return the command to put before that of the program.

    Raises:
        CapabilityError: bubblewrap is not installed.
    """
    # No --new-session: the parent starts one, and killing its process group then reaches every process at once.
    # --as-pid-1: nothing can fork, so nothing needs a reaper, and only so is processor time handed on to the parent.
    return [
        executable(),
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *(
            "--unshare-cgroup-try",
            "--as-pid-1",
            "--die-with-parent",
            "--uid",
            NOBODY,
            "--gid",
            NOBODY,
            "--cap-drop",
            "ALL",
        ),
        # The first mount, because what is read may itself lie under it.
        *("--size", str(scratch_bytes), "--tmpfs", SCRATCH),
        *_readable(view),
        *(
            word
            for device in ("null", "urandom", "zero")
            for word in ("--dev-bind", f"/dev/{device}", f"/dev/{device}")
        ),
        *("--remount-ro", "/", "--chdir", SCRATCH, "--"),
    ]


def _readable(view: View) -> Iterator[str]:
    for path in (*view.folders, *view.standard_library, *view.files):
        yield from ("--ro-bind", path, path)
    for folder in view.hidden:
        yield from ("--tmpfs", folder, "--remount-ro", folder)
    for path in view.packages:
        yield from ("--ro-bind", path, f"{PACKAGES}/{Path(path).name}")
