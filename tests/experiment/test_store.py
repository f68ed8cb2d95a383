"""The run folder: one writer, whole lines, and resuming that never mixes two runs."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from latentmas.errors import RunFolderError, StoreError
from latentmas.experiment.atomic import replacing
from latentmas.experiment.config import RunConfig
from latentmas.experiment.manifest import RunIdentity, read_manifest
from latentmas.experiment.resolved import Meaning
from latentmas.experiment.stats import summarize
from latentmas.experiment.store import RunFolder, read_records
from latentmas.rows import data_digest
from latentmas.samples import Record, Sample, Verdict

ENVIRONMENT = {"model_fingerprint": "weights-1", "device": "cpu"}
IDS = ("a", "b", "c")


def identity(**options: object) -> RunIdentity:
    config = RunConfig.from_options({"method": "latent_mas", "model_name": "tiny"} | options)
    return RunIdentity(config=config, prompt_digest="prompts-1", data_digest="data-1", sample_ids=IDS)


@pytest.fixture
def folder(tmp_path, make_record) -> Path:
    """A folder with records of a and b, and none of c."""
    path = tmp_path / "run"
    with RunFolder.open(path, identity()) as run:
        run.begin(ENVIRONMENT)
        run.append(make_record("a"))
        run.append(make_record("b", verdict=None, error="ContextLimitError: too long"))
    return path


def done(path: Path, **options: object) -> frozenset[str]:
    with RunFolder.open(path, identity(**options)) as run:
        return run.done_ids


def test_a_new_folder_has_nothing_done_and_says_that_it_does_not_resume(tmp_path):
    with RunFolder.open(tmp_path / "new" / "run", identity()) as run:
        assert (run.resumes, run.done_ids) == (False, frozenset())


def test_records_come_back_as_they_were_stored(folder, make_record):
    assert list(read_records(folder / "records.jsonl")) == [
        make_record("a"),
        make_record("b", verdict=None, error="ContextLimitError: too long"),
    ]


@pytest.mark.parametrize("text", ["line\nline", "paragraph\u2029separator", "next\x85line", "½ 数 🙂", "lone \ud83d"])
def test_any_text_makes_one_line_of_plain_ascii(tmp_path, make_record, text):
    path = tmp_path / "run"
    with RunFolder.open(path, identity()) as run:
        run.begin(ENVIRONMENT)
        run.append(make_record("a", text=text))
    content = (path / "records.jsonl").read_bytes()
    assert content.isascii()
    assert len(content.decode().splitlines()) == 1
    assert [record.text for record in read_records(path / "records.jsonl")] == [text]


def test_a_line_leaves_out_what_stands_at_its_default(folder):
    first, _ = (json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines())
    assert next(iter(first)) == "schema_version"
    assert not {"options", "labels", "in_thought"} & first.keys()
    assert not {"prompt_ids", "handovers", "reused_slots"} & first["agents"][0].keys()
    assert first["error"] is None, "what has no default is always there"


def append_until(seconds: float, run: RunFolder, records: list[Record]) -> None:
    """Append records; an alarm goes off in the middle of them, or after the last."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    for record in records:
        run.append(record)
    signal.pause()


def test_an_interrupt_at_any_point_of_storing_is_an_interrupt_and_leaves_whole_lines(tmp_path, make_record):
    """What pydantic called back into Python made another error of it: one Ctrl-C in ten ended with a traceback."""
    path, rounds, batch = tmp_path / "run", 200, 50
    records = [make_record(f"q{i}") for i in range(rounds * batch)]
    known = RunIdentity(
        config=identity().config, prompt_digest="p", data_digest="d", sample_ids=tuple(each.id for each in records)
    )
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with RunFolder.open(path, known) as run:
            run.begin(ENVIRONMENT)
            for i in range(rounds):
                with pytest.raises(KeyboardInterrupt):
                    append_until(1e-4 + i * 1e-6, run, records[i * batch : (i + 1) * batch])
            stored = run.done_ids
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    content = (path / "records.jsonl").read_bytes()
    assert content.endswith(b"\n")
    with RunFolder.open(path, known) as run:
        assert run.done_ids >= stored > set()
    assert (path / "records.jsonl").read_bytes() == content


def test_a_resumed_folder_knows_what_is_done_and_how_much_of_it_is_correct(folder):
    with RunFolder.open(folder, identity()) as run:
        assert run.resumes
        assert run.done_ids == {"a", "b"}
        assert run.correct == 1


def test_a_second_writer_is_kept_out_and_told_who_writes(folder):
    with (
        RunFolder.open(folder, identity()),
        pytest.raises(StoreError, match=f"being written by process {os.getpid()}"),
    ):
        RunFolder.open(folder, identity())


def test_the_lock_is_free_again_after_a_refusal(folder):
    with pytest.raises(StoreError) as refused:
        RunFolder.open(folder, identity(seed=7))
    assert refused.value.exit_code == 2
    assert not (folder / ".owner").exists()
    assert done(folder) == {"a", "b"}


def test_a_sample_cannot_be_stored_twice(folder, make_record):
    with RunFolder.open(folder, identity()) as run:
        run.begin(ENVIRONMENT)
        with pytest.raises(StoreError, match="'a' already has a record"):
            run.append(make_record("a"))


def test_a_file_cut_anywhere_in_its_last_record_resumes_to_the_same_bytes(folder, make_record):
    records = folder / "records.jsonl"
    whole = records.read_bytes()
    first = whole.index(b"\n") + 1
    last = make_record("b", verdict=None, error="ContextLimitError: too long")
    for length in range(first, len(whole)):
        records.write_bytes(whole[:length])
        assert done(folder) == {"a"}, f"cut at byte {length}"
        assert records.read_bytes() == whole[:first], f"cut at byte {length}"
        if length % 20 == 0:  # beginning asks git and syncs the disk, which is too slow for every byte
            records.write_bytes(whole[:length])
            with RunFolder.open(folder, identity()) as run:
                run.begin(ENVIRONMENT)
                run.append(last)
            assert records.read_bytes() == whole, f"cut at byte {length}"


def test_zeros_left_by_a_power_cut_are_cut_off(folder):
    records = folder / "records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole + b"\0" * 50 + b"\n")
    assert done(folder) == {"a", "b"}
    assert records.read_bytes() == whole


@pytest.mark.parametrize("damaged", [b'{"id": "a"\n', b"\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_touched(folder, damaged):
    records = folder / "records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(damaged + whole)
    with pytest.raises(StoreError, match="line 1 is damaged"):
        RunFolder.open(folder, identity())
    assert records.read_bytes() == damaged + whole


def test_a_line_of_another_schema_is_refused_and_kept_even_at_the_end(folder):
    records = folder / "records.jsonl"
    whole = records.read_bytes() + b'{"id": "c", "answer": 4}\n'
    records.write_bytes(whole)
    with pytest.raises(StoreError, match="line 3 is no record of this version"):
        RunFolder.open(folder, identity())
    assert records.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "where"), [("manifest.json", "manifest.json"), ("records.jsonl", "records.jsonl line 1")]
)
def test_a_file_of_another_schema_version_is_refused_by_its_number(folder, name, where):
    path = folder / name
    path.write_text(re.sub(r'"schema_version": 1', '"new": 0, "schema_version": 99', path.read_text()))
    with pytest.raises(RunFolderError, match=f"{where} was written by schema 99, this version reads 1"):
        RunFolder.open(folder, identity())


def test_records_that_cannot_be_opened_are_a_refusal_and_leave_no_lock(folder):
    (folder / "records.jsonl").unlink()
    (folder / "records.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot use .*records\.jsonl: Is a directory"):
        RunFolder.open(folder, identity())
    assert not (folder / ".owner").exists()


def test_two_records_of_one_sample_are_refused_with_line_and_id(folder):
    records = folder / "records.jsonl"
    first, second = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(first + second + first)
    with pytest.raises(StoreError, match="line 3: a second record of sample 'a'"):
        RunFolder.open(folder, identity())


def test_a_record_of_no_sample_of_the_run_is_refused(folder):
    records = folder / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b'"id": "b"', b'"id": "z"'))
    with pytest.raises(StoreError, match="line 2: 'z' is no sample of this run"):
        RunFolder.open(folder, identity())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 7}, "seed was 42 and is now 7"),
        ({"latent_steps": 3, "temperature": 0.0}, "latent_steps was 20 and is now 3"),
        ({"save_ids": True}, "save_ids was False and is now True"),
        ({"model_name": "other"}, "model_name was 'tiny' and is now 'other'"),
    ],
)
def test_another_config_is_refused_with_the_first_key_and_both_values(folder, options, words):
    with pytest.raises(StoreError, match=f"{words}; choose another --output_dir"):
        RunFolder.open(folder, identity(**options))


def test_other_prompts_or_other_data_are_refused_by_name(folder):
    config = identity().config
    for prompts, data, name in (("prompts-2", "data-1", "prompt"), ("prompts-1", "data-2", "data")):
        other = RunIdentity(config=config, prompt_digest=prompts, data_digest=data, sample_ids=IDS)
        with pytest.raises(StoreError, match=f"{name}_digest was {name}s?-1 and is now {name}s?-2"):
            RunFolder.open(folder, other)


def test_other_weights_are_refused_before_anything_is_written(folder):
    before = (folder / "manifest.json").read_bytes()
    with (
        RunFolder.open(folder, identity()) as run,
        pytest.raises(StoreError, match="model_fingerprint was weights-1"),
    ):
        run.begin({"model_fingerprint": "weights-2"})
    assert (folder / "manifest.json").read_bytes() == before


def test_how_the_work_is_done_may_change_and_is_written_down(folder):
    with RunFolder.open(folder, identity(generate_bs=3, device="cpu")) as run:
        run.begin(ENVIRONMENT | {"device": "cuda"})
    manifest = read_manifest(folder / "manifest.json")
    assert manifest is not None
    assert manifest.config["generate_bs"] == 20
    assert [session.options["generate_bs"] for session in manifest.resumed] == [3]
    assert [session.environment["device"] for session in manifest.resumed] == ["cuda"]


def test_an_option_the_manifest_does_not_know_yet_counts_as_its_default(folder):
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    del document["config"]["top_k"]
    path.write_text(json.dumps(document))
    assert done(folder) == {"a", "b"}
    with pytest.raises(StoreError, match="top_k was 0 and is now 5"):
        RunFolder.open(folder, identity(top_k=5))


def test_the_manifest_holds_what_is_needed_to_repeat_the_run(folder):
    document = json.loads((folder / "manifest.json").read_text())
    assert document["config"]["latent_steps"] == 20
    assert document["environment"] == ENVIRONMENT
    assert (document["seed"], document["samples"]) == (42, 3)
    assert {"created", "package_version", "commit", "prompt_digest", "data_digest"} <= document.keys()


def test_records_without_a_manifest_are_not_taken_for_a_run(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match="records but no manifest"):
        RunFolder.open(folder, identity())


def test_a_manifest_that_cannot_be_read_is_refused_by_name(folder):
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest\.json is no manifest of this version"):
        RunFolder.open(folder, identity())


def test_a_file_in_the_way_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match="cannot make the run folder"):
        RunFolder.open(tmp_path / "run", identity())


def test_retry_errors_drops_the_failed_records_and_only_those(folder, make_record):
    with RunFolder.open(folder, identity(retry_errors=True)) as run:
        assert run.done_ids == {"a"}
        assert len(list(run.records())) == 2, "nothing is dropped before the model is there"
        run.begin(ENVIRONMENT)
        assert [record.id for record in run.records()] == ["a"]
        run.append(make_record("b"))
    assert [(record.id, record.error) for record in read_records(folder / "records.jsonl")] == [
        ("a", None),
        ("b", None),
    ]
    assert done(folder, retry_errors=True) == {"a", "b"}


def test_an_interrupted_retry_loses_no_good_record(folder):
    with RunFolder.open(folder, identity(retry_errors=True)) as run:
        run.begin(ENVIRONMENT)
    assert done(folder) == {"a"}


def test_a_summary_takes_the_place_of_the_one_before(folder):
    for seconds in (1.0, 2.0):
        with RunFolder.open(folder, identity()) as run:
            summary = summarize(run.records(), config=identity().config, samples=3, wall_seconds=seconds)
            run.write_summary(summary)
    document = json.loads((folder / "summary.json").read_text())
    assert (document["n"], document["complete"], document["wall_seconds"]) == (2, False, 2.0)
    assert not list(folder.glob("*.draft"))


LIMITED = """
import resource, sys
from pathlib import Path

from latentmas.errors import StoreError
from latentmas.experiment.manifest import RunIdentity
from latentmas.experiment.config import RunConfig
from latentmas.experiment.store import RunFolder, read_records

folder, size = Path(sys.argv[1]), int(sys.argv[2])
[template] = list(read_records(Path(sys.argv[3])))[:1]
config = RunConfig.from_options({"method": "latent_mas", "model_name": "tiny"})
ids = tuple(str(number) for number in range(40))
run = RunFolder.open(folder, RunIdentity(config=config, prompt_digest="p", data_digest="d", sample_ids=ids))
with run:
    run.begin({"model_fingerprint": "w"})
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        for name in ids:
            if name not in run.done_ids:
                run.append(template.model_copy(update={"id": name}))
    except StoreError as error:
        print(error)
        sys.exit(error.exit_code)
"""


def test_a_full_disk_keeps_the_complete_records_and_the_run_can_go_on(tmp_path, folder):
    full = tmp_path / "full"
    line = len((folder / "records.jsonl").read_bytes().splitlines(keepends=True)[0])

    def session(size: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", LIMITED, str(full), str(size), str(folder / "records.jsonl")]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    stopped = session(size=10 * line + line // 2)
    assert (stopped.returncode, stopped.stderr) == (1, "")
    assert "10 complete records are kept" in stopped.stdout
    content = (full / "records.jsonl").read_bytes()
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 10

    resumed = session(size=0)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert (full / "records.jsonl").read_bytes().startswith(content)
    assert [record.id for record in read_records(full / "records.jsonl")] == [str(number) for number in range(40)]


def fill_the_disk_while_replacing(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_while_a_file_is_replaced_leaves_the_old_one(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("old")
    with pytest.raises(StoreError, match=r"cannot write .*manifest\.json: No space left"):
        fill_the_disk_while_replacing(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]
    assert path.read_text() == "old"


def test_verdicts_survive_the_way_through_the_file(tmp_path, make_record):
    with RunFolder.open(tmp_path / "run", identity()) as run:
        run.begin(ENVIRONMENT)
        run.append(make_record("a", verdict=Verdict.TIMEOUT))
        assert [record.verdict for record in run.records()] == [Verdict.TIMEOUT]


# Folders of somebody else


@pytest.mark.parametrize("name", ["notes.txt", ".git", "first/manifest.json"])
def test_a_folder_with_other_files_is_refused_and_nothing_is_written(tmp_path, name):
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match="mine is no run folder and holds other files, such as "):
        RunFolder.open(tmp_path / "mine", identity())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", ".lock", ".owner", ".manifest.json.draft"])
def test_litter_and_what_a_run_leaves_that_was_killed_at_once_are_no_other_files(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("")
    with RunFolder.open(tmp_path / "run", identity()) as run:
        run.begin(ENVIRONMENT)
    assert not done(tmp_path / "run")


# Other spellings of one run


def resumed(tmp_path: Path, first: dict[str, object], then: dict[str, object]) -> None:
    """Begin a run with some options and go on with others."""
    with RunFolder.open(tmp_path / "run", identity(**first)) as run:
        run.begin(ENVIRONMENT | {"dtype": "float32", "attention": "sdpa"})
    RunFolder.open(tmp_path / "run", identity(**then)).close()


SPELLINGS = [
    ({}, {"alignment": "norm", "revision": "main", "latent_steps": 20, "topology": "chain"}),
    ({"alignment": "ridge"}, {"latent_space_realign": True}),
    ({}, {"dtype": "float32", "attn_implementation": "sdpa"}),
    ({"dtype": "float32"}, {}),
    ({"filter": "recency"}, {"filter": "recency", "keep": 0.5, "protect_sinks": 4, "protect_thoughts": True}),
    ({"filter": "recency"}, {"filter": "recency", "filter_options": "{ }", "budget": "cache"}),
    ({"knn_filter": True}, {"knn_filter": True, "protect_sinks": 0, "protect_thoughts": False, "knn_percentage": 0.8}),
    (
        {"knn_filter": True, "knn_strategy": "bottom"},
        {
            "filter": "knn",
            "keep": 0.8,
            "protect_newest": 5,
            "protect_sinks": 0,
            "protect_thoughts": False,
            "filter_options": '{"strategy": "bottom"}',
        },
    ),
    ({"sampling": "model", "temperature": 0.6}, {"temperature": 0.6}),
]


@pytest.mark.parametrize(("first", "then"), SPELLINGS)
def test_a_run_goes_on_under_another_spelling_of_its_command_and_back(tmp_path, first, then):
    resumed(tmp_path / "there", first, then)
    resumed(tmp_path / "back", then, first)


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ({}, {"alignment": "soft"}, "alignment was 'norm' and is now 'soft'"),
        ({"alignment": "norm"}, {"latent_space_realign": True}, "alignment was 'norm' and is now 'ridge'"),
        ({}, {"dtype": "float64"}, "dtype was 'float32' and is now 'float64'"),
        ({}, {"attn_implementation": "eager"}, "attn_implementation was 'sdpa' and is now 'eager'"),
        ({}, {"revision": "v1"}, "revision was 'main' and is now 'v1'"),
        ({"filter": "recency"}, {"filter": "recency", "protect_sinks": 0}, "protect_sinks was 4 and is now 0"),
        ({"filter": "recency"}, {"filter": "recency", "protect_thoughts": False}, "protect_thoughts was True"),
        ({"knn_filter": True}, {"filter": "knn", "keep": 0.8}, "protect_sinks was 0 and is now 4"),
        ({"knn_filter": True}, {}, "filter was 'knn' and is now None"),
        ({"knn_filter": True}, {"knn_filter": True, "knn_percentage": 0.5}, "knn_percentage was 0.8 and is now 0.5"),
    ],
)
def test_what_resolves_to_something_else_is_refused_by_name(tmp_path, first, then, words):
    with pytest.raises(RunFolderError, match=f"holds another run: {re.escape(words)}"):
        resumed(tmp_path, first, then)


def test_an_option_without_effect_may_change_and_others_may_not(folder):
    plain, other = identity(), identity(top_p=0.5, latent_steps=3)
    known = {name: getattr(plain, name) for name in ("prompt_digest", "data_digest", "sample_ids")}
    RunFolder.open(
        folder, RunIdentity(config=other.config, **known, meaning=Meaning(idle=frozenset({"top_p", "latent_steps"})))
    ).close()
    with pytest.raises(RunFolderError, match=r"top_p was 0\.95 and is now 0\.5"):
        RunFolder.open(
            folder, RunIdentity(config=other.config, **known, meaning=Meaning(idle=frozenset({"latent_steps"})))
        )


def test_what_a_model_or_a_filter_decides_may_be_spelled_out(tmp_path):
    meaning = Meaning(unsaid={"enable_thinking": True, "grain": "head"}, tied=True)
    with RunFolder.open(tmp_path / "run", identity(filter="receiver")) as run:
        run.begin(ENVIRONMENT)
    same = identity(filter="receiver", enable_thinking=True, grain="head", alignment="ridge")
    RunFolder.open(tmp_path / "run", replace(same, meaning=meaning)).close()
    for option, words in (
        ({"enable_thinking": False}, "enable_thinking was True and is now False"),
        ({"grain": "token"}, "grain was 'head' and is now 'token'"),
    ):
        other = replace(identity(filter="receiver", **option), meaning=meaning)
        with pytest.raises(RunFolderError, match=words):
            RunFolder.open(tmp_path / "run", other)


def test_a_path_is_compared_by_where_it_leads_from_wherever_the_run_goes_on(tmp_path, monkeypatch):
    for name in ("model", "other"):
        (tmp_path / "here" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "run"
    with RunFolder.open(path, identity(model_name="model", team="model", dataset="model")) as run:
        run.begin(ENVIRONMENT)
    monkeypatch.chdir(tmp_path)
    for spelled in ("here/model", "here/other/../model/", str(tmp_path / "here" / "model"), "link", "model"):
        RunFolder.open(path, identity(model_name=spelled)).close()
    with pytest.raises(RunFolderError, match="model_name was 'model' and is now 'here/other'"):
        RunFolder.open(path, identity(model_name="here/other"))


# Growing


def grown(count: int, *, changed: int | None = None, **options: object) -> RunIdentity:
    """Return a run of so many samples, one of them perhaps with another question than before."""
    samples = tuple(
        Sample(id=f"q{number}", question="other" if number == changed else f"{number}?", target="4")
        for number in range(count)
    )
    plain = identity(max_samples=count, **options)
    return replace(
        plain,
        data_digest=data_digest(samples),
        sample_ids=tuple(sample.id for sample in samples),
        samples=samples,
    )


def begin_with(path: Path, run_identity: RunIdentity, make_record, done: int) -> None:
    with RunFolder.open(path, run_identity) as run:
        run.begin(ENVIRONMENT)
        for sample in run_identity.samples[:done]:
            if sample.id not in run.done_ids:
                run.append(make_record(sample.id))


@pytest.mark.parametrize("done", [0, 2, 3])
def test_a_run_grows_and_is_then_a_run_of_the_larger_number(tmp_path, make_record, done):
    path = tmp_path / "run"
    begin_with(path, grown(3), make_record, done)
    begin_with(path, grown(5), make_record, 4)
    manifest = read_manifest(path / "manifest.json")
    assert (manifest.samples, manifest.config["max_samples"]) == (5, 5)
    assert manifest.data_digest == grown(5).data_digest
    assert [session.options["max_samples"] for session in manifest.resumed] == [5]
    begin_with(path, grown(5), make_record, 5)
    assert [record.id for record in read_records(path / "records.jsonl")] == [f"q{number}" for number in range(5)]


def test_a_run_that_was_only_opened_to_grow_has_not_grown(tmp_path, make_record):
    begin_with(tmp_path / "run", grown(3), make_record, 3)
    RunFolder.open(tmp_path / "run", grown(5)).close()
    RunFolder.open(tmp_path / "run", grown(3)).close()


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (grown(2), "has 3 samples, and --max_samples 2 asks for fewer; give --max_samples 3 or more"),
        (grown(5, changed=1), "holds another run: data_digest was"),
        (grown(3, changed=1), "holds another run: data_digest was"),
        (grown(5, seed=1), "holds another run: seed was 42 and is now 1"),
    ],
)
def test_a_run_does_not_shrink_nor_grow_out_of_another_one(tmp_path, make_record, later, words):
    begin_with(tmp_path / "run", grown(3), make_record, 3)
    with pytest.raises(RunFolderError, match=re.escape(words)):
        RunFolder.open(tmp_path / "run", later)


def test_the_same_samples_may_be_asked_for_by_another_number(tmp_path, make_record):
    begin_with(tmp_path / "run", grown(3), make_record, 3)
    everything = replace(grown(3), config=identity().config)
    assert everything.config.max_samples == -1
    RunFolder.open(tmp_path / "run", everything).close()


def test_who_gets_the_memory_of_whom_depends_on_all_samples_so_that_such_a_run_cannot_grow(tmp_path, make_record):
    begin_with(tmp_path / "run", grown(3, control="other_question"), make_record, 3)
    with pytest.raises(RunFolderError, match="the memory of another one of them, so it cannot grow to 5"):
        RunFolder.open(tmp_path / "run", grown(5, control="other_question"))
    begin_with(tmp_path / "noise", grown(3, control="noise"), make_record, 3)
    RunFolder.open(tmp_path / "noise", grown(5, control="noise")).close()
