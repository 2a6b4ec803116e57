"""Makes pairs ready to be played, or does other work on each pair, in processes beside this one."""

import contextlib
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from autollm_jax import host
from autollm_jax.curriculum.lookahead import Lookahead, worth
from autollm_jax.curriculum.pairs import Families, Pair, Recipe, build_pair
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Experiment

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A target, its advisers and, where a choice is credited with the episode's rest, lookahead."""

    target: Experiment
    panel: Panel
    lookahead: Lookahead | None


def prepare(pair: Pair, budget: int, ahead: bool) -> Prepared:
    """Make a pair's advisers, and ask them what does not depend on an episode's course.

    Args:
      pair: the pair.
      budget: trials of an episode.
      ahead: whether to look ahead.
    """
    panel = pair.counsel()
    prepared = Prepared(pair.target, panel, Lookahead(panel) if ahead else None)
    episode = Episode(pair.target, pair.evidence, budget)
    decision = decision_of(panel, episode.tell(), seed=0)
    if decision is not None:
        worth(episode, decision.offer, prepared.lookahead)
    return prepared


@contextlib.contextmanager
def over_pairs(
    training: Sequence[Experiment],
    recipes: Iterable[Recipe],
    work: Callable[[Pair], Result],
    processes: int = 1,
) -> Iterator[Iterator[Result]]:
    """Do work on each pair; the results are the same for any number of processes.

    Args:
      training: training experiments.
      recipes: of the pairs, from `pairs.draw_recipes`.
      work: what is done; with several processes it has to be picklable, as its results.
      processes: 1 works in this process, when a result is asked for. More are spawned
        (`host.pool`), and begin at once.

    Yields:
      The results, in the pairs' order. At the context's end no further pair is begun.
    """
    if processes <= 1:
        families = Families(training)
        yield (work(build_pair(recipe, families)) for recipe in recipes)
        return
    # A family is costly to make, so that one process works on all its pairs.
    same_family = [list(group) for _, group in itertools.groupby(recipes, key=lambda r: r.seed)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pool = host.pool(processes, _start, (tuple(training), work))
        futures = [pool.submit(host.leave, folder, _work, family) for family in same_family]
        try:
            yield (result for future in futures for result in host.collect(future.result()))
        finally:
            for future in futures:
                future.cancel()
            pool.shutdown(wait=False)


@functools.cache
def _worker() -> dict:
    """Return what `_start` was given; of a worker process."""
    return {}


def _start(training: tuple, work: Callable) -> None:
    _worker().update(families=Families(training), work=work)


def _work(recipes: list[Recipe]) -> list:
    families, work = _worker()["families"], _worker()["work"]
    return [work(build_pair(recipe, families)) for recipe in recipes]
