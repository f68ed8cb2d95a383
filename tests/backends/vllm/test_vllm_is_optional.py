"""What is said and refused without vLLM, before vLLM, and around it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentmas.backends.vllm import compatibility
from latentmas.backends.vllm.engine import EngineOptions
from latentmas.backends.vllm.settings import ARCHITECTURES, KEY, LatentSettings
from latentmas.cli import main
from latentmas.errors import CapabilityError, ConfigError
from latentmas.experiment.config import RunConfig
from latentmas.experiment.models import open_codec
from latentmas.experiment.team import Team

without_vllm = pytest.mark.skipif(compatibility.installed() is not None, reason="vLLM is installed here")


def run(*words):
    return main(["run", "--model_name", "tiny", "--task", "tiny", "--max_samples", "2", "--dry_run", *words])


def options(**changes):
    chosen = {"model": "x", "architecture": "Qwen3ForCausalLM", "latent": None, "stop_tokens": frozenset({1})}
    return EngineOptions(**{**chosen, **changes})


@without_vllm
def test_without_vllm_the_error_says_what_to_install(capsys):
    assert run("--method", "latent_mas", "--use_vllm") == 2
    assert "the vllm backend needs vLLM: pip install 'latentmas[vllm]'" in capsys.readouterr().err
    with pytest.raises(CapabilityError, match="needs vLLM"):
        Team("tiny", use_vllm=True)
    assert main(["doctor"]) == 0
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tensor_parallel_size", "2"], "--tensor_parallel_size is an option of vLLM; add --use_vllm"),
        (["--use_second_HF_model"], "--use_second_HF_model is an option of vLLM; add --use_vllm"),
        (["--use_vllm", "--device", "cpu"], "set CUDA_VISIBLE_DEVICES and drop --device"),
        (["--use_vllm", "--device_map", "auto"], "--tensor_parallel_size"),
        (["--use_vllm", "--attn_implementation", "sdpa"], "--attn_implementation is for transformers"),
        (["--use_vllm", "--use_second_HF_model", "--device2", "cuda:99"], "--device2 is cuda:99, which torch cannot"),
        (["--use_vllm", "--temperature", "0.001"], "which vLLM raises to 0.01"),
        (["--use_vllm", "--temperature", "3"], "vLLM takes at most 2"),
        (["--use_vllm", "--vllm_options", "[1]"], "a JSON object"),
        (["--use_vllm", "--vllm_options", "{"], "a JSON object"),
        (["--use_vllm", "--max_model_len", "1"], "max_model_len"),
        (["--use_vllm", "--alignment", "soft", "--tensor_parallel_size", "2"], "all logits in one place"),
        (["--use_vllm", "--handover", "thoughts"], "cannot do --handover thoughts; leave --use_vllm out: the transf"),
        (["--use_vllm", "--control", "noise"], "cannot do --control noise"),
        (
            ["--use_vllm", "--repetition_penalty", "1.1"],
            "count the prompts of all agents into --repetition_penalty 1.1",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(words, said, capsys, monkeypatch):
    monkeypatch.setattr(compatibility, "check_installed", lambda: "0.32.0")
    assert run("--method", "latent_mas", *words) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_cannot_think_on_vllm_is_refused_with_the_list(tmp_path, capsys, monkeypatch, model_folder):
    monkeypatch.setattr(compatibility, "check_installed", lambda: "0.32.0")
    for file in model_folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_text(file.read_text())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["ApertusForCausalLM"]}))
    words = ["run", "--model_name", str(tmp_path), "--task", "tiny", "--max_samples", "2", "--dry_run", "--use_vllm"]
    assert main([*words, "--method", "latent_mas"]) == 2
    said = capsys.readouterr().err
    assert "cannot think with ApertusForCausalLM" in said
    assert all(name in said for name in ARCHITECTURES)
    assert main([*words, "--method", "baseline"]) == 0, "without thoughts it is stock vLLM"


@pytest.mark.parametrize("method", ["baseline", "text_mas", "latent_mas"])
def test_a_dry_run_needs_no_engine(method, capsys, monkeypatch):
    monkeypatch.setattr(compatibility, "check_installed", lambda: "0.32.0")
    assert run("--method", method, "--use_vllm", "--enable_prefix_caching") == 0
    assert "written tokens, at most" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "fine"),
    [("0.28.9", False), ("0.29.0", True), ("0.33.1", True), ("0.34.0", False), ("1.0", False), ("dev", False)],
)
def test_the_range_of_versions_is_named(found, fine, monkeypatch):
    monkeypatch.setattr(compatibility, "installed", lambda: found)
    if fine:
        assert compatibility.check_installed() == found
    else:
        with pytest.raises(CapabilityError, match=f"vLLM {found} is installed.*>=0.29,<0.34"):
            compatibility.check_installed()


def test_a_missing_hook_is_named_with_the_version(monkeypatch):
    monkeypatch.setattr(compatibility, "installed", lambda: "0.32.0")
    fine = compatibility.Hook(path="json:dumps", parameters=("obj",), words=("def dumps",))
    monkeypatch.setattr(compatibility, "HOOKS", (fine,))
    compatibility.check_hooks()
    broken = (
        compatibility.Hook(path="json:loads.nothing"),
        compatibility.Hook(path="no.such.module:x"),
        compatibility.Hook(path="json:dumps", parameters=("request",)),
        compatibility.Hook(path="json:dumps", words=("self._reserve",)),
    )
    monkeypatch.setattr(compatibility, "HOOKS", (fine, *broken))
    with pytest.raises(CapabilityError) as error:
        compatibility.check_hooks()
    for part in (
        "vLLM 0.32.0 lacks",
        "no json:loads.nothing",
        "no no.such.module:x",
        "json:dumps takes no request",
        "json:dumps no longer mentions self._reserve",
        "vLLM >=0.29,<0.34",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism"),
        ("kv_transfer_config", object(), "KV connectors"),
        ("lora_config", object(), "LoRA"),
        ("scheduler_config.enable_chunked_prefill", False, "chunked prefill"),
        ("model_config.enable_prompt_embeds", True, "prompt embeddings"),
        ("speculative_config", SimpleNamespace(method="ngram"), "speculative decoding"),
        ("parallel_config.enable_batch_sharded_sampling", True, "spread over workers by request"),
        ("parallel_config.use_ubatching", True, "dual batch overlap"),
    ],
)
def test_features_that_thoughts_do_not_go_with_are_refused_by_name(place, value, said, monkeypatch):
    monkeypatch.setattr(compatibility, "installed", lambda: "0.32.0")
    monkeypatch.setattr(compatibility, "HOOKS", ())
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        kv_transfer_config=None,
        lora_config=None,
        scheduler_config=SimpleNamespace(enable_chunked_prefill=True),
        model_config=SimpleNamespace(enable_prompt_embeds=False),
        speculative_config=None,
    )
    compatibility.check_hooks(config)
    target = config
    *path, name = place.split(".")
    for part in path:
        target = getattr(target, part)
    setattr(target, name, value)
    with pytest.raises(CapabilityError, match=said):
        compatibility.check_hooks(config)


def test_settings_travel_through_an_engine_and_strangers_are_refused():
    settings = LatentSettings(placeholder=7, alignment="soft", soft_temperature=3.0)
    sent = settings.engine_options("LlamaForCausalLM")
    back = json.loads(json.dumps(sent["additional_config"]))
    assert LatentSettings.of(SimpleNamespace(additional_config=back)) == settings
    assert sent["hf_overrides"] == {"architectures": ["LatentLlamaForCausalLM"]}
    with pytest.raises(ConfigError, match="without its settings"):
        LatentSettings.of(SimpleNamespace(additional_config={}))
    with pytest.raises(ConfigError, match="has no 'alignmnt'"):
        LatentSettings.of(SimpleNamespace(additional_config={KEY: {"placeholder": 7, "alignmnt": "norm"}}))


def test_engine_options_that_decide_whether_thoughts_are_right_are_ours():
    with pytest.raises(ConfigError, match="may not set 'scheduler_cls'"):
        options(more={"scheduler_cls": "x.y"})
    with pytest.raises(ConfigError, match="may not set 'max_num_seqs'; give --generate_bs"):
        options(more={"max_num_seqs": 3})
    with pytest.raises(CapabilityError, match="no float64"):
        options(dtype="float64")
    stock = options().arguments()
    assert not {"scheduler_cls", "worker_cls", "additional_config", "hf_overrides"} & stock.keys()
    assert options(more={"seed": 3}).arguments()["seed"] == 3


def test_the_plugin_is_one_entry_point_that_imports_no_torch_and_registers_names_of_our_own():
    [entry] = [e for e in importlib.metadata.entry_points(group="vllm.general_plugins") if e.name == "latentmas"]
    assert entry.value == "latentmas.backends.vllm.plugin:register"
    program = """
import sys, types
registered = []
module = types.ModuleType("vllm.model_executor.models")
module.ModelRegistry = types.SimpleNamespace(register_model=lambda name, place: registered.append((name, place)))
for name in ("vllm", "vllm.model_executor"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["vllm.model_executor.models"] = module
from latentmas.backends.vllm.plugin import register
register(); register()
assert "torch" not in sys.modules
print(sorted({name for name, place in registered}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sorted(ARCHITECTURES.values()))


def test_the_server_command_and_its_request_agree(capsys):
    assert main(["vllm", "--model_name", "tiny", "--alignment", "ridge"]) == 0
    words = shlex.split(capsys.readouterr().out)
    settings = json.loads(words[words.index("--additional-config") + 1])[KEY]
    assert settings["alignment"] == "ridge"
    question = "Ida owns 31 pins. How many pins does Ida have?"
    assert main(["vllm", "--model_name", "tiny", "--question", question, "--latent_steps", "3"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["prompt"].count(settings["placeholder"]) == 9
    text = open_codec(RunConfig(method="baseline", model_name="tiny")).decode(body["prompt"])
    assert text.count(question) == 4
    assert body["stop_token_ids"] == [1]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert main(["vllm", "--model_name", "tiny", "--question", "What is <|pad|>?"]) == 1
    assert "stands for a thought" in capsys.readouterr().err


def test_the_extra_names_only_versions_that_the_docs_say_were_run():
    from packaging.requirements import Requirement

    repository = Path(__file__).parents[3]
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    [extra] = [Requirement(line) for line in project["optional-dependencies"]["vllm"]]
    rows = re.findall(r"^\| ([\d., ]+) \| (.+?) \|", (repository / "docs" / "vllm.md").read_text(), re.MULTILINE)
    told = {version: "not run" not in seen for versions, seen in rows for version in versions.split(", ")}
    assert sum(told.values()) >= 2
    assert {version: extra.specifier.contains(version) for version in told} == told
    [tested] = re.findall(r"^VLLM_TESTED := (\S+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert told[tested]


def requested(capsys, *words):
    """Return what the model reads in a request to a server."""
    assert main(["vllm", "--model_name", "tiny", "--question", "Which?", "--latent_steps", "1", *words]) == 0
    body = json.loads(capsys.readouterr().out)
    return open_codec(RunConfig(method="baseline", model_name="tiny")).decode(body["prompt"])


def test_a_request_for_a_server_ends_as_its_answer_kind_says(capsys):
    number, choice, code = (requested(capsys, "--answer_kind", kind) for kind in ("number", "choice", "code"))
    assert requested(capsys) == number
    assert len({number, choice, code}) == 3
    assert "Write Python" in code
    assert main(["vllm", "--model_name", "tiny", "--question", "Which?", "--answer_kind", "text"]) == 2
    assert "no answer kind is called 'text'" in capsys.readouterr().err


def test_a_request_for_a_server_has_the_topology_that_was_asked_for(capsys, tmp_path):
    team = tmp_path / "team.yaml"
    team.write_text("agents:\n  - {name: a, role: planner}\n  - {name: b, role: critic}\n  - {name: c, role: judger}\n")
    assert requested(capsys, "--topology", "chain") == requested(capsys)
    words = ["vllm", "--model_name", "tiny", "--question", "Which?", "--topology", "parallel"]
    for more in ([], ["--team", str(team)]):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert "independent agents (--topology parallel)" in said
        assert "the transformers backend can" in said
    team.write_text("agents:\n  - {name: a, role: planner}\n  - {name: c, role: judger}\n")
    two = ["--team", str(team)]
    assert requested(capsys, *two, "--topology", "parallel") == requested(capsys, *two)
    assert main([*words[:-1], "ring"]) == 2


def test_a_server_is_told_to_leave_marks_of_thinking_in_a_text(model_folder, tmp_path, capsys):
    from transformers import AutoTokenizer

    model = shutil.copytree(model_folder, tmp_path / "model")
    command = ["vllm", "--model_name", str(model), "--question", "why?"]
    assert main(command) == 0
    assert "skip_special_tokens" not in json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    tokenizer.save_pretrained(model)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["skip_special_tokens"] is False


def test_a_session_needs_the_transformers_backend():
    from backends.vllm.scripted_engine import engine_backend
    from latentmas import Session

    with pytest.raises(CapabilityError, match="transformers backend"):
        Session(engine_backend())
