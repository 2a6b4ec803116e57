"""Rollouts one step ahead: a half of the devices plays while the other half trains.

    step i:  take the rollout of step i, which was played with the policy before update i - 1
             start the rollout of step i + 1 with the policy before update i, in a thread
             update i, on the other devices

Which policy plays a step does not depend on how long anything takes. A checkpoint is saved together
with the rollout of the step that follows it, so that a resumed run goes on as an uninterrupted one.
The lag is what `importance_cap` corrects for.
"""

import concurrent.futures
import dataclasses
import io
import json
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from autollm_jax.files import write_atomic
from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.batches import Decisions, Rollout, RolloutBatch
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.sharding.hosts import to_devices
from autollm_jax.sharding.rules import tree_shardings

KEPT = 2  # files of rollouts: as many as there are checkpoints


def rollout_key(key: jax.Array, step: int) -> jax.Array:
    """Return the randomness of a step's rollout."""
    return jax.random.split(jax.random.fold_in(key, step))[0]


class Ahead:
    """Plays the rollouts of a run on a mesh of their own, each one step before it is needed."""

    def __init__(
        self,
        rollout: Rollout,
        model: TransformerConfig,
        frozen: dict,
        mesh: Mesh,
        folder: Path,
        key: jax.Array,
        steps: int,
    ):
        """Lay the policy's frozen part out on the mesh.

        Args:
          rollout: plays on `mesh`.
          model: the policy's shape.
          frozen: parameters that are not trained; empty without LoRA.
          mesh: the players'; it shares no device with the trainer's.
          folder: for the rollouts that are saved beside checkpoints.
          key: the run's.
          steps: of the run; none is played beyond.
        """
        shapes, axes = transformer.parameter_shapes(model), transformer.logical_axes(model)
        of_frozen, self._shardings = lora.split(model, tree_shardings(axes, shapes, mesh))
        self._frozen = to_devices(frozen, of_frozen) if frozen else {}
        self._rollout, self._mesh, self._key, self._steps = rollout, mesh, key, steps
        self._folder = folder
        self._threads = concurrent.futures.ThreadPoolExecutor(1, "rollout")
        self._next: concurrent.futures.Future | None = None

    def take(self, step: int, trained: dict) -> tuple[RolloutBatch, dict[str, float]]:
        """Return a step's rollout and its metrics, and start the next step's.

        Args:
          step: the step.
          trained: the trained parameters before its update; they may be donated afterwards.
        """
        began = time.perf_counter()
        if self._next is not None:
            batch, metrics = self._next.result()
        elif self._path(step).exists():
            batch, metrics = load_rollout(self._path(step))
        else:  # the run's first step
            batch, metrics = self._start(step, trained).result()
        metrics = metrics | {"rollout_wait_seconds": time.perf_counter() - began}
        self._next = self._start(step + 1, trained) if step + 1 < self._steps else None
        return batch, metrics

    def save(self, step: int) -> None:
        """Save the rollout of a step that has been started; call it before the checkpoint's save.

        It waits for the rollout to be over.
        """
        if self._next is None:
            return
        save_rollout(self._path(step), *self._next.result())
        for path in sorted(self._folder.glob("[0-9]*.npz"), key=lambda p: int(p.stem))[:-KEPT]:
            path.unlink()

    def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, step: int, trained: dict) -> concurrent.futures.Future:
        params = lora.join(self._frozen, to_devices(trained, self._shardings))
        return self._threads.submit(self._play, params, rollout_key(self._key, step), step)

    def _play(self, params, key: jax.Array, step: int) -> tuple[RolloutBatch, dict[str, float]]:
        began = time.perf_counter()
        with jax.set_mesh(self._mesh):
            batch, metrics = self._rollout(params, key, step)
        return batch, metrics | {"rollout_seconds": time.perf_counter() - began}

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.npz"


def save_rollout(path: Path, batch: RolloutBatch, metrics: dict[str, float]) -> None:
    """Write a rollout to one .npz file, atomically."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays = {jax.tree_util.keystr(name, simple=True, separator="."): leaf for name, leaf in leaves}
    numbers = json.dumps({name: float(value) for name, value in metrics.items()})
    whole = io.BytesIO()
    np.savez_compressed(whole, metrics=np.array(numbers), **arrays)
    write_atomic(path, whole.getvalue())


def load_rollout(path: Path) -> tuple[RolloutBatch, dict[str, float]]:
    """Read what `save_rollout` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)

    def part(kind, prefix: str):
        names = [field.name for field in dataclasses.fields(kind)]
        found = {name: arrays[prefix + name] for name in names if prefix + name in arrays}
        return kind(**found) if found else None

    batch = part(RolloutBatch, "")
    nested = {"allowed": part(Allowed, "allowed."), "decisions": part(Decisions, "decisions.")}
    return dataclasses.replace(batch, **nested), json.loads(str(arrays["metrics"]))
