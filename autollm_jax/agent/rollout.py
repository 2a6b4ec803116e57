"""Playing episodes with a policy, for training (`make_rollout`) and evaluation (`policy_player`).

    until every episode is over:
      1. the environment's new text is encoded, once, and appended to each row
      2. the policy takes a turn in every row that is still playing
      3. its tokens are decoded, read as an action and run

Rows keep the sampled tokens as they are: what is decoded is read by the environment and by people,
and never encoded again.

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

from autollm_jax.agent import prompts
from autollm_jax.agent.claims import Audit, audit
from autollm_jax.agent.constraint import grammar_of
from autollm_jax.agent.dialogue import encode_turn
from autollm_jax.agent.forecast import advised_by
from autollm_jax.agent.parsing import parse_action
from autollm_jax.agent.playing import act
from autollm_jax.agent.prompts import Turn
from autollm_jax.errors import UserError
from autollm_jax.files import code_digest
from autollm_jax.gym.environment import Episode
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import sampler
from autollm_jax.rl.loop import RolloutBatch
from autollm_jax.rl.sampler import SamplerConfig, SamplerState
from autollm_jax.sharding.hosts import processes_of, to_host


@dataclasses.dataclass(frozen=True)
class PlayConfig:
    """How a policy plays.

    sampler: the context's length, and sizes to compile for.
    max_new_tokens: the most tokens of a turn.
    temperature: 0 is greedy.
    constrained: each turn runs a configuration of the experiment's own that is measured and untried
      (`agent.constraint`), so that none is invalid or matched.
    advisor: who makes the forecast in the prompt (`agent.forecast`).
    """

    sampler: SamplerConfig
    max_new_tokens: int
    temperature: float = 1.0
    constrained: bool = False
    advisor: str = "own"


@dataclasses.dataclass(frozen=True)
class Played:
    """Episodes as they were played, in their order.

    state: the rows, on the host, without cache and logits.
    transcripts: each conversation's turns.
    rewards: each conversation's reward per agent turn; ending the episode early is a turn of
      reward 0.
    audits: what the thinking of each agent turn states, where that was asked for.
    environment_seconds: time spent outside the policy: texts, tokens, parsing, look-ups.
    seconds: time in all.
    """

    state: SamplerState
    transcripts: list[list[Turn]]
    rewards: list[list[float]]
    audits: list[list[Audit]]
    environment_seconds: float
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

    Raises:
      ValueError: if the members of a group are on different experiments.
      UserError: if a first prompt leaves no room in the context.
    """
    on_mesh = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
    with on_mesh, advised_by(config.advisor):
        return _play(
            model, params, tokenizer, config, episodes, seeds, key, group_size, rows, mesh, audited
        )


def _play(
    model, params, tokenizer, config, episodes, seeds, key, group_size, rows, mesh, audited
) -> Played:
    began, outside = time.perf_counter(), 0.0
    stop_id = tokenizer.stop_id
    first_of_group = episodes[::group_size]
    for number, episode in enumerate(episodes):
        if episode.experiment.id != first_of_group[number // group_size].experiment.id:
            raise ValueError("the members of a group play different experiments")
    opening = [
        prompts.environment_turn(prompts.describe(episode.tell())) for episode in first_of_group
    ]
    chunks = [encode_turn(tokenizer, turn, opens=True) for turn in opening]
    longest = max(map(len, chunks))
    if longest >= config.sampler.context:
        raise UserError(
            f"the policy's context of {config.sampler.context} tokens has no room for a first "
            f"prompt of {longest}; raise config.policy.context"
        )
    transcripts = [[turn] for turn in opening for _ in range(group_size)]
    rewards, audits = [[] for _ in episodes], [[] for _ in episodes]
    outside += time.perf_counter() - began

    empty = (rows or len(episodes)) - len(episodes)
    seeds = [*seeds, *[0] * empty]
    chunks += [[]] * (empty // group_size)
    state = sampler.init_state(model, config.sampler, seeds[::group_size], mesh)
    state = sampler.append(model, params, config.sampler, state, chunks)
    if group_size > 1:
        state = sampler.repeat(state, group_size, seeds)
    active_B = np.arange(len(seeds)) < len(episodes)
    while True:
        active_B &= ~to_host(state.truncated_B)
        if not active_B.any():
            break
        start_B = to_host(state.length_B)
        entered = time.perf_counter()
        grammar = grammar_of(tokenizer, episodes, len(seeds)) if config.constrained else None
        outside += time.perf_counter() - entered
        state = sampler.generate(
            model,
            params,
            config.sampler,
            state,
            key,
            stop_id=stop_id,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            active_B=active_B,
            grammar=grammar,
        )
        tokens_BS, end_B = to_host((state.tokens_BS, state.length_B))

        entered = time.perf_counter()
        chunks = [[] for _ in seeds]
        for row in np.flatnonzero(active_B & (end_B > start_B)):  # the others had no room
            episode = episodes[row]
            text = tokenizer.decode(tokens_BS[row, start_B[row] : end_B[row]].tolist())
            transcripts[row].append(prompts.agent_turn(text))
            if audited:
                audits[row].append(audit(parse_action(text).think, episode.tell()))
            spent = len(episode.rewards)
            trial = act(episode, text)
            if not episode.done:
                reply = prompts.environment_turn(prompts.feedback(trial, episode.tell()))
                transcripts[row].append(reply)
                chunks[row] = encode_turn(tokenizer, reply, opens=False)
            rewards[row].append(sum(episode.rewards[spent:]))
            active_B[row] = not episode.done
        outside += time.perf_counter() - entered
        state = sampler.append(model, params, config.sampler, state, chunks)
    for episode in episodes:
        if not episode.done:  # out of context
            episode.finish()
    state = dataclasses.replace(state, cache=(), logits_BV=np.zeros((len(seeds), 0)))
    state = jax.tree.map(lambda x: to_host(x)[: len(episodes)], state)
    seconds = time.perf_counter() - began
    return Played(state, transcripts, rewards, audits, outside, seconds)


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
        "idle_ratio": played.environment_seconds / played.seconds,
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
            seeds = [row_seed(game.episode.experiment.id, game.seed) for game in batch]
            played = play(
                self.model, self.params, self.tokenizer, self.config, episodes, seeds,
                jax.random.key(0), rows=self.rows, mesh=self.mesh, audited=True,
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
      params: the policy's parameters; their hash enters the player's identity, as does that of the
        code that it plays with.
      tokenizer: the policy's.
      config: how to play.
      rows: games side by side.
      mesh: as in `sampler.init_state`.
    """
    code = code_digest("agent", "baselines", "models", "rl")
    digest = hashlib.sha256(f"{model} {config} {tokenizer.content_hash} {code}".encode())
    for leaf in jax.tree.leaves(params):
        digest.update(to_host(leaf).tobytes())
    return PolicyPlayer(model, params, tokenizer, config, digest.hexdigest(), rows, mesh)
