"""The environment's side of a batch, spread over the processes of a job and their workers.

Each group of episodes has one process, and one of its workers, for the whole of its play: that
worker holds the group's advisers and what they have computed. Replies are the same for any number
of both. Every process of the job has all replies afterwards, as the sampler needs them; what they
send each other is pickled, by processes of this job alone.
"""

import base64
import concurrent.futures
import contextlib
import functools
import itertools
import os
import pickle
import signal
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool

from autollm_jax import host
from autollm_jax.agent.environment_turns import EnvironmentTurns, Start
from autollm_jax.cluster import distributed

RECORDS = ("transcripts", "rewards", "audits", "hindsight", "offers")
_plays = itertools.count()


class Workers:
    """Processes that answer for a part of the episodes each; a context, at whose end they end."""

    def __init__(self, processes: int, tokenizer):
        """Spawn them.

        Args:
          processes: their number.
          tokenizer: the policy's.
        """
        self._stack = contextlib.ExitStack()
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._folder = self._stack.enter_context(folder)
        self._tokenizer, self._lost = tokenizer, set()
        # A pool each, so that a group's work goes where the group is.
        self._pools = [self._spawned() for _ in range(processes)]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        self._stack.close()

    def __len__(self) -> int:
        return len(self._pools)

    def _spawned(self) -> concurrent.futures.ProcessPoolExecutor:
        pool = host.pool(1, _hold, (self._tokenizer,))
        pool.submit(os.getpid)  # a pool without work has no process yet
        return pool

    def lose(self, worker: int) -> None:
        """Note that a worker was stopped, and say so."""
        if worker not in self._lost:
            print(f"rollout: worker {worker} was stopped; this process answers in its place")
            self._lost.add(worker)

    def renew(self) -> None:
        """Spawn workers in the place of those that were stopped."""
        for worker in self._lost:
            self._pools[worker] = self._spawned()
        self._lost.clear()

    def submit(self, worker: int, work: Callable, *arguments) -> concurrent.futures.Future:
        """Let a worker do work; the future's result is a path, for `host.collect`."""
        return self._pools[worker].submit(host.leave, self._folder, work, *arguments)


class Part:
    """Some of a batch's episodes, by their numbers in the batch."""

    def __init__(self, tokenizer, starts: Mapping[int, Start], config, scored: bool):
        self._place = {episode: place for place, episode in enumerate(starts)}
        self._turns = EnvironmentTurns(tokenizer, [*starts.values()], config, scored)

    def openings(self, groups: Sequence[Sequence[int]]) -> dict:
        """Return the first prompts: group's first episode -> tokens, each member's `choices`."""
        made = {}
        for group in groups:
            places = [self._place[episode] for episode in group]
            tokens = self._turns.opening(places)
            made[group[0]] = tokens, [self._turns.choices[place] for place in places]
        return made

    def answers(self, said: Mapping[int, Sequence[int]]) -> dict:
        """Take turns; return the replies: episode -> tokens, `choices`."""
        made = {}
        for episode, tokens in said.items():
            place = self._place[episode]
            made[episode] = self._turns.answer(place, tokens), self._turns.choices[place]
        return made

    def records(self) -> dict:
        """Return what became of the episodes: episode -> its course, and its `RECORDS`."""
        return {
            episode: (
                self._turns.episodes[place].course,
                {name: getattr(self._turns, name)[place] for name in RECORDS},
            )
            for episode, place in self._place.items()
        }


class EnvironmentPool:
    """The environment's side of a whole batch.

    Attributes:
      choices: of each episode, as in `EnvironmentTurns`.
      transcripts, rewards, audits, hindsight, offers: as there; complete after `finish`.
    """

    def __init__(
        self, tokenizer, starts: Sequence[Start], config, scored: bool, group_size: int,
        workers: Workers | None = None, players: Sequence[int] = (0,),
    ):  # fmt: skip
        """Spread episodes.

        Args:
          tokenizer, starts, config, scored: as in `EnvironmentTurns`.
          group_size: so many neighbours are copies of one episode.
          workers: processes that answer; None answers in this one.
          players: numbers of the job's processes that play this batch together: one, or all.
        """
        if workers:
            workers.renew()
        self._episodes = [start.episode for start in starts]
        self.choices: list[int | None] = [None] * len(starts)
        for name in RECORDS:
            setattr(self, name, [[] for _ in starts])
        self._apart = len(players) > 1
        groups = range(0, len(starts), group_size)
        mine = [
            group
            for number, group in enumerate(groups)
            if not self._apart or players[number % len(players)] == distributed.index()
        ]
        count = min(len(workers), len(mine)) if workers else 0
        self._part_of: dict[int, _Remote | Part] = {}
        self._parts: list[_Remote | Part] = []
        for number in range(max(count, 1)):
            own = {
                episode: starts[episode]
                for group in mine[number :: max(count, 1)]
                for episode in range(group, min(group + group_size, len(starts)))
            }
            given = tokenizer, own, config, scored
            part = _Remote(workers, number, *given) if workers and count else Part(*given)
            self._parts.append(part)
            self._part_of |= dict.fromkeys(own, part)

    def openings(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the tokens of the first prompt of each group of copies of one episode."""
        made = self._each("openings", lambda part: [g for g in groups if self._is(part, g[0])])
        for group in groups:
            for episode, choices in zip(group, made[group[0]][1], strict=True):
                self.choices[episode] = choices
        return [made[group[0]][0] for group in groups]

    def answers(self, said: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        """Take episodes' turns, by their tokens; return the replies' tokens, none at the end."""
        made = self._each(
            "answers", lambda part: {n: tokens for n, tokens in said.items() if self._is(part, n)}
        )
        for episode, (_, choices) in made.items():
            self.choices[episode] = choices
        return {episode: tokens for episode, (tokens, _) in made.items()}

    def finish(self) -> None:
        """Collect what became of the episodes; the ones that were given have their course then."""
        for number, (course, records) in self._each("records").items():
            self._episodes[number].follow(course)
            for name, record in records.items():
                getattr(self, name)[number] = record

    def _is(self, part, episode: int) -> bool:
        return self._part_of.get(episode) is part

    def _each(self, name: str, given: Callable | None = None) -> dict:
        """Let all parts of all players do their share; return all results together."""
        arguments = [() if given is None else (given(part),) for part in self._parts]
        begun = [
            part.begin(name, *own) if isinstance(part, _Remote) else None
            for part, own in zip(self._parts, arguments, strict=True)
        ]
        made: dict = {}
        for part, own, future in zip(self._parts, arguments, begun, strict=True):
            if isinstance(part, _Remote):
                made |= part.result(future)
            else:
                made |= getattr(part, name)(*own)
        if not self._apart:
            return made
        texts = distributed.gather(_as_text(made))
        return {key: value for text in texts for key, value in _of_text(text).items()}


def _as_text(made: dict) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(made))).decode()


def _of_text(text: str) -> dict:
    return pickle.loads(zlib.decompress(base64.b64decode(text)))  # of a process of this job


class _Remote:
    """A part that a worker holds.

    Its calls are kept: if the worker is stopped, as for want of memory, they are made again in this
    process.
    """

    def __init__(self, workers: Workers, number: int, *given):
        self._workers, self._number, self._play = workers, number, next(_plays)
        self._given, self._calls = given, [("begin", given[1:])]
        self._local: Part | None = None

    def begin(self, name: str, *arguments) -> concurrent.futures.Future | None:
        """Let the worker make a call, and those that it has not made yet."""
        self._calls.append((name, arguments))
        if self._local is not None:
            return None
        waiting = self._calls[:] if len(self._calls) == 2 else self._calls[-1:]
        with contextlib.suppress(BrokenProcessPool):
            return self._workers.submit(self._number, _call, self._play, waiting)
        return None

    def result(self, future: concurrent.futures.Future | None) -> dict:
        if future is not None:
            with contextlib.suppress(BrokenProcessPool):
                return host.collect(future.result())
        name, arguments = self._calls[-1]
        if self._local is None:
            self._workers.lose(self._number)
            self._local = Part(*self._given)
            for earlier, given in self._calls[1:-1]:
                getattr(self._local, earlier)(*given)
        return getattr(self._local, name)(*arguments)


@functools.cache
def _held() -> dict:
    """Return what a worker holds: the tokenizer, and its part of the batch that plays."""
    return {}


def _hold(tokenizer) -> None:
    # A pre-empted job ends its rollout first; a worker ends with the process that spawned it.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    _held()["tokenizer"] = tokenizer


def _call(play: int, calls: Sequence[tuple[str, tuple]]) -> dict:
    """Make calls of a play, as a worker; return the last one's result."""
    made = {}
    for name, arguments in calls:
        if name == "begin":
            _held()["part"] = play, Part(_held()["tokenizer"], *arguments)
        else:
            begun, part = _held()["part"]
            if begun != play:
                raise RuntimeError("a worker plays one batch at a time")
            made = getattr(part, name)(*arguments)
    return made
