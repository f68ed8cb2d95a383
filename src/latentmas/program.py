"""Latent programs: everything an agent system does to a model, as one sequence of few verbs.

A `Program` is a frozen value. It is checked when it is built, and can be printed, hashed, compared and counted
before anything runs. Nothing here knows a model, a tokenizer or a task.

    Read(agent, tokens)         prefill tokens on top of what is in memory
    Think(agent, steps)         append that many latent thoughts
    Handover(agent, keep, ...)  which of the memory the next agent gets, where, and stored how
    Write(agent, ...)           decode text until end of text or `max_new_tokens`
    Join(branches)              memories made independently, concatenated
    Recall(branches)            first step of a branch: go on from what branches before it left
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum

from latentmas.errors import ProgramError, shown
from latentmas.turns import Turn, add, concatenate

DIGEST_VERSION = 2
"""Goes into every digest; raised when the meaning of a step changes."""


class SlotKind(IntEnum):
    """What a slot of the memory was made from."""

    PROMPT = 0
    THOUGHT = 1
    TEXT = 2


class ThoughtSource(StrEnum):
    """Where the input embedding of a thought comes from."""

    OWN = "own"
    """The aligned hidden state of the position before it (LatentMAS, section 3.1)."""
    NOISE = "noise"
    """A normal vector of the same norm: the control that keeps everything but the content."""


class Positions(StrEnum):
    """Positions of the slots that are left after a hand-over dropped some."""

    TRUE = "true"
    """Every kept slot stays where it was; the next token follows the largest true position."""
    REROTATE = "rerotate"
    """Kept slots move together, to 0, 1, 2 ..., and their keys are turned to where they are now."""
    PUBLISHED = "published"
    """Keys stay where they were, and the next token follows the *number* of slots, so that new positions collide with
    old ones. What the published kNN filter does; for comparison only."""


class Storage(StrEnum):
    """How keys and values wait for the next agent."""

    NATIVE = "native"
    INT8 = "int8"
    """Keys in 8 bits per channel, values in 8 bits per token; read back when the next agent comes."""


STRUCTURAL_FILTERS = frozenset({"full", "thoughts", "last_agent"})
"""Filters that depend on the agent and kind of a slot only; every backend with a memory can do them."""


class Unit(StrEnum):
    """What the amount of a budget counts."""

    CACHE = "cache"
    """Share of the slots as they stand, so that one hand-over after the other compounds (published)."""
    ORIGINAL = "original"
    """Share of all slots that were ever in the memory."""
    AGENT = "agent"
    """Slots of each agent."""
    SLOTS = "slots"
    """Slots in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many slots of a row may be kept, in every layer and head.

    Attributes:
        amount: A share in (0, 1], rounded down as the published code does, or a whole number of at least 1.
    """

    unit: Unit = Unit.CACHE
    amount: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", float(self.amount))
        if self.unit in {Unit.CACHE, Unit.ORIGINAL}:
            if not 0 < self.amount <= 1:
                raise ProgramError(f"a budget of {self.amount} of the {self.unit}; expected a share in (0, 1]")
        elif self.amount < 1 or self.amount != int(self.amount):
            what = "slots of each agent" if self.unit is Unit.AGENT else "slots"
            raise ProgramError(f"a budget of {self.amount} {what}; expected a whole number of at least 1")

    def __str__(self) -> str:
        shares = {Unit.CACHE: f"{self.amount:g}", Unit.ORIGINAL: f"{self.amount:g} of the original"}
        return shares.get(self.unit) or f"{self.amount:g} slots" + (" of each agent" * (self.unit is Unit.AGENT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """Which slots are kept whatever their score, counted inside the budget. They are kept also where they exceed it.

    Attributes:
        sinks: That many of the first slots, which attention falls back on (StreamingLLM, arXiv 2309.17453).
        newest: That many of the last slots.
        thoughts: All latent thoughts.
    """

    sinks: int = 0
    newest: int = 0
    thoughts: bool = False

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.newest < 0:
            raise ProgramError(f"protecting {self.sinks} sinks and {self.newest} newest slots; expected 0 or more")

    def __str__(self) -> str:
        parts = (f"{self.sinks} sinks" * bool(self.sinks), f"{self.newest} newest" * bool(self.newest))
        return " + ".join(filter(None, (*parts, "thoughts" * self.thoughts)))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSpec:
    """Which slots a hand-over passes on: a filter by name, with its parameters, so that programs hash.

    Attributes:
        name: ``full``, ``thoughts`` (of all agents so far), ``last_agent`` (all slots of the sender), a filter of
            `latentmas.filters`, one that an installed package registered, or ``path.py:Name``.
        parameters: Name and value of each parameter of the filter, sorted by name.
        budget: None keeps every slot that the filter does not rule out.
        source: Digest of the file of a ``path.py:Name``: the filter is that code and no other. Empty takes the file as
            it is when it is opened.
    """

    name: str = "full"
    parameters: tuple[tuple[str, str | int | float | bool], ...] = ()
    budget: Budget | None = None
    protect: Protect = Protect()
    source: str = ""

    def __post_init__(self) -> None:
        pairs = ((name, value) for name, value in self.parameters)
        object.__setattr__(self, "parameters", tuple(sorted(pairs, key=lambda pair: pair[0])))
        if self.parameters and self.name in STRUCTURAL_FILTERS:
            raise ProgramError(f"{self.name!r} takes no parameters, but was given {self.parameters[0][0]!r}")

    @property
    def structural(self) -> bool:
        """Whether agent and kind of a slot alone decide."""
        return self.name in STRUCTURAL_FILTERS and self.budget is None and self.protect == Protect()

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.parameters)
        text = f"{self.name}({arguments})" if arguments else self.name
        if self.budget is not None:
            text += f" {self.budget}"
        return f"{text}, protecting {self.protect}" if str(self.protect) else text


KEEP_ALL = KeepSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: 0 is greedy, and then `top_p`, `top_k`, `min_p` and the seed are ignored.
        top_p: Smallest set of most likely tokens whose probability reaches this, in (0, 1]; 1 is off.
        top_k: At most that many of the most likely tokens; 0 is off.
        min_p: Only tokens that are at least this share as likely as the likeliest one, in [0, 1); 0 is off.
        repetition_penalty: Logits of tokens that the writing agent has read or written itself are divided by this where
            they are positive, multiplied where they are negative, also when greedy; 1 is off (CTRL, arXiv 1909.05858).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
            given, kinds = getattr(self, name), int if name == "top_k" else (int, float)
            if not isinstance(given, kinds) or isinstance(given, bool):
                kind = "a whole number" if name == "top_k" else "a number"
                raise ProgramError(f"{name} is {shown(given)}; expected {kind}")
        if not 0 <= self.temperature < float("inf"):
            raise ProgramError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ProgramError(f"top_p is {self.top_p}; expected a number in (0, 1], where 1 is off")
        if self.top_k < 0:
            raise ProgramError(f"top_k is {self.top_k}; expected 0 (off) or a positive number")
        if not 0 <= self.min_p < 1:
            raise ProgramError(f"min_p is {self.min_p}; expected a number in [0, 1), where 0 is off")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ProgramError(
                f"repetition_penalty is {self.repetition_penalty}; expected a positive number, where 1 is off"
            )
        # 1 equals 1.0 but is written otherwise; equal programs must have equal digests.
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def __str__(self) -> str:
        penalty = f", repetition penalty {self.repetition_penalty:g}" * (self.repetition_penalty != 1)
        if self.greedy:
            return f"greedy{penalty}"
        text = f"temperature {self.temperature}, top-p {self.top_p}"
        text += f", top-k {self.top_k}" * bool(self.top_k) + f", min-p {self.min_p:g}" * bool(self.min_p)
        return text + penalty


GREEDY = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Prefill `tokens` on top of what is in memory.

    Attributes:
        text: The text the tokens came from, for people and records; two Reads are equal without it.
    """

    agent: str
    tokens: tuple[int, ...]
    text: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if not self.tokens:
            raise ProgramError(f"agent {self.agent!r} reads no token; every Read needs at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Think:
    """Append `steps` latent thoughts; 0 is nothing, and memory stays as it is."""

    agent: str
    steps: int
    source: ThoughtSource = ThoughtSource.OWN

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ProgramError(f"agent {self.agent!r} thinks {self.steps} steps; expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Stands between any two agents, also when everything is kept. `agent` is the one who hands over.

    Filters that look at the receiver look at the next Read. Positions are decided anew where slots were dropped.
    """

    agent: str
    keep: KeepSpec = KEEP_ALL
    positions: Positions = Positions.TRUE
    storage: Storage = Storage.NATIVE

    @property
    def passes_everything(self) -> bool:
        """Whether nothing is dropped, moved or changed."""
        return self.structural and self.keep.name == "full"

    @property
    def structural(self) -> bool:
        """Whether it only drops slots by agent and kind, and leaves the others as they are."""
        return self.keep.structural and self.positions is Positions.TRUE and self.storage is Storage.NATIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Decode text until an end-of-text token or `max_new_tokens`. No end-of-text token stays in memory."""

    agent: str
    max_new_tokens: int
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ProgramError(f"agent {self.agent!r} writes {self.max_new_tokens} tokens; expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """First step of a branch of a Join: go on from what branches before it left, concatenated as a Join does it.

    So an agent that several others hear is computed once. Its branch stays as it is, for whoever else recalls it.

    Attributes:
        branches: Which of the Join's branches, counted from 0.
    """

    branches: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", tuple(self.branches))
        if not self.branches or min(self.branches) < 0 or len(set(self.branches)) < len(self.branches):
            raise ProgramError(f"a Recall of branches {self.branches}; expected at least one, each once, from 0 on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Run `branches` on empty memories, or on what they recall, and concatenate the results, in this order.

    What an agent left is there once, as the first branch that holds any of it has it. Positions are those of the
    union: the turns of all branches, one behind the other, each once. So the next position is the number of tokens and
    thoughts of everyone who took part, dropped or not.

    Attributes:
        joined: Which branches are joined, and in which order, counted from 0; None is all of them. The others are
            there to be recalled.
    """

    branches: tuple[Program, ...]
    joined: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", tuple(self.branches))
        count = len(self.branches)
        if self.joined is not None:
            joined = tuple(self.joined)
            object.__setattr__(self, "joined", None if joined == tuple(range(count)) else joined)
            if not joined or not set(joined) <= set(range(count)) or len(set(joined)) < len(joined):
                raise ProgramError(f"a Join of {count} branches joins {joined}; expected some of 0 to {count - 1}")
        if count < 2:
            raise ProgramError(f"a Join of {count} branch joins nothing; expected at least 2")
        used = set(self.joined_branches)
        for number, branch in enumerate(self.branches):
            if writers := [step.agent for step in branch if isinstance(step, Write)]:
                raise ProgramError(f"agent {writers[0]!r} writes inside a Join; only memories can be joined")
            if late := [other for other in branch.recalled if other >= number]:
                raise ProgramError(f"branch {number} of a Join recalls branch {late[0]}, which does not come before it")
            used.update(branch.recalled)
        if idle := sorted(set(range(count)) - used):
            raise ProgramError(f"branch {idle[0]} of a Join is neither joined nor recalled")

    @property
    def joined_branches(self) -> tuple[int, ...]:
        """Which branches are joined, and in which order."""
        return tuple(range(len(self.branches))) if self.joined is None else self.joined

    @property
    def waves(self) -> tuple[tuple[int, ...], ...]:
        """Which branches may run side by side, one group after the other: each recalls branches of earlier groups."""
        depths: list[int] = []
        for branch in self.branches:
            depths.append(1 + max((depths[number] for number in branch.recalled), default=-1))
        return tuple(
            tuple(number for number, own in enumerate(depths) if own == depth) for depth in range(max(depths) + 1)
        )

    def needed_from(self, wave: int) -> frozenset[int]:
        """Return which branches are joined, or recalled in one of the waves from `wave` on."""
        later = (number for group in self.waves[wave:] for number in group)
        return frozenset(self.joined_branches).union(*(self.branches[number].recalled for number in later))


Step = Read | Think | Handover | Write | Join | Recall


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a program costs, known before it runs.

    Attributes:
        prompt_tokens: Tokens prefilled.
        thoughts: Latent thoughts.
        max_written_tokens: Upper bound of the tokens written.
        max_slots: Upper bound of slots in memory at any time.
        positions: Upper bound of the context used: one past the largest position any step can reach.
    """

    prompt_tokens: int
    thoughts: int
    max_written_tokens: int
    max_slots: int
    positions: int


@dataclass(frozen=True, slots=True)
class Program:
    """A checked sequence of steps.

    Raises:
        ProgramError: A Think or Write has no hidden state to start from (at the start, or straight after a Join),
            a Join or Recall is not the first step, a Join's branch writes, or a Handover has nothing to hand over.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if isinstance(self.steps, str) or not isinstance(self.steps, Iterable):
            raise ProgramError(f"a program was made of {shown(self.steps)}; expected a list of steps")
        object.__setattr__(self, "steps", tuple(self.steps))
        if strangers := [step for step in self.steps if not isinstance(step, Step)]:
            raise ProgramError(f"a program was made with {shown(strangers[0])}; expected Read, Think, Write ...")
        if not self.steps:
            raise ProgramError("a program needs at least one step")
        has_memory = has_hidden_state = False
        for number, step in enumerate(self.steps, start=1):
            match step:
                case Read():
                    has_memory = has_hidden_state = True
                case Think() | Write() if not has_hidden_state:
                    raise ProgramError(
                        f"step {number}: {step.agent!r} has no hidden state to start from; a Read must come first"
                    )
                case Handover() if not has_memory:
                    raise ProgramError(f"step {number}: {step.agent!r} has no memory to hand over yet")
                case Join():
                    if has_memory:
                        raise ProgramError(f"step {number}: a Join starts from empty memory and must come first")
                    has_memory, has_hidden_state = True, False
                case Recall():
                    if has_memory:
                        raise ProgramError(f"step {number}: a Recall is what a branch begins with and must come first")
                    has_memory, has_hidden_state = True, False
                case _:
                    pass

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @property
    def agents(self) -> tuple[str, ...]:
        """Names in the order of their first step."""
        return tuple(dict.fromkeys(step.agent for step in self.flat() if not isinstance(step, Join | Recall)))

    @property
    def recalled(self) -> tuple[int, ...]:
        """Which branches of the Join that it is a branch of it goes on from; none where it starts from nothing."""
        first = self.steps[0]
        return first.branches if isinstance(first, Recall) else ()

    @property
    def reads(self) -> tuple[Read, ...]:
        """Every Read, those of branches included, in the order in which they stand."""
        return tuple(step for step in self.flat() if isinstance(step, Read))

    def flat(self) -> Iterator[Step]:
        """Yield every step; where a Join stands, the steps of its branches come before it."""
        for step in self.steps:
            if isinstance(step, Join):
                for branch in step.branches:
                    yield from branch.flat()
            yield step

    @property
    def digest(self) -> str:
        """64 hexadecimal digits: the same for equal programs, on every machine and in every version of Python."""
        document = {"version": DIGEST_VERSION, "steps": [_plain(step) for step in self.steps]}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def count(self) -> Count:
        """Count tokens, thoughts, slots and positions without running anything.

        A filter that is not structural is counted as keeping everything, so slots are an upper bound.
        """
        return self._count(())[0]

    def _count(self, recalled: Sequence[_Left]) -> tuple[Count, _Left]:
        """Return the counts, and what is in memory at the end.

        Args:
            recalled: What each of the branches left that it goes on from.
        """
        prompt = thoughts = written = peak = farthest = 0
        left = _union(recalled)
        for step in self.steps:
            match step:
                case Read():
                    prompt += len(step.tokens)
                    left.grow(step.agent, SlotKind.PROMPT, len(step.tokens))
                case Think():
                    thoughts += step.steps
                    left.grow(step.agent, SlotKind.THOUGHT, step.steps)
                case Write():
                    written += step.max_new_tokens
                    left.grow(step.agent, SlotKind.TEXT, step.max_new_tokens)
                case Handover(keep=KeepSpec(name="thoughts")) if step.keep.structural:
                    left.slots = {key: amount for key, amount in left.slots.items() if key[1] is SlotKind.THOUGHT}
                case Handover(keep=KeepSpec(name="last_agent")) if step.keep.structural:
                    left.slots = {key: amount for key, amount in left.slots.items() if key[0] == step.agent}
                case Join():
                    made: dict[int, _Left] = {}
                    for wave, numbers in enumerate(step.waves):
                        needed = step.needed_from(wave)
                        together = sum(of.size for number, of in made.items() if number in needed)
                        for number in numbers:
                            branch = step.branches[number]
                            inner, made[number] = branch._count([made[other] for other in branch.recalled])
                            prompt += inner.prompt_tokens
                            thoughts += inner.thoughts
                            farthest = max(farthest, inner.positions)
                            together += inner.max_slots  # those of a wave run side by side
                        peak = max(peak, together)
                    left = _union([made[number] for number in step.joined_branches])
                case Handover() | Recall():
                    pass
            if isinstance(step, Handover) and not step.passes_everything and step.positions is Positions.PUBLISHED:
                left.follow_slots()
            left.chosen |= isinstance(step, Handover) and not step.keep.structural
            peak, farthest = max(peak, left.size), max(farthest, left.reach)
        count = Count(
            prompt_tokens=prompt,
            thoughts=thoughts,
            max_written_tokens=written,
            max_slots=peak,
            positions=farthest,
        )
        return count, left

    def describe(self) -> str:
        """Return the program for a person: one line per step, after a line with its digest and counts."""
        count = self.count()
        head = (
            f"program {self.digest[:12]}: {count.prompt_tokens} prompt tokens, {count.thoughts} thoughts, "
            f"at most {count.max_written_tokens} written tokens, at most {count.max_slots} slots"
        )
        return "\n".join([head, *_lines(self, indent="  ")])

    __str__ = describe


@dataclass(slots=True)
class _Left:
    """What is in memory, as far as it is known before anything runs.

    Attributes:
        slots: How many slots of each agent and kind are left.
        reach: One past the largest position of any slot; beyond the turns where new positions collide with old ones.
        chosen: A filter may have dropped any of the slots that are counted here.
    """

    turns: list[Turn] = field(default_factory=list)
    slots: dict[tuple[str, SlotKind], int] = field(default_factory=dict)
    reach: int = 0
    chosen: bool = False

    @property
    def size(self) -> int:
        return sum(self.slots.values())

    def grow(self, agent: str, kind: SlotKind, amount: int) -> None:
        self.slots[agent, kind] = self.slots.get((agent, kind), 0) + amount
        add(self.turns, agent, amount)
        self.reach = max(self.reach, sum(turn.length for turn in self.turns))

    def follow_slots(self) -> None:
        """Let the next position be the number of slots, which stay where they are."""
        self.turns = [Turn(None, self.size)]


def _union(parts: Sequence[_Left]) -> _Left:
    """Return what a Join of these leaves: every turn once, and slots as the first part has them that holds any."""
    union = concatenate([part.turns for part in parts])
    result = _Left(turns=union.turns, reach=union.end)
    for part, starts in zip(parts, union.starts, strict=True):
        # What lies beyond the turns moves as the last of them does.
        behind = part.reach - sum(turn.length for turn in part.turns[:-1])
        result.reach = max(result.reach, starts[-1] + behind if starts else 0)
    known: set[str] = set()
    for part in parts:
        for key, amount in part.slots.items():
            if key[0] not in known:
                result.slots[key] = max(amount, result.slots.get(key, 0))
        if not part.chosen:  # otherwise it may hold nothing of an agent, and a later part brings it
            known |= {agent for (agent, _), amount in part.slots.items() if amount}
        result.chosen |= part.chosen
    return result


def _plain(step: Step) -> dict[str, object]:
    if isinstance(step, Join):
        branches = [[_plain(inner) for inner in branch] for branch in step.branches]
        # Where all are joined nothing is said, so that older programs keep their digests.
        joined = {} if step.joined is None else {"joined": list(step.joined)}
        return {"verb": "Join", "branches": branches, **joined}
    fields = asdict(step)
    fields.pop("text", None)
    if isinstance(step, Handover) and not step.keep.source:
        del fields["keep"]["source"]  # as for sampling below
    if isinstance(step, Write):
        # What came later to sampling takes part only where it is used, so that older programs keep their digests.
        off = asdict(GREEDY)
        for name in ("min_p", "repetition_penalty"):
            if fields["sampling"][name] == off[name]:
                del fields["sampling"][name]
    return {"verb": type(step).__name__, **fields}


def _lines(program: Program, indent: str) -> Iterator[str]:
    width = max((len(name) for name in program.agents), default=0)
    for number, step in enumerate(program, start=1):
        match step:
            case Read():
                detail = f"{len(step.tokens)} tokens{_excerpt(step.text)}"
            case Think():
                detail = f"{step.steps} thoughts" + (" of noise" if step.source is ThoughtSource.NOISE else "")
            case Handover():
                detail = f"keep {step.keep}, positions {step.positions.value}"
                if step.storage is not Storage.NATIVE:
                    detail += f", stored as {step.storage.value}"
            case Write():
                detail = f"at most {step.max_new_tokens} tokens, {step.sampling}"
            case Recall():
                yield f"{indent}{number:2} Recall   {_numbers(step.branches)}"
                continue
            case Join():
                joined = "" if step.joined is None else f", joined: {_numbers(step.joined)}"
                yield f"{indent}{number:2} Join of {len(step.branches)} branches{joined}"
                numbered = any(branch.recalled for branch in step.branches)
                for own, branch in enumerate(step.branches):
                    mark = f"{own:<3} " if numbered else ""
                    yield from _lines(branch, indent + f"     {mark}| ")
                continue
        yield f"{indent}{number:2} {type(step).__name__:<8} {step.agent:<{width}}  {detail}"


def _numbers(branches: Sequence[int]) -> str:
    return ("branch " if len(branches) == 1 else "branches ") + ", ".join(map(str, branches))


def _excerpt(text: str, limit: int = 60) -> str:
    if not text:
        return ""
    flat = " ".join(text.split())
    return f"  {flat if len(flat) <= limit else flat[: limit - 3] + '...'!s}"
