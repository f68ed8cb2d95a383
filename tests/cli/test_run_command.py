"""``latentmas run``: what goes to which stream, exit codes, and going on after any end."""

from __future__ import annotations

import datetime
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from latentmas.backends.scripted import ScriptedBackend, ScriptedTurn
from latentmas.cli import _options, main
from latentmas.cli._terminal import sigterm_interrupts
from latentmas.cli.run import work
from latentmas.errors import NumericalError, RunStoppedError
from latentmas.experiment.config import RunConfig
from latentmas.experiment.grading import Grading
from latentmas.experiment.handovers import filter_spec
from latentmas.experiment.resolved import Meaning
from latentmas.experiment.stats import Summary
from latentmas.experiment.store import read_records
from latentmas.program import Budget, Program, Protect, Read, Unit, Write
from latentmas.protocols import Capability, Completion, Report
from latentmas.samples import Answer, FinishReason, Record, Sample, Score, Verdict

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Echo:
    """A method of one agent."""

    name: str = "echo"
    needs: frozenset[Capability] = frozenset()

    @property
    def roles(self) -> Mapping[str, str]:
        return {"solo": "solver"}

    def program(self, sample: Sample) -> Program:
        tokens = tuple(sample.question.encode())
        read = Read(agent="solo", tokens=tokens, text=sample.question)
        return Program((read, Write(agent="solo", max_new_tokens=99)))

    def solve(self, sample: Sample) -> Generator[Program, Completion, Answer]:
        completion = yield self.program(sample)
        return Answer(text=completion.text, finish_reason=completion.finish_reason or FinishReason.LENGTH)

    def donor_of(self, sample: Sample) -> str | None:
        return None


@dataclass(frozen=True)
class Opened:
    backend: ScriptedBackend
    method: Echo


def same(answer: Answer, sample: Sample) -> Score:
    right = answer.text == sample.target
    return Score(verdict=Verdict.CORRECT if right else Verdict.WRONG, prediction=answer.text)


@dataclass(frozen=True)
class ScriptedPlan:
    """A checked run of n questions on the scripted backend; every third question is answered wrongly.

    Attributes:
        seconds: Time an answer takes.
        fails: Numbers of the questions that end with an error.
    """

    config: RunConfig
    n: int = 6
    seconds: float = 0.0
    fails: Collection[int] = ()
    prompt_digest: str = "prompts"
    data_digest: str = "data"
    date: datetime.date | None = None
    grading: Grading = field(default_factory=lambda: Grading(scorer=same))
    withhold: bool = False
    notes: Mapping[str, str | None] = field(default_factory=dict)
    meaning: Meaning = field(default_factory=Meaning)

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(Sample(id=f"q{i}", question=f"{i}?", target="right" if i % 3 else "left") for i in range(self.n))

    def first_program(self) -> Program:
        return Echo().program(self.samples[0])

    def counts(self) -> str:
        return f"{self.n} samples"

    def reply(self, turn: ScriptedTurn) -> str:
        time.sleep(self.seconds)
        if any(turn.prompt.startswith(f"{number}?") for number in self.fails):
            raise NumericalError("a thought is NaN")
        return "right"

    def open(self, report: Report) -> Opened:
        return Opened(backend=ScriptedBackend(reply=self.reply, capacity=2, report=report), method=Echo())


def config_for(folder: Path, **options: object) -> RunConfig:
    return RunConfig.from_options({"method": "baseline", "model_name": "tiny", "output_dir": folder, **options})


def run_plan(plan: ScriptedPlan) -> Summary:
    return work(plan, Console(stderr=True))


def session(folder: str) -> None:
    """Work in a process of its own, which a test can interrupt."""
    with sigterm_interrupts():
        run_plan(ScriptedPlan(config_for(Path(folder)), n=40, seconds=0.02))


SESSION = "import runpy, sys; runpy.run_path(sys.argv[1])['session'](sys.argv[2])"


def start_session(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SESSION, __file__, str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_records(folder: Path, count: int) -> None:
    records = folder / "records.jsonl"
    deadline = time.monotonic() + 30
    while not records.exists() or records.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "the session stored nothing"
        time.sleep(0.01)


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Let child processes hear SIGINT, even where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def rows(tmp_path) -> Path:
    """A file of six questions in the columns of GSM8K."""
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"}) for i in range(6)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def command_line(rows: Path, folder: Path, *more: str) -> list[str]:
    """Return a run of the scripted model, whose answers are letters and therefore never right."""
    words = f"run --method latent_mas --model_name scripted --latent_steps 2 --max_new_tokens 8 --dataset {rows}"
    return [*shlex.split(words), "--output_dir", str(folder), *more]


def test_a_run_prints_the_table_and_then_the_published_object_as_the_last_line_of_stdout(rows, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(command_line(rows, folder)) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (result["method"], result["model"], result["max_samples"]) == ("latent_mas", "scripted", 6)
    assert "95 % interval" in out
    assert err.splitlines()[0] == f"{folder}: new run of 6 samples"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["complete"], summary["n"], summary["thoughts"]) == (True, 6, 36)


def test_the_same_command_again_answers_nothing_twice_and_prints_the_same(rows, tmp_path, capsys):
    folder = tmp_path / "run"
    main(command_line(rows, folder))
    first = capsys.readouterr().out
    before = (folder / "records.jsonl").read_bytes()
    assert main(command_line(rows, folder)) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert again.err.startswith(f"{folder}: goes on, 6 of 6 done\n")
    assert "weights were not compared" in again.err
    assert (folder / "records.jsonl").read_bytes() == before


def test_another_config_in_the_same_folder_is_refused_with_the_key(rows, tmp_path, capsys):
    folder = tmp_path / "run"
    main(command_line(rows, folder))
    capsys.readouterr()
    assert main(command_line(rows, folder, "--seed", "7")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "seed was 42 and is now 7" in err


def test_without_a_folder_the_same_command_finds_its_own_run(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command_line(rows, Path("x"))[:-2]
    main([*words, "--max_samples", "3"])
    assert "new run of 3" in capsys.readouterr().err
    main([*words, "--max_samples", "3", "--generate_bs", "1"])
    assert re.match(r"runs/latent_mas-gsm8k-scripted-[0-9a-f]{8}: goes on, 3 of 3 done", capsys.readouterr().err)


def test_a_dry_run_prints_the_first_program_and_the_counts_and_makes_no_folder(rows, tmp_path, capsys):
    assert main(command_line(rows, tmp_path / "run", "--dry_run")) == 0
    out, err = capsys.readouterr()
    assert out.startswith("program ")
    assert "Think" in out
    assert re.search(r"^samples +6$", out, re.MULTILINE)
    assert err == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task gsm9k", "did you mean 'gsm8k'?"),
        ("--dataset missing.jsonl", "missing.jsonl"),
        ("--model_name no/such/folder", "no/such/folder"),
        ("--prompt sequentiall", "did you mean 'sequential'?"),
        ("--method baseline --control no_transfer", "no_transfer"),
    ],
)
def test_what_the_check_refuses_is_one_line_and_exit_code_two(rows, tmp_path, capsys, words, message):
    assert main(command_line(rows, tmp_path / "run", *shlex.split(words))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_run_whose_first_batch_fails_alike_stops_and_the_same_run_begins_again_once_it_is_mended(tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError) as stopped:
        run_plan(ScriptedPlan(config_for(folder), fails=range(6)))
    assert stopped.value.exit_code == 1
    assert str(stopped.value).startswith("the first 2 samples failed alike")
    assert "NumericalError: a thought is NaN" in str(stopped.value)
    assert not list(folder.glob("[!.]*"))
    other = config_for(folder, max_new_tokens=7)  # what mends it may be an option
    assert run_plan(ScriptedPlan(other)).correct == 4
    assert "--retry_errors" not in capsys.readouterr().err


def test_a_run_that_has_an_answer_never_stops_and_its_errors_can_be_retried(tmp_path, capsys):
    folder = tmp_path / "run"
    summary = run_plan(ScriptedPlan(config_for(folder), fails=range(1, 6)))
    assert (summary.errors, summary.n) == (5, 6)
    err = capsys.readouterr().err
    assert "5 of 6 samples ended with an error, the first: NumericalError: a thought is NaN" in err
    assert "--retry_errors" in err
    assert run_plan(ScriptedPlan(config_for(folder, retry_errors=True), fails=range(1, 6))).errors == 5
    assert run_plan(ScriptedPlan(config_for(folder, retry_errors=True))).correct == 4


def test_a_run_goes_on_where_its_records_end(tmp_path, capsys):
    plan = ScriptedPlan(config_for(tmp_path / "run"))
    run_plan(plan)
    records = tmp_path / "run" / "records.jsonl"
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:2]))
    capsys.readouterr()
    run_plan(plan)
    assert "goes on, 2 of 6 done" in capsys.readouterr().err
    assert [record.id for record in read_records(records)] == [f"q{i}" for i in range(6)]


def test_progress_without_a_terminal_is_a_line_with_rate_and_accuracy(tmp_path, capsys):
    run_plan(ScriptedPlan(config_for(tmp_path / "run")))
    err = capsys.readouterr().err
    assert re.search(r"^6 of 6 answered, 66\.7 % correct, [\d.]+ (s each|per second)$", err, re.MULTILINE)
    assert " left" not in err


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_records_and_a_summary_and_goes_on(tmp_path, number):
    folder = tmp_path / "run"
    process = start_session(folder)
    wait_for_records(folder, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert out == ""
    assert "records are stored" in err
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["complete"]
    assert 3 <= summary["n"] < 40
    assert run_plan(ScriptedPlan(config_for(folder), n=40)).complete
    assert sorted(record.id for record in read_records(folder / "records.jsonl")) == sorted(f"q{i}" for i in range(40))


@pytest.mark.usefixtures("hears_ctrl_c")
def test_an_interrupted_command_says_how_to_go_on_and_exits_with_130(rows, tmp_path):
    lines = [json.dumps({"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"}) for i in range(20000)]
    rows.write_text("\n".join(lines) + "\n")
    folder = tmp_path / "run"
    words = [sys.executable, str(REPOSITORY / "run.py"), *command_line(rows, folder)[1:]]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_records(folder, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].endswith("the same command goes on")
    assert "Traceback" not in err


def test_a_killed_run_loses_no_record_and_doubles_none(tmp_path):
    whole = tmp_path / "whole"
    run_plan(ScriptedPlan(config_for(whole), n=40))
    folder = tmp_path / "run"
    for count in (1, 9, 20):
        process = start_session(folder)
        wait_for_records(folder, count)
        process.kill()
        process.communicate(timeout=30)
        assert len(list(read_records(folder / "records.jsonl"))) >= count
    run_plan(ScriptedPlan(config_for(folder), n=40))
    assert [comparable(record) for record in read_records(folder / "records.jsonl")] == [
        comparable(record) for record in read_records(whole / "records.jsonl")
    ]


def comparable(record: Record) -> Record:
    """Return the record without its seconds."""
    return record.model_copy(
        update={"agents": tuple(agent.model_copy(update={"seconds": 0.0}) for agent in record.agents)}
    )


def given(words: str) -> dict[str, object]:
    """Return what the generated options make of the words of a command line."""
    import typer

    seen: dict[str, object] = {}

    def command(**options: object) -> None:
        seen.update(_options.explicit(options))

    signature = _options.run_signature()
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    application = typer.Typer(context_settings={"token_normalize_func": lambda name: name.replace("-", "_")})
    application.command()(command)
    application(args=shlex.split(words), standalone_mode=False)
    return seen


def test_only_what_is_on_the_command_line_is_explicit():
    assert given("--method baseline --model_name m --max_samples 3") == {
        "method": "baseline",
        "model_name": "m",
        "max_samples": 3,
    }


def test_options_and_switches_work_with_underscores_and_with_dashes():
    underscores = given("--method latent_mas --model_name m --latent_steps 5 --save_ids --no_think")
    dashes = given("--method latent_mas --model-name m --latent-steps 5 --save-ids --no-think")
    assert underscores == dashes
    assert underscores["think"] is False
    assert underscores["save_ids"] is True


def test_thinking_has_three_states():
    words = "--method latent_mas --model_name m"
    assert "enable_thinking" not in given(words)
    assert given(f"{words} --enable_thinking")["enable_thinking"] is True
    assert given(f"{words} --no_enable_thinking")["enable_thinking"] is False


PUBLISHED = [
    "--method baseline --model_name Qwen/Qwen3-14B --task gsm8k --max_samples 100",
    "--method text_mas --model_name Qwen/Qwen3-14B --task gsm8k --prompt sequential --max_samples 100",
    "--method latent_mas --model_name Qwen/Qwen3-14B --task gsm8k --latent_steps 20 --prompt sequential "
    "--max_samples 100",
    "--method latent_mas --model_name Qwen/Qwen3-14B --task gsm8k --latent_steps 20 --prompt sequential "
    "--max_samples 100 --latent_space_realign",
]
PUBLISHED += [
    f"{PUBLISHED[0]} --use_vllm",
    f"{PUBLISHED[1]} --use_vllm",
    f"{PUBLISHED[2]} --use_vllm --use_second_HF_model --enable_prefix_caching --device2 cuda:1",
]
PUBLISHED_KNN = [
    "--method latent_mas --model_name Qwen/Qwen3-4B --task gpqa --latent_steps 10 --max_samples 10 "
    "--knn_filter --knn_percentage 0.5 --knn_strategy random",
    "--method latent_mas --model_name Qwen/Qwen3-4B --task gsm8k --prompt hierarchical --latent_steps 20 "
    "--max_samples 100 --latent_space_realign --knn_filter --knn_percentage 0.7 --knn_min_keep 5 "
    "--knn_strategy top --temperature 0.6 --seed 42",
]


@pytest.mark.parametrize("words", PUBLISHED)
def test_a_published_command_line_is_understood_word_by_word(words):
    config = RunConfig.from_options(given(words))
    assert config.max_samples == 100
    assert config.latent_space_realign == ("--latent_space_realign" in words)


@pytest.mark.parametrize("words", PUBLISHED_KNN)
def test_a_published_command_line_with_the_knn_filter_is_understood_word_by_word(words):
    config = RunConfig.from_options(given(words))
    spec = filter_spec(config)
    assert spec.name == "knn"
    assert spec.parameters == (("strategy", config.knn_strategy),)
    assert spec.budget == Budget(unit=Unit.CACHE, amount=config.knn_percentage)
    assert spec.protect == Protect(newest=config.knn_min_keep)
    assert config.positions == "true"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run", "Missing option '--method'"),
        ("run --method baseline", "Missing option '--model_name'"),
        ("run --method baseline --model_name m --latent_steps -1", "latent_steps is -1"),
        ("run --method baseline --model_name m --latent_steps many", "--latent_steps"),
        ("run --method baseline --model_name m --latent_step 3", "--latent_step"),
        ("run --method baseline --model_name m --control shuffled", "control is 'shuffled'"),
        ("run --method baseline --model_name m --think --no_think", "--think and --no_think"),
        ("rin", "Did you mean 'run'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_on_stderr_and_exit_code_two(words, message, capsys):
    assert main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_version_and_the_commands_are_shown(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("latentmas 0.")
    assert main([]) == 0
    assert " run " in capsys.readouterr().out


def test_help_names_every_option_in_full_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    for name in RunConfig.model_fields:
        assert f"--{name} " in out, name


def test_help_loads_neither_torch_nor_transformers():
    code = (
        "import sys; from latentmas.cli import main; main(['run', '--help']); "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'scipy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_published_script_is_the_run_command():
    words = [
        sys.executable,
        str(REPOSITORY / "run.py"),
        "--method",
        "latent_mas",
        "--model_name",
        "m",
        "--top_p",
        "2",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "top_p is 2.0" in done.stderr


def test_the_published_script_says_what_to_do_where_the_package_is_missing(tmp_path):
    words = [sys.executable, "-S", str(REPOSITORY / "run.py"), "--method", "baseline"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={}, cwd=tmp_path)
    assert done.returncode == 1
    assert "is not installed" in done.stderr
    assert "make install" in done.stderr
    assert "Traceback" not in done.stderr
