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

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> def made(name, level, parameters):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name,
    ...         space=Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3)),)),
    ...         fidelity=Fidelity(level, parameters, 1e9, 6e9 * parameters),
    ...         configurations=[{"rate": 1e-4}, {"rate": 1e-3}], outcomes=[3.0, 2.0],
    ...         default={"rate": 1e-4}, default_origin="the first")
    >>> parts = split([made("1M", "low", 1e6), made("2M", "mid", 2e6)], "dev")
    >>> [e.name for e in parts.training], [e.name for e in parts.held_out]
    (['1M'], ['2M'])

    Args:
      experiments: of any levels.
      protocol: a key of `PROTOCOLS`.

    Returns:
      The training and the held-out experiments, in the order given. Either part may be empty,
      because a source need not have tables of every level.

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

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> def made(name, level, parameters):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name,
    ...         space=Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3)),)),
    ...         fidelity=Fidelity(level, parameters, 1e9, 6e9 * parameters),
    ...         configurations=[{"rate": 1e-4}, {"rate": 1e-3}], outcomes=[3.0, 2.0],
    ...         default={"rate": 1e-4}, default_origin="the first")
    >>> training = [made("1M", "low", 1e6), made("2M", "low", 2e6)]
    >>> [e.name for e in evidence_for(made("4M", "mid", 4e6).setting, training)]
    ['1M', '2M']
    >>> [e.name for e in evidence_for(training[1], training)]
    ['1M']

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
