"""Splits by fidelity: what is learned from, what is held out, what counts as evidence."""

import dataclasses
from collections.abc import Sequence

from autollm_jax.errors import UserError
from autollm_jax.gym.experiments import Experiment

# protocol -> (levels to learn from, levels held out). Choices are made under dev; final is scored.
PROTOCOLS = {
    "dev": (frozenset({"low"}), frozenset({"mid"})),
    "final": (frozenset({"low", "mid"}), frozenset({"high"})),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Open training experiments, and sealed held-out ones."""

    training: tuple[Experiment, ...]
    held_out: tuple[Experiment, ...]


def split(experiments: Sequence[Experiment], protocol: str) -> Split:
    """Split experiments by their fidelity level; levels that the protocol lacks are left out.

    Raises:
      UserError: no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"config.protocol is {protocol!r}; accepted are {', '.join(PROTOCOLS)}")
    training, held_out = PROTOCOLS[protocol]
    return Split(
        tuple(e for e in experiments if e.fidelity.level in training),
        tuple(e.sealed() for e in experiments if e.fidelity.level in held_out),
    )


def evidence_for(target: Experiment, experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Choose the cheap experiments that a method may look at when it configures `target`.

    Args:
      target: a held-out (sealed) experiment, or a training one.
      experiments: the training experiments; sealed ones are passed over.

    Returns:
      Experiments of the target's task and source: all of them for a held-out target, those with
      strictly fewer FLOPs per run for a training target.
    """
    return tuple(
        e
        for e in experiments
        if (e.source, e.task) == (target.source, target.task)
        and not e.is_sealed
        and e.id != target.id
        and (target.is_sealed or e.fidelity.flops < target.fidelity.flops)
    )
