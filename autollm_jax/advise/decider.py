"""Who decides between the advisers: the trained agent, or all advisers together."""

import dataclasses
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np

from autollm_jax.curriculum.teacher import turn_text
from autollm_jax.forecasts.advice import Decision, Offer, decision_of
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Observation
from autollm_jax.text import prompts
from autollm_jax.text.claims import Claim, check_claims
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.symbols import panel_name

SHIPPED = "agent"  # folder of the package


@dataclasses.dataclass(frozen=True)
class Choice:
    """One decision.

    Attributes:
      place: of the chosen candidate among those offered.
      chances_C: how likely each candidate was to be chosen.
      thinking: the words behind it.
      claims: their statements, each checked.
      trusted: positions of the advisers that are trusted; () for all.
      chances_are: says what the chances are, for a person.
    """

    place: int
    chances_C: np.ndarray
    thinking: str = ""
    claims: Sequence[Claim] = ()
    trusted: tuple[int, ...] = ()
    chances_are: str = "how likely the agent was to choose it"


class Decider(Protocol):
    """Chooses among a decision's candidates."""

    def decide(self, panel: Panel, seen: Observation, decision: Decision) -> Choice:
        """Choose."""
        ...


class Panels:
    """Takes the pick of all advisers together; likely are the picks of many panels."""

    def decide(self, panel: Panel, seen: Observation, decision: Decision) -> Choice:
        del panel, seen
        offer = decision.offer
        counts_C = np.bincount(offer.picks, minlength=len(offer.rows)).astype(float)
        return Choice(
            offer.picks[-1],
            counts_C / counts_C.sum(),
            "all advisers together",
            chances_are=f"its share of the first picks of {len(offer.picks)} groups of advisers: "
            "each alone, all but one, all",
        )


class Agent:
    """Asks a trained language model.

    Args:
      folder: as `agent.portable.save` writes it, or a work directory of `launch/main.py`; None for
        the agent that the package ships.
    """

    def __init__(self, folder: Path | None = None):
        from autollm_jax.agent import portable

        if folder is None:
            folder = Path(str(resources.files("autollm_jax.advise") / SHIPPED))
        if (folder / "checkpoints").is_dir():
            from autollm_jax.advise import exporting

            self.portable = exporting.of_workdir(folder)
        else:
            self.portable = portable.load(folder)

    @staticmethod
    def is_shipped() -> bool:
        """Whether the package holds an agent."""
        return (resources.files("autollm_jax.advise") / SHIPPED / "agent.json").is_file()

    def decide(self, panel: Panel, seen: Observation, decision: Decision) -> Choice:
        """Let the policy take a turn in a conversation about the trials so far."""
        from autollm_jax.agent.answering import answer

        own = self.portable
        turns = conversation(panel, seen, decision, own.budget, own.full)
        said = answer(own.policy, turns, own.context, own.turn_tokens)
        offer, action = decision.offer, parse_action(said.text)
        if not len(said.chances) or action.letter is None or action.letter >= len(offer.rows):
            return dataclasses.replace(
                Panels().decide(panel, seen, decision),
                thinking=f"the agent said {said.text!r}, which names no candidate; all advisers "
                "together decide",
            )
        chances_C = np.zeros(len(offer.rows))
        np.add.at(chances_C, list(offer.picks), said.chances)
        thinking = action.think or ""
        claims = check_claims(thinking, decision)
        return Choice(action.letter, chances_C, thinking, claims, trusted(offer, thinking))


def trusted(offer: Offer, thinking: str) -> tuple[int, ...]:
    """Return the positions of the advisers that a policy's thinking trusts; () where it says none.

    They are what it names last: "closest (own), farthest (trees); trust (all-but-trees)#H".
    """
    by_name = {panel_name(group): group for group in offer.trusts}
    named = [name for name in re.findall(r"\([a-z-]+\)", thinking) if name in by_name]
    return by_name[named[-1]] if named else ()


def default_decider() -> Decider:
    """Return the agent that the package ships; all advisers together where it ships none."""
    return Agent() if Agent.is_shipped() else Panels()


def conversation(
    panel: Panel, seen: Observation, decision: Decision, budget: int, full: bool
) -> list[prompts.Turn]:
    """Tell the trials so far as an episode that the agent played.

    A person may have tried what no adviser put first. The turn before such a trial then trusts the
    panel whose pick was nearest to it. Of many trials the latest are told, as many as an episode of
    the agent's has besides the turn to come.

    Args:
      panel: the advisers.
      seen: the question and the trials.
      decision: what is to be decided now.
      budget: trials of the agent's episodes.
      full: whether texts are full.
    """
    trials, turns = seen.trials, []
    first = max(len(trials) - (budget - 1), 0)
    for number in range(first, len(trials) + 1):
        left = max(budget - (number - first), 1)
        before = dataclasses.replace(seen, trials=trials[:number], budget_left=left)
        here = decision if number == len(trials) else decision_of(panel, before, 0)
        if here is None:
            break
        if number == first:
            turns.append(prompts.environment_turn(prompts.describe(here, full)))
        else:
            told = prompts.feedback(trials[number - 1], here, before, full)
            turns.append(prompts.environment_turn(told))
        if number < len(trials):
            trusted = _nearest_panel(here, trials[number].row)
            turns.append(prompts.agent_turn(turn_text(here, trusted)))
    return turns


def _nearest_panel(decision: Decision, row: int | None) -> int:
    """Return the position of the panel whose first pick is nearest to a row."""
    offer, units_RD = decision.offer, decision.panel.units_RD
    if row is None:
        return len(offer.picks) - 1
    picks_PD = units_RD[[offer.rows[place] for place in offer.picks]]
    return int(((picks_PD - units_RD[row]) ** 2).sum(1).argmin())
