"""Train rows of an own table again and compare."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from autollm_jax.errors import UserError
from autollm_jax.ground_truth.pretraining import Materials, Plan, train_runs
from autollm_jax.gym.tables import Table
from autollm_jax.training.sweep import Run


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A row trained again: what the table says, and what came out (nats per token)."""

    experiment: str
    learning_rate: float
    batch_size: int
    seed: int
    recorded: float
    repeated: float

    def __str__(self) -> str:
        return (
            f"{self.experiment} learning_rate={self.learning_rate:.3g} "
            f"batch_size={self.batch_size} seed={self.seed}: recorded {self.recorded:.6f}, "
            f"repeated {self.repeated:.6f}, deviation {self.repeated - self.recorded:+.1e}"
        )


def incomparable(table: Table, materials: Materials) -> str | None:
    """Say why losses trained here cannot equal the table's, or return None if they can."""
    recorded, here = table.meta["provenance"], materials.provenance()
    for field, value in here.items():
        if recorded.get(field) != value:
            return f"{field} was {recorded.get(field)}, here it is {value}"
    return None


def verify(
    table: Table, plan: Plan, materials: Materials, mesh: Mesh, *, rows: int, seed: int
) -> list[Deviation]:
    """Train `rows` random rows again, one by one.

    Args:
      table: the project's own.
      plan: what it was made by.
      materials: corpus, vocabulary and rows of this machine.
      mesh: as for a sweep.
      rows: how many; all of them at most.
      seed: which.

    Raises:
      UserError: the table was made by another plan.
    """
    if table.meta.get("plan_digest") != plan.digest():
        raise UserError(
            f"{table.source}/{table.task}: the table was made by another config.ground_truth; "
            "verify with the config that stands in its JSON under `plan`"
        )
    experiments = {e.name: e for e in plan.experiments}
    chosen = np.random.default_rng(seed).permutation(table.rows.num_rows)[:rows]
    deviations = []
    for row in table.rows.take(np.sort(chosen)).to_pylist():
        experiment = experiments[row["experiment"]]
        run = Run(row["config.learning_rate"], row["seed"])
        batch_size = row["config.batch_size"]
        (outcome,) = train_runs(plan, experiment, batch_size, [run], materials, mesh)
        repeated = float(np.mean(list(outcome.losses.values())))
        deviations.append(
            Deviation(
                experiment.name, run.learning_rate, batch_size, run.seed, row["loss"], repeated
            )
        )
    return deviations
