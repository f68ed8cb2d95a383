"""How many slots are kept, and which, whatever scores them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentmas.errors import CapabilityError, ConfigError, MemoryMismatchError, UnknownNameError
from latentmas.filters import Filter, Sight, choose
from latentmas.filters._registry import filter_names, open_filter, source_digest, takes
from latentmas.memory import LatentMemory
from latentmas.program import Budget, KeepSpec, Protect, SlotKind, Unit

LAYERS, HEADS, WIDTH = 2, 2, 4


@dataclass(frozen=True)
class Fixed:
    """Scores that were decided before."""

    scores: Tensor

    def score(self, sight: Sight) -> Tensor:
        return self.scores


def memory_of(rows: list[list[tuple[int, int]]]) -> LatentMemory:
    """Return a memory in which the turns of each row have so many prompt slots and so many thoughts."""
    memory = LatentMemory(len(rows), LAYERS)
    generator = torch.Generator().manual_seed(1)
    for turn in range(len(rows[0])):
        for kind, part in ((SlotKind.PROMPT, 0), (SlotKind.THOUGHT, 1)):
            amounts = [row[turn][part] for row in rows]
            width = max(amounts)
            if not width:
                continue
            valid = torch.tensor([[place >= width - amount for place in range(width)] for amount in amounts])
            memory.extend(valid, f"agent {turn}", kind)
            for layer in range(LAYERS):
                fresh = [torch.randn(len(rows), HEADS, width, WIDTH, generator=generator) for _ in range(2)]
                memory.write(layer, *fresh)
    return memory


def sight(memory: LatentMemory) -> Sight:
    return Sight(memory=memory, sender=torch.zeros(memory.rows, dtype=torch.int16))


def scores_of(memory: LatentMemory, *, fine: bool = False, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that there are ties.
    shape = (LAYERS, memory.rows, HEADS, memory.slots) if fine else (memory.rows, memory.slots)
    return torch.randint(0, 5, shape, generator=generator).double()


def spec(budget: Budget | None, **protect: int | bool) -> KeepSpec:
    return KeepSpec(name="fixed", budget=budget, protect=Protect(**protect))  # type: ignore[arg-type]


turns = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=2, max_size=2)


@given(
    st.lists(turns, min_size=1, max_size=3),
    st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    st.booleans(),
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()),
)
def test_a_share_of_each_row_is_kept_protected_slots_first_then_the_best_then_the_older(
    rows: list[list[tuple[int, int]]], share: float, fine: bool, protect: tuple[int, int, bool]
) -> None:
    sinks, newest, thoughts = protect
    memory = memory_of(rows)
    scores = scores_of(memory, fine=fine)
    wanted = spec(Budget(amount=share), sinks=sinks, newest=newest, thoughts=thoughts)
    chosen = choose(Fixed(scores), wanted, sight(memory))
    layers, heads = (LAYERS, HEADS) if fine else (1, 1)
    assert chosen.shape == (layers, memory.rows, heads, memory.slots)
    full = scores if fine else scores[None, :, None]
    for row in range(memory.rows):
        real = memory.valid[row].nonzero().flatten().tolist()
        safe = {*real[:sinks], *real[max(0, len(real) - newest) :]}
        safe |= {slot for slot in real if thoughts and memory.kinds[row, slot] == SlotKind.THOUGHT}
        size = max(1, int(len(real) * share), len(safe))
        for layer in range(layers):
            for head in range(heads):
                own = full[layer, row, head]
                ranked = sorted(real, key=lambda slot: (slot not in safe, -float(own[slot]), slot))
                assert set(chosen[layer, row, head].nonzero().flatten().tolist()) == set(ranked[:size])


@given(st.lists(turns, min_size=2, max_size=3), st.sampled_from(list(Unit)), st.booleans())
def test_the_choice_is_the_same_alone_and_in_a_batch(rows: list[list[tuple[int, int]]], unit: Unit, fine: bool) -> None:
    amount = {Unit.AGENT: 2, Unit.SLOTS: 3}.get(unit, 0.5)
    wanted = spec(Budget(unit=unit, amount=amount), sinks=1)
    memory = memory_of(rows)
    scores = scores_of(memory, fine=fine)
    together = memory.keep(choose(Fixed(scores), wanted, sight(memory)))
    for row in range(memory.rows):
        real = memory.valid[row]
        alone = memory.select_rows([row]).without_padding()
        own = scores[:, row : row + 1, :, real] if fine else scores[row : row + 1, real]
        kept = alone.keep(choose(Fixed(own), wanted, sight(alone))).without_padding()
        other = together.select_rows([row]).without_padding()
        assert bool((kept._positions == other._positions).all())
        assert all(torch.equal(kept.keys(layer), other.keys(layer)) for layer in range(LAYERS))


def test_budgets_count_what_they_say() -> None:
    memory = memory_of([[(10, 0), (4, 0)]])
    scores = scores_of(memory)

    def left(unit: Unit, amount: float) -> LatentMemory:
        return memory.keep(choose(Fixed(scores), spec(Budget(unit=unit, amount=amount)), sight(memory)))

    assert int(left(Unit.CACHE, 0.5).real_slots) == 7
    assert int(left(Unit.SLOTS, 3).real_slots) == 3
    assert left(Unit.AGENT, 3).agents.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert left(Unit.AGENT, 6).agents.tolist() == [[0] * 6 + [1] * 4]
    cut = left(Unit.CACHE, 0.5)
    again = choose(Fixed(scores[:, :7]), spec(Budget(unit=Unit.CACHE, amount=0.5)), sight(cut))
    original = choose(Fixed(scores[:, :7]), spec(Budget(unit=Unit.ORIGINAL, amount=0.5)), sight(cut))
    assert (int(again.sum()), int(original.sum())) == (3, 7), "of 7 slots that are left, and of 14 that ever were"


def test_a_share_is_rounded_down_as_python_does() -> None:
    memory = memory_of([[(100, 0), (1, 0)]])
    kept = choose(Fixed(scores_of(memory)), spec(Budget(amount=0.29)), sight(memory))
    assert int(kept.sum()) == int(101 * 0.29) == 29


def test_what_is_ruled_out_is_not_kept_to_fill_a_budget() -> None:
    memory = memory_of([[(6, 2), (1, 0)]])
    thoughts = open_filter(KeepSpec(name="thoughts"))
    kept = memory.keep(choose(thoughts, spec(Budget(amount=1.0)), sight(memory)))
    assert kept.kinds.tolist() == [[SlotKind.THOUGHT] * 2]
    sinks = memory.keep(choose(thoughts, spec(None, sinks=2), sight(memory)))
    assert sinks.positions.tolist() == [[0, 1, 6, 7]]


@pytest.mark.parametrize("unit", Unit)
def test_of_nothing_nothing_is_kept(unit: Unit) -> None:
    wanted = spec(Budget(unit=unit, amount=1), sinks=2)
    memory = memory_of([[(6, 0), (1, 0)], [(2, 1), (1, 0)]])
    without = memory.keep(memory.kinds == SlotKind.THOUGHT)  # the first row has no thought
    assert without.real_slots.tolist() == [0, 1]
    assert choose(Fixed(scores_of(without)), wanted, sight(without)).flatten().tolist() == [False, True]
    nothing = without.keep(torch.zeros_like(without.valid))
    assert nothing.slots == 0
    assert choose(Fixed(scores_of(nothing)), wanted, sight(nothing)).shape == (1, 2, 1, 0)


def test_an_infinite_score_does_not_push_a_protected_slot_out() -> None:
    memory = memory_of([[(6, 0), (1, 0)]])
    scores = torch.full((1, 7), torch.inf)
    kept = choose(Fixed(scores), spec(Budget(unit=Unit.SLOTS, amount=2), newest=2), sight(memory))
    assert kept.flatten().nonzero().flatten().tolist() == [5, 6]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(1, 3), "gave scores of shape"),
        (torch.zeros(7), "gave scores of shape"),
        (torch.zeros(3, 1, 1, 7), "gave scores of shape"),
        (torch.full((1, 7), torch.nan), "not a number"),
    ],
)
def test_scores_that_make_no_sense_are_refused(scores: Tensor, message: str) -> None:
    memory = memory_of([[(6, 0), (1, 0)]])
    with pytest.raises(CapabilityError, match=message):
        choose(Fixed(scores), spec(Budget(amount=0.5)), sight(memory))


@pytest.mark.parametrize("scores", [None, 1, [1.0] * 7])
def test_scores_that_are_no_tensor_are_refused_in_words_about_the_filter(scores: object) -> None:
    memory = memory_of([[(6, 0), (1, 0)]])
    with pytest.raises(CapabilityError, match=r"gave .* for scores; expected a tensor, rows x slots"):
        choose(Fixed(scores), spec(Budget(amount=0.5)), sight(memory))  # type: ignore[arg-type]


@pytest.mark.parametrize("scores", [torch.arange(7)[None], torch.arange(7)[None] > 3])
def test_whole_numbers_and_truths_are_scores(scores: Tensor) -> None:
    memory = memory_of([[(6, 0), (1, 0)]])
    kept = choose(Fixed(scores), spec(Budget(unit=Unit.SLOTS, amount=3)), sight(memory))
    assert kept.flatten().nonzero().flatten().tolist() == [4, 5, 6]


def test_heads_that_would_keep_different_numbers_of_slots_are_refused() -> None:
    memory = memory_of([[(6, 0), (1, 0)]])
    scores = torch.zeros(LAYERS, 1, HEADS, 7)
    scores[0, 0, 0, 3] = -torch.inf
    with pytest.raises(MemoryMismatchError, match="in one layer or head than in another"):
        choose(Fixed(scores), spec(None), sight(memory))


# Filters by name


def test_every_filter_of_the_package_opens_and_says_what_it_is() -> None:
    names = filter_names()
    assert {"knn", "receiver", "sender", "random", "recency", "sink_thoughts", "key_norm", "key_difference"} <= {*names}
    for name in names:
        found = open_filter(KeepSpec(name=name))
        assert callable(found.score)
    assert takes("receiver", "grain")
    assert not takes("random", "grain")


def test_a_filter_of_ones_own_is_ten_lines_in_a_file(tmp_path: object) -> None:
    path = f"{tmp_path}/mine.py"
    with open(path, "w", encoding="utf-8") as file:
        file.write("class Oldest:\n    def score(self, sight):\n        return -sight.memory.positions.double()\n")
    memory = memory_of([[(6, 0), (1, 0)]])
    own = open_filter(KeepSpec(name=f"{path}:Oldest"))
    kept = choose(own, spec(Budget(unit=Unit.SLOTS, amount=3)), sight(memory))
    assert kept.flatten().nonzero().flatten().tolist() == [0, 1, 2]
    with pytest.raises(UnknownNameError, match="Newest"):
        open_filter(KeepSpec(name=f"{path}:Newest"))
    with pytest.raises(ConfigError, match="there is no file"):
        open_filter(KeepSpec(name=f"{path}x:Oldest"))
    with pytest.raises(ConfigError, match="does not take these parameters"):
        open_filter(KeepSpec(name=f"{path}:Oldest", parameters=(("size", 3),)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise OSError('gone')", "cannot be run: OSError: gone"),
        ("x = = 1", "cannot be run: SyntaxError"),
        ("Thing = 3", "3 is not a callable object"),
        ("class Thing: pass", "has no method 'score'"),
    ],
)
def test_a_file_that_is_no_filter_is_one_sentence(tmp_path: object, content: str, message: str) -> None:
    path = f"{tmp_path}/other.py"
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
    with pytest.raises((ConfigError, CapabilityError), match=message):
        open_filter(KeepSpec(name=f"{path}:Thing"))
    with pytest.raises(UnknownNameError, match="did you mean 'receiver'"):
        open_filter(KeepSpec(name="reciever"))
    with pytest.raises(ConfigError, match="choose from: top, bottom, random"):
        open_filter(KeepSpec(name="knn", parameters=(("strategy", "middle"),)))
    with pytest.raises(ConfigError, match="'nail' is not a valid Grain"):
        open_filter(KeepSpec(name="receiver", parameters=(("grain", "nail"),)))


OWN = "class Mine:\n    def score(self, sight):\n        return {sign}sight.memory.positions.double()\n"


def kept_by(found: Filter) -> list[int]:
    memory = memory_of([[(6, 0), (1, 0)]])
    return choose(found, spec(Budget(unit=Unit.SLOTS, amount=1)), sight(memory)).flatten().nonzero().flatten().tolist()


def test_a_filter_whose_file_changed_is_loaded_anew_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(sign="+"))
    first, before = source_digest(f"{file}:Mine"), file.stat()
    assert kept_by(open_filter(KeepSpec(name=f"{file}:Mine"))) == [6]
    file.write_text(OWN.format(sign="-"))
    # As an editor may leave it: same length, same second. Cached bytecode would be taken for it.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert kept_by(open_filter(KeepSpec(name=f"{file}:Mine"))) == [0]
    assert source_digest(f"{file}:Mine") != first
    assert not (tmp_path / "__pycache__").exists()


def test_a_filter_that_is_in_use_stays_the_code_its_digest_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(sign="+"))
    used = KeepSpec(name=f"{file}:Mine", source=source_digest(f"{file}:Mine"))
    found = open_filter(used)
    file.write_text(OWN.format(sign="-"))
    assert open_filter(used) is found
    file.unlink()
    assert kept_by(open_filter(used)) == [6]


def test_a_digest_that_the_file_no_longer_has_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(sign="+"))
    with pytest.raises(ConfigError, match=r"has changed while it was in use: its digest was 0123 and is now"):
        open_filter(KeepSpec(name=f"{file}:Mine", source="0123"))


def test_a_filter_of_ones_own_may_be_a_dataclass_with_annotations_as_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n@dataclass\n"
    file.write_text(head + OWN.format(sign="+").replace("Mine:\n", "Mine:\n    size: int = 3\n"))
    assert kept_by(open_filter(KeepSpec(name=f"{file}:Mine", parameters=(("size", 4),)))) == [6]
