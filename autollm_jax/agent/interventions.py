"""Interventions: whether the letter follows from the thinking.

A policy plays episodes greedily. Then each of its turns is cut, a piece of its thinking is
exchanged, and the policy goes on from there, greedily and without a grammar:

    trusted   the turn ends with another panel's name; the letter follows if it is that panel's pick
    reading   the latest trial is called better where it was worse, or worse where it was not
    control   the prompt counts one configuration more, which no decision turns on

The first says whether the thinking is what the choice follows from, the last how easily other text
changes the choice.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from autollm_jax.agent.environment_turns import Start
from autollm_jax.agent.rollout import Layout, PlayConfig, Policy, play
from autollm_jax.forecasts.advice import Offer
from autollm_jax.rl import sampler
from autollm_jax.rl.sampler import TurnConfig
from autollm_jax.sharding.hosts import to_host
from autollm_jax.sharding.rules import even_rows
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.symbols import PANELS

ROWS = 64  # turns that go on side by side
_TRUST = re.compile(r"(.*trust )(\([a-z-]+\))", re.DOTALL)
_LATEST = re.compile(r"(.*latest is )(better|worse)", re.DOTALL)
_COUNT = re.compile(r"(\d+)(?= configurations)")


@dataclasses.dataclass(frozen=True)
class Cut:
    """A turn that goes on from another thought.

    Attributes:
      kind: trusted, reading or control.
      tokens: of the conversation from which the policy goes on.
      before: the letter's position in the turn as it was.
      wanted: where the letter should go; None where nothing says so.
    """

    kind: str
    tokens: list[int]
    before: int
    wanted: int | None


def intervene(
    policy: Policy, config: PlayConfig, starts: Sequence[Start], mesh: Mesh | None = None
) -> dict[str, dict[str, float]]:
    """Play, exchange thoughts, and count how the letters change.

    Args:
      policy: the player.
      config: how it plays; its temperature is 0.
      starts: fresh episodes.
      mesh: as in `sampler.init_state`.

    Returns:
      By kind: {"n": turns, "changed": share of other letters, "followed": share of the letters that
      the exchanged thought asks for; nan where it asks for none}.
    """
    config = dataclasses.replace(config, temperature=0.0)
    layout = Layout(rows=even_rows(len(starts), mesh) if mesh else None, mesh=mesh)
    played = play(policy, config, starts, range(len(starts)), jax.random.key(0), layout)
    cuts = []
    for row, offers in enumerate(played.offers):
        tokens_S, turns_S = played.state.tokens_BS[row], played.state.turns_BS[row]
        opening = played.transcripts[row][0].text
        one_more = _COUNT.sub(lambda found: str(int(found[0]) + 1), opening, count=1)
        read, instead = map(policy.tokenizer.encode_opening, (opening, one_more))
        for turn, offer in enumerate(offers):
            places = np.flatnonzero(turns_S == turn)
            if len(places):
                before = tokens_S[: places[0]].tolist()
                text = policy.tokenizer.decode(tokens_S[places].tolist())
                cuts += _cuts(policy.tokenizer, before, text, offer)
                letter = parse_action(text).letter
                if letter is not None:
                    cuts.append(Cut("control", [*instead, *before[len(read) :]], letter, None))
    letters = _go_on(policy, config, [cut.tokens for cut in cuts])
    found = {}
    for kind in ("trusted", "reading", "control"):
        of_kind = [(c, letter) for c, letter in zip(cuts, letters, strict=True) if c.kind == kind]
        wanted = [(c.wanted, letter) for c, letter in of_kind if c.wanted is not None]
        found[kind] = {
            "n": len(of_kind),
            "changed": _share([letter != c.before for c, letter in of_kind]),
            "followed": _share([letter == asked for asked, letter in wanted]),
        }
    return found


def _cuts(tokenizer, before: list[int], text: str, offer: Offer) -> list[Cut]:
    """Cut one turn in each way that its text allows."""
    letter = parse_action(text).letter
    if letter is None:
        return []

    def cut(kind: str, said: str, wanted: int | None = None) -> Cut:
        tokens = tokenizer.encode_agent(said)  # a chat template ends it
        tokens = tokens[:-1] if tokens[-1] == tokenizer.stop_id else tokens
        return Cut(kind, before + tokens, letter, wanted)

    cuts = []
    if trust := _TRUST.match(text):
        others = [p for p, pick in enumerate(offer.picks) if pick != letter]
        if others:  # one of them, by the length of the conversation
            other = others[len(before) % len(others)]
            cuts.append(cut("trusted", trust[1] + PANELS[other], offer.picks[other]))
    if latest := _LATEST.match(text):
        other = "worse" if latest[2] == "better" else "better"
        cuts.append(cut("reading", latest[1] + other))
    return cuts


def _go_on(policy: Policy, config: PlayConfig, prompts: Sequence[list[int]]) -> list[int | None]:
    """Let the policy end each turn; return the positions of the letters that it names."""
    sizes, stop = config.sampler, policy.tokenizer.stop_id
    turn, letters = TurnConfig(stop, config.max_new_tokens, 0.0, config.drafts), []
    for start in range(0, len(prompts), ROWS):
        some = list(prompts[start : start + ROWS])
        chunks = some + [some[0]] * (ROWS - len(some))  # each number of rows compiles once
        state = sampler.init_state(policy.model, sizes, range(ROWS))
        state = sampler.append(policy.model, policy.params, sizes, state, chunks)
        key = jax.random.key(0)
        state = sampler.generate(policy.model, policy.params, sizes, state, key, turn)
        tokens_BS, length_B = to_host((state.tokens_BS, state.length_B))
        for row, prompt in enumerate(some):
            said = tokens_BS[row, len(prompt) - 1 : length_B[row]].tolist()
            letters.append(parse_action(policy.tokenizer.decode(said)).letter)
    return letters


def _share(events: Sequence[bool]) -> float:
    return float(np.mean(events)) if events else float("nan")
