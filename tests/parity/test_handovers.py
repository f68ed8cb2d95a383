"""Hand-overs and joins of the transformers backend equal a second derivation that only masks and measures distances.

The models are float64, but transformers computes norms and rotations in float32 inside of them: numbers agree to about
1e-7, tokens in every case as long as agents think a few steps only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.laws import Prompts, chain, prompts
from latentmas.backends.hf import handover
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.backends.hf.sampling import stream_key, uniform
from latentmas.errors import CapabilityError
from latentmas.filters import Filter, Sight, choose
from latentmas.program import (
    Budget,
    Handover,
    Join,
    KeepSpec,
    Positions,
    Program,
    Protect,
    Read,
    Recall,
    Step,
    Think,
    Unit,
    Write,
)
from latentmas.protocols import Job
from parity.handover_oracle import Decide, HandoverOracle, Tape, published

WRITE = 6
THOUGHTS = 2
NEWEST = 5
RELATIVE = 1e-6


@dataclass(frozen=True)
class Choice:
    """What one hand-over of a batch looked at and chose. Shape letters: L layers, B rows, G key/value heads, S slots.

    Attributes:
        valid: ``[B, S]``.
        positions: ``[L, B, G, S]``.
        chosen: ``[L, B, G, S]``, padding excluded.
        sets: Shape of the choice as the filter made it: layers and heads that choose apart.
        receiver, peak, sender: ``[L, B, G, S]`` attention, where it was looked at.
    """

    valid: Tensor
    positions: Tensor
    chosen: Tensor
    sets: tuple[int, int]
    receiver: Tensor | None
    peak: Tensor | None
    sender: Tensor | None

    def numbers(self, layer: int, row: int, group: int) -> list[int]:
        """Return the numbers, among the slots of a row, of those that were kept."""
        return self.chosen[layer, row, group][self.valid[row]].nonzero().flatten().tolist()

    def kept_positions(self, layer: int, row: int, group: int) -> list[int]:
        return self.positions[layer, row, group][self.chosen[layer, row, group]].tolist()


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """Every choice that hand-overs make, in their order; the package chooses as it always does."""
    made: list[Choice] = []

    def recording(filter_: Filter, spec: KeepSpec, sight: Sight) -> Tensor:
        chosen = choose(filter_, spec, sight)
        memory = sight.memory
        shape = (memory.layers, memory.rows, memory.keys(0).shape[1], memory.slots)
        positions = memory.positions if memory.positions.dim() == 4 else memory.positions[None, :, None]
        looked = (sight.receiver_attention, sight.receiver_peak, sight.sender_attention)
        made.append(
            Choice(
                memory.valid.clone(),
                positions.expand(shape).clone(),
                (chosen & memory.valid[None, :, None]).expand(shape).clone(),
                (chosen.shape[0], chosen.shape[2]),
                *(None if seen is None else seen.clone() for seen in looked),
            )
        )
        return chosen

    monkeypatch.setattr(handover, "choose", recording)
    return made


def half(name: str, *, amount: float = 0.5, protect: Protect | None = None, **parameters: str) -> KeepSpec:
    budget = Budget(amount=amount)
    return KeepSpec(name=name, parameters=tuple(parameters.items()), budget=budget, protect=protect or Protect())


def filtered(said: Prompts, keep: KeepSpec, positions: Positions = Positions.TRUE) -> Program:
    """Return a chain in which every hand-over filters."""
    program = chain(said, thoughts=THOUGHTS, write=WRITE)
    steps = (replace(step, keep=keep, positions=positions) if isinstance(step, Handover) else step for step in program)
    return Program(tuple(steps))


def unread(program: Program) -> Program:
    return Program(program.steps[:-1])


def roll(tiny: Any, model: Any, programs: Sequence[Program], *, releases: bool = False) -> Rollout:
    """Run programs in one batch; the seed of a row is its number."""
    rows = [Row(program=program, seed=seed) for seed, program in enumerate(programs)]
    rollout = Rollout(model, tiny.alignment(model), rows, releases=releases)
    rollout.run()
    return rollout


def written(tiny: Any, model: Any, programs: Sequence[Program]) -> list[tuple[int, ...]]:
    """Return what each program writes, in a batch that gives up memories as it cuts them."""
    rows = [Row(program=program, seed=seed) for seed, program in enumerate(programs)]
    Rollout(model, tiny.alignment(model), rows, releases=True).run()
    assert all(row.error is None for row in rows)
    return [row.accounts[-1].written for row in rows]


def by_position(made: Sequence[Choice], row: int) -> Decide:
    """Keep in the oracle, of each layer and head, the slots at the positions that the package kept."""
    left = iter(made)

    def decide(tape: Tape, step: Handover, prompt: tuple[int, ...]) -> Tensor:
        choice = next(left)
        kept = torch.zeros_like(tape.alive)
        for layer, group in _each(tape):
            slots = tape.order(layer, group)
            # Inside of a branch, positions begin at 0; on the tape, where the branch does.
            at = {int(tape.places[layer, group, slot]): slot for slot in slots}
            real = choice.positions[layer, row, group][choice.valid[row]].tolist()
            assert list(at) == real, "the memory holds other positions than the oracle"
            for position in choice.kept_positions(layer, row, group):
                kept[layer, group, at[position]] = True
        return kept

    return decide


def by_number(made: Sequence[Choice], row: int) -> Decide:
    """Keep in the oracle, of each layer and head, the slots of the numbers that the package kept."""
    left = iter(made)

    def decide(tape: Tape, step: Handover, prompt: tuple[int, ...]) -> Tensor:
        choice = next(left)
        kept = torch.zeros_like(tape.alive)
        for layer, group in _each(tape):
            slots = tape.order(layer, group)
            assert len(slots) == int(choice.valid[row].sum())
            for number in choice.numbers(layer, row, group):
                kept[layer, group, slots[number]] = True
        return kept

    return decide


def _each(tape: Tape) -> list[tuple[int, int]]:
    layers, groups, _ = tape.alive.shape
    return [(layer, group) for layer in range(layers) for group in range(groups)]


def check(
    tiny: Any, made: list[Choice], programs: Sequence[Program], *, numbers: bool = False, **options: Any
) -> list[Tape]:
    """Compare hidden states before the last Write, positions in memory and written tokens of a batch with the oracle.

    Args:
        made: The fixture `choices`.
        numbers: The oracle is told numbers of slots instead of their positions.
        options: Of the model; in float32, tokens are compared where they are no near tie.
    """
    model = tiny.model(**options)
    exact = options.get("dtype", torch.float64) == torch.float64
    oracle = HandoverOracle(model.causal)
    made.clear()
    rollout = roll(tiny, model, [unread(program) for program in programs])
    first = list(made)
    texts = written(tiny, model, programs)
    assert len(made) == 2 * len(first)
    assert all(torch.equal(one.chosen, other.chosen) for one, other in zip(first, made[len(first) :], strict=True))
    assert rollout.hidden is not None
    memory = rollout.memory
    tapes = []
    for row, program in enumerate(programs):
        decide = (by_number if numbers else by_position)(first, row)
        tape = oracle.replay(program, decide, model.stop_tokens)
        tapes.append(tape)
        assert tape.hidden is not None
        torch.testing.assert_close(rollout.hidden[row].double(), tape.hidden, rtol=0, atol=1e-5 if exact else 1e-4)
        if exact or tape.margin > 1e-3:
            assert texts[row] == tuple(tape.written), f"row {row} writes something else than the oracle"
        shape = (memory.layers, memory.rows, memory.keys(0).shape[1], memory.slots)
        places = (memory.positions if memory.positions.dim() == 4 else memory.positions[None, :, None]).expand(shape)
        for layer, group in _each(tape):
            slots = [slot for slot in tape.order(layer, group) if slot < tape.slots - len(tape.written)]
            expected = tape.places[layer, group, slots].tolist()
            assert places[layer, row, group][memory.valid[row]].tolist() == expected
    return tapes


def ragged(rows: int, *, agents: int = 4, shortest: int = 1, longest: int = 12, seed: int = 0) -> list[Prompts]:
    said = [prompts(seed + row, agents=agents, shortest=shortest, longest=longest) for row in range(rows)]
    assert any(len({len(prompt) for prompt in step}) > 1 for step in zip(*said, strict=True)), "rows need padding"
    return said


# The published filter


@pytest.mark.parametrize("fraction", [0.8, 0.5])
@pytest.mark.parametrize("strategy", ["top", "bottom", "random"])
def test_knn_with_published_positions_is_the_published_rule(
    tiny: Any, choices: list[Choice], strategy: str, fraction: float
) -> None:
    model = tiny.model(num_hidden_layers=4)
    oracle = HandoverOracle(model.causal)
    keep = half("knn", amount=fraction, protect=Protect(newest=NEWEST), strategy=strategy)
    texts = set()
    for seed in range(3):
        # The first memory of the last program is smaller than what is always kept.
        said = prompts(seed, shortest=5) if seed < 2 else ((9, 4), *prompts(seed, agents=3, shortest=5))
        program = filtered(said, keep, Positions.PUBLISHED)
        choices.clear()
        row = Row(program=program, seed=seed)
        Rollout(model, tiny.alignment(model), [row]).run()
        expected: list[list[int]] = []

        def numbers(number: int, length: int, seed: int = seed) -> Tensor:
            key = torch.tensor([stream_key(seed, "filter", number)])
            return uniform(key, 0, torch.arange(length)[None])[0]

        rule = published(oracle, strategy=strategy, fraction=fraction, least=NEWEST, random=numbers, kept=expected)
        tape = oracle.replay(program, rule, model.stop_tokens)
        assert [choice.sets for choice in choices] == [(1, 1)] * 3, "one set of slots for all layers and heads"
        assert [choice.numbers(0, 0, 0) for choice in choices] == expected
        assert row.accounts[-1].written == tuple(tape.written)
        slots = [int(choice.valid.sum()) for choice in choices]
        assert all(
            len(kept) == max(int(before * fraction), min(NEWEST, before))
            for kept, before in zip(expected, slots, strict=True)
        )
        texts.add(row.accounts[-1].written)
    assert len(texts) == 3


def test_published_positions_show_in_hidden_states_of_the_published_filter(tiny: Any, choices: list[Choice]) -> None:
    """Colliding positions are no mistake of bookkeeping that rotation would forgive."""
    model = tiny.model(num_hidden_layers=4)
    oracle = HandoverOracle(model.causal)
    keep = half("knn", protect=Protect(newest=NEWEST), strategy="bottom")
    said = prompts(1, shortest=6)
    hidden = {}
    for positions in Positions:
        choices.clear()
        program = filtered(said, keep, positions)
        rollout = roll(tiny, model, [unread(program)])
        assert rollout.hidden is not None
        tape = oracle.replay(program, by_number(choices, 0), model.stop_tokens)
        assert tape.hidden is not None
        torch.testing.assert_close(rollout.hidden[0], tape.hidden, rtol=0, atol=1e-5)
        hidden[positions] = rollout.hidden[0]
    for one, other in ((Positions.TRUE, Positions.PUBLISHED), (Positions.REROTATE, Positions.PUBLISHED)):
        assert float((hidden[one] - hidden[other]).abs().max()) > 1e-3


# True positions


GRAINS = [
    ("receiver", "token"),
    ("receiver", "layer"),
    ("receiver", "head"),
    ("sender", "token"),
    ("sender", "layer"),
    ("sender", "head"),
    ("key_norm", "token"),
    ("key_norm", "layer"),
    ("key_norm", "head"),
]
SETS = {"token": (1, 1), "layer": (2, 1), "head": (2, 2)}


@pytest.mark.parametrize(("name", "grain"), GRAINS)
def test_a_pruned_memory_equals_the_whole_one_with_what_was_dropped_masked(
    tiny: Any, choices: list[Choice], name: str, grain: str
) -> None:
    check(tiny, choices, [filtered(said, half(name, grain=grain)) for said in ragged(8)])
    assert [choice.sets for choice in choices[:3]] == [SETS[grain]] * 3
    if grain == "head":
        assert any(
            choice.numbers(0, row, 0) != choice.numbers(layer, row, group)
            for choice in choices
            for row in range(8)
            for layer, group in ((0, 1), (1, 0))
        ), "heads choose the same slots, so that nothing was tested"


def test_a_memory_pruned_at_random_equals_the_whole_one_masked(tiny: Any, choices: list[Choice]) -> None:
    check(tiny, choices, [filtered(said, half("random")) for said in ragged(8, seed=20)])


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma"])
def test_a_memory_pruned_per_head_equals_the_whole_one_masked_in_every_architecture(
    tiny: Any, choices: list[Choice], kind: str
) -> None:
    check(tiny, choices, [filtered(said, half("receiver", grain="head")) for said in ragged(3)], kind=kind)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_memory_pruned_in_float32_equals_the_whole_one_masked(
    tiny: Any, choices: list[Choice], attention: str
) -> None:
    programs = [filtered(said, half("receiver", grain="head")) for said in ragged(4)]
    check(tiny, choices, programs, dtype=torch.float32, attention=attention)


def test_filters_that_follow_each_other_equal_masking_all_that_any_of_them_dropped(
    tiny: Any, choices: list[Choice]
) -> None:
    keeps = (half("random"), half("sender", grain="head"), half("key_difference", grain="layer", amount=0.7))
    programs = []
    for said in ragged(4, seed=40):
        left = iter(keeps)
        steps = (
            replace(step, keep=next(left)) if isinstance(step, Handover) else step
            for step in chain(said, thoughts=THOUGHTS, write=WRITE)
        )
        programs.append(Program(tuple(steps)))
    check(tiny, choices, programs)
    assert [choice.sets for choice in choices[:3]] == [(1, 1), (2, 2), (2, 1)]


# Attention that filters look at


def check_attention(tiny: Any, made: list[Choice], name: str, kind: str) -> None:
    model = tiny.model(kind)
    oracle = HandoverOracle(model.causal)
    over = {"over": "sum"} if name == "receiver" else {}
    programs = [filtered(said, half(name, grain="head", amount=0.6, **over)) for said in ragged(4)]
    made.clear()
    roll(tiny, model, [unread(program) for program in programs])
    assert len(made) == 3
    assert any(not bool(choice.valid.all()) for choice in made), "no padding, so that a part was not tested"
    for row, program in enumerate(programs):
        oracle.replay(unread(program), comparing(oracle, made, row, name))


def comparing(oracle: HandoverOracle, made: Sequence[Choice], row: int, name: str) -> Decide:
    """Keep what the package kept, after comparing what it looked at with the softmax of the oracle."""
    left, keeping = iter(made), by_position(made, row)

    def decide(tape: Tape, step: Handover, prompt: tuple[int, ...]) -> Tensor:
        choice = next(left)
        real = choice.valid[row]
        if name == "receiver":
            sums, peaks = oracle.attention(oracle.reading(tape, prompt), tape.slots)
            pairs = [(choice.receiver, sums), (choice.peak, peaks)]
        else:
            pairs = [(choice.sender, oracle.attention(tape, tape.turn)[0])]
        for ours, theirs in pairs:
            assert ours is not None
            assert not bool(ours[:, row, :, ~real].any()), "padding is attended to"
            for layer, group in _each(tape):
                attended = theirs[layer, group, tape.order(layer, group)]
                torch.testing.assert_close(ours[layer, row, group, real], attended, rtol=RELATIVE, atol=0)
        return keeping(tape, step, prompt)

    return decide


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma"])
@pytest.mark.parametrize("name", ["receiver", "sender"])
def test_attention_that_a_filter_looks_at_is_the_softmax_of_the_oracle(
    tiny: Any, choices: list[Choice], name: str, kind: str
) -> None:
    check_attention(tiny, choices, name, kind)


# Joining


def team(
    row: int, *, keep: KeepSpec | None = None, inside: KeepSpec | None = None, positions: Positions = Positions.TRUE
) -> Program:
    """Return three experts of unlike lengths and thoughts, and the judger who hears them.

    Args:
        keep: What the hand-over to the judger keeps.
        inside: What each expert's first agent hands to its second one.
    """
    branches = []
    for number, thoughts in enumerate((1, 3, 2)):
        first, second = prompts(100 * row + number, agents=2, shortest=2 + number, longest=6 + number)
        steps = [
            Read(agent=f"reader {number}", tokens=first),
            Handover(agent=f"reader {number}", keep=inside or KeepSpec(), positions=positions),
            Read(agent=f"expert {number}", tokens=second),
            Think(agent=f"expert {number}", steps=thoughts),
        ]
        branches.append(Program(tuple(steps)))
    last = prompts(100 * row + 7, agents=1, shortest=2, longest=9)[0]
    return Program(
        (
            Join(branches=tuple(branches)),
            Handover(agent="expert 2", keep=keep or KeepSpec(), positions=positions if keep else Positions.TRUE),
            Read(agent="judger", tokens=last),
            Write(agent="judger", max_new_tokens=WRITE),
        )
    )


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "mistral", "gemma"])
def test_joined_branches_equal_one_sequence_in_which_they_do_not_see_each_other(
    tiny: Any, choices: list[Choice], kind: str
) -> None:
    tapes = check(tiny, choices, [team(row) for row in range(4)], kind=kind)
    assert len({tuple(tape.written) for tape in tapes}) > 1
    assert len({tape.slots for tape in tapes}) > 1, "rows must be of unlike length"
    assert not choices


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("receiver", {"grain": "head"}),
        ("receiver", {"grain": "layer"}),
        ("key_norm", {"grain": "token"}),
        ("random", {}),
    ],
    ids=str,
)
def test_joined_and_then_pruned_equals_masking_branches_and_what_was_dropped(
    tiny: Any, choices: list[Choice], name: str, parameters: dict[str, str]
) -> None:
    check(tiny, choices, [team(row, keep=half(name, **parameters)) for row in range(4)])
    assert len(choices) == 2


@pytest.mark.parametrize("positions", [Positions.TRUE, Positions.REROTATE])
def test_branches_that_were_pruned_per_head_join_as_they_are(
    tiny: Any, choices: list[Choice], positions: Positions
) -> None:
    keep = half("receiver", grain="head")
    programs = [team(row, keep=keep, inside=keep, positions=positions) for row in range(4)]
    check(tiny, choices, programs, numbers=positions is Positions.REROTATE)
    assert len(choices) == 8, "three branches and the hand-over after the Join, run twice"


def test_one_pruned_branch_joins_others_that_are_whole(tiny: Any, choices: list[Choice]) -> None:
    def lopsided(row: int) -> Program:
        join, *rest = team(row, keep=half("receiver", grain="layer"))
        assert isinstance(join, Join)
        first, second, third = join.branches
        steps = (
            replace(step, keep=half("key_norm", grain="head")) if isinstance(step, Handover) else step
            for step in second
        )
        return Program((Join(branches=(first, Program(tuple(steps)), third)), *rest))

    check(tiny, choices, [lopsided(row) for row in range(4)])
    assert [choice.sets for choice in choices[:2]] == [(2, 2), (2, 1)]


def diamond(row: int, keep: KeepSpec | None = None) -> Program:
    """Return an agent whom two others hear apart, and one who hears those two."""
    top, left, right, last = prompts(300 + row, shortest=3, longest=9)
    shared = (Read(agent="top", tokens=top), Think(agent="top", steps=2), Handover(agent="top"))
    branches = (
        Program((*shared, Read(agent="left", tokens=left), Think(agent="left", steps=1))),
        Program((*shared, Read(agent="right", tokens=right), Think(agent="right", steps=3))),
    )
    return Program(
        (
            Join(branches=branches),
            Handover(agent="right", keep=keep or KeepSpec()),
            Read(agent="last", tokens=last),
            Write(agent="last", max_new_tokens=WRITE),
        )
    )


@pytest.mark.parametrize("keep", [None, half("receiver", grain="head")], ids=["whole", "pruned"])
def test_an_agent_heard_through_two_branches_equals_masking_its_second_appearance(
    tiny: Any, choices: list[Choice], keep: KeepSpec | None
) -> None:
    check(tiny, choices, [diamond(row, keep) for row in range(4)])


@pytest.mark.parametrize("keep", [half("receiver", grain="token"), half("random")], ids=str)
def test_an_agent_pruned_apart_on_two_paths_is_laid_down_as_the_first_path_has_it(
    tiny: Any, choices: list[Choice], keep: KeepSpec
) -> None:
    def paths(row: int) -> Program:
        top, near, middle, far, last = prompts(500 + row, agents=5, shortest=3, longest=9)
        shared = (Read(agent="top", tokens=top), Think(agent="top", steps=2), Handover(agent="top", keep=keep))
        short = Program((*shared, Read(agent="near", tokens=near), Think(agent="near", steps=1)))
        between = (Read(agent="middle", tokens=middle), Handover(agent="middle", keep=keep))
        long = Program((*shared, *between, Read(agent="far", tokens=far), Think(agent="far", steps=2)))
        end = (Read(agent="last", tokens=last), Write(agent="last", max_new_tokens=WRITE))
        return Program((Join(branches=(short, long)), Handover(agent="far", keep=keep), *end))

    check(tiny, choices, [paths(row) for row in range(4)])
    assert len(choices) == 8, "once on the short path, twice on the long one, and behind the Join, run twice"


def test_a_join_of_joins_equals_one_sequence_in_which_branches_do_not_see_each_other(
    tiny: Any, choices: list[Choice]
) -> None:
    def nested(row: int) -> Program:
        inner, *_, last = diamond(row)
        first, second = prompts(400 + row, agents=2, shortest=2)
        middle = Program((inner, Read(agent="middle", tokens=first), Think(agent="middle", steps=1)))
        # Hears the one at the top as well.
        beside = Program((*inner.branches[0].steps[:3], Read(agent="beside", tokens=second)))  # type: ignore[union-attr]
        end = (Read(agent="last", tokens=first + second), last)
        return Program((Join(branches=(beside, middle)), *end))

    check(tiny, choices, [nested(row) for row in range(4)])


def ladder(row: int, *, keep: KeepSpec | None = None, positions: Positions = Positions.TRUE) -> Program:
    """Return two rounds in which the middle one of the first is heard by both of the second, by one of them alone.

    No two of the second round have the same shape, so that the package asks filters in the order of the branches.

    Args:
        keep: What each hand-over of the second round keeps.
    """
    a, b, c, d, e, f, last = prompts(600 + row, agents=7, shortest=3, longest=9)

    def turn(name: str, prompt: tuple[int, ...], steps: int) -> tuple[Step, ...]:
        return (Read(agent=name, tokens=prompt), Think(agent=name, steps=steps))

    def hand(agent: str) -> Handover:
        return Handover(agent=agent, keep=keep or KeepSpec(), positions=positions)

    branches = (
        Program(turn("a", a, 1)),
        Program(turn("b", b, 2)),
        Program(turn("c", c, 1)),
        Program((Recall(branches=(0, 1)), hand("b"), *turn("d", d, 1))),
        Program((Recall(branches=(2, 1)), hand("b"), *turn("e", e, 2), hand("e"))),
        Program((Recall(branches=(1,)), hand("b"), *turn("f", f, 1))),
    )
    return Program(
        (
            Join(branches=branches, joined=(3, 4, 5)),
            Handover(agent="f"),
            Read(agent="last", tokens=last),
            Write(agent="last", max_new_tokens=WRITE),
        )
    )


@pytest.mark.parametrize("positions", [Positions.TRUE, Positions.REROTATE])
@pytest.mark.parametrize(
    "keep",
    [
        None,
        KeepSpec(name="last_agent"),
        KeepSpec(name="thoughts"),
        half("receiver", grain="token"),
        half("random"),
    ],
    ids=str,
)
def test_what_is_recalled_equals_one_sequence_in_which_each_agent_stands_once(
    tiny: Any, choices: list[Choice], keep: KeepSpec | None, positions: Positions
) -> None:
    if keep is None and positions is Positions.REROTATE:
        return
    if keep is not None and keep.name == "receiver":  # nobody reads after the last hand-over of a branch
        cut = [ladder(row, keep=keep, positions=positions) for row in range(4)]
        programs = [_without_last_handover(program) for program in cut]
    else:
        programs = [ladder(row, keep=keep, positions=positions) for row in range(4)]
    tapes = check(tiny, choices, programs, numbers=positions is Positions.REROTATE)
    assert len({tuple(tape.written) for tape in tapes}) > 1
    assert len({tape.slots for tape in tapes}) > 1, "rows must be of unlike length"


def _without_last_handover(program: Program) -> Program:
    [join, *rest] = program
    assert isinstance(join, Join)
    branches = list(join.branches)
    branches[4] = Program(branches[4].steps[:-1])
    return Program((replace(join, branches=tuple(branches)), *rest))


@pytest.mark.parametrize("grain", ["token", "head"])
def test_what_a_recalled_agent_attended_to_is_what_it_would_attend_to_again(tiny: Any, grain: str) -> None:
    """Two hear one whose hand-over keeps half of what it looked at itself; a third goes on in another way."""

    def heard(row: int, *, again: bool) -> Program:
        top, left, right, beside, last = prompts(700 + row, agents=5, shortest=4, longest=9)
        first: tuple[Step, ...] = (Read(agent="top", tokens=top), Think(agent="top", steps=2))
        kept = Handover(agent="top", keep=half("sender", grain=grain))
        begin = first if again else (Recall(branches=(0,)),)
        branches = [
            Program((*begin, kept, Read(agent="left", tokens=left), Think(agent="left", steps=1))),
            Program((*begin, kept, Read(agent="right", tokens=right), Think(agent="right", steps=1))),
        ]
        whole = Program((Read(agent="beside", tokens=beside),))
        laid = (whole, *branches) if again else (Program(first), whole, *branches)
        join = Join(branches=laid, joined=None if again else (1, 2, 3))
        return Program((join, Read(agent="last", tokens=last), Write(agent="last", max_new_tokens=WRITE)))

    model = tiny.model()
    once, anew = ([heard(row, again=again) for row in range(4)] for again in (False, True))
    for program in (*once, *anew):
        handover.check(program, model)
    assert written(tiny, model, once) == written(tiny, model, anew)
    kept = roll(tiny, model, [unread(program) for program in once]).memory
    assert bool((kept.real_slots < kept.made).all())


def test_heads_that_chose_among_shared_and_other_slots_are_refused_before_they_are_recalled(tiny: Any) -> None:
    model = tiny.model()
    program = _without_last_handover(ladder(0, keep=half("receiver", grain="head")))
    with pytest.raises(CapabilityError, match=r"agent 'b' is heard through two branches .* use --grain token"):
        handover.check(program, model)


# Slots that move together


@pytest.mark.parametrize(
    ("name", "parameters", "kind"),
    [
        ("random", {}, "qwen3"),
        ("receiver", {"grain": "head"}, "qwen3"),
        ("sender", {"grain": "layer"}, "gemma"),
        ("receiver", {"grain": "token"}, "mistral"),
    ],
    ids=str,
)
def test_slots_that_move_together_say_what_they_said_at_new_distances(
    tiny: Any, choices: list[Choice], name: str, parameters: dict[str, str], kind: str
) -> None:
    programs = [filtered(said, half(name, **parameters), Positions.REROTATE) for said in ragged(4, seed=60)]
    tapes = check(tiny, choices, programs, numbers=True, kind=kind)
    for program, tape in zip(programs, tapes, strict=True):
        last = program.steps[-2]
        assert isinstance(last, Read)
        for layer, group in _each(tape):
            slots = tape.order(layer, group)
            assert tape.places[layer, group, slots].tolist() == list(range(len(slots)))


# Sliding windows


@pytest.mark.parametrize("name", ["receiver", "sender", "key_norm"])
def test_a_pruned_memory_under_a_sliding_window_equals_the_masked_one(
    tiny: Any, choices: list[Choice], name: str
) -> None:
    said = ragged(4, shortest=4, longest=14, seed=80)
    check(tiny, choices, [filtered(row, half(name, grain="token")) for row in said], kind="mistral")
    assert any(int(choice.positions.max()) >= 12 for choice in choices), "nobody is beyond the window"


def test_a_sliding_window_refuses_what_its_masks_cannot_tell(tiny: Any) -> None:
    backend = tiny.backend("mistral")
    said = prompts(0)
    for keep, positions, advice in (
        (half("receiver", grain="head"), Positions.TRUE, "--grain token"),
        (half("key_norm", grain="layer"), Positions.TRUE, "--grain token"),
        (half("knn"), Positions.PUBLISHED, "--positions published"),
    ):
        with pytest.raises(CapabilityError, match=f"mistral.*{advice}"):
            backend.submit(Job(key="x", program=filtered(said, keep, positions)))
    assert backend.collect() == []


# Keeping everything


EVERYTHING = [
    ("full", {}),
    ("knn", {"strategy": "top"}),
    ("knn", {"strategy": "random"}),
    ("random", {}),
    ("recency", {}),
    ("receiver", {"grain": "head"}),
    ("receiver", {"grain": "token"}),
    ("sender", {"grain": "head"}),
    ("key_norm", {"grain": "layer"}),
    ("key_difference", {"grain": "head"}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_ways_to_keep_everything_are_bit_identical(tiny: Any, dtype: torch.dtype) -> None:
    model = tiny.model(dtype=dtype)
    said = ragged(5)
    plain = roll(tiny, model, [unread(filtered(row, KeepSpec())) for row in said])
    rollouts = {
        str((name, parameters)): roll(
            tiny, model, [unread(filtered(row, half(name, amount=1.0, **parameters))) for row in said]
        )
        for name, parameters in EVERYTHING
    }
    rows = [Row(program=unread(filtered(row, KeepSpec())), seed=seed) for seed, row in enumerate(said)]
    gathered = Rollout(model, tiny.alignment(model), rows)
    with torch.inference_mode():
        for number, step in enumerate(rows[0].steps):
            gathered.step(number, last=False)
            if isinstance(step, Handover):
                gathered.memory = gathered.memory.keep(gathered.memory.valid)
    rollouts["gathered"] = gathered
    assert plain.hidden is not None
    assert not bool(plain.memory.valid.all()), "rows need padding"
    for name, other in rollouts.items():
        assert other.hidden is not None
        assert torch.equal(plain.hidden, other.hidden), name
        for one, same in zip(_tensors(plain), _tensors(other), strict=True):
            assert torch.equal(one, same), name


def _tensors(rollout: Rollout) -> list[Tensor]:
    memory = rollout.memory
    layers = [buffer for layer in range(memory.layers) for buffer in (memory.keys(layer), memory.values(layer))]
    return [memory.valid, memory.positions, memory.next_position, memory.agents, memory.kinds, *layers]


# Memories whose slots do not lie as they came


def crossed(row: int, *, again: KeepSpec, positions: Positions) -> Program:
    """Return an agent whose slots one path has dropped, and another one brings back before those of that path."""
    top, near, far, last = prompts(800 + row, shortest=3, longest=9)
    first: tuple[Step, ...] = (Read(agent="top", tokens=top), Think(agent="top", steps=2))

    def hand(agent: str, keep: KeepSpec) -> Handover:
        return Handover(agent=agent, keep=keep, positions=positions if keep is again else Positions.TRUE)

    branches = (
        Program(first),
        Program(
            (Recall(branches=(0,)), Read(agent="near", tokens=near), hand("near", KeepSpec(name="last_agent"))),
        ),
        Program((Recall(branches=(0,)), Read(agent="far", tokens=far), Think(agent="far", steps=1))),
        Program((Recall(branches=(1, 2)), hand("far", again), Read(agent="middle", tokens=far))),
    )
    return Program(
        (
            Join(branches=branches, joined=(3, 0)),
            hand("middle", again),
            Read(agent="last", tokens=last),
            Write(agent="last", max_new_tokens=WRITE),
        )
    )


@pytest.mark.parametrize("positions", [Positions.TRUE, Positions.REROTATE])
@pytest.mark.parametrize("keep", [half("recency"), half("key_difference", protect=Protect(newest=2))], ids=str)
def test_slots_of_a_join_lie_in_the_order_of_their_positions(
    tiny: Any, choices: list[Choice], keep: KeepSpec, positions: Positions
) -> None:
    programs = [crossed(row, again=keep, positions=positions) for row in range(4)]
    check(tiny, choices, programs, numbers=positions is Positions.REROTATE)
    for choice in choices:
        for row, valid in enumerate(choice.valid):
            lie = choice.positions[0, row, 0][valid].tolist()
            assert lie == sorted(lie)


def test_turns_of_a_row_do_not_depend_on_what_heads_kept_of_another(tiny: Any) -> None:
    """The short row keeps everything, the long one of the same batch a set for each head; both move together."""

    def heard(tokens: int) -> Program:
        keep = KeepSpec(name="receiver", parameters=(("grain", "head"),), budget=Budget(unit=Unit.SLOTS, amount=5))
        kept = Handover(agent="top", keep=keep, positions=Positions.REROTATE)
        branches = (
            Program((Read(agent="top", tokens=range(1, tokens + 1)),)),  # type: ignore[arg-type]
            Program((Recall(branches=(0,)), kept, Read(agent="left", tokens=(7, 8)))),
            Program((Recall(branches=(0,)), kept, Read(agent="right", tokens=(9,)))),
        )
        return Program((Join(branches=branches, joined=(1, 2)), Read(agent="last", tokens=(3, 4))))

    model = tiny.model()
    together = roll(tiny, model, [heard(4), heard(12)]).memory
    alone = roll(tiny, model, [heard(4)]).memory
    assert int(together.next_position[0]) == int(alone.next_position[0]) == 4 + 2 + 1 + 2
    assert together.turns_of(0) == alone.turns_of(0)
    assert together.turns_of(1)[0] == ("top", 5), "heads that have as many slots of it agree where a turn lies"


def test_an_agent_that_left_nothing_is_handed_over_twice(tiny: Any) -> None:
    def program(row: int) -> Program:
        first, second = prompts(900 + row, agents=2, shortest=2)
        steps = (
            Read(agent="a", tokens=first),
            Handover(agent="a", keep=KeepSpec(name="thoughts")),
            Handover(agent="a", keep=half("recency"), positions=Positions.REROTATE),
            Read(agent="b", tokens=second),
            Write(agent="b", max_new_tokens=3),
        )
        return Program(steps)

    memory = roll(tiny, tiny.model(), [unread(program(row)) for row in range(3)]).memory
    lengths = [len(program(row).reads[1].tokens) for row in range(3)]
    assert memory.real_slots.tolist() == lengths
    assert memory.next_position.tolist() == lengths


def test_a_branch_may_be_nothing_but_what_it_recalls(tiny: Any) -> None:
    def program(*, again: bool) -> Program:
        one, two = (Program((Read(agent=name, tokens=(number, 5)),)) for number, name in enumerate("ab", start=1))
        branches = (one, two, Program((Recall(branches=(0,)),))) if again else (one, two)
        join = Join(branches=branches, joined=(2, 1) if again else None)
        return Program((join, Read(agent="c", tokens=(3, 4)), Write(agent="c", max_new_tokens=4)))

    model = tiny.model()
    assert written(tiny, model, [program(again=True)]) == written(tiny, model, [program(again=False)])


def test_what_a_hand_over_tells_of_a_row_comes_in_the_order_of_that_row(tiny: Any) -> None:
    def program(*names: str) -> Program:
        branches = tuple(Program((Read(agent=name, tokens=(len(name), 5)),)) for name in names)
        cut = Handover(agent=names[-1], keep=half("recency"))
        return Program((Join(branches=branches), cut, Read(agent="c", tokens=(3, 4))))

    rows = [Row(program=program(*names), seed=0) for names in (("a", "b"), ("b", "a"))]
    Rollout(tiny.model(), tiny.alignment(tiny.model()), rows).run()
    for row, names in zip(rows, ("ab", "ba"), strict=True):
        handed = row.accounts[1].handover
        assert handed is not None
        assert "".join(share.agent for share in handed.shares) == names
