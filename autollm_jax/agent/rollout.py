"""Plays episodes with a policy; `grpo_rollout.py` does so for training, `player.py` for a score.

    until every episode is over:
      1. speak: the policy takes a turn in every row, until enough rows have ended theirs
      2. answer: the environment decodes the turns, reads them as actions and runs these
      3. refill: groups that are over make room for waiting ones
      4. append: answers and first prompts are encoded, once, and added to their rows

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

from autollm_jax.agent.constraint import join, next_turn
from autollm_jax.agent.environment_pool import EnvironmentPool, Workers
from autollm_jax.agent.environment_turns import Start
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advice import Offer
from autollm_jax.gym.environment import Episode
from autollm_jax.models.decoding import for_decoding
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.progress_bar import progress_bar
from autollm_jax.rl import sampler
from autollm_jax.rl.sampler import SamplerConfig, SamplerState, TurnConfig
from autollm_jax.sharding.hosts import processes_of, to_host
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
    ended_share: share of the speaking rows whose turns have ended when these are answered; the
      others speak on afterwards.
    drafts: tokens that a pass of the model reads ahead, of those that followed the like of the last
      ones before (`rl.decoding.look_up`).
    """

    sampler: SamplerConfig
    max_new_tokens: int
    temperature: float = 1.0
    constrained: bool = True
    full: bool = False
    failing: str = ""
    ended_share: float = 1.0
    drafts: int = 0


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
    rows: the batch's size, a multiple of the group's; the number of episodes by default. Further
      episodes wait for rows, too few are filled up with empty rows. Each size compiles once.
    mesh: as in `sampler.init_state`.
    workers: processes that answer as the environment; None answers in the process that plays.
    """

    group_size: int = 1
    rows: int | None = None
    mesh: Mesh | None = None
    workers: Workers | None = None


@dataclasses.dataclass(frozen=True)
class Played:
    """Played episodes, in their order.

    state: the rows, on the host, without cache and logits.
    transcripts: each conversation's turns.
    rewards: each conversation's reward per agent turn; ending the episode early is a turn of
      reward 0.
    audits: the checked claims of each agent turn's thinking, where play was scored.
    hindsight: the reward [P] that each agent turn would have earned by trusting each panel, or with
      a lookahead the return, where play was not scored.
    offers: the candidates, and the panels' picks among them, at each agent turn.
    idle_seconds: time in which the policy waited for texts, tokens, parsing and look-ups.
    seconds: time in all.
    row_passes: passes of the model while it spoke, times rows of the batch.
    readings: rows that these passes read.
    devices: that played.
    """

    state: SamplerState
    transcripts: list[list[Turn]]
    rewards: list[list[float]]
    audits: list[list[Audit]]
    hindsight: list[list[np.ndarray]]
    offers: list[list[Offer]]
    idle_seconds: float
    seconds: float
    row_passes: int
    readings: int
    devices: int


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
            # The caller's mesh may be the trainer's, on which the key was made.
            data = to_host(jax.random.key_data(key))
            key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
        bar = scope.enter_context(_bar("play" if scored else "", episodes))
        environment = EnvironmentPool(
            policy.tokenizer, starts, config, scored, layout.group_size, layout.workers,
            (0,) if mesh is None else processes_of(mesh),
        )  # fmt: skip
        seats = _Seats(len(episodes), layout, seeds)
        chunks = _openings(environment, config, seats.begin(), layout.group_size)
        idle = time.perf_counter() - began
        params = for_decoding(policy.model, policy.params)
        policy = dataclasses.replace(policy, params=params)
        state = _read_openings(policy, config, chunks, seats, layout)
        active_B, speakers = seats.episode_B >= 0, None
        while seats.waiting or not seats.over_B.all():
            entered = time.perf_counter()
            grammar = _grammar(policy, config, environment, seats)
            idle += time.perf_counter() - entered
            state, speakers, ended_B = _speak(
                policy, config, state, key, active_B, speakers, grammar
            )
            entered = time.perf_counter()
            chunks = _answers(environment, state, ended_B, seats.episode_B)
            bar.update(sum(map(bool, chunks)))
            seats.over_B |= ended_B & ~np.array([bool(chunk) for chunk in chunks])
            state, fresh_B = seats.refill(state, layout.group_size)
            if fresh_B.any():
                opened = _openings(environment, config, seats.episode_B[fresh_B], layout.group_size)
                for row, chunk in zip(
                    np.flatnonzero(fresh_B)[:: layout.group_size], opened, strict=True
                ):
                    chunks[row] = chunk
            idle += time.perf_counter() - entered
            state = sampler.append(policy.model, params, config.sampler, state, chunks)
            if fresh_B.any() and layout.group_size > 1:
                state = sampler.share(state, fresh_B, layout.group_size)
            read_B = np.array([bool(chunk) for chunk in chunks]) | fresh_B
            active_B = read_B & ~to_host(state.truncated_B)
            seats.over_B |= read_B & ~active_B
        environment.finish()
        for episode in episodes:
            if not episode.done:  # out of context
                episode.finish()
        seats.keep(state, seats.episode_B >= 0)
    seconds = time.perf_counter() - began
    passes, readings = (0, 0) if speakers is None else (speakers.passes, speakers.readings)
    return Played(
        seats.whole(), environment.transcripts, environment.rewards, environment.audits,
        environment.hindsight, environment.offers, idle, seconds,
        passes * len(seats.episode_B), readings, 1 if mesh is None else mesh.size,
    )  # fmt: skip


class _Seats:
    """Which episode each row of a batch plays; waiting episodes take the rows of finished ones.

    episode_B: the episode of each row, -1 in an empty one.
    over_B: rows whose episode is over.
    """

    def __init__(self, episodes: int, layout: Layout, seeds: Sequence[int]):
        rows = layout.rows or episodes
        self._seeds = np.asarray(seeds, np.uint32)
        self._next, self._episodes = min(rows, episodes), episodes
        self.episode_B = np.where(np.arange(rows) < self._next, np.arange(rows), -1)
        self.over_B = self.episode_B < 0
        self._kept: list[SamplerState | None] = [None] * episodes

    @property
    def seeds_B(self) -> np.ndarray:
        """The rows' seeds; 0 in empty ones."""
        return np.where(self.episode_B >= 0, self._seeds[self.episode_B], 0).astype(np.uint32)

    @property
    def waiting(self) -> int:
        """How many episodes wait for rows."""
        return self._episodes - self._next

    def begin(self) -> np.ndarray:
        """Return the episodes that begin at once."""
        return np.arange(self._next)

    def refill(self, state: SamplerState, group_size: int) -> tuple[SamplerState, np.ndarray]:
        """Give the rows of groups that are over to waiting ones.

        Returns:
          The state, and the rows that have a new episode, whose opening is still to be read.
        """
        over_N = self.over_B.reshape(-1, group_size).all(1)
        fresh_B = np.zeros_like(self.over_B)
        groups = np.flatnonzero(over_N)[: self.waiting // group_size]
        if not len(groups):
            return state, fresh_B
        rows = (groups[:, None] * group_size + np.arange(group_size)).ravel()
        fresh_B[rows] = True
        self.keep(state, fresh_B & (self.episode_B >= 0))
        self.episode_B[rows] = np.arange(self._next, self._next + len(rows))
        self._next += len(rows)
        self.over_B[rows] = False
        return sampler.renew(state, fresh_B, self.seeds_B), fresh_B

    def keep(self, state: SamplerState, rows_B: np.ndarray) -> None:
        """Copy some rows to the host."""
        state = dataclasses.replace(state, cache=(), logits_BV=np.zeros((len(rows_B), 0)))
        state = jax.tree.map(to_host, state)
        for row in np.flatnonzero(rows_B):
            one = jax.tree.map(lambda x, row=row: x[row], state)
            self._kept[self.episode_B[row]] = one

    def whole(self) -> SamplerState:
        """Return the rows of all episodes, in their order."""
        return jax.tree.map(lambda *rows: np.stack(rows), *self._kept)


def _read_openings(
    policy: Policy, config: PlayConfig, chunks, seats: _Seats, layout: Layout
) -> SamplerState:
    """Read each group's first prompt once, then copy its row for each member."""
    seeds_B, group_size = seats.seeds_B, layout.group_size
    chunks = [*chunks, *[[]] * (len(seeds_B) // group_size - len(chunks))]
    state = sampler.init_state(policy.model, config.sampler, seeds_B[::group_size], layout.mesh)
    state = sampler.append(policy.model, policy.params, config.sampler, state, chunks)
    return sampler.repeat(state, group_size, seeds_B) if group_size > 1 else state


def _grammar(policy: Policy, config: PlayConfig, environment: EnvironmentPool, seats: _Seats):
    """Return what the rows may say in this turn; None for anything."""
    if not config.constrained:
        return None
    choices = [environment.choices[n] if n >= 0 else None for n in seats.episode_B]
    return join(
        policy.tokenizer,
        [None if count is None else next_turn(policy.tokenizer, count) for count in choices],
    )


def _speak(policy: Policy, config: PlayConfig, state, key, active_B, speakers, grammar):
    """Let the policy begin turns, and end some; also returns which rows have ended theirs."""
    said = config.max_new_tokens, config.temperature, config.drafts
    turn = TurnConfig(policy.tokenizer.stop_id, *said)
    sizes = config.sampler
    state, begun = sampler.begin_turns(sizes, state, turn, active_B, grammar, speakers)
    spoke_B = active_B if speakers is None else active_B | speakers.going_B
    state, speakers = sampler.speak(
        policy.model, policy.params, sizes, state, key, turn, begun, grammar, config.ended_share
    )
    return state, speakers, spoke_B & ~speakers.going_B


def _answers(
    environment: EnvironmentPool, state: SamplerState, ended_B, episode_B
) -> list[list[int]]:
    """Return the environment's reply to each row's last turn; none where nothing was said."""
    tokens_BS, turns_BS, turn_B = to_host((state.tokens_BS, state.turns_BS, state.turn_B))
    said_BS = ended_B[:, None] & (turns_BS == turn_B[:, None] - 1) & (turns_BS >= 0)
    rows = np.flatnonzero(said_BS.any(1))
    replies = environment.answers(
        {int(episode_B[row]): tokens_BS[row][said_BS[row]].tolist() for row in rows}
    )
    return [replies.get(int(episode), []) for episode in episode_B]


def _bar(title: str, episodes: Sequence[Episode]) -> tqdm:
    total = sum(episode.budget for episode in episodes)
    return progress_bar(desc=title, total=total, unit="turn", leave=False, shown=bool(title))


def _openings(
    environment: EnvironmentPool, config: PlayConfig, episodes: Sequence[int], group_size: int
) -> list[list[int]]:
    """Return the tokens of each group's first prompt; members are neighbours."""
    numbers, firsts = [int(episode) for episode in episodes], range(0, len(episodes), group_size)
    chunks = environment.openings([numbers[first : first + group_size] for first in firsts])
    longest = max(map(len, chunks))
    if longest >= config.sampler.context:
        raise UserError(
            f"the policy's context of {config.sampler.context} tokens has no room for a first "
            f"prompt of {longest}; raise config.policy.context"
        )
    return chunks
