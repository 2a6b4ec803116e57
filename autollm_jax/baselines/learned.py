"""Keeps the learned arrays of a meta-learned baseline in a file: nothing is learned twice."""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autollm_jax import host
from autollm_jax.baselines.base import MetaLearned, Problem
from autollm_jax.files import package_digest, write_atomic
from autollm_jax.gym.experiments import Experiment

# The file's entry that holds the digest of everything the arrays were learned from.
DIGEST = "digest"


def experiments_digest(experiments: Sequence[Experiment]) -> str:
    """Hash everything that can be learned from experiments."""
    digest = hashlib.sha256()
    for e in experiments:
        described = [e.id, e.space.to_json(), e.default, e.objective.metric, e.objective.minimize]
        described += [dict(e.facts), dataclasses.asdict(e.fidelity), dict(e.limit or {})]
        digest.update(json.dumps(described, sort_keys=True, default=str).encode())
        for array in (e.units_RD, e.outcomes.values_R, e.outcomes.status_R, e.feasible_R):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Learned:
    """A meta-learned baseline that is called like any other: with a problem and a seed.

    The first call learns, unless the file holds arrays that were learned from the same experiments,
    by the same code, with the same seed.

    Attributes:
      method: the baseline's class.
      training: the split's training experiments, the only ones that the baseline may learn from.
      seed: of learning.
      path: its file, `.npz`.
      share: share of the method's training steps to take; less than 1 gives a quick trial run.
      progress: whether to show a progress bar.
    """

    method: type[MetaLearned]
    training: tuple[Experiment, ...]
    seed: int
    path: Path
    share: float = 1.0
    progress: bool = True

    @functools.cached_property
    def digest(self) -> str:
        """Hash the method, the code, the experiments, the seed and the share."""
        parts = [
            self.method.__qualname__,
            package_digest(),
            experiments_digest(self.training),
        ]
        return hashlib.sha256(json.dumps([*parts, self.seed, self.share]).encode()).hexdigest()

    @property
    def known(self) -> bool:
        """Whether the file holds the learned arrays."""
        return self._read() is not None

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Read the learned arrays from the file, or learn them and write the file."""
        found = self._read()
        if found is None:
            with host.on_cpu():
                found = self.method.learn(self.training, self.seed, self.progress, self.share)
            buffer = io.BytesIO()
            np.savez(buffer, **{DIGEST: np.array(self.digest)}, **found)
            write_atomic(self.path, buffer.getvalue())
        return found

    def __call__(self, problem: Problem, seed: int) -> MetaLearned:
        return self.method(problem, seed, self.arrays)

    def _read(self) -> dict[str, np.ndarray] | None:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        return found if str(found.pop(DIGEST, "")) == self.digest else None
