"""Plugins of other packages: a broken one is one line, and everything else works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latentmas import plugins
from latentmas.cli import main
from latentmas.experiment import compose

MODULES = {
    "gone.py": "import nothing_of_this_name",
    "ends.py": "raise SystemExit('no licence')",
    "bare.py": "class Bare:\n    name = 'bare'\ndef build():\n    return Bare()",
    "falls.py": "def build():\n    raise OSError('no disk')",
    "good.py": (
        "class Newest:\n    def score(self, sight):\n        return sight.memory.positions.double()\n"
        "class Breaks:\n    def __init__(self):\n        raise OSError('no disk')\n"
        "def build():\n    from latentmas.tiny.tasks.tiny import build\n    return build()"
    ),
}
ENTRIES = """[latentmas.tasks]
gone = gone:build
ends = ends:build
bare = bare:build
falls = falls:build
missing = good:nothing
nonsense = ][
good = good:build

[latentmas.filters]
gone_filter = gone:Filter
newest = good:Newest
breaks = good:Breaks
"""
RUN = "run --method latent_mas --model_name tiny --task tiny --max_samples 2 --latent_steps 1 --max_new_tokens 2"


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> Path:
    """A package of a stranger with plugins, most of which are broken; returns the list of them."""
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    described = tmp_path / "stranger-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    listed = described / "entry_points.txt"
    listed.write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield listed
    for name in set(sys.modules) - before:
        if f"{name}.py" in MODULES:
            del sys.modules[name]


@pytest.mark.usefixtures("stranger")
def test_broken_tasks_are_one_line_each_and_the_others_are_listed(capsys):
    assert main(["tasks", "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert "gsm8k" in out
    lines = err.splitlines()
    assert len(lines) == 6
    for name in ("gone", "ends", "bare", "falls", "missing", "nonsense"):
        [line] = [line for line in lines if f"the task {name!r} of the package stranger" in line]
        assert "Error: " in line or "SystemExit: no licence" in line


@pytest.mark.usefixtures("stranger")
def test_nobody_but_who_asks_for_a_broken_task_hears_of_it(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*RUN.split(), "--filter", "newest", "--output_dir", str(folder)]) == 0
    assert "stranger" not in capsys.readouterr().err
    assert compose.find_task("good").name == "tiny"
    for name in ("gone", "ends", "falls", "bare"):
        assert main([*RUN.split(), "--task", name]) == 2
        err = capsys.readouterr().err
        assert f"error: the task {name!r} of the package stranger does not work" in err
        assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone_filter", "package stranger does not work (ModuleNotFoundError: No module named 'nothing_of_this_name')"),
        ("breaks", "filter 'breaks' cannot be built: OSError: no disk"),
    ],
)
def test_a_broken_filter_is_one_line_for_who_asks_for_it(name, message, capsys, tmp_path):
    assert main([*RUN.split(), "--filter", name, "--output_dir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("stranger")
def test_doctor_says_which_plugins_work():
    from latentmas.cli import doctor

    rows = dict(doctor._plugins())
    assert rows["filter newest"] == "works, of stranger"
    assert rows["task gone"].startswith("no: the task 'gone' of the package stranger does not work")


def test_a_package_whose_list_of_plugins_cannot_be_read_hides_no_other(stranger, caplog):
    stranger.write_text("[latentmas.tasks]\nno equals sign\n")
    others = stranger.parents[1] / "other-1.0.dist-info"
    others.mkdir()
    (others / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (others / "entry_points.txt").write_text("[latentmas.tasks]\ngood = good:build\n")
    for _ in range(2):
        assert list(plugins.plugins("latentmas.tasks")) == ["good"]
    assert len(caplog.records) == 1
    assert "the entry points of the package stranger cannot be read" in caplog.text
    assert compose.find_task("gsm8k").name == "gsm8k"
