"""Steps of GRPO with a language model: single turns, whose even tokens are rewarded.

Letters: N groups, G members, B = N * G rows, S slots.
"""

import dataclasses
import json
import runpy
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from autollm_jax.benchmarks.timing import Options, measured
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.models import transformer
from autollm_jax.models.decoding import for_decoding
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published import pretrained
from autollm_jax.rl import conversations, sampler
from autollm_jax.rl.batches import GRPOLoopConfig, Rollout, RolloutBatch
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.loop import train_grpo
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.loop import Site
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.peaks import peak_flops

LEARNING_RATE, CLIP_NORM = 1e-6, 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Groups a step, members a group, tokens of each prompt and of each answer."""

    groups: int
    members: int
    prompt: int
    answer: int

    @property
    def rows(self) -> int:
        return self.groups * self.members

    @property
    def length(self) -> int:
        return self.prompt + self.answer


def even_share(tokens_BS: np.ndarray) -> np.ndarray:
    """Return the reward of answers: their share of even tokens, [B]."""
    return (np.asarray(tokens_BS) % 2 == 0).mean(-1)


def make_rollout(
    model: TransformerConfig, prompts: list[list[int]], sizes: Sizes, mesh: Mesh
) -> Rollout:
    """Return a rollout of one answer of full length a row, at temperature 1."""
    memory = sampler.SamplerConfig(
        sizes.length, cache_block=sizes.length, chunk_sizes=(sizes.prompt,)
    )
    turn = sampler.TurnConfig(stop_id=-1, max_new_tokens=sizes.answer)

    def rollout(params, key, step):
        laid_out = for_decoding(model, params)
        state = conversations.init_state(model, memory, range(sizes.groups), mesh)
        state = sampler.append(model, laid_out, memory, state, prompts)
        state = conversations.repeat(state, sizes.members, range(sizes.rows))
        state = sampler.generate(model, laid_out, memory, state, key, turn)
        tokens_BS, turns_BS = np.asarray(state.tokens_BS), np.asarray(state.turns_BS)
        rewards_B = even_share(tokens_BS[:, sizes.prompt :])
        batch = RolloutBatch(
            tokens_BS, np.asarray(state.length_B), turns_BS, np.asarray(state.logprobs_BS),
            rewards_B[:, None].astype(np.float32), np.ones((sizes.rows, 1), bool),
        )  # fmt: skip
        return batch, {"reward": rewards_B.mean()}

    return rollout


def train(
    model: TransformerConfig, params, rollout: Rollout, sizes: Sizes, steps: int, mesh: Mesh
) -> list[dict]:
    """Train for some steps, each one update on all rows, without a reference.

    Args:
      model: the policy's shape.
      params: its parameters.
      rollout: from `make_rollout`.
      sizes: of a step.
      steps: how many; the first ones compile.
      mesh: devices.

    Returns:
      The steps' metrics.
    """
    optimizer = OptimizerConfig(LEARNING_RATE, decay="constant", clip_norm=CLIP_NORM)
    settings = GRPOLoopConfig(
        steps, sizes.members, sizes.rows, length_multiple=sizes.length, share_prefixes=True,
        save_every=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train_grpo(
            model, GRPOHyperparameters(kl_coefficient=0.0), settings,
            make_optimizer(optimizer, steps), rollout, lambda: params,
            Site(mesh, Checkpoints(Path(folder) / "checkpoints"), folder), jax.random.key(0),
        )  # fmt: skip
        return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open()]


def grpo_step(options: Options) -> dict:
    """Time GRPO steps of a Qwen3-0.6B with random weights: 64 rows, 512 + 128 tokens.

    The value is the FLOP rate of the updates, the reference the device's highest one, so that the
    ratio is their MFU. Rollouts are printed beside it. With --size=3m, to try it on a CPU, the
    model has two layers of width 64, and a step 4 rows of 16 + 8 tokens.
    """
    shape = runpy.run_path("configs/gym_qwen3_0p6b.py")["get_config"]().policy.shape.to_dict()
    sizes = Sizes(8, 8, 512, 128)
    if options.size == "3m":
        shape |= {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        sizes = Sizes(2, 2, 16, 8)
    model = dataclasses.replace(
        pretrained.shape_of("Qwen3-0.6B", shape),
        dtype=options.dtype or "bfloat16",
        remat="layer",
        slots_first=jax.default_backend() == "tpu",
    )
    params = jax.jit(lambda key: transformer.init(model, key))(jax.random.key(0))
    prompts = np.random.default_rng(0).integers(0, model.vocab_size, (sizes.groups, sizes.prompt))
    mesh = make_mesh(MeshShape())
    rollout = make_rollout(model, prompts.tolist(), sizes, mesh)
    rows = train(model, params, rollout, sizes, options.repeats + 1, mesh)[1:]
    rolled, updated = ([row[f"{part}_seconds"] for row in rows] for part in ("rollout", "update"))
    answered = [sizes.rows * sizes.answer / seconds for seconds in rolled]
    print(f"{transformer.parameter_count(model):,} parameters, {sizes}")
    print("rollout: ", ", ".join(f"{s:.2f}" for s in rolled), "s")
    print("update:  ", ", ".join(f"{s:.2f}" for s in updated), "s")
    print("sampled: ", ", ".join(f"{rate:.0f}" for rate in answered), "tokens/s")
    print(f"most memory: {max(row['peak_memory_bytes'] for row in rows) / 2**30:.1f} GiB")
    peak = peak_flops(jax.devices()) or float("nan")
    rates = [row.get("mfu", float("nan")) * peak * jax.device_count() / 1e9 for row in rows]
    return measured(rates, "GFLOP/s", [peak * jax.device_count() / 1e9])
