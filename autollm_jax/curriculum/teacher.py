"""The teacher: a scripted researcher that reads the evidence, extrapolates and refines.

The script plays through the real `Episode`, so it sees the outcomes of its own trials alone. Its
rule can be read off the text: before the first trial it states the best of the nearest cheap
experiment, the law, or (without a law) the largest effects; then, each time, it tries the listed
configuration of the lowest forecast. `claims` checks every statement against the tables.

Some episodes contain moves perturbed on purpose, so that a policy also learns to go on from states
that the script would not reach. Those turns are marked `learned=False`.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from autollm_jax.curriculum.pairs import Families, Pair, Recipe, build_pair
from autollm_jax.forecasts.advisers import forecast
from autollm_jax.gym.environment import Episode, Observation
from autollm_jax.gym.experiments import Experiment
from autollm_jax.text import candidates, prompts, spelling, statements
from autollm_jax.text.parsing import DONE_KEY, EXEC, EXEC_END, THINK, THINK_END
from autollm_jax.text.playing import act


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """How episodes are played.

    Attributes:
      budget: trials per episode.
      perturbed: share of episodes with perturbed moves.
      perturbed_moves: share of perturbed moves in such an episode.
      reasoning: whether turns have a think part.
      matching: whether an unmeasured configuration is replaced by the nearest measured one.
      worst_regret: an episode that ends above this regret is left out of the training set
        (rejection sampling by hindsight; its statements are true either way).
    """

    budget: int = 5
    perturbed: float = 0.25
    perturbed_moves: float = 0.35
    reasoning: bool = True
    matching: bool = True
    worst_regret: float = 0.5


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One simulated episode.

    Attributes:
      recipe: of the pair.
      turns: environment and agent alternating; the outcome of the last trial has no turn, because
        no agent's turn follows.
      regrets: best regret after each trial, in hindsight.
      kept: whether the episode is used for training.
    """

    recipe: Recipe
    turns: tuple[prompts.Turn, ...]
    regrets: tuple[float, ...]
    kept: bool

    @property
    def text(self) -> str:
        return prompts.render(self.turns)

    def to_json(self) -> str:
        """Write one JSON line."""
        return json.dumps(
            {
                "recipe": json.loads(self.recipe.to_json()),
                "turns": [dataclasses.asdict(turn) for turn in self.turns],
                "regrets": self.regrets,
                "kept": self.kept,
            }
        )

    @classmethod
    def from_json(cls, line: str) -> "Trajectory":
        """Read a line that `to_json` wrote."""
        value = json.loads(line)
        return cls(
            Recipe.from_json(json.dumps(value["recipe"])),
            tuple(prompts.Turn(**turn) for turn in value["turns"]),
            tuple(value["regrets"]),
            value["kept"],
        )


def respond(observation: Observation) -> str:
    """Write the scripted turn, a function of the observation, without chance."""
    listed = candidates.list_candidates(observation)
    if not listed:
        return f'{THINK}all tried{THINK_END}{EXEC}{{"{DONE_KEY}": true}}{EXEC_END}' + (
            prompts.END_OF_TURN
        )
    pick = listed[0]
    think = _refine(observation, pick) if observation.trials else _extrapolate(observation, pick)
    return _turn(think, spelling.exec_part(observation.setting.cells, pick.row))


def _turn(think: str, exec_text: str) -> str:
    return f"{THINK}{think}{THINK_END}{exec_text}{prompts.END_OF_TURN}"


def _extrapolate(observation: Observation, pick: candidates.Candidate) -> str:
    """State the evidence's best, the law or the effects, and choose."""
    seen = candidates.forecast_of(observation)
    target = observation.setting
    sentences = []
    if seen.nearest:
        if not candidates.is_long(target.space):
            sentences.append(prompts.nearest_text(observation))
        sizes = statements.sizes_text(seen)
        sentences += [sizes] * bool(sizes)
    if seen.law is not None:
        dimensions = statements.law_dimensions(seen)
        sentences += [statements.law_text(seen, d) for d in dimensions]
    if statements.shown_effects(seen):
        sentences.append(statements.effects_text(seen))
    return _lines(*sentences, _choice(observation, pick))


def _choice(observation: Observation, pick: candidates.Candidate) -> str:
    # The configuration is copied here first, from the line that the label leads to; the action then
    # copies the text right before it. Other lines hold the same parts, and values without names.
    return f"lowest {pick.label} {candidates.percent(pick.expected)} at {pick.text}"


def _refine(observation: Observation, pick: candidates.Candidate) -> str:
    """State how the latest trial compares, name the best one so far, and choose."""
    return _lines(prompts.standing(observation), _choice(observation, pick))


def _lines(*sentences: str) -> str:
    return "".join(f"{sentence}{prompts.LINE}" for sentence in sentences)


def _perturb(observation: Observation, random: np.random.Generator) -> str:
    """Write a turn unlike the script's: another cell, an unmeasured or a broken configuration."""
    target = observation.setting
    cells, space = target.cells, target.space
    kind = random.random()
    row = int(random.integers(len(cells)))
    if kind < 0.6:
        listed = candidates.list_candidates(observation, 8)
        if listed and kind < 0.3:
            row = listed[int(random.integers(len(listed)))].row
        return _turn("a guess", spelling.exec_part(cells, row))
    text = spelling.row_json(cells, row)
    if kind < 0.8:
        # Replace the first number: a weight, a rate, a width.
        number = re.search(r": ([0-9][0-9.e-]*)", text)
        if number is not None:
            off = spelling.spell_number(float(number.group(1)) * float(random.uniform(1.1, 3)))
            text = text[: number.start(1)] + off + text[number.end(1) :]
    else:
        cut = int(random.integers(1, max(len(text) // 2, 2)))
        text = text[:-cut] if kind < 0.9 else text.replace(f'"{space.names[-1]}"', '"x"')
    return _turn("a guess", f"{EXEC}{text}{EXEC_END}")


@dataclasses.dataclass(frozen=True)
class Researcher:
    """Plays evaluation's games as the scripted researcher (an `evaluation.runner.Player`).

    A distilled policy imitates the script. The difference between their scores is therefore the
    part of a policy's skill that does not come from the forecast in its prompt.

    Attributes:
      advisor: the name of that forecast (`forecasts.advisers`).
    """

    advisor: str = "own"

    @property
    def identity(self) -> str:
        """The adviser's name, the only setting."""
        return self.advisor

    def __call__(self, games: Sequence) -> None:
        forecasts = {}
        for game in games:
            episode = game.episode
            key = (episode.setting, episode.evidence)
            if key not in forecasts:
                forecasts[key] = forecast(*key, self.advisor)
            while not episode.done:
                act(episode, respond(episode.tell(forecasts[key])))


def simulate(
    pair: Pair, seed: int, budget: int = 5, config: SimulationConfig | None = None
) -> Trajectory:
    """Play the script on one pair.

    Args:
      pair: target and evidence.
      seed: of the perturbations; without any it has no effect.
      budget: number of trials (instead of the config's).
      config: how episodes are played; None perturbs nothing.
    """
    config = config or SimulationConfig(perturbed=0.0, worst_regret=1.0)
    random = np.random.default_rng([seed, 20260511])
    moves = config.perturbed_moves if random.random() < config.perturbed else 0.0
    episode = Episode(pair.target, pair.evidence, budget, matching=config.matching)
    seen = forecast(episode.setting, episode.evidence)
    observation = episode.tell(seen)
    turns = [prompts.environment_turn(prompts.describe(observation))]
    while True:
        perturbed = random.random() < moves
        text = _perturb(observation, random) if perturbed else respond(observation)
        if not config.reasoning:
            text = text[text.index(EXEC) :]
        turns.append(prompts.agent_turn(text, learned=not perturbed))
        trial = act(episode, text)
        if trial is None or episode.done:
            break
        observation = episode.tell(seen)
        turns.append(prompts.environment_turn(prompts.feedback(trial, observation)))
    played = len(episode.trials)
    regrets = tuple(episode.best_regret(k + 1) for k in range(played))
    kept = bool(regrets) and regrets[-1] <= config.worst_regret
    return Trajectory(pair.recipe, tuple(turns), regrets, kept)


def _simulate_recipes(
    families: Families, recipes: Iterable[Recipe], config: SimulationConfig
) -> list[Trajectory]:
    return [
        simulate(build_pair(recipe, families), recipe.number, config.budget, config)
        for recipe in recipes
    ]


def simulate_all(
    training: Sequence[Experiment],
    recipes: Iterable[Recipe],
    config: SimulationConfig,
    processes: int = 1,
) -> Iterator[Trajectory]:
    """Simulate; the same recipes give the same trajectories for any number of processes.

    Args:
      training: training experiments.
      recipes: of the pairs to play on, from `pairs.draw_recipes`.
      config: how episodes are played.
      processes: 1 plays in this process; more are spawned, which needs a main module that can be
        imported without work.

    Yields:
      One trajectory per pair, in the pairs' order, kept or not.
    """
    same_family = (list(group) for _, group in itertools.groupby(recipes, key=lambda r: r.seed))
    if processes <= 1:
        families = Families(training)
        for group in same_family:
            yield from _simulate_recipes(families, group, config)
        return
    context = multiprocessing.get_context("spawn")
    jobs = [list(itertools.chain(*groups)) for groups in _grouped(same_family, 16)]
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start, initargs=(tuple(training), config)
    ) as pool:
        for trajectories in pool.map(_work, jobs):
            yield from trajectories


def _grouped(items: Iterable, count: int) -> Iterator[list]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, count)):
        yield group


_WORKER: dict = {}  # of a worker process: the arguments of `_start`


def _start(training: tuple, config: SimulationConfig) -> None:
    _WORKER.update(families=Families(training), config=config)


def _work(recipes: list[Recipe]) -> list[Trajectory]:
    return _simulate_recipes(_WORKER["families"], recipes, _WORKER["config"])
