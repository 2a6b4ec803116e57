"""Plays episodes with a policy; `grpo_rollout.py` does so for training, `player.py` for a score.

    until every episode is over:
      1. generate: the policy takes a turn in every row
      2. answer: the environment decodes the turns, reads them as actions and runs these
      3. append: the answers are encoded, once, and added to their rows

Rows keep the sampled tokens unchanged: the environment and people read decoded text, and decoded
text is never encoded again.

Letters: B rows, N groups, G members of a group, S slots of the context, J turns.
"""

import contextlib
import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from autollm_jax.agent.constraint import join
from autollm_jax.agent.environment_turns import EnvironmentTurns, Start
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advice import Offer
from autollm_jax.gym.environment import Episode
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import sampler
from autollm_jax.rl.sampler import SamplerConfig, SamplerState, TurnConfig
from autollm_jax.sharding.hosts import to_host
from autollm_jax.text.claims import Audit
from autollm_jax.text.prompts import Turn


@dataclasses.dataclass(frozen=True)
class PlayConfig:
    """How a policy plays.

    sampler: the context's length, and sizes to compile for.
    max_new_tokens: the most tokens of a turn.
    temperature: 0 is greedy.
    constrained: each turn names a candidate (`agent.constraint`), so that none is invalid.
    full: whether the policy reads full texts or brief ones (`text.prompts`).
    failing: an adviser that is wrong on purpose (`forecasts.advisers.counsel`).
    """

    sampler: SamplerConfig
    max_new_tokens: int
    temperature: float = 1.0
    constrained: bool = True
    full: bool = False
    failing: str = ""


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy: its shape, its parameters and its tokenizer."""

    model: TransformerConfig
    params: dict
    tokenizer: object


@dataclasses.dataclass(frozen=True)
class Layout:
    """How episodes lie in a batch.

    group_size: so many neighbours are copies of one episode; they share the reading of its prompt.
    rows: the batch's size, a multiple of the group's, filled up with empty rows; the number of
      episodes by default. Each size compiles once.
    mesh: as in `sampler.init_state`.
    """

    group_size: int = 1
    rows: int | None = None
    mesh: Mesh | None = None


@dataclasses.dataclass(frozen=True)
class Played:
    """Played episodes, in their order.

    state: the rows, on the host, without cache and logits.
    transcripts: each conversation's turns.
    rewards: each conversation's reward per agent turn; ending the episode early is a turn of
      reward 0.
    audits: the checked claims of each agent turn's thinking, where play was scored.
    hindsight: the reward [P] that each agent turn would have earned by trusting each panel, where
      play was not scored.
    offers: the candidates, and the panels' picks among them, at each agent turn.
    idle_seconds: time in which the policy waited for texts, tokens, parsing and look-ups.
    seconds: time in all.
    """

    state: SamplerState
    transcripts: list[list[Turn]]
    rewards: list[list[float]]
    audits: list[list[Audit]]
    hindsight: list[list[np.ndarray]]
    offers: list[list[Offer]]
    idle_seconds: float
    seconds: float


def play(
    policy: Policy,
    config: PlayConfig,
    starts: Sequence[Start],
    seeds: Sequence[int],
    key: jax.Array,
    layout: Layout = Layout(),  # noqa: B008
    *,
    scored: bool = False,
) -> Played:
    """Play each episode to its end, side by side.

    Args:
      policy: the player.
      config: how to play.
      starts: fresh episodes.
      seeds: one per episode; an episode's play depends on the key, its seed and its own course.
      key: randomness.
      layout: groups, rows and mesh.
      scored: check the claims of each turn's thinking, and show a progress bar.

    Raises:
      ValueError: if the members of a group are on different experiments.
      UserError: if a first prompt leaves no room in the context.
    """
    began, mesh = time.perf_counter(), layout.mesh
    episodes = [start.episode for start in starts]
    with contextlib.ExitStack() as scope:
        if mesh is not None:
            scope.enter_context(jax.set_mesh(mesh))
        bar = scope.enter_context(_bar("play" if scored else "", episodes))
        environment = EnvironmentTurns(policy.tokenizer, starts, config, scored)
        chunks = _openings(environment, config, len(episodes), layout.group_size)
        idle = time.perf_counter() - began
        params = transformer.for_decoding(policy.model, policy.params)
        policy = dataclasses.replace(policy, params=params)
        state = _read_openings(policy, config, chunks, seeds, layout)
        active_B = np.arange(len(state.length_B)) < len(episodes)
        while active_B.any():
            state, seconds = _turns(policy, config, environment, state, active_B, key)
            idle, entered = idle + seconds, time.perf_counter()
            chunks = _answers(environment, state, active_B)
            idle += time.perf_counter() - entered
            bar.update(sum(map(bool, chunks)))
            state = sampler.append(policy.model, params, config.sampler, state, chunks)
            active_B = np.array([bool(chunk) for chunk in chunks]) & ~to_host(state.truncated_B)
        for episode in episodes:
            if not episode.done:  # out of context
                episode.finish()
        state = dataclasses.replace(state, cache=(), logits_BV=np.zeros((len(chunks), 0)))
        state = jax.tree.map(lambda x: to_host(x)[: len(episodes)], state)
    seconds = time.perf_counter() - began
    return Played(
        state, environment.transcripts, environment.rewards, environment.audits,
        environment.hindsight, environment.offers, idle, seconds,
    )  # fmt: skip


def _read_openings(
    policy: Policy, config: PlayConfig, chunks, seeds: Sequence[int], layout: Layout
) -> SamplerState:
    """Read each group's first prompt once, then copy its row for each member."""
    rows, group_size = layout.rows or len(seeds), layout.group_size
    empty = rows - len(seeds)
    seeds = [*seeds, *[0] * empty]
    chunks = [*chunks, *[[]] * (empty // group_size)]
    state = sampler.init_state(policy.model, config.sampler, seeds[::group_size], layout.mesh)
    state = sampler.append(policy.model, policy.params, config.sampler, state, chunks)
    return sampler.repeat(state, group_size, seeds) if group_size > 1 else state


def _turns(
    policy: Policy, config: PlayConfig, environment: EnvironmentTurns, state, active_B, key
) -> tuple[SamplerState, float]:
    """Let the policy take a turn in the active rows; also returns its seconds of waiting."""
    entered, grammar = time.perf_counter(), None
    if config.constrained:
        empty = len(active_B) - len(environment.rules)
        grammar = join(policy.tokenizer, environment.rules + [None] * empty)
    idle = time.perf_counter() - entered
    stop_id = policy.tokenizer.stop_id
    turn = TurnConfig(stop_id, config.max_new_tokens, config.temperature)
    state = sampler.generate(
        policy.model, policy.params, config.sampler, state, key, turn, active_B, grammar
    )
    return state, idle


def _answers(environment: EnvironmentTurns, state: SamplerState, active_B) -> list[list[int]]:
    """Return the environment's reply to each row's last turn; none where nothing was said."""
    tokens_BS, turns_BS, turn_B = to_host((state.tokens_BS, state.turns_BS, state.turn_B))
    said_BS = active_B[:, None] & (turns_BS == turn_B[:, None] - 1) & (turns_BS >= 0)
    return [
        environment.answer(row, tokens_BS[row][said_S].tolist()) if said_S.any() else []
        for row, said_S in enumerate(said_BS)
    ]


def _bar(title: str, episodes: Sequence[Episode]) -> tqdm:
    return tqdm(
        desc=title, total=sum(episode.budget for episode in episodes), unit="turn", leave=False,
        disable=None if title else True, dynamic_ncols=True,
    )  # fmt: skip


def _openings(
    environment: EnvironmentTurns, config: PlayConfig, episodes: int, group_size: int
) -> list[list[int]]:
    """Return the tokens of each group's first prompt."""
    groups = range(0, episodes, group_size)
    chunks = [environment.opening(range(start, start + group_size)) for start in groups]
    longest = max(map(len, chunks))
    if longest >= config.sampler.context:
        raise UserError(
            f"the policy's context of {config.sampler.context} tokens has no room for a first "
            f"prompt of {longest}; raise config.policy.context"
        )
    return chunks
