"""One backend for several threads: nobody loses a job, nobody waits for one that is lost, batches are shared."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from threading import Barrier, Event, Thread, current_thread
from time import sleep

import pytest

from latentmas import Session, Team
from latentmas.backends.scripted import ScriptedBackend
from latentmas.errors import CapabilityError, EngineError
from latentmas.experiment import runner
from latentmas.experiment.shared import SharedBackend
from latentmas.program import Budget, Handover, KeepSpec, Program, Read, Storage, Think, Write
from latentmas.protocols import Completion, Job
from latentmas.samples import Answer, Sample


class Solo:
    """A method with one agent that repeats its question."""

    name, needs, roles = "solo", frozenset(), {"solo": "solver"}

    def solve(self, sample):
        read = Read(agent="solo", tokens=tuple(sample.question.encode()))
        completion = yield Program((read, Write(agent="solo", max_new_tokens=40)))
        return Answer(text=completion.text, finish_reason=completion.finish_reason)

    def donor_of(self, sample):
        return None


class Store:
    def __init__(self):
        self.records = []

    def append(self, record):
        self.records.append(record)


def echo(turn):
    return f"[{turn.prompt}]"


def asked(backend, questions):
    """Return the answers of a run, by question."""
    store = Store()
    samples = [Sample(id=str(number), question=question, target="") for number, question in enumerate(questions)]
    runner.run(samples, method=Solo(), backend=backend, store=store, seed=0)
    return {record.question: record.text or record.error for record in store.records}


def in_threads(shared, threads, ask: Callable[[object, int], object]):
    """Let every thread ask at once through a client of its own; return what each got."""
    start = Barrier(threads)

    def work(number):
        start.wait()
        with closing(shared.client()) as client:
            return ask(client, number)

    with ThreadPoolExecutor(threads) as pool:
        return [future.result(20) for future in [pool.submit(work, number) for number in range(threads)]]


def job(text="a", key="0"):
    return Job(key=key, program=Program((Read(agent="a", tokens=(1, 2)), Write(agent="a", max_new_tokens=3))))


@pytest.mark.parametrize("threads", [2, 8])
def test_every_thread_gets_its_own_answers_though_all_use_the_same_keys(threads):
    shared = SharedBackend(ScriptedBackend(reply=echo, capacity=5))

    def ask(client, number):
        questions = [f"{number}/{n}" for n in range(11)]
        return asked(client, questions) == {question: f"[{question}]" for question in questions}

    for _ in range(10):
        assert all(in_threads(shared, threads, ask))


def test_jobs_of_all_threads_fill_one_batch():
    class Counting(ScriptedBackend):
        batches = ()

        def collect(self):
            sleep(0.01)
            outcomes = super().collect()
            self.batches = (*self.batches, len(outcomes))
            return outcomes

    backend = Counting(reply=echo, capacity=8)
    in_threads(SharedBackend(backend), 8, lambda client, number: [asked(client, [f"{number}/{n}"]) for n in range(5)])
    assert sum(backend.batches) == 40
    assert len(backend.batches) <= 20, "batches of one job each would be 40, full ones 5"


class Losing(ScriptedBackend):
    """Loses the jobs of one question."""

    def submit(self, job):
        if b"lost" not in bytes(job.program.reads[0].tokens):
            super().submit(job)


def test_a_runner_whose_job_was_lost_raises():
    with pytest.raises(EngineError, match="has lost 1 job: "):
        asked(Losing(reply=echo), ["a", "lost", "b"])


def test_a_lost_job_raises_in_the_thread_that_waits_for_it_and_in_no_other():
    shared = SharedBackend(Losing(reply=echo, capacity=2))

    def ask(client, number):
        try:
            return asked(client, ["a", "lost"] if number == 2 else ["a", "b", "c"])
        except EngineError as error:
            return str(error)

    *others, unlucky = in_threads(shared, 3, ask)
    assert others == [{"a": "[a]", "b": "[b]", "c": "[c]"}] * 2
    assert unlucky == "the backend has lost 1 job: it has nothing left to return"


class Repeating(ScriptedBackend):
    """Returns its first outcome once more with those of the next batch."""

    first = ()

    def collect(self):
        outcomes = super().collect()
        again, self.first = self.first, self.first or tuple(outcomes[:1])
        return [*again, *outcomes]


def test_an_outcome_that_comes_again_is_nobody_elses_answer():
    shared = SharedBackend(Repeating(reply=echo))
    with closing(shared.client()) as client:
        assert asked(client, ["one"]) == {"one": "[one]"}
    with closing(shared.client()) as client:
        assert asked(client, ["two"]) == {"two": "[two]"}


def test_two_outcomes_of_one_job_are_not_taken_for_those_of_its_two_programs():
    class Twice(Solo):
        def solve(self, sample):
            first = yield from super().solve(sample)
            second = yield from super().solve(Sample(id=sample.id, question="second", target=""))
            return Answer(text=first.text + second.text, finish_reason=second.finish_reason)

    class Doubling(ScriptedBackend):
        def collect(self):
            return [outcome for outcome in super().collect() for _ in range(2)]

    sample = Sample(id="s", question="first", target="")
    with pytest.raises(EngineError, match="two outcomes of job 's' at once"):
        runner.run([sample], method=Twice(), backend=Doubling(reply=echo), store=Store(), seed=0)


def test_two_runners_that_share_a_backend_without_clients_raise_instead_of_waiting():
    backend = ScriptedBackend(reply=echo)
    backend.submit(job(key="of somebody else"))
    with pytest.raises(EngineError, match="'of somebody else', which is not in flight here"):
        asked(backend, ["a"])
    shared = SharedBackend(backend)
    backend.submit(job(key="of somebody else"))
    with closing(shared.client()) as other, closing(shared.client()) as client:
        for each in (other, client):
            each.submit(job())
        backend._waiting.pop()
        other.collect()
        with pytest.raises(EngineError, match="which nobody submitted here"):
            client.collect()


def test_what_breaks_a_batch_reaches_everyone_who_has_a_job_in_it_and_the_backend_goes_on():
    class Broken(ScriptedBackend):
        breaks = True

        def collect(self):
            if self.breaks:
                self.breaks = False
                raise RuntimeError("the engine fell over")
            return super().collect()

    shared = SharedBackend(Broken(reply=echo))
    first, second, third = (shared.client() for _ in range(3))
    first.submit(job())
    second.submit(job())
    for client in (first, second):
        with pytest.raises(RuntimeError, match="fell over"):
            client.collect()
    third.submit(job())
    second.submit(job(key="again"))
    assert [outcome.key for outcome in third.collect()] == ["0"], "what comes late is nobody's"
    assert [outcome.key for outcome in second.collect()] == ["again"]
    assert first.collect() == []


def test_what_can_never_run_is_refused_where_it_is_submitted():
    shared = SharedBackend(ScriptedBackend())
    with closing(shared.client()) as client:
        read = Read(agent="a", tokens=(1,))
        with pytest.raises(CapabilityError, match="int8"):
            client.submit(Job(key="0", program=Program((read, Handover(agent="a", storage=Storage.INT8)))))
        assert client.collect() == []


def test_an_interrupted_thread_takes_nobody_along():
    class Interrupted(ScriptedBackend):
        """The batch that is interrupted is gone."""

        def collect(self):
            outcomes = super().collect()
            if current_thread() is interrupted:
                raise KeyboardInterrupt
            return outcomes

    shared = SharedBackend(Interrupted(reply=echo))
    client, stopped = shared.client(), []
    client.submit(job())

    def work():
        with closing(shared.client()) as own:
            own.submit(job())
            try:
                own.collect()
            except KeyboardInterrupt:
                stopped.append(True)

    interrupted = Thread(target=work)
    interrupted.start()
    interrupted.join(10)
    assert stopped == [True]
    [outcome] = client.collect()
    assert isinstance(outcome, Completion)
    client.submit(job(key="next"))
    assert [outcome.key for outcome in client.collect()] == ["next"]


def test_what_a_thread_gave_up_is_not_run_for_nobody():
    ran = []

    def noted(turn):
        ran.append(turn.prompt)
        return "x"

    shared = SharedBackend(ScriptedBackend(reply=noted))
    with closing(shared.client()) as gone, closing(shared.client()) as client:
        gone.submit(Job(key="0", program=Program((Read(agent="a", tokens=(103,)), Write(agent="a", max_new_tokens=3)))))
        client.submit(job())
        gone.close()
        assert [outcome.key for outcome in client.collect()] == ["0"], "its name at the backend is its own affair"
    assert ran == ["\x01\x02"]


def test_closing_ends_those_who_wait_with_an_error_and_lets_the_backend_return_first():
    entered, release = Event(), Event()

    class Slow(ScriptedBackend):
        inside = closed_inside = False

        def collect(self):
            self.inside = True
            entered.set()
            release.wait(10)
            self.inside = False
            return super().collect()

        def close(self):
            self.closed_inside = self.inside

    backend = Slow(reply=echo)
    shared = SharedBackend(backend)
    leader, follower = shared.client(), shared.client()
    with ThreadPoolExecutor(3) as pool:
        leader.submit(job())
        follower.submit(job())
        leads = pool.submit(leader.collect)
        assert entered.wait(10)
        follows = pool.submit(follower.collect)
        ends = pool.submit(shared.close)
        assert isinstance(follows.exception(10), EngineError)
        release.set()
        assert len(leads.result(10)) == 1
        ends.result(10)
    assert not backend.closed_inside
    for use in (lambda: leader.submit(job()), shared.client):
        with pytest.raises(EngineError, match="was closed"):
            use()


QUESTIONS = [f"what is {n} + {7 * n}?" for n in range(6)]


def told(record):
    """Return what a record says without seconds."""
    return record.text, record.error, [agent.model_copy(update={"seconds": 0.0}) for agent in record.agents]


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("method", ["latent_mas", "text_mas"])
def test_threads_that_ask_one_team_get_what_each_question_alone_gets(model_folder, method, threads):
    team = Team(str(model_folder), method=method, latent_steps=2, max_new_tokens=5, dtype="float64", generate_bs=6)
    alone = {question: told(team.ask(question)) for question in QUESTIONS}

    def ask(number):
        if number % 2:
            return [team.ask(question) for question in QUESTIONS[number % 5 :][:2]]
        return team.ask_all(QUESTIONS[number % 5 :][:4])

    with ThreadPoolExecutor(threads) as pool:
        records = [future.result(60) for future in [pool.submit(ask, number) for number in range(threads)]]
    for record in chain.from_iterable(records):
        assert told(record) == alone[record.question]


def test_sessions_and_programs_of_their_own_run_beside_a_team_that_watches_attention(model_folder):
    team = Team(
        str(model_folder),
        latent_steps=1,
        max_new_tokens=4,
        dtype="float64",
        options={"filter": "receiver", "keep": 0.5, "attn_implementation": "eager"},
    )
    half = KeepSpec(name="receiver", budget=Budget(amount=0.5))
    read, think = Read(agent="a", tokens=(9, 8, 7, 6, 5)), Think(agent="a", steps=3)
    program = Program((read, think, Handover(agent="a", keep=half), read, Write(agent="a", max_new_tokens=6)))

    def converse(seed):
        session = Session(team.backend, seed=seed).read("a", f"hello {seed}").think("a", 2)
        return session.hand_over("a", half, to="and?").read("b", "and?").write("b", 8)

    def run(seed):
        [completion] = team.backend.run([program], seeds=[seed])
        return completion

    def ask(seed):
        return told(team.ask(f"what is {seed} + 1?"))

    work = [(each, seed) for seed in range(4) for each in (converse, run, ask)]
    alone = [each(seed) for each, seed in work]
    with ThreadPoolExecutor(6) as pool:
        together = [future.result(60) for future in [pool.submit(each, seed) for each, seed in work]]
    assert together == alone


def test_no_forward_pass_of_a_model_runs_while_another_does(tiny):
    """What a pass changes in the model - who watches, which frequencies turn keys - is nobody else's."""
    backend = tiny.backend("qwen3")
    inside, most = [], []

    def enter(*_):
        inside.append(True)
        most.append(len(inside))
        sleep(0.001)

    decoder = backend.model.decoder
    hooks = [
        decoder.register_forward_pre_hook(enter),
        decoder.register_forward_hook(lambda *_: inside.pop() and None),
    ]
    program = Program((Read(agent="a", tokens=(9, 8, 7)), Write(agent="a", max_new_tokens=9)))
    try:
        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(backend.run, [program]) for _ in range(2)]
            work += [pool.submit(Session(backend).read("a", "hi").write, "a", 9) for _ in range(2)]
            for future in work:
                future.result(60)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(most) > 20
    assert max(most) == 1
