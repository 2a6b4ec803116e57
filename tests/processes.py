"""One of the processes that `test_multiprocess.py` starts: trains a tiny policy both ways.

python -m tests.processes TASK FOLDER ADDRESS PROCESSES PROCESS
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from autollm_jax.agent.distillation import PackedRows, distill
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import distributed, preemption
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.rl import sampler
from autollm_jax.rl.batches import GRPOLoopConfig, RolloutBatch
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.loop import train_grpo
from autollm_jax.sharding.hosts import to_host
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.loop import LoopConfig, Site
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.state import abstract_state

MODEL = transformer.TransformerConfig(
    vocab_size=16, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=32
)
SAMPLER = sampler.SamplerConfig(context=8, cache_block=8, chunk_sizes=(4,))
GROUPS, G, STEPS = 4, 4, 20
MESH = "2,2,2"  # data, fsdp, tensor; of two processes each has one half of `data`
SHAPE = MeshShape(*map(int, os.environ.get("MESH", MESH).split(",")))
KILLED_AT = 1
# The whole job in its smallest form: one experiment family, one trial.
SMALL_JOB = (
    "--config.gym.tasks=('pretraining',)", "--config.gym.evidence=False", "--config.gym.budget=1",
    "--config.policy.width=16", "--config.policy.layers=1", "--config.policy.scan_unroll=1",
    "--config.policy.heads=2", "--config.policy.kv_heads=1", "--config.policy.head_dim=8",
    "--config.policy.mlp_width=32", "--config.policy.vocab_size=400",
    "--config.policy.context=512", "--config.policy.turn_tokens=64",
    "--config.policy.short_conv=0", "--config.curate.distill_pairs=24",
    "--config.simulate.processes=1", "--config.simulate.reasoning=False",
    "--config.distill.steps=2", "--config.distill.row_length=512", "--config.distill.save_every=2",
    "--config.distill.dtype=float32", "--config.grpo.steps=1",
    "--config.grpo.groups=2", "--config.grpo.group_size=2", "--config.grpo.minibatch_rows=4",
    "--config.evaluation.seeds=(0,)", "--config.evaluation.methods=agent,random",
    "--config.evaluation.processes=1",
)  # fmt: skip


def optimizer():
    settings = OptimizerConfig(learning_rate=1e-2, decay="constant", weight_decay=0.0)
    return make_optimizer(settings, STEPS)


def abstract(mesh):
    init = functools.partial(transformer.init, MODEL)
    return abstract_state(init, transformer.logical_axes(MODEL), optimizer(), mesh)


def distilled(folder, mesh, key=0):
    rng = np.random.default_rng(0)
    tokens_NT = rng.integers(1, 16, (24, 8)).astype(np.int32)
    positions_NT = np.broadcast_to(np.arange(8, dtype=np.int32), tokens_NT.shape)
    rows = PackedRows(tokens_NT, np.ones_like(tokens_NT), positions_NT, tokens_NT % 3 > 0)
    loop = LoopConfig(STEPS, save_every=10, report_every=1)
    site = Site(mesh, Checkpoints(folder / "distill"), folder)
    return distill(MODEL, loop, 8, optimizer(), rows, site, jax.random.key(key)).params


def grpo(folder, mesh, params, before_step=lambda step: None):
    def rollout(params, key, step):
        """Up to 4 tokens after a prompt; the reward is the share of even ones."""
        before_step(step)
        prompts = np.random.default_rng(step).integers(1, 16, (GROUPS, 2)).tolist()
        state = sampler.init_state(MODEL, SAMPLER, range(GROUPS), mesh)
        state = sampler.append(MODEL, params, SAMPLER, state, prompts)
        state = sampler.repeat(state, G, range(GROUPS * G))
        turn = sampler.TurnConfig(stop_id=0, max_new_tokens=4)
        state = sampler.generate(MODEL, params, SAMPLER, state, key, turn)
        tokens, length, turns, logprobs = to_host(
            (state.tokens_BS, state.length_B, state.turns_BS, state.logprobs_BS)
        )
        sampled = turns >= 0
        rewards = ((tokens % 2 == 0) & sampled).sum(1, keepdims=True) / sampled.sum(1)[:, None]
        ones = np.ones_like(rewards, bool)
        batch = RolloutBatch(tokens, length, turns, logprobs, rewards.astype(np.float32), ones)
        return batch, {"reward": rewards.mean()}

    loop = GRPOLoopConfig(
        STEPS, G, minibatch_rows=8, epochs=1, length_multiple=8, share_prefixes=True, save_every=15
    )  # on eight devices, which have no whole groups, nothing is shared
    hp = GRPOHyperparameters(kl_coefficient=0.01)
    site = Site(mesh, Checkpoints(folder / "grpo"), folder)
    args = MODEL, hp, loop, optimizer(), rollout, lambda: params, site
    return train_grpo(*args, jax.random.key(1)).params


def train(folder: Path) -> None:
    """Distil and improve a policy; its parameters after each go to one file."""
    mesh = make_mesh(SHAPE)
    before = distilled(folder, mesh)
    host = {f"distill/{n}": x for n, x in enumerate(jax.tree.leaves(to_host(before)))}
    after = grpo(folder, mesh, before)
    host |= {f"grpo/{n}": x for n, x in enumerate(jax.tree.leaves(to_host(after)))}
    if distributed.is_main():
        np.savez(folder / "params.npz", **host)


def preempted(folder: Path) -> None:
    """As `train`, but the last process gets SIGTERM in one of GRPO's steps, once."""
    mesh = make_mesh(SHAPE)

    def kill_the_last(step):
        if step == KILLED_AT and distributed.index() == distributed.count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 60
            while preemption._boundaries.last is None:  # or steps so short may be over before
                assert time.monotonic() < deadline
                time.sleep(0.01)

    before = distilled(folder, mesh)
    grpo(folder, mesh, before, kill_the_last)
    raise AssertionError("it went on after SIGTERM")


def restore(folder: Path) -> None:
    """Read GRPO's checkpoint of another layout, and write its parameters again."""
    state, _ = Checkpoints(folder / "grpo").restore(abstract(make_mesh(SHAPE)))
    host = {f"grpo/{n}": x for n, x in enumerate(jax.tree.leaves(to_host(state.params)))}
    if distributed.is_main():
        np.savez(folder / "restored.npz", **host)


def failing(folder: Path) -> None:
    """Fail in what process 0 does alone."""

    def fail():
        raise UserError("the disk is full")

    distributed.on_main(fail)


TASKS = {f.__name__: f for f in (train, preempted, restore, failing)}

if __name__ == "__main__":
    task, folder, address, processes, process = sys.argv[1:]
    config = {"seed": int(os.environ.get("SEED", "0"))}
    try:
        with preemption.in_good_order():
            settings = distributed.Settings(
                address, int(processes), int(process), one_host=True, timeout_seconds=60
            )
            distributed.start(settings)
            preemption.listen()
            distributed.check(config, Path(folder))
            TASKS[task](Path(folder))
    except UserError as error:
        sys.exit(f"error: {error}")
