"""Code blocks of README and docs are run as tests: Python as it stands, `latentmas` commands in this process."""

import shlex
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser


def run_commands(example: Example) -> None:
    """Run each line of an ``sh`` block that calls `latentmas`; the others are for people."""
    from latentmas.cli import main

    for line in example.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["latentmas"]:
            code = main(words[1:])
            assert code == 0, f"{line!r} ended with exit code {code}"


@pytest.fixture
def in_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(Path(__file__).parent / "examples")
    monkeypatch.chdir(tmp_path)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="sh", evaluator=run_commands)],
    patterns=["*.md"],
    fixtures=["in_temporary_folder"],
).pytest()
