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

from autollm_jax.agent.constraint import join
from autollm_jax.agent.environment_turns import EnvironmentTurns
from autollm_jax.errors import UserError
from autollm_jax.gym.environment import Episode
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import sampler
from autollm_jax.rl.loop import RolloutBatch
from autollm_jax.rl.sampler import SamplerConfig, SamplerState, TurnConfig
from autollm_jax.sharding.hosts import processes_of, to_host
from autollm_jax.text import prompts
from autollm_jax.text.claims import Audit
from autollm_jax.text.prompts import Turn


@dataclasses.dataclass(frozen=True)
class PlayConfig:
    """How a policy plays.

    sampler: the context's length, and sizes to compile for.
    max_new_tokens: the most tokens of a turn.
    temperature: 0 is greedy.
    constrained: each turn runs a configuration of the experiment that is measured and untried
      (`agent.constraint`), so that none is invalid or matched.
    advisor: the forecast in the prompt (`forecasts.advisers`).
    """

    sampler: SamplerConfig
    max_new_tokens: int
    temperature: float = 1.0
    constrained: bool = False
    advisor: str = "own"


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
    idle_seconds: time in which the policy waited for texts, tokens, parsing and look-ups.
    seconds: time in all.
    """

    state: SamplerState
    transcripts: list[list[Turn]]
    rewards: list[list[float]]
    audits: list[list[Audit]]
    idle_seconds: float
    seconds: float


def play(
    policy: Policy,
    config: PlayConfig,
    episodes: Sequence[Episode],
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
      episodes: fresh ones.
      seeds: one per episode; an episode's play depends on the key, its seed and its own course.
      key: randomness.
      layout: groups, rows and mesh.
      scored: check the claims of each turn's thinking, and show a progress bar.

    Raises:
      ValueError: if the members of a group are on different experiments.
      UserError: if a first prompt leaves no room in the context.
    """
    began, mesh = time.perf_counter(), layout.mesh
    with contextlib.ExitStack() as scope:
        if mesh is not None:
            scope.enter_context(jax.set_mesh(mesh))
        bar = scope.enter_context(_bar("play" if scored else "", episodes))
        environment = EnvironmentTurns(policy.tokenizer, episodes, config, scored)
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
        state, environment.transcripts, environment.rewards, environment.audits, idle, seconds
    )


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


def rollout_batch(played: Played, turns: int) -> RolloutBatch:
    """Lay played episodes out for the GRPO loop, with room for `turns` turns a row."""
    state = played.state
    B = len(played.rewards)
    rewards_BJ = np.zeros((B, turns), np.float32)
    turn_mask_BJ = np.zeros((B, turns), bool)
    for row, row_rewards in enumerate(played.rewards):
        rewards_BJ[row, : len(row_rewards)] = row_rewards
        turn_mask_BJ[row, : len(row_rewards)] = True
    return RolloutBatch(
        tokens_BT=state.tokens_BS,
        length_B=state.length_B,
        turns_BT=state.turns_BS,
        behaviour_BT=state.logprobs_BS,
        rewards_BJ=rewards_BJ,
        turn_mask_BJ=turn_mask_BJ,
    )


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
    prompts_of_step: Callable[[int], Sequence[Callable[[], Episode]]],
    group_size: int,
    mesh: Mesh | None = None,
):
    """Make the rollout function that `rl.loop.train_grpo` calls.

    Args:
      model: the policy's shape.
      tokenizer: the policy's.
      config: how to play.
      prompts_of_step: step -> the episodes of its groups, each as a function that makes a fresh
        one; always as many, or each other number compiles anew.
      group_size: episodes on each.
      mesh: as in `sampler.init_state`.

    Returns:
      rollout(params, key, step) -> (RolloutBatch, metrics).

    Raises:
      ValueError: if play is constrained: the trainer recomputes log-probabilities over the whole
        vocabulary, and its ratio to those over what a grammar left would be another policy's.
    """
    if config.constrained:
        raise ValueError("GRPO's rollouts are unconstrained; PlayConfig.constrained must be False")

    def rollout(params, key, step):
        episodes = [make() for make in prompts_of_step(step) for _ in range(group_size)]
        policy, layout = Policy(model, params, tokenizer), Layout(group_size, mesh=mesh)
        played = play(policy, config, episodes, range(len(episodes)), key, layout)
        turns = max(episode.budget for episode in episodes)
        return rollout_batch(played, turns), rollout_metrics(played, episodes)

    return rollout


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
            episodes = [game.episode for game in batch]
            seeds = [row_seed(game.episode.setting.id, game.seed) for game in batch]
            policy = Policy(self.model, self.params, self.tokenizer)
            layout = Layout(rows=self.rows, mesh=self.mesh)
            played = play(
                policy, self.config, episodes, seeds, jax.random.key(0), layout, scored=True
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
