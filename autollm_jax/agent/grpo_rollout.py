"""Rollouts of the agent for the GRPO loop: rounds of episodes, laid out as its batches.

Letters: B rows, N groups, J turns, T tokens, P panels.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from autollm_jax.agent.constraint import free_tokens, letters
from autollm_jax.agent.dialogue import panel_ids
from autollm_jax.agent.environment_turns import Start
from autollm_jax.agent.rollout import Layout, PlayConfig, Played, Policy, play
from autollm_jax.gym.environment import Episode
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import grammar
from autollm_jax.rl.batches import Decisions, RolloutBatch
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.rl.scoring import advantages
from autollm_jax.text.symbols import LETTERS


def make_rollout(
    model: TransformerConfig,
    tokenizer,
    config: PlayConfig,
    starts_of_round: Callable[[int], Sequence[Callable[[], Start]]],
    layout: Layout,
    baseline: bool = False,
    refills: int = 0,
    hp: GRPOHyperparameters = GRPOHyperparameters(),  # noqa: B008
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
      refills: most further rounds of a step, played as long as groups lack whose members differ in
        some advantage; these take the place of groups that would teach nothing.
      hp: how advantages are computed.

    Returns:
      rollout(params, key, step) -> (RolloutBatch, metrics): those of the first round, and of
      sampled groups `groups_that_differ`, the share that teach something, and `rounds`.

    Refills are DAPO's dynamic sampling (arXiv 2503.14476, section 3.2) with a bound: groups that
    still do not differ after the last round are left out of the loss.
    """

    def play_round(params, key, number):
        starts = [make() for make in starts_of_round(number) for _ in range(layout.group_size)]
        policy = Policy(model, params, tokenizer)
        played = play(policy, config, starts, range(len(starts)), key, layout)
        episodes = [start.episode for start in starts]
        turns = max(episode.budget for episode in episodes)
        batch = rollout_batch(played, turns, tokenizer, config, baseline)
        return batch, rollout_metrics(played, episodes)

    def informative(batch):
        """Tell which groups teach something [N]."""
        return advantages(batch, hp, layout.group_size)[1].reshape(-1, layout.group_size).any(1)

    def rollout(params, key, step):
        first = step * (refills + 1)
        batch, metrics = play_round(params, key, first)
        if hp.members != "sampled":
            return batch, metrics
        informative_N = informative(batch)
        metrics["groups_that_differ"], metrics["rounds"] = float(informative_N.mean()), 1
        for more in range(1, refills + 1):
            if informative_N.all():
                break
            metrics["rounds"] += 1
            fresh, _ = play_round(params, jax.random.fold_in(key, more), first + more)
            useful, useless = np.flatnonzero(informative(fresh)), np.flatnonzero(~informative_N)
            count = min(len(useful), len(useless))
            batch = _exchange(batch, fresh, useless[:count], useful[:count], layout.group_size)
            informative_N[useless[:count]] = True
        return batch, metrics

    return rollout


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
        truncated_B=state.truncated_B | _unfinished(state, tokenizer.stop_id),
    )


def _unfinished(state, stop_id: int) -> np.ndarray:
    """Tell which rows have a turn that ended without its last token, at the limit of a turn [B]."""
    next_BT = np.pad(state.turns_BS[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    last_BT = (state.turns_BS >= 0) & (state.turns_BS != next_BT)
    return (last_BT & (state.tokens_BS != stop_id)).any(1)


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
      truncated_share (of episodes), turn_tokens, tokens_per_second (sampled ones; those of a device
      are rollout_tokens_per_second_per_device), idle_ratio (the share of time in which the policy
      waited for the environment), idle_rows (the share of rows that do not speak, over the passes
      of the model), tokens_per_pass (that a row which speaks says).
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
        "rollout_tokens_per_second_per_device": sampled / played.seconds / played.devices,
        "idle_rows": 1 - played.readings / max(played.row_passes, 1),
        "tokens_per_pass": sampled / max(played.readings, 1),
        "idle_ratio": played.idle_seconds / played.seconds,
    }


def _exchange(
    batch: RolloutBatch, other: RolloutBatch, groups: np.ndarray, others: np.ndarray, size: int
) -> RolloutBatch:
    """Put groups of another batch in the place of some groups."""

    def rows(groups):
        return (groups[:, None] * size + np.arange(size)).ravel()

    def put(x, y):
        x = np.array(x)
        x[rows(groups)] = y[rows(others)]
        return x

    return jax.tree.map(put, batch, other)
