"""Options: their ranges, their defaults, and what is refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pydantic import ValidationError

from latentmas.errors import ConfigError
from latentmas.experiment.config import EXECUTION_FIELDS, RunConfig, flags


def config(**options: object) -> RunConfig:
    return RunConfig.from_options({"method": "latent_mas", "model_name": "Qwen/Qwen3-4B"} | options)


PUBLISHED_DEFAULTS = {
    "task": "gsm8k",
    "prompt": "sequential",
    "max_samples": -1,
    "split": "test",
    "max_new_tokens": 4096,
    "temperature": 0.6,
    "top_p": 0.95,
    "generate_bs": 20,
    "text_mas_context_length": -1,
    "think": False,
    "latent_space_realign": False,
    "seed": 42,
    "use_vllm": False,
    "enable_prefix_caching": False,
    "use_second_HF_model": False,
    "device2": "cuda:1",
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.9,
    "knn_filter": False,
    "knn_percentage": 0.8,
    "knn_min_keep": 5,
    "knn_strategy": "top",
    "include_old_prompts": False,
    "show_heatmaps": False,
    "show_heatmaps_singlelayer": False,
    "save_embeddings": False,
}
OUR_DEFAULTS = {
    "latent_steps": 20,
    "device": "auto",
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "topology": "chain",
    "handover": "full",
    "handover_at": "final",
}


@pytest.mark.parametrize(("name", "value"), [*PUBLISHED_DEFAULTS.items(), *OUR_DEFAULTS.items()])
def test_an_option_that_is_not_given_has_its_published_default_or_the_one_decided_here(name, value):
    assert getattr(config(), name) == value


def test_every_option_has_a_help_text_and_a_panel():
    for name, flag in flags():
        assert flag.panel, name
        assert len(RunConfig.model_fields[name].description or "") > 8, name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("latent_steps", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("generate_bs", 0),
        ("max_samples", 0),
        ("max_samples", -2),
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("soft_temperature", 0.0),
        ("text_mas_context_length", -2),
        ("handover", "half"),
        ("control", "shuffled"),
        ("dtype", "int8"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_that_names_option_and_value(option, value):
    with pytest.raises(ConfigError) as refused:
        config(**{option: value})
    message = str(refused.value)
    assert option in message
    assert str(value) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("latent_steps", 0),
        ("top_p", 1.0),
        ("max_samples", -1),
        ("temperature", 0.0),
        ("text_mas_context_length", 0),
    ],
)
def test_the_ends_of_the_ranges_are_inside(option, value):
    assert getattr(config(**{option: value}), option) == value


def test_names_may_be_written_with_dashes():
    given = config(method="text-mas", task="arc-easy", control="other-question", handover="last-agent")
    assert (given.method, given.task, given.control, given.handover) == (
        "text_mas",
        "arc_easy",
        "other_question",
        "last_agent",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"latent_space_realign": True, "alignment": "norm"},
        {"text_mas_context_length": 100, "text_mas_context_tokens": 10},
        {"device_map": "auto", "device": "cuda:0"},
        {"think": True, "enable_thinking": False},
        {"temperature": 1e-9},
        {"soft_temperature": 1e-9},
        {"output_dir": ""},
    ],
)
def test_options_that_contradict_each_other_are_refused_with_both_names(options):
    with pytest.raises(ConfigError) as refused:
        config(**options)
    assert all(name in str(refused.value) for name in options)


def test_the_published_name_of_the_ridge_alignment_is_the_ridge_alignment():
    assert config().alignment_name == "norm"
    assert config(latent_space_realign=True).alignment_name == "ridge"
    assert config(latent_space_realign=True, alignment="ridge").alignment_name == "ridge"
    assert config(alignment="soft").alignment_name == "soft"


def changed(value: object) -> object:
    match value:
        case bool():
            return not value
        case str():
            return {"top": "bottom", "cuda:1": "cuda:2"}[value]
        case int():
            return value + 1
        case _:
            return 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"knn_filter": True, "filter": "receiver"}, "--knn_filter is --filter knn, so it cannot go with"),
        ({"knn_percentage": 0.5}, "--knn_percentage is an option of --knn_filter; add it"),
        ({"keep": 0.3}, "--keep is an option of --filter; add it"),
        ({"knn_filter": True, "keep": 0.3}, "--knn_filter has --knn_percentage"),
        ({"filter": "receiver", "keep": 1.5}, "a share of the memory is in"),
        ({"filter": "receiver", "keep": 1.5, "budget": "slots"}, "give a whole number"),
        ({"filter": "receiver", "budget": "agent"}, "say how many with --keep"),
        ({"positions": "published", "handover_storage": "int8"}, "drop one"),
    ],
)
def test_options_of_hand_overs_that_contradict_each_other_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        config(**options)


def test_a_missing_method_and_an_unknown_option_are_named():
    with pytest.raises(ConfigError, match="--method is missing"):
        RunConfig.from_options({"model_name": "tiny"})
    with pytest.raises(ConfigError, match="latent_step'"):
        config(latent_step=3)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        config().seed = 3


def test_an_explicit_option_beats_the_task_and_the_task_beats_the_model_folder():
    resolved = config(max_new_tokens=7).with_defaults(
        {"max_new_tokens": 256, "latent_steps": 5}, {"latent_steps": 3, "prompt": "tiny"}
    )
    assert (resolved.max_new_tokens, resolved.latent_steps, resolved.prompt) == (7, 5, "tiny")
    assert resolved.temperature == 0.6


def test_an_explicit_option_that_equals_its_default_still_beats_a_recommendation():
    assert config(latent_steps=20).with_defaults({}, {"latent_steps": 5}).latent_steps == 20


def test_recommendations_do_not_become_explicit():
    resolved = config().with_defaults({"latent_steps": 5}, {})
    assert resolved.model_fields_set == {"method", "model_name"}
    assert resolved.with_defaults({"latent_steps": 6}, {}).latent_steps == 6


def test_a_model_folder_decides_how_to_sample_only_where_it_is_asked_to_and_nothing_was_said():
    wish = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    assert config().with_sampling(wish) == config()
    taken = config(sampling="model", temperature=0.9).with_sampling(wish)
    assert (taken.temperature, taken.top_k, taken.repetition_penalty, taken.top_p) == (0.9, 20, 1.1, 0.95)
    assert taken.model_fields_set == {"method", "model_name", "sampling", "temperature"}
    with pytest.raises(ConfigError, match=r"top_p is 7.*recommended by the model folder"):
        config(sampling="model").with_sampling({"top_p": 7})


def test_what_is_ignored_is_what_is_recommended_and_neither_taken_nor_decided():
    wish = {"temperature": 0.7, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}
    assert config().ignored_sampling(wish) == {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    assert config(top_k=3).ignored_sampling(wish) == {"temperature": 0.7, "repetition_penalty": 1.1}
    assert config(temperature=0).ignored_sampling(wish) == {"repetition_penalty": 1.1}
    assert config(sampling="model").with_sampling(wish).ignored_sampling(wish) == {}


def test_a_default_topology_fills_in_and_never_overrides():
    assert config().with_topology("parallel").topology == "parallel"
    assert config().with_topology("parallel").model_fields_set == {"method", "model_name"}
    assert config(topology="chain").with_topology("parallel").topology == "chain"


def test_the_path_of_a_prompt_file_keeps_its_dashes():
    assert config(prompt="my-own/prompts-2.yaml").prompt == "my-own/prompts-2.yaml"
    assert config(prompt="my-set").prompt == "my_set"


def test_a_recommendation_does_not_compete_with_the_other_name_of_the_same_decision():
    assert config(latent_space_realign=True).with_defaults({}, {"alignment": "soft"}).alignment_name == "ridge"
    quiet = config(enable_thinking=False).with_defaults({}, {"think": True})
    assert not quiet.think


@pytest.mark.parametrize(
    "wish", [{"trust_remote_code": True}, {"control": "no_transfer"}, {"output_dir": "/x"}, {"temperature": 0.1}]
)
def test_a_model_folder_may_not_recommend_what_is_trusted_measured_sampled_or_written(wish):
    with pytest.raises(ConfigError, match="may not recommend"):
        config().with_defaults({}, wish)


def test_a_recommendation_that_is_no_option_or_no_value_says_where_it_comes_from():
    with pytest.raises(ConfigError, match="the model folder recommends a value for 'latent_step'"):
        config().with_defaults({}, {"latent_step": 5})
    with pytest.raises(ConfigError, match=r"latent_steps is -5.*recommended"):
        config().with_defaults({"latent_steps": -5}, {})


def test_the_folder_is_the_same_for_the_same_options_and_another_for_others():
    assert config().folder == config(seed=42).folder
    assert config().folder != config(seed=43).folder
    assert config().folder.match("runs/latent_mas-gsm8k-Qwen3-4B-*")
    assert config(output_dir=Path("here")).folder == Path("here")


def test_how_the_work_is_done_does_not_change_the_folder():
    other = config(generate_bs=3, device="cpu", cache_dir=Path("c"), retry_errors=True, dry_run=True)
    assert other.folder == config().folder
    assert "save_ids" not in EXECUTION_FIELDS


def test_a_local_model_folder_gives_its_own_name_however_it_is_written(tmp_path):
    model = tmp_path / "my model"
    assert config(model_name=f"{model}/").folder.name.startswith("latent_mas-gsm8k-my_model-")


def test_the_cache_is_the_option_then_the_environment_then_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LATENTMAS_CACHE", raising=False)
    assert config().cache_folder == Path.home() / ".cache" / "latentmas"
    monkeypatch.setenv("LATENTMAS_CACHE", str(tmp_path))
    assert config().cache_folder == tmp_path
    assert config(cache_dir=Path("c")).cache_folder == Path("c")


RUNNABLE = [
    "--method baseline --model_name Qwen/Qwen3-14B --task gsm8k --max_samples 100",
    "--method text_mas --model_name Qwen/Qwen3-14B --task gsm8k --prompt sequential --max_samples 100",
    "--method latent_mas --model_name Qwen/Qwen3-14B --task gsm8k --latent_steps 20 --prompt sequential "
    "--max_samples 100 --latent_space_realign",
]


@pytest.mark.parametrize("line", RUNNABLE)
def test_the_options_of_the_published_command_lines_are_options(line):
    words = shlex.split(line)
    names = [word.removeprefix("--") for word in words if word.startswith("--")]
    assert set(names) <= set(RunConfig.model_fields)


def test_one_temperature_of_soft_thoughts_holds_wherever_none_is_given():
    from latentmas.alignment import SOFT_TEMPERATURE
    from latentmas.backends.vllm.settings import LatentSettings

    assert RunConfig.model_fields["soft_temperature"].default == SOFT_TEMPERATURE
    assert LatentSettings(placeholder=0).soft_temperature == SOFT_TEMPERATURE
