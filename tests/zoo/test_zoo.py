"""Every model type of the installed transformers is run right, or refused before the first sample."""

from __future__ import annotations

import pytest

from zoo.reference import quiet
from zoo.specimens import Specimen, build, specimens
from zoo.verdict import State, judge, names_of

pytestmark = pytest.mark.filterwarnings("ignore")


def pytest_generate_tests(metafunc):
    """Ask transformers for its types only where they are going to be run: that alone takes seconds."""
    if "specimen" in metafunc.fixturenames:
        wanted = "not exhaustive" not in metafunc.config.option.markexpr
        metafunc.parametrize("specimen", specimens() if wanted else (), ids=lambda specimen: specimen.name)


@pytest.mark.exhaustive
def test_a_model_type_is_right_or_refused_before_it_runs(specimen):
    quiet()
    verdict = judge(specimen)
    assert verdict.fine, {check: (found.state, found.why) for check, found in verdict.found.items()}
    if verdict.state is State.REFUSED:
        sentence = verdict.found["baseline"].why
        assert any(name in sentence for name in names_of(specimen)), sentence


@pytest.mark.slow
def test_keys_that_turn_in_the_probe_alone_are_seen(monkeypatch):
    from latentmas.rope import Rope

    right = Rope.rotate
    monkeypatch.setattr(Rope, "rotate", lambda self, keys, by: right(self, keys, by) if keys.shape[2] == 1 else keys)
    quiet()
    found = judge(Specimen("llama")).found
    states = [found[check].state for check in ("latent", "join", "rerotate")]
    # A Join is tried before the first sample, so the fault is refused there.
    assert states == [State.RIGHT, State.REFUSED, State.WRONG]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("given", "context"),
    [
        ({"max_position_embeddings": 1024}, 1024),
        ({"max_position_embeddings": 128}, 1024),
    ],
    ids=["multiplied already", "not multiplied"],
)
def test_yarn_has_the_context_its_factor_gives(given, context, tmp_path):
    from latentmas import Team

    quiet()
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 128}
    build(Specimen("qwen3", "YaRN", {**given, "rope_parameters": rope}), tmp_path)
    assert Team(str(tmp_path), method="baseline").backend.environment()["context"] == context
