"""Budgets: what compiled steps may take at most, kept in a file, one entry a compiler.

An entry holds what its figures depend on (parameters, mesh, version of JAX, optimisation level),
and a budget a step and figure. `write` makes it of a plan, `exceeded` compares a plan with it.
"""

from collections.abc import Mapping
from pathlib import Path

from autollm_jax.compilers.findings import Findings
from autollm_jax.errors import UserError
from autollm_jax.files import read_json, write_json_atomic

FIGURES = {
    "collective_bytes": "collectives",
    "loop_parameter_bytes": "collectives of parameters inside the decode loop",
    "f32_activation_bytes": "the largest f32 activation",
    "logits_bytes": "the largest array over the vocabulary",
    "score_bytes": "the largest array of T x T scores",
    "temporary_bytes": "temporary memory",
}
TOLERANCE = 0.02  # share of a budget; compilers of one version repeat themselves to the byte


def write(path: Path, compiler: str, made_with: Mapping, steps: Mapping[str, Findings]) -> None:
    """Set a compiler's entry to the figures of these steps; other compilers' stay."""
    budgets = read_json(path) if path.exists() else {}
    figures = {
        step: {figure: getattr(found, figure) for figure in FIGURES}
        for step, found in steps.items()
    }
    budgets[compiler] = {"made_with": dict(made_with), "steps": figures}
    write_json_atomic(path, dict(sorted(budgets.items())))


def exceeded(
    path: Path, compiler: str, made_with: Mapping, steps: Mapping[str, Findings]
) -> list[str]:
    """Compare a plan with its budgets.

    Args:
      path: the file of budgets.
      compiler: the entry's name.
      made_with: what the figures depend on; it has to be that of the entry.
      steps: the plan's findings by step. Steps of the entry that are not among them are not
        compared.

    Returns:
      One line for each figure over its budget by more than `TOLERANCE`.

    Raises:
      UserError: the file has no such entry, a step has no budget, or the entry was made with
        something else.
    """
    remedy = "make them with config.plan.write_budgets=True"
    if not path.exists():
        raise UserError(f"config.plan.budgets={path}: no such file; {remedy}")
    entry = read_json(path).get(compiler)
    if entry is None:
        raise UserError(f"{path}: no budgets of {compiler}; {remedy}")
    for name, value in made_with.items():
        if entry["made_with"].get(name) != value:
            raise UserError(
                f"{path}: the budgets of {compiler} were made with {name}="
                f"{entry['made_with'].get(name)}, and this plan has {name}={value}; {remedy}"
            )
    lines = []
    for step, found in steps.items():
        if step not in entry["steps"]:
            raise UserError(f"{path}: no budget of {compiler}, {step}; {remedy}")
        for figure, budget in entry["steps"][step].items():
            value = getattr(found, figure)
            if value > budget * (1 + TOLERANCE):
                more = f"{value / budget - 1:.1%} more than" if budget else "over"
                lines.append(
                    f"{compiler}, {step}: {FIGURES[figure]} take {value:,} bytes, {more} the "
                    f"budget of {budget:,} ({figure} in {path})"
                )
    return lines
