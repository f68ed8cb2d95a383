"""Programs written to fool the grader or to leave its sandbox, through ``latentmas grade``; traces are looked for."""

import json
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import yaml

from latentmas import sandbox

HERE = Path(__file__).parent
PARTS = 8


@pytest.fixture(params=["bwrap", "landlock"])
def level(request):
    report = sandbox.probe(sandbox.Level(request.param))
    if not report.works:
        pytest.skip(f"{request.param}: {report.reason}")
    return request.param


@cache
def cases(name):
    return yaml.safe_load((HERE / f"code_{name}.yaml").read_text(encoding="utf-8"))


@dataclass
class Surroundings:
    """What hostile programs may want: a secret, a victim, an open port. Keeps what they leave."""

    folder: Path
    scratch: Path
    connections: list = field(default_factory=list)

    def __post_init__(self):
        self.secret = secrets.token_hex(8)
        for name in ("secrets", "outside"):
            (self.folder / name).mkdir()
        (self.folder / "secrets" / "key.txt").write_text(self.secret)
        (self.folder / "victim.txt").write_text("untouched")
        self.before = self.state()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(self.server.getsockname())
        self.datagrams.setblocking(False)
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.folder / "unix"))
        self.unix.listen()
        for server in (self.server, self.unix):
            threading.Thread(target=self._listen, args=(server,), daemon=True).start()

    def state(self):
        """Return what must stay as it is of everything a program may want to change."""
        found = {}
        for path in (self.folder / "outside", self.folder / "secrets", self.folder / "victim.txt"):
            now = path.stat(follow_symlinks=False)
            found[path.name] = (now.st_mode, now.st_uid, now.st_gid, now.st_nlink, now.st_ctime_ns, os.listxattr(path))
        return found

    def _listen(self, server):
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self.connections.append(connection.recv(100))
            connection.close()

    def fill(self, text):
        places = {
            "secret_file": self.folder / "secrets" / "key.txt",
            "secret_dir": self.folder / "secrets",
            "secret_env": "LATENTMAS_TEST_SECRET",
            "outside_dir": self.folder / "outside",
            "victim_file": self.folder / "victim.txt",
            "port": self.server.getsockname()[1],
            "unix_socket": self.folder / "unix",
        }
        for name, value in places.items():
            text = text.replace("{" + name + "}", str(value))
        return text

    def traces(self):
        """Return what programs left behind."""
        found = [f"wrote {path.name}" for path in (self.folder / "outside").iterdir()]
        found += [f"wrote {path.name}" for path in (self.folder / "secrets").iterdir() if path.name != "key.txt"]
        found += [f"left {path}" for path in Path("/dev/shm").glob("latentmas_adversarial*")]
        found += [f"left {path}" for path in self.scratch.iterdir()]
        if not (self.folder / "victim.txt").is_file() or (self.folder / "victim.txt").read_text() != "untouched":
            found.append("changed the victim")
        else:
            now = self.state()
            found += [
                f"changed {name}: {self.before[name]} -> {now[name]}" for name in now if now[name] != self.before[name]
            ]
        with suppress(BlockingIOError):
            found.append(f"sent {self.datagrams.recv(100)!r}")
        return found + [f"connected: {sent!r}" for sent in self.connections]

    def close(self):
        self.server.close()
        self.datagrams.close()
        self.unix.close()


@pytest.fixture
def surroundings(monkeypatch):
    # A short path, because a Unix socket has to fit, and open to all: only the sandbox is in the way of a program.
    with tempfile.TemporaryDirectory(prefix="lm-") as name:
        folder = Path(name)
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
        (folder / "around").mkdir()
        (folder / "tmp").mkdir()
        around = Surroundings(folder / "around", folder / "tmp")
        monkeypatch.setenv("LATENTMAS_TEST_SECRET", around.secret)
        monkeypatch.setenv("TMPDIR", str(around.scratch))
        yield around
        around.close()


def surprises(chosen, level, tmp_path, around=None):
    tests = cases("tests")
    answers, scores = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    with answers.open("w") as file:
        for case in chosen:
            test = tests[case["test"]]
            line = {
                "id": case["id"],
                "task": test["task"],
                "output": around.fill(case["output"]) if around else case["output"],
                "target": test["test"],
                "entry_point": test["entry_point"],
                "finish_reason": case.get("finish_reason", "stop"),
            }
            file.write(json.dumps(line) + "\n")
    words = ["grade", str(answers), "--output", str(scores), "--code_exec", level, "--workers", "1"]
    # A process of its own, so that its environment really holds the secret.
    done = subprocess.run([sys.executable, "-m", "latentmas", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    graded = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [line["id"] for line in graded] == [case["id"] for case in chosen]
    return [
        f"{case['id']}: {line['verdict']} ({line['detail']}), expected {case['verdicts']}"
        for case, line in zip(chosen, graded, strict=True)
        if line["verdict"] not in case["verdicts"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_odd_but_right_code_is_right_and_wrong_code_is_not(part, level, tmp_path):
    assert not (found := surprises(cases("honest")[part::PARTS], level, tmp_path)), "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_hostile_program_is_graded_right_or_leaves_a_trace(part, level, tmp_path, surroundings):
    chosen = [case for case in cases("hostile") if not case.get("slow")]
    found = surprises(chosen[part::PARTS], level, tmp_path, surroundings)
    time.sleep(4)  # daemons that survived write after 3 s
    assert not found, "\n".join(found)
    assert not surroundings.traces()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [case["id"] for case in cases("hostile") if case.get("slow")])
def test_programs_that_never_end_are_timeouts(name, tmp_path, surroundings):
    found = surprises([case for case in cases("hostile") if case["id"] == name], "auto", tmp_path, surroundings)
    assert not found, "\n".join(found)
    assert not surroundings.traces()
