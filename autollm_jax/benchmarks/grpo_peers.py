"""A step of GRPO against another library's, in turn, in one process.

Letters: B rows, T tokens, V vocabulary.
"""

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np

from autollm_jax.benchmarks import grpo, smollm2, trl_steps, tunix_steps
from autollm_jax.benchmarks.grpo import Sizes
from autollm_jax.benchmarks.timing import Options, Seconds, measured
from autollm_jax.benchmarks.turns import StepTime, Stopwatch, Turns
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.batches import Rollout
from autollm_jax.sharding.mesh import MeshShape, make_mesh

PEERS = {"trl": trl_steps.Steps, "tunix": tunix_steps.Steps}
GROUPS, MEMBERS, ANSWER = 4, 4, 64
ATOL = 1e-3  # of logits, between two implementations in f32


class _Enough(Exception):
    """Our loop has made its steps, and its final checkpoint is not wanted."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured of two sides that made the same steps; names as printed.

    times: of each side's steps, the first one included, in which programs are compiled.
    played: of each side, the tokens of the last rollout, [B, T].
    rewards: of each side, each step's mean reward.
    largest_gap: the largest difference between the sides' logits of the prompts, before training.
    """

    times: dict[str, list[StepTime]]
    played: dict[str, np.ndarray]
    rewards: dict[str, list[float]]
    largest_gap: float


def grpo_peers(options: Options) -> dict:
    """Time GRPO steps of SmolLM2-135M's shape, random weights, f32, in turn with those of --peer.

    The same on both sides: weights, 4 prompts of --prompt tokens, 4 answers to each of exactly 64
    tokens at temperature 1, rewards (the share of even tokens), one update on all 16 rows by AdamW
    with clipping, no reference model, nothing computed again in the backward pass, cores. The
    answers differ, as each side draws its own. The value is steps a second by the clock.
    """
    sizes = Sizes(GROUPS, MEMBERS, options.prompt, ANSWER)
    found = compare(smollm2.SHAPE, sizes, options.peer, options.repeats)
    ours, theirs = found.times
    print(f"{transformer.parameter_count(smollm2.SHAPE):,} parameters, f32, {sizes}")
    print(f"largest difference of logits before training: {found.largest_gap:.1e}")
    for name, rewards in found.rewards.items():
        print(f"{name}: mean rewards", ", ".join(f"{reward:.3f}" for reward in rewards))
    for name, times in found.times.items():
        for part in ("rollout", "update"):
            spent: list[Seconds] = [getattr(time, part) for time in times]
            print(f"{name}: {part}, s:", ", ".join(f"{each.wall:.1f}" for each in spent), end="")
            print("; of CPU time", ", ".join(f"{each.cpu:.1f}" for each in spent))
    of_parts = {
        f"{part} {kind}": ratio(found, theirs, ours, part, kind)
        for part in ("rollout", "update", "step")
        for kind in ("wall", "cpu")
    }
    print(f"{theirs} / ours:", ", ".join(f"{k} {value:.2f}" for k, value in of_parts.items()))
    rates = {
        name: [1 / time.step.wall for time in times[1:]] for name, times in found.times.items()
    }
    return measured(rates[ours], "steps/s", rates[theirs]) | {"peer": theirs}


def ratio(found: Comparison, first: str, second: str, part: str, kind: str) -> float:
    """Divide the median seconds of a part of one side's steps by the other's.

    Args:
      found: the measurement.
      first, second: the sides.
      part: rollout, update, or step for both.
      kind: wall or cpu.
    """

    def median(name: str) -> float:
        parts = [getattr(time, part) for time in found.times[name][1:]]
        return float(np.median([getattr(each, kind) for each in parts]))

    return median(first) / median(second)


def compare(model: TransformerConfig, sizes: Sizes, peer: str, repeats: int) -> Comparison:
    """Let both sides make 1 + repeats steps in turn.

    Raises:
      UserError: the peer is not installed, or computes other logits from the same weights.
    """
    params, steps, turns = smollm2.random_params(model), repeats + 1, Turns()
    prompts = smollm2.random_prompts(model, sizes.groups, sizes.prompt)
    ours, theirs = Stopwatch(turns, 0), Stopwatch(turns, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        smollm2.write_safetensors(model, params, folder)
        other = PEERS[peer](model, folder, prompts, sizes, steps, theirs)
        gap = np.abs(other.logits(prompts) - transformer.apply(model, params, np.array(prompts)))
        if gap.max() > ATOL:
            raise UserError(f"grpo_peers: logits of {other.version} differ by {gap.max():.2g}")
        thread, mesh = turns.beside(1, other.train), make_mesh(MeshShape())
        played, rewards = [], []
        rollout = _timed(
            grpo.make_rollout(model, prompts, sizes, mesh), ours, steps, played, rewards
        )
        try:
            grpo.train(model, params, rollout, sizes, steps + 1, mesh)
        except _Enough:
            turns.take(0)  # which the peer's last step, or its failure, gives
        thread.join()
    return Comparison(
        {"ours": ours.steps, other.version: theirs.steps},
        {"ours": played[-1], other.version: other.played},
        {"ours": rewards, other.version: other.rewards},
        float(gap.max()),
    )


def _timed(rollout: Rollout, watch: Stopwatch, steps: int, played: list, rewards: list) -> Rollout:
    """Return the rollout with a watch, which ends a step where the next one begins.

    It keeps the tokens and the mean rewards of all rollouts, and ends the loop after so many steps.
    """

    def timed(params, key, step):
        if step:
            jax.block_until_ready(params)
            watch.end()
        if step == steps:
            raise _Enough
        watch.begin()
        batch, metrics = rollout(params, key, step)
        watch.rewarded()
        played.append(batch.tokens_BT)
        rewards.append(metrics["reward"])
        return batch, metrics

    return timed
