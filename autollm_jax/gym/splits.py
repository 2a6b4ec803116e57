"""Splits by fidelity: training experiments, held-out ones, and the evidence of a target."""

import dataclasses
from collections.abc import Sequence

from autollm_jax.errors import UserError
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

# protocol -> (training levels, held-out levels). Choices are made under dev; final is scored.
PROTOCOLS = {
    "dev": (frozenset({"low"}), frozenset({"mid"})),
    "final": (frozenset({"low", "mid"}), frozenset({"high"})),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Training experiments, and held-out ones: only episodes may hold the latter."""

    training: tuple[Experiment, ...]
    held_out: tuple[Experiment, ...]


def split(experiments: Sequence[Experiment], protocol: str) -> Split:
    """Split experiments by their fidelity level; levels that the protocol lacks are left out.

    Either part may be empty, for a source need not have tables of every level.

    Raises:
      UserError: no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"config.protocol is {protocol!r}; accepted are {', '.join(PROTOCOLS)}")
    training, held_out = PROTOCOLS[protocol]
    return Split(
        tuple(e for e in experiments if e.fidelity.level in training),
        tuple(e for e in experiments if e.fidelity.level in held_out),
    )


def evidence_for(target: Setting, experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Return the experiments that a method may look at when it configures `target`.

    Args:
      target: a held-out setting, or one of the training experiments.
      experiments: the training experiments.

    Returns:
      Experiments of the target's task and source: all of them for a held-out target, those with
      strictly fewer FLOPs per run for a training target.
    """
    trained = any(e.id == target.id for e in experiments)
    return tuple(
        e
        for e in experiments
        if (e.source, e.task) == (target.source, target.task)
        and e.id != target.id
        and (not trained or e.fidelity.flops < target.fidelity.flops)
    )
