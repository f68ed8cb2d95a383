"""The laws of DESIGN section 2 as plain functions that raise `BrokenLaw`, for any backend.

`test_backend_laws.py` expects them to pass; `test_broken_on_purpose.py` breaks the package and expects them to raise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from latentmas.errors import CapabilityError, ContextLimitError
from latentmas.experiment.shared import SharedBackend
from latentmas.program import (
    Handover,
    Join,
    KeepSpec,
    Program,
    Read,
    Recall,
    Sampling,
    Step,
    Think,
    ThoughtSource,
    Write,
)
from latentmas.protocols import Aborts, Backend, Capability, Completion, Job, JobError, Outcome

if TYPE_CHECKING:
    from latentmas.memory import LatentMemory

Prompts = tuple[tuple[int, ...], ...]
AGENTS = ("planner", "critic", "refiner", "judger")
GREEDY = Sampling()
WARM = Sampling(temperature=0.8, top_p=0.95)
STREAM_ONLY = Sampling(temperature=1e9)
"""So hot that the logits do not matter: what is written shows the random numbers themselves."""


class BrokenLaw(AssertionError):  # noqa: N818 - a claim, not an error of the program
    """A backend does not do what DESIGN section 2 promises."""


def promise(holds: bool, law: str) -> None:
    if not holds:
        raise BrokenLaw(law)


@dataclass(frozen=True)
class Subject:
    """A backend under test.

    Attributes:
        open: Returns a fresh backend that keeps that many jobs in flight.
        positions_matter: Written tokens depend on absolute positions (rotary models see distances only).
        own_streams: Random numbers are those of law 2, not an engine's own.
    """

    name: str
    open: Callable[[int], Backend]
    positions_matter: bool
    own_streams: bool = True

    def can(self, capability: Capability) -> bool:
        return capability in self.open(1).capabilities


def prompts(seed: int, *, agents: int = 4, shortest: int = 1, longest: int = 14) -> Prompts:
    """Return one random prompt for each agent, of bytes that are no end of text."""
    source = random.Random(seed)
    return tuple(tuple(source.choices(range(200), k=source.randint(shortest, longest))) for _ in range(agents))


def other_tokens(said: Prompts) -> Prompts:
    """Return prompts of the same lengths that differ in every token."""
    return tuple(tuple((token + 57) % 200 for token in prompt) for prompt in said)


def chain(
    said: Prompts,
    *,
    thoughts: int,
    write: int = 16,
    keep: str = "full",
    every: bool = False,
    source: ThoughtSource = ThoughtSource.OWN,
    sampling: Sampling = GREEDY,
) -> Program:
    """Return the program of a latent chain in which agents read these prompts."""
    names = AGENTS[-len(said) :]
    steps: list[Step] = []
    for number, (name, prompt) in enumerate(zip(names[:-1], said[:-1], strict=True)):
        applies = every or number == len(said) - 2
        steps += [
            Read(agent=name, tokens=prompt),
            Think(agent=name, steps=thoughts, source=source),
            Handover(agent=name, keep=KeepSpec(name=keep if applies else "full")),
        ]
    steps += [
        Read(agent=names[-1], tokens=said[-1]),
        Write(agent=names[-1], max_new_tokens=write, sampling=sampling),
    ]
    return Program(tuple(steps))


def joined(
    said: Sequence[Prompts],
    *,
    thoughts: Sequence[int],
    keep: KeepSpec | None = None,
    write: int = 16,
    source: ThoughtSource = ThoughtSource.OWN,
    sampling: Sampling = GREEDY,
) -> Program:
    """Return independent experts, each with its prompts and thoughts, whom the last prompt's agent hears."""
    *experts, last = said
    branches = []
    for number, (own, steps) in enumerate(zip(experts, thoughts, strict=True)):
        name = f"expert {number}"
        reads = [Read(agent=name, tokens=prompt) for prompt in own]
        branches.append(Program((*reads, Think(agent=name, steps=steps, source=source))))
    return Program(
        (
            Join(branches=tuple(branches)),
            Handover(agent=f"expert {len(experts) - 1}", keep=keep or KeepSpec()),
            Read(agent="judger", tokens=last[0]),
            Write(agent="judger", max_new_tokens=write, sampling=sampling),
        )
    )


def jobs(programs: Iterable[Program], first_seed: int = 0) -> list[Job]:
    return [Job(key=f"job-{n}", program=program, seed=first_seed + n) for n, program in enumerate(programs)]


def outcomes(backend: Backend, work: Sequence[Job]) -> dict[str, Outcome]:
    """Run jobs and return what came of each, after checking that each came back exactly once."""
    for job in work:
        backend.submit(job)
    found: list[Outcome] = []
    while batch := backend.collect():
        found += batch
    keys = [outcome.key for outcome in found]
    promise(sorted(keys) == sorted(job.key for job in work), "every job comes back, and comes back once")
    return {outcome.key: outcome for outcome in found}


def completions(backend: Backend, work: Sequence[Job]) -> dict[str, Completion]:
    done: dict[str, Completion] = {}
    for key, outcome in outcomes(backend, work).items():
        if isinstance(outcome, JobError):
            raise outcome.error
        done[key] = outcome
    return done


def written(backend: Backend, *programs: Program, seed: int = 0) -> list[tuple[int, ...]]:
    """Return the tokens of the last Write of each program; all run with the same seed."""
    work = [replace(job, seed=seed) for job in jobs(programs)]
    done = completions(backend, work)
    return [done[job.key].steps[-1].written for job in work]


# Law 1


def mixed_work(sampling: Sampling, rows: int = 9) -> list[Job]:
    """Return jobs of unlike lengths; every third is of another shape."""
    return jobs(
        chain(prompts(row), thoughts=4, sampling=sampling)
        if row % 3
        else chain(prompts(row, agents=3), thoughts=2, sampling=sampling)
        for row in range(rows)
    )


def check_threads_do_not_matter(subject: Subject, work: Sequence[Job], threads: int, pieces: int = 8) -> None:
    """1b: threads that share a backend, and others that run programs on it meanwhile, get what each gets alone."""
    backend = subject.open(4)
    alone = outcomes(backend, work)
    shared = SharedBackend(backend)

    def share(number: int) -> dict[str, Outcome]:
        with closing(shared.client()) as client:
            return outcomes(client, work[number % 3 :])

    def run(number: int) -> dict[str, Outcome]:
        own = work[number % 3 :][:2]
        done = backend.run([job.program for job in own], [job.seed for job in own])  # type: ignore[attr-defined]
        return {job.key: replace(each, key=job.key) for job, each in zip(own, done, strict=True)}

    with ThreadPoolExecutor(threads) as pool:
        together = pool.map(lambda number: (run if number % 4 == 3 else share)(number), range(pieces))
        for found in together:
            promise(found == {key: alone[key] for key in found}, "what a thread gets is what it gets alone")


def check_what_is_taken_back_has_no_outcome(subject: Subject, work: Sequence[Job]) -> None:
    """A job that is aborted never comes back, and the others do not feel it."""
    backend = subject.open(3)
    alone = outcomes(backend, work)
    assert isinstance(backend, Aborts)
    for job in work:
        backend.submit(job)
    backend.abort("nobody's")
    backend.abort(work[1].key)
    found: list[Outcome] = []
    while batch := backend.collect():
        found += batch
    expected = {key: outcome for key, outcome in alone.items() if key != work[1].key}
    promise({outcome.key: outcome for outcome in found} == expected, "all but the aborted one come back")


def check_others_do_not_matter(subject: Subject, work: Sequence[Job]) -> None:
    """1b, and the first half of 2: neither batch size nor order nor company changes an outcome."""
    alone = outcomes(subject.open(1), work)
    for size in (2, 5, 20):
        promise(outcomes(subject.open(size), work) == alone, f"a batch of {size} gives what each job gives alone")
    promise(outcomes(subject.open(4), work[::-1]) == alone, "the order of jobs changes no outcome")
    fewer = outcomes(subject.open(20), work[1::2])
    promise(all(alone[key] == outcome for key, outcome in fewer.items()), "missing company changes no outcome")


def check_company_of_equal_shape(subject: Subject, rows: int = 4) -> None:
    """1a: replacing the tokens of the other rows, at equal shapes, leaves a row as it was, in any dtype."""
    for sampling in (GREEDY, WARM):
        said = [prompts(row) for row in range(rows)]
        before = jobs(chain(row, thoughts=6, sampling=sampling) for row in said)
        after = jobs(
            chain(row if number == 1 else other_tokens(row), thoughts=6, sampling=sampling)
            for number, row in enumerate(said)
        )
        key = before[1].key
        promise(
            outcomes(subject.open(rows), before)[key] == outcomes(subject.open(rows), after)[key],
            "other tokens in the other rows leave a row as it was",
        )


# Law 2


def check_draws_are_a_function_of_seed_write_and_step(subject: Subject) -> None:
    """With the logits out of play, only seed, number of the Write and step may decide what is written."""
    read, other = (Read(agent="a", tokens=prompt) for prompt in ((3, 1, 4, 1, 5), (9, 2)))
    write = Write(agent="a", max_new_tokens=24, sampling=STREAM_ONLY)
    noise = Think(agent="a", steps=3, source=ThoughtSource.NOISE)
    backend = subject.open(8)
    seen = []
    for seed in range(6):
        plain, of_other = written(backend, Program((read, write)), Program((other, write)), seed=seed)
        promise(plain == of_other, "what was read does not change the random numbers")
        if subject.can(Capability.NOISE):
            [after_noise] = written(backend, Program((read, noise, write)), seed=seed)
            promise(plain == after_noise, "noise thoughts take nothing from the stream of a Write")
        both = completions(backend, jobs([Program((read, write, read, write))], first_seed=seed))["job-0"].steps
        promise(both[1].written == plain, "what comes after a Write does not change it")
        promise(both[3].written != plain, "the second Write of a job has a stream of its own")
        seen.append(plain)
    promise(len(set(seen)) == len(seen), "jobs with different seeds draw different numbers")


def check_seeds_decide_samples_and_noise(subject: Subject) -> None:
    said = prompts(3, shortest=4)
    backend = subject.open(8)

    def different(program: Program) -> int:
        return len({outcome.steps[-1].written for outcome in completions(backend, jobs([program] * 8)).values()})

    promise(different(chain(said, thoughts=2, sampling=Sampling(temperature=1.0))) == 8, "each seed has its sample")
    promise(different(chain(said, thoughts=2)) == 1, "greedy tokens do not depend on the seed")
    if not subject.can(Capability.NOISE):
        return
    noisy = chain(said, thoughts=8, source=ThoughtSource.NOISE)
    promise(different(noisy) > 4, "noise thoughts depend on the seed")


# Law 3


def check_steps_compose(subject: Subject) -> None:
    """`Read(a) Read(b)` is `Read(a + b)`, `Think(0)` is nothing, `Think(a) Think(b)` is `Think(a + b)`."""
    backend = subject.open(4)
    for seed, sampling in ((1, GREEDY), (2, WARM)):
        first, second = prompts(seed, agents=2, shortest=3)

        def read(tokens: tuple[int, ...]) -> Read:
            return Read(agent="a", tokens=tokens)

        def think(steps: int, source: ThoughtSource = ThoughtSource.OWN) -> Think:
            return Think(agent="a", steps=steps, source=source)

        def same(one: Sequence[Step], other: Sequence[Step], law: str) -> None:
            ends = (Read(agent="b", tokens=(7, 7, 3)), Write(agent="b", max_new_tokens=16, sampling=sampling))  # noqa: B023
            left, right = written(backend, Program((*one, *ends)), Program((*other, *ends)), seed=seed)  # noqa: B023
            promise(left == right, law)

        whole = [read(first + second), think(5)]
        same([read(first), read(second), think(5)], whole, "two Reads are one")
        same([read(first), think(0), read(second), think(0), think(5)], whole, "Think(0) is nothing")
        same([read(first + second), think(2), think(3)], whole, "two Thinks are one")
        noise = ThoughtSource.NOISE
        if not subject.can(Capability.NOISE):
            continue
        same(
            [read(first), think(2, noise), think(3, noise)],
            [read(first), think(5, noise)],
            "two Thinks of noise are one",
        )


# Laws 4 and 5


def check_dropped_slots_are_dropped(subject: Subject) -> None:
    """The content of dropped slots changes nothing that comes later; what is kept does."""
    backend = subject.open(4)
    for keep in ("thoughts", "last_agent"):
        dropped, kept, last = prompts(5, agents=3, shortest=5)
        changed = other_tokens((dropped,))[0]
        # Without thoughts, nothing computed from the dropped prompt is left.
        opening = [
            [
                Read(agent="a", tokens=tokens),
                Handover(agent="a" if keep == "thoughts" else "nobody", keep=KeepSpec(name=keep)),
            ]
            for tokens in (dropped, changed)
        ]
        ends = (
            Read(agent="b", tokens=kept),
            Think(agent="b", steps=3),
            Handover(agent="b"),
            Read(agent="c", tokens=last),
            Write(agent="c", max_new_tokens=16),
        )
        one, other = (Program((*steps, *ends)) for steps in opening)
        left, right = (completions(backend, jobs([program]))["job-0"] for program in (one, other))
        promise(left == right, f"what a hand-over of {keep} drops is dropped for every later step")
        promise(
            left.steps[1].slots == 0 and left.steps[2].slots == len(kept), "dropped slots are not counted as memory"
        )
        whole = [Program((Read(agent="a", tokens=tokens), Handover(agent="a"), *ends)) for tokens in (dropped, changed)]
        promise(len(set(written(backend, *whole))) == 2, "what is kept is seen")


def check_dropping_frees_no_position(subject: Subject) -> None:
    """After dropping, the next token follows the largest true position, not the number of slots."""
    promise(subject.positions_matter, "only where absolute positions show in the text")
    backend = subject.open(4)

    def after(dropped: int) -> Program:
        steps = (
            Read(agent="a", tokens=tuple(range(dropped))),
            Handover(agent="a", keep=KeepSpec(name="thoughts")),
            Read(agent="b", tokens=(1, 2, 3)),
            Write(agent="b", max_new_tokens=16),
        )
        return Program(steps)

    promise(len(set(written(backend, after(5), after(6), after(9)))) == 3, "dropped slots keep their positions")


def check_positions_after_dropping(memories: Callable[[Sequence[Program]], Sequence[LatentMemory]]) -> None:
    """Kept slots stay where they were, and the next agent starts behind the largest position ever used.

    Args:
        memories: Runs programs in one batch and returns what each leaves in memory, for backends that can show it.
    """
    said = [prompts(row) for row in (0, 3)]
    programs = [Program(chain(row, thoughts=2, keep="thoughts").steps[:-1]) for row in said]
    for row, memory in zip(said, memories(programs), strict=True):
        expected: list[int] = []
        position = 0
        for prompt in row[:-1]:
            position += len(prompt) + 2
            expected += [position - 2, position - 1]
        expected += range(position, position + len(row[-1]))
        promise(memory.positions[0].tolist() == expected, "positions are true after dropping")
        promise(int(memory.next_position) == expected[-1] + 1, "the next position follows the largest one")


def check_keeping_everything_changes_nothing(subject: Subject) -> None:
    backend = subject.open(4)
    for seed in range(3):
        program = chain(prompts(seed), thoughts=3)
        bare = Program(tuple(step for step in program if not isinstance(step, Handover)))
        promise(len(set(written(backend, program, bare))) == 1, "a hand-over that keeps everything changes nothing")


# Joining


def team_of(row: int, **options: Any) -> Program:
    """Return three experts and a judger; the middle one thinks longer, so that branches differ in shape."""
    said = [prompts(10 * row + number, agents=1, shortest=3) for number in range(4)]
    return joined(said, thoughts=(2, 4, 2), **options)


def check_joined_rows_do_not_affect_each_other(subject: Subject) -> None:
    for sampling in (GREEDY, WARM):
        noise = [team_of(9, source=ThoughtSource.NOISE, sampling=sampling)] if subject.can(Capability.NOISE) else []
        work = [team_of(row, sampling=sampling) for row in range(5)]
        others = [chain(prompts(3), thoughts=2, sampling=sampling)]
        check_others_do_not_matter(subject, jobs([*work, *noise, *others]))


def check_branches_are_read_alone_and_in_order(subject: Subject) -> None:
    """What one expert reads does not change what another one leaves; it changes what the judger writes."""
    backend = subject.open(4)
    said = [prompts(number, agents=1, shortest=4) for number in range(3)]
    changed = [other_tokens(said[0]), *said[1:]]
    whole, other, turned = (
        completions(backend, jobs([joined(order, thoughts=(3, 3))]))["job-0"]
        for order in (said, changed, [said[1], said[0], said[2]])
    )
    promise(whole.steps[0].branches[1] == other.steps[0].branches[1], "a branch does not see the others")
    tokens = {completion.steps[-1].written for completion in (whole, other, turned)}
    promise(len(tokens) == 3, "the judger sees every branch, and their order")


def check_joined_positions_follow_each_other(subject: Subject) -> None:
    """One expert after the other is what a Join of one with nothing is: the last position counts, not the slots."""
    promise(subject.positions_matter, "only where absolute positions show in the text")
    backend = subject.open(4)

    def after(dropped: int) -> Program:
        first = (Read(agent="a", tokens=tuple(range(dropped))), Handover(agent="a", keep=KeepSpec(name="thoughts")))
        join = Join(branches=(Program(first), Program((Read(agent="b", tokens=(5, 6)),))))
        return Program((join, Read(agent="c", tokens=(1, 2, 3)), Write(agent="c", max_new_tokens=16)))

    promise(len(set(written(backend, after(4), after(5), after(9)))) == 3, "joining adds next positions")


def check_joined_accounts_add_up(subject: Subject) -> None:
    program = team_of(2)
    done = completions(subject.open(4), jobs([program]))["job-0"].steps
    [join, *_] = program
    assert isinstance(join, Join)
    for branch, accounts in zip(join.branches, done[0].branches, strict=True):
        slots = 0
        for step, account in zip(branch, accounts, strict=True):
            slots += len(step.tokens) if isinstance(step, Read) else step.steps if isinstance(step, Think) else 0
            promise(account.slots == slots, "a branch counts its own slots")
    promise(done[0].slots == sum(accounts[-1].slots for accounts in done[0].branches), "joining adds slots")
    promise(program.count().max_slots >= done[-1].slots, "a program knows how many slots it may need")


def check_an_agent_in_two_branches_is_laid_down_once(subject: Subject) -> None:
    shared = (Read(agent="a", tokens=(3, 1, 4, 1, 5)), Think(agent="a", steps=2), Handover(agent="a"))

    def branch(name: str, prompt: tuple[int, ...]) -> Program:
        return Program((*shared, Read(agent=name, tokens=prompt), Think(agent=name, steps=1)))

    join = Join(branches=(branch("b", (9, 2, 6)), branch("c", (5, 3))))
    program = Program((join, Read(agent="d", tokens=(7, 7)), Write(agent="d", max_new_tokens=8)))
    done = completions(subject.open(4), jobs([program]))["job-0"].steps
    promise(done[0].slots == 7 + 4 + 3, "who is heard through two branches is laid down once")


def ladder(row: int, *, source: ThoughtSource = ThoughtSource.OWN, sampling: Sampling = GREEDY) -> Program:
    """Return a team of two rounds and a half in which the middle one of the first is heard by both of the second."""
    a, b, c, d, e, f, last = (prompts(70 + 10 * row + number, agents=1, shortest=3)[0] for number in range(7))

    def turn(name: str, prompt: tuple[int, ...], steps: int) -> tuple[Step, ...]:
        return (Read(agent=name, tokens=prompt), Think(agent=name, steps=steps, source=source))

    branches = (
        Program(turn("a", a, 2)),
        Program(turn("b", b, 1)),
        Program(turn("c", c, 2)),
        Program((Recall(branches=(0, 1)), Handover(agent="b"), *turn("d", d, 2))),
        Program((Recall(branches=(2, 1)), Handover(agent="b"), *turn("e", e, 2))),
        Program((Recall(branches=(1,)), Handover(agent="b", keep=KeepSpec(name="last_agent")), *turn("f", f, 1))),
    )
    join = Join(branches=branches, joined=(3, 4, 5))
    end = (Read(agent="last", tokens=last), Write(agent="last", max_new_tokens=16, sampling=sampling))
    return Program((join, Handover(agent="f"), *end))


def repeated(program: Program) -> Program:
    """Return the program in which nothing is recalled, but computed again by each who goes on from it."""
    [join, *rest] = program
    assert isinstance(join, Join)
    whole: list[Program] = []
    for branch in join.branches:
        match [whole[number] for number in branch.recalled]:
            case []:
                whole.append(branch)
            case [one]:
                whole.append(Program((*one, *branch.steps[1:])))
            case several:
                whole.append(Program((Join(branches=tuple(several)), *branch.steps[1:])))
    return Program((Join(branches=tuple(whole[number] for number in join.joined_branches)), *rest))


def check_going_on_from_a_branch_equals_computing_it_again(subject: Subject) -> None:
    """Recall(branch) and what follows is the branch's steps and what follows: text, slots and positions."""
    backend = subject.open(8)
    for sampling in (GREEDY, WARM):
        programs = [ladder(row, sampling=sampling) for row in range(4)]
        once = completions(backend, jobs(programs))
        again = completions(backend, jobs(map(repeated, programs)))
        for key, program in zip(once, programs, strict=True):
            mine, other = once[key].steps, again[key].steps
            promise(mine[-1].written == other[-1].written, "what is recalled is what would be computed again")
            promise([step.slots for step in mine] == [step.slots for step in other], "as many slots are laid down")
            promise(
                program.count().positions == repeated(program).count().positions, "positions are those of the union"
            )


def check_what_several_hear_is_computed_once(subject: Subject) -> None:
    program = ladder(0)
    done = completions(subject.open(4), jobs([program]))["job-0"].steps
    accounts = [account for branch in done[0].branches for account in branch] + list(done[1:])
    count = program.count()
    promise(sum(account.prompt_tokens for account in accounts) == count.prompt_tokens, "each agent reads once")
    promise(sum(account.thoughts for account in accounts) == count.thoughts, "each agent thinks once")
    promise(done[-1].slots == count.prompt_tokens + count.thoughts + done[-1].forward_passes, "each is there once")
    verbs = [account.verb for account in done[0].branches[3]]
    promise(verbs == ["Recall", "Handover", "Read", "Think"], "an account per step")
    promise(done[0].branches[3][0].forward_passes == 0, "going on from a memory computes nothing")


def check_rows_that_recall_do_not_affect_each_other(subject: Subject) -> None:
    noise = [ladder(9, source=ThoughtSource.NOISE)] if subject.can(Capability.NOISE) else []
    check_others_do_not_matter(
        subject, jobs([*(ladder(row) for row in range(4)), *noise, chain(prompts(3), thoughts=2)])
    )


# Writing and accounts


def check_writing_leaves_no_end_of_text(subject: Subject) -> None:
    """Reading what an agent wrote gives the memory that writing it left, whether or not end of text was chosen."""
    backend, stopped = subject.open(4), 0
    for seed in range(8):
        said, last = prompts(seed, agents=2)
        ends = (Read(agent="b", tokens=last), Write(agent="b", max_new_tokens=16))
        read, write = Read(agent="a", tokens=said), Write(agent="a", max_new_tokens=12)
        done = completions(backend, jobs([Program((read, write, *ends))]))["job-0"].steps
        stopped += len(done[1].written) < 12
        if done[1].written:
            again = Program((Read(agent="a", tokens=said + done[1].written), *ends))
            promise(written(backend, again) == [done[3].written], "a text that was written counts as a text read")
    promise(stopped > 0, "some texts end by themselves")


def check_accounts_add_up(subject: Subject) -> None:
    """Every account can be recomputed from the program and what was written."""
    keeps = ("full", "thoughts", "last_agent") if subject.can(Capability.PARTIAL_HANDOVER) else ("full",) * 3
    work = jobs(chain(prompts(row), thoughts=3, keep=keep) for row, keep in enumerate(keeps))
    for job in work:
        done = completions(subject.open(4), [job])[job.key]
        slots = 0
        by_agent: dict[str, int] = {}
        thoughts = 0
        for step, account in zip(job.program, done.steps, strict=True):
            assert not isinstance(step, Join)
            match step:
                case Read():
                    promise(account.prompt_tokens == len(step.tokens), "a Read counts its tokens")
                    grown = len(step.tokens)
                case Think():
                    promise(account.thoughts == account.forward_passes == step.steps, "a Think counts its thoughts")
                    grown = step.steps
                    thoughts += grown
                case Write():
                    # The last token of a text that was cut is never read back.
                    cut = len(account.written) == step.max_new_tokens
                    grown = len(account.written) - cut
                    promise(account.forward_passes == grown, "a Write runs once for each token but a last one")
                case Handover(keep=KeepSpec(name="thoughts")):
                    slots, grown = thoughts, 0
                case Handover(keep=KeepSpec(name="last_agent")):
                    slots, grown = by_agent[step.agent], 0
                case _:
                    grown = 0
            by_agent[step.agent] = by_agent.get(step.agent, 0) + grown
            slots += grown
            promise(account.slots == slots, f"after {account.verb} of {step.agent} there are {slots} slots")
            promise(
                (account.memory_bytes > 0) == (slots > 0) and account.memory_bytes % max(slots, 1) == 0,
                "memory is counted in whole slots",
            )


# Law 6


def check_refusals(subject: Subject, too_long: Program, join: Program, filtered: Program) -> None:
    """What the backend cannot do is refused by name; a job that is too long does not hurt the others."""
    backend = subject.open(4)
    refused = [(filtered, "magic")] if subject.can(Capability.JOIN) else [(join, "join"), (filtered, "magic")]
    for program, name in refused:
        try:
            backend.submit(Job(key="refused", program=program))
        except CapabilityError as error:
            promise(name in str(error).lower(), f"the refusal names {name!r}: {error}")
        else:
            raise BrokenLaw(f"a program with {name} is refused when it is submitted")
    good = jobs(chain(prompts(row), thoughts=2) for row in range(3))
    found = outcomes(backend, [good[0], Job(key="long", program=too_long), *good[1:]])
    long = found.pop("long")
    promise(isinstance(long, JobError) and isinstance(long.error, ContextLimitError), "a job that is too long fails")
    promise(found == outcomes(subject.open(4), good), "the others do not feel a job that is too long")
    promise(backend.collect() == [], "nothing is left when every job came back")
