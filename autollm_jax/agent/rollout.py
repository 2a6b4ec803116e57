"""Playing episodes with a policy, for training (`make_rollout`) and evaluation (`policy_player`).

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
import hashlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from autollm_jax.agent.constraint import free_tokens, join, letters
from autollm_jax.agent.dialogue import panel_ids
from autollm_jax.agent.environment_turns import EnvironmentTurns, Start
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advice import Offer
from autollm_jax.gym.environment import Episode
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import grammar, sampler
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.rl.loop import Decisions, RolloutBatch
from autollm_jax.rl.sampler import SamplerConfig, SamplerState, TurnConfig
from autollm_jax.sharding.hosts import processes_of, to_host
from autollm_jax.sharding.rules import even_rows
from autollm_jax.text import prompts
from autollm_jax.text.claims import Audit
from autollm_jax.text.prompts import Turn
from autollm_jax.text.symbols import LETTERS

LEAST_RANGE = 1e-6  # of a group's returns: below it the members earned the same


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


def rollout_batch(
    played: Played, turns: int, tokenizer, config: PlayConfig, baseline: bool = False
) -> RolloutBatch:
    """Lay played episodes out for the GRPO loop, with room for `turns` turns a row.

    Args:
      played: not scored.
      turns: J.
      tokenizer: the policy's.
      config: how they were played.
      baseline: whether a turn's reward is what it earned above the pick of all advisers together,
        which was known before the turn.
    """
    state = played.state
    B = len(played.rewards)
    rewards_BJ = np.zeros((B, turns), np.float32)
    turn_mask_BJ = np.zeros((B, turns), bool)
    for row, row_rewards in enumerate(played.rewards):
        rewards_BJ[row, : len(row_rewards)] = row_rewards
        if baseline:
            known = [rewards_P[-1] for rewards_P in played.hindsight[row]]
            rewards_BJ[row, : len(row_rewards)] -= np.array(known, np.float32)
        turn_mask_BJ[row, : len(row_rewards)] = True
    return RolloutBatch(
        tokens_BT=state.tokens_BS,
        length_B=state.length_B,
        turns_BT=state.turns_BS,
        behaviour_BT=state.logprobs_BS,
        rewards_BJ=rewards_BJ,
        turn_mask_BJ=turn_mask_BJ,
        allowed=_allowed(played, tokenizer, config) if config.constrained else None,
        decisions=_decisions(played, turns, tokenizer),
    )


def _allowed(played: Played, tokenizer, config: PlayConfig) -> Allowed:
    """Say again what the grammar allowed at each sampled token."""
    state, automaton = played.state, letters(tokenizer)
    B, T = state.tokens_BS.shape
    free_V = free_tokens(tokenizer)
    free_BT = np.zeros((B, T), bool)
    token_BTK = np.full((B, T, grammar.LEAST_EDGES), -1, np.int32)
    for row, offers in enumerate(played.offers):
        for turn, offer in enumerate(offers):
            places = np.flatnonzero(state.turns_BS[row] == turn)
            if len(places):
                may_R = np.arange(len(automaton.length_R)) < len(offer.rows)
                most = min(config.max_new_tokens, config.sampler.context - places[0])
                said = state.tokens_BS[row, places]
                free_BT[row, places], token_BTK[row, places] = grammar.steps(
                    automaton, may_R, said, most
                )
    return Allowed(free_BT, token_BTK, np.broadcast_to(free_V, (B, len(free_V))))


def _decisions(played: Played, turns: int, tokenizer) -> Decisions | None:
    """Find where each turn names the panel that it trusts: a panel with a letter right after it.

    None where the vocabulary spells a panel in several tokens.
    """
    ids_P = panel_ids(tokenizer)
    if ids_P is None:
        return None
    state, P = played.state, len(ids_P)
    B = len(state.tokens_BS)
    place_BJ = np.zeros((B, turns), np.int32)
    rewards_BJP = np.zeros((B, turns, P), np.float32)
    letter_ids = [tokenizer.encode(letter)[0] for letter in LETTERS]
    named_BT = np.isin(state.tokens_BS, ids_P) & (state.turns_BS >= 0)
    named_BT[:, :-1] &= np.isin(state.tokens_BS[:, 1:], letter_ids)
    for row, hindsight in enumerate(played.hindsight):
        for turn, rewards_P in enumerate(hindsight):
            places = np.flatnonzero(named_BT[row] & (state.turns_BS[row] == turn))
            if len(places):
                place_BJ[row, turn], rewards_BJP[row, turn] = places[-1], rewards_P
    ids_BP = np.broadcast_to(ids_P.astype(np.int32), (B, P))
    return Decisions(place_BJ, rewards_BJP, np.zeros_like(rewards_BJP), ids_BP)


def rollout_metrics(played: Played, episodes: Sequence[Episode]) -> dict[str, float]:
    """Summarise played episodes.

    Returns:
      reward (per episode), regret (at its end), invalid_share and matched_share (of trials),
      truncated_share (of episodes), turn_tokens, tokens_per_second (sampled ones), idle_ratio (the
      share of time in which the policy waited for the environment).
    """
    trials = [trial for episode in episodes for trial in episode.trials]
    turns = sum(len(row) for row in played.rewards)
    sampled = int((played.state.turns_BS >= 0).sum())
    return {
        "reward": float(np.mean([sum(row) for row in played.rewards])),
        "regret": float(np.mean([episode.best_regret() for episode in episodes])),
        "invalid_share": float(np.mean([not trial.valid for trial in trials] or [0.0])),
        "matched_share": float(np.mean([trial.matched for trial in trials] or [0.0])),
        "truncated_share": float(np.mean(played.state.truncated_B)),
        "turn_tokens": sampled / max(turns, 1),
        "tokens_per_second": sampled / played.seconds,
        "idle_ratio": played.idle_seconds / played.seconds,
    }


def make_rollout(
    model: TransformerConfig,
    tokenizer,
    config: PlayConfig,
    starts_of_round: Callable[[int], Sequence[Callable[[], Start]]],
    layout: Layout,
    baseline: bool = False,
    refills: int = 0,
):
    """Make the rollout function that `rl.loop.train_grpo` calls.

    Args:
      model: the policy's shape.
      tokenizer: the policy's.
      config: how to play.
      starts_of_round: round -> the episodes of its groups, each as a function that makes a fresh
        one; always as many, or each other number compiles anew.
      layout: episodes of a group, and the mesh.
      baseline: as in `rollout_batch`.
      refills: most further rounds of a step, played as long as groups lack whose returns differ;
        these take the place of groups whose members all earned the same.

    Returns:
      rollout(params, key, step) -> (RolloutBatch, metrics).
    """

    def play_round(params, key, number):
        starts = [make() for make in starts_of_round(number) for _ in range(layout.group_size)]
        policy = Policy(model, params, tokenizer)
        played = play(policy, config, starts, range(len(starts)), key, layout)
        episodes = [start.episode for start in starts]
        turns = max(episode.budget for episode in episodes)
        batch = rollout_batch(played, turns, tokenizer, config, baseline)
        return batch, rollout_metrics(played, episodes)

    def rollout(params, key, step):
        first = step * (refills + 1)
        batch, metrics = play_round(params, key, first)
        informative_B = _differ(batch, layout.group_size)
        metrics["groups_that_differ"] = float(informative_B.mean())
        for more in range(1, refills + 1):
            if informative_B.all():
                break
            fresh, _ = play_round(params, jax.random.fold_in(key, more), first + more)
            useful = np.flatnonzero(_differ(fresh, layout.group_size))
            useless = np.flatnonzero(~informative_B)
            count = min(len(useful), len(useless))
            batch = _exchange(batch, fresh, useless[:count], useful[:count])
            informative_B = _differ(batch, layout.group_size)
        return batch, metrics

    return rollout


def _differ(batch: RolloutBatch, group_size: int) -> np.ndarray:
    """Tell in which rows' groups the members' returns differ [B]."""
    returns_NG = batch.rewards_BJ.sum(1).reshape(-1, group_size)
    return np.repeat(np.ptp(returns_NG, axis=1) > LEAST_RANGE, group_size)


def _exchange(
    batch: RolloutBatch, other: RolloutBatch, rows: np.ndarray, others: np.ndarray
) -> RolloutBatch:
    """Put rows of another batch in the place of some rows."""

    def put(x, y):
        x = np.array(x)
        x[rows] = y[others]
        return x

    return jax.tree.map(put, batch, other)


def mean_regret(
    policy: Policy, config: PlayConfig, starts: Sequence[Start], rows: int, mesh: Mesh
) -> float:
    """Play episodes, so many rows at once; return their mean regret over all trials."""
    rows = even_rows(min(rows, len(starts)), mesh)
    layout = Layout(rows=rows, mesh=mesh)
    for first in range(0, len(starts), rows):
        batch = starts[first : first + rows]
        play(policy, config, batch, range(first, first + len(batch)), jax.random.key(0), layout)
    return float(
        np.mean(
            [
                start.episode.best_regret(k + 1)
                for start in starts
                for k in range(start.episode.budget)
            ]
        )
    )


@dataclasses.dataclass(frozen=True)
class PolicyPlayer:
    """Plays evaluation's games with a policy (`evaluation.runner.Player`).

    identity: names everything that play depends on besides the games.
    rows: games of a batch.
    mesh: if it spans several processes, all of them play.
    """

    model: TransformerConfig
    params: dict
    tokenizer: object
    config: PlayConfig
    identity: str
    rows: int = 64
    mesh: Mesh | None = None

    @property
    def together(self) -> bool:
        """Whether several processes play at once."""
        return self.mesh is not None and len(processes_of(self.mesh)) > 1

    def __call__(self, games: Sequence) -> list[dict]:
        transcripts = []
        for start in range(0, len(games), self.rows):
            batch = games[start : start + self.rows]
            starts = [Start(game.episode, order=game.seed) for game in batch]
            seeds = [row_seed(game.episode.setting.id, game.seed) for game in batch]
            policy = Policy(self.model, self.params, self.tokenizer)
            layout = Layout(rows=self.rows, mesh=self.mesh)
            played = play(
                policy, self.config, starts, seeds, jax.random.key(0), layout, scored=True
            )
            transcripts += [
                {"text": prompts.render(turns), "claims": list(map(dataclasses.asdict, audits))}
                for turns, audits in zip(played.transcripts, played.audits, strict=True)
            ]
        return transcripts


def row_seed(name: str, seed: int) -> int:
    """Derive a row's seed, so that a game's play does not depend on its place in a batch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")


def policy_player(
    model: TransformerConfig,
    params,
    tokenizer,
    config: PlayConfig,
    rows: int = 64,
    mesh: Mesh | None = None,
) -> PolicyPlayer:
    """Make a player of a policy, greedy where `config.temperature` is 0.

    Args:
      model: the policy's shape.
      params: the policy's parameters; their hash and the hash of the code enter the player's
        identity.
      tokenizer: the policy's.
      config: how to play.
      rows: games side by side.
      mesh: as in `sampler.init_state`.
    """
    digest = hashlib.sha256(f"{model} {config} {tokenizer.content_hash}".encode())
    for leaf in jax.tree.leaves(params):
        digest.update(to_host(leaf).tobytes())
    return PolicyPlayer(model, params, tokenizer, config, digest.hexdigest(), rows, mesh)
