"""Plays a policy's games for a score: in evaluation, and on experiments kept out of training."""

import dataclasses
import hashlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from autollm_jax.agent.environment_turns import Start
from autollm_jax.agent.rollout import Layout, PlayConfig, Policy, play
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.hosts import processes_of, to_host
from autollm_jax.sharding.rules import even_rows
from autollm_jax.text import prompts


def mean_regret(
    policy: Policy, config: PlayConfig, starts: Sequence[Start], rows: int, mesh: Mesh
) -> float:
    """Play episodes, so many rows at once; return their mean regret over all trials."""
    layout = Layout(rows=even_rows(min(rows, len(starts)), mesh), mesh=mesh)
    play(policy, config, starts, range(len(starts)), jax.random.key(0), layout)
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
        if not games:
            return []
        starts = [Start(game.episode, order=game.seed) for game in games]
        seeds = [row_seed(game.episode.setting.id, game.seed) for game in games]
        policy = Policy(self.model, self.params, self.tokenizer)
        layout = Layout(rows=self.rows, mesh=self.mesh)
        key = jax.random.key(0)
        played = play(policy, self.config, starts, seeds, key, layout, scored=True)
        return [
            {"text": prompts.render(turns), "claims": list(map(dataclasses.asdict, audits))}
            for turns, audits in zip(played.transcripts, played.audits, strict=True)
        ]


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
