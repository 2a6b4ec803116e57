"""Playing episodes with a policy, for training (`make_rollout`) and evaluation (`policy_player`).

    until every episode is over:
      1. the policy goes on with its turns, until some of them are over
      2. a thread decodes those, reads them as actions and runs them, while 1. goes on with others
      3. the answers are encoded, once, and appended to their rows

Rows keep the sampled tokens as they are: what is decoded is read by the environment and by people,
and never encoded again.

Letters: B rows, N groups, G members of a group, S slots of the context, J turns.
"""

import concurrent.futures
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
from autollm_jax.rl.sampler import SamplerConfig, SamplerState
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
    constrained: each turn runs a configuration of the experiment's own that is measured and untried
      (`agent.constraint`), so that none is invalid or matched.
    advisor: who makes the forecast in the prompt (`forecasts.advisers`).
    pieces: the environment answers about one in so many of the rows at a time, while the policy
      goes on with the others; with 1 the policy waits until all are answered.
    """

    sampler: SamplerConfig
    max_new_tokens: int
    temperature: float = 1.0
    constrained: bool = False
    advisor: str = "own"
    pieces: int = 1


@dataclasses.dataclass(frozen=True)
class Played:
    """Episodes as they were played, in their order.

    state: the rows, on the host, without cache and logits.
    transcripts: each conversation's turns.
    rewards: each conversation's reward per agent turn; ending the episode early is a turn of
      reward 0.
    audits: what the thinking of each agent turn states, where that was asked for.
    idle_seconds: time in which the policy waited: for texts, tokens, parsing, look-ups.
    seconds: time in all.
    """

    state: SamplerState
    transcripts: list[list[Turn]]
    rewards: list[list[float]]
    audits: list[list[Audit]]
    idle_seconds: float
    seconds: float


def play(
    model: TransformerConfig,
    params,
    tokenizer,
    config: PlayConfig,
    episodes: Sequence[Episode],
    seeds: Sequence[int],
    key: jax.Array,
    *,
    group_size: int = 1,
    rows: int | None = None,
    mesh: Mesh | None = None,
    audited: bool = False,
    title: str = "",
) -> Played:
    """Play each episode to its end, all of them side by side.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      tokenizer: the policy's.
      config: how to play.
      episodes: fresh ones.
      seeds: one per episode; an episode's play depends on the key, its seed and its own course.
      key: randomness.
      group_size: so many neighbours are copies of one episode, and share the reading of its first
        prompt.
      rows: the batch's size, a multiple of the group's, filled up with empty rows; the number of
        episodes by default. One size compiles once.
      mesh: as in `sampler.init_state`.
      audited: whether to check what each turn's thinking states.
      title: of a progress bar; none where it is empty.

    Raises:
      ValueError: if the members of a group are on different experiments.
      UserError: if a first prompt leaves no room in the context.
    """
    began, idle = time.perf_counter(), 0.0
    B = rows or len(episodes)
    empty = B - len(episodes)
    with contextlib.ExitStack() as scope:
        if mesh is not None:
            scope.enter_context(jax.set_mesh(mesh))
        worker = scope.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        bar = scope.enter_context(_bar(title, episodes))
        environment = EnvironmentTurns(tokenizer, episodes, config, audited)
        chunks = _openings(environment, config, len(episodes), group_size)
        idle += time.perf_counter() - began

        params = transformer.for_decoding(model, params)
        seeds = [*seeds, *[0] * empty]
        state = sampler.init_state(model, config.sampler, seeds[::group_size], mesh)
        chunks += [[]] * (empty // group_size)
        state = sampler.append(model, params, config.sampler, state, chunks)
        if group_size > 1:
            state = sampler.repeat(state, group_size, seeds)

        turns, answers = None, {}  # row -> its answer, perhaps still to come
        ready_B, start_B = np.arange(B) < len(episodes), np.zeros(B, int)
        while True:
            # 1. Turns begin in the rows that have been answered, and go on in the others.
            entered = time.perf_counter()
            rules = environment.rules + [None] * empty
            grammar = join(tokenizer, rules) if config.constrained else None
            idle += time.perf_counter() - entered
            start_B = np.where(ready_B, to_host(state.length_B), start_B)
            state, turns = sampler.begin(
                config.sampler, state, ready_B, config.max_new_tokens, grammar, turns
            )
            playing_B = ready_B | turns.going_B
            state, turns = sampler.go_on(
                model, params, config.sampler, state, turns, key, stop_id=tokenizer.stop_id,
                temperature=config.temperature,
                leave=int(turns.going_B.sum() * (1 - 1 / config.pieces)),
            )  # fmt: skip
            # 2. The turns that ended before have been answered meanwhile; those that ended now are
            # answered while others go on, and at once where there are none.
            tokens_BS, end_B = to_host((state.tokens_BS, state.length_B))
            over_B = playing_B & ~turns.going_B
            before, answers = answers, {}
            for row in np.flatnonzero(over_B & (end_B > start_B)):  # the others had no room
                tokens = tokens_BS[row, start_B[row] : end_B[row]].tolist()
                answers[row] = worker.submit(environment.answer, row, tokens)
            entered = time.perf_counter()
            if not before and not turns.going_B.any():
                before, answers = answers, {}
            chunks = [before[row].result() if row in before else [] for row in range(B)]
            idle += time.perf_counter() - entered
            bar.update(len(before))
            # 3. The answers are read.
            state = sampler.append(model, params, config.sampler, state, chunks)
            ready_B = np.array([bool(chunk) for chunk in chunks]) & ~to_host(state.truncated_B)
            if not (ready_B.any() or turns.going_B.any() or answers):
                break
        for episode in episodes:
            if not episode.done:  # out of context
                episode.finish()
        state = dataclasses.replace(state, cache=(), logits_BV=np.zeros((B, 0)))
        state = jax.tree.map(lambda x: to_host(x)[: len(episodes)], state)
    seconds = time.perf_counter() - began
    return Played(
        state, environment.transcripts, environment.rewards, environment.audits, idle, seconds
    )


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
    """Lay out what was played as the GRPO loop reads it, with room for `turns` turns a row."""
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
    """Summarise what was played.

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
        played = play(
            model, params, tokenizer, config, episodes, range(len(episodes)), key,
            group_size=group_size, mesh=mesh,
        )  # fmt: skip
        turns = max(episode.budget for episode in episodes)
        return rollout_batch(played, turns), rollout_metrics(played, episodes)

    return rollout


@dataclasses.dataclass(frozen=True)
class PolicyPlayer:
    """Plays evaluation's games with a policy (`evaluation.runner.Player`).

    identity: names all that the play depends on besides the games.
    rows: games are played in batches of so many.
    mesh: where it spans several processes, all of them play.
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
        """Whether it plays in several processes at once."""
        return self.mesh is not None and len(processes_of(self.mesh)) > 1

    def __call__(self, games: Sequence) -> list[dict]:
        transcripts = []
        for start in range(0, len(games), self.rows):
            batch = games[start : start + self.rows]
            episodes = [game.episode for game in batch]
            seeds = [row_seed(game.episode.setting.id, game.seed) for game in batch]
            played = play(
                self.model, self.params, self.tokenizer, self.config, episodes, seeds,
                jax.random.key(0), rows=self.rows, mesh=self.mesh, audited=True, title="play",
            )  # fmt: skip
            transcripts += [
                {"text": prompts.render(turns), "claims": list(map(dataclasses.asdict, audits))}
                for turns, audits in zip(played.transcripts, played.audits, strict=True)
            ]
        return transcripts


def row_seed(name: str, seed: int) -> int:
    """Derive a row's seed, so that a game is played alike wherever in a batch it stands."""
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
      params: the policy's parameters; their hash enters the player's identity.
      tokenizer: the policy's.
      config: how to play.
      rows: games side by side.
      mesh: as in `sampler.init_state`.
    """
    digest = hashlib.sha256(f"{model} {config} {tokenizer.content_hash}".encode())
    for leaf in jax.tree.leaves(params):
        digest.update(to_host(leaf).tobytes())
    return PolicyPlayer(model, params, tokenizer, config, digest.hexdigest(), rows, mesh)
