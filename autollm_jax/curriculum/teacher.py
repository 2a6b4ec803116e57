"""The teacher: a scripted player that knows in hindsight whom to trust, and explains what it does.

It plays through the real `Episode`. At each decision it draws a panel of advisers from a soft
hindsight distribution: a panel whose first pick would bring much is likely, and none is impossible.
So a policy that imitates it learns how likely each panel is to be right, and keeps an entropy from
which reinforcement learning can go on. `text.claims` checks every statement.
"""

import dataclasses
import json

import numpy as np

from autollm_jax.curriculum.lookahead import Lookahead, worth
from autollm_jax.curriculum.pairs import Pair, Recipe
from autollm_jax.forecasts.advice import Decision, decision_of
from autollm_jax.gym.environment import Episode
from autollm_jax.text import prompts
from autollm_jax.text.claims import think
from autollm_jax.text.playing import act
from autollm_jax.text.symbols import END_OF_TURN, EXEC, EXEC_END, LETTERS, THINK, THINK_END


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """How episodes are played.

    Attributes:
      budget: trials per episode.
      episodes: of each pair.
      softness: temperature of the hindsight distribution, in units of reward.
      uniform: share of the draws that hindsight does not guide.
      lookahead: whether hindsight knows what a pick earns by the episode's end (`Lookahead`), or
        what its own trial does.
      prior: chance of trusting all advisers together before hindsight; the other panels share the
        rest. Where hindsight does not tell them apart, all together stay the likeliest.
      reasoning: whether turns have a think part.
      full: whether texts are full (`text.prompts`).
      matching: whether an unmeasured configuration is replaced by the nearest measured one.
    """

    budget: int = 5
    episodes: int = 4
    softness: float = 0.1
    uniform: float = 0.1
    lookahead: bool = False
    prior: float = 0.3
    reasoning: bool = True
    full: bool = False
    matching: bool = True


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One simulated episode.

    Attributes:
      recipe: of the pair.
      turns: environment and agent alternating; the outcome of the last trial has no turn, because
        no agent's turn follows.
      regrets: best regret after each trial, in hindsight.
    """

    recipe: Recipe
    turns: tuple[prompts.Turn, ...]
    regrets: tuple[float, ...]

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
            }
        )

    @classmethod
    def from_json(cls, line: str) -> "Trajectory":
        """Read a line that `to_json` wrote."""
        value = json.loads(line)
        return cls(
            Recipe.from_json(json.dumps(value["recipe"])),
            tuple(prompts.Turn(t["role"], t["text"], tuple(t["chances"])) for t in value["turns"]),
            tuple(value["regrets"]),
        )


def turn_text(decision: Decision, trusted: int, reasoning: bool = True) -> str:
    """Write the turn that trusts a panel, given by its position in `decision.offer.trusts`."""
    thinking = f"{THINK}{think(decision, trusted)}{THINK_END}" if reasoning else ""
    letter = LETTERS[decision.offer.picks[trusted]]
    return f"{thinking}{EXEC}{letter}{EXEC_END}{END_OF_TURN}"


def hindsight(rewards_P: np.ndarray, config: SimulationConfig) -> np.ndarray:
    """Return the chance [P] of trusting each panel, given what their first picks bring.

    Panels with the same pick share a reward, so that the chance counts panels, not picks. The last
    panel is all advisers together.
    """
    others = len(rewards_P) - 1
    prior_P = np.append(np.full(others, (1 - config.prior) / max(others, 1)), config.prior)
    weights_P = prior_P * np.exp((rewards_P - rewards_P.max()) / config.softness)
    guided_P = weights_P / weights_P.sum()
    return (1 - config.uniform) * guided_P + config.uniform * prior_P / prior_P.sum()


def simulate(pair: Pair, config: SimulationConfig) -> list[Trajectory]:
    """Play the teacher's episodes of one pair; a pair gives the same episodes each time."""
    panel, played = pair.counsel(), []
    lookahead = Lookahead(panel) if config.lookahead else None
    for number in range(config.episodes):
        random = np.random.default_rng([pair.recipe.number, number, 20260511])
        order = int(random.integers(2**31))
        episode = Episode(pair.target, pair.evidence, config.budget, matching=config.matching)
        turns: list[prompts.Turn] = []
        while not episode.done:
            seen = episode.tell()
            decision = decision_of(panel, seen, order)
            if decision is None:
                break
            if turns:
                told = prompts.feedback(episode.trials[-1], decision, seen, config.full)
            else:
                told = prompts.describe(decision, config.full)
            chances_P = hindsight(worth(episode, decision.offer, lookahead), config)
            trusted = int(random.choice(len(chances_P), p=chances_P))
            text = turn_text(decision, trusted, config.reasoning)
            chances = chances_P.round(4).tolist()
            turns += [prompts.environment_turn(told), prompts.agent_turn(text, chances)]
            act(episode, text, decision.offer.rows)
        regrets = tuple(episode.best_regret(k + 1) for k in range(len(episode.trials)))
        if turns:
            played.append(Trajectory(pair.recipe, tuple(turns), regrets))
    return played
