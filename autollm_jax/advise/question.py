"""Runs as the gym knows them: experiments (the evidence), a setting (the target), its trials.

Runs of one size are an experiment; runs at the target's size are trials.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.advise.columns import Understanding, listed
from autollm_jax.advise.evidence import (
    Group,
    Shared,
    grouped,
    is_of_target,
    limits,
    one_size_each,
    values_of,
)
from autollm_jax.advise.names import BATCH, FIDELITIES, plainly
from autollm_jax.advise.runs import Run
from autollm_jax.advise.setting import spelled, target_setting
from autollm_jax.advise.target import Target, label
from autollm_jax.advise.usage import LeftOut, SizeUsed, Usage
from autollm_jax.errors import UserError
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import Space

TASK = "pretraining"
MOST_EXPERIMENTS = 64
# Configurations that are learned from: of one experiment, and of all; each has this many at least.
MOST_ROWS, MOST_ROWS_IN_ALL, LEAST_ROWS = 1024, 8192, 128
MOST_TRIALS = 256  # that are told: every forecast is conditioned on each
USUAL_ROWS = 8192  # runs, about, that tell the most usual configuration
NO_OUTCOME = "no run of its size has an outcome"


@dataclasses.dataclass(frozen=True)
class Question:
    """What advice is wanted on.

    Attributes:
      setting: the target.
      evidence: experiments of other fidelities.
      trials: runs at the target's fidelity, in their order.
      notes: what a person should know: what is not compared, things guessed.
      usage: what became of the rows.
      running: configurations that are being run at the target's fidelity.
      closed: whether only given candidates, or what was run, may be proposed.
    """

    setting: Setting
    evidence: tuple[Experiment, ...]
    trials: tuple[Trial, ...]
    usage: Usage
    notes: tuple[str, ...] = ()
    running: tuple[dict, ...] = ()
    closed: bool = False


def question(
    runs: Sequence[Run],
    known: Understanding,
    target: Target,
    *,
    unusable: Sequence[LeftOut] = (),
    task: str = TASK,
    default: Mapping | None = None,
    candidates: Sequence[Mapping] | None = None,
) -> Question:
    """Make the question of a target from runs.

    Args:
      runs: finished ones, one at least, and those under way.
      known: what the columns mean.
      target: what is asked about.
      unusable: rows that are no runs.
      task: what the runs are, for the agent's words: architecture, pretraining, grpo, data_mixture.
      default: the configuration that would be taken untuned; None for the most usual one.
      candidates: configurations to choose from; None for a design over the space and what was run.
        Under a limit they have its quantity besides, and None stands for what was run.

    Raises:
      UserError: a candidate is not understood.
    """
    names = [name for name in FIDELITIES if any(name in run.fidelity for run in runs)]
    objective = Objective(known.objective.meaning, known.minimize)
    shared = Shared(target, Space(known.dimensions), objective, task)
    if target.quantity:
        runs = one_size_each(runs, shared.space)
    finished = [run for run in runs if run.status != "running"]
    usual = _usual(finished, shared.space)
    notes, groups, tried = _fidelity_notes(names, target.sizes, shared.space), [], []
    for key, members in grouped(runs, names).items():
        alike = is_of_target(key, names, target.sizes) and dict(key[1]) == target.contexts
        if alike and not target.quantity:
            tried += members
            continue
        members = [run for run in members if run.status != "running"]
        for at_most in limits(members, target):
            if any(run.status == "ok" and not run.size > at_most for run in members):
                numbers = {n: v for n, v in zip(names, key[0], strict=True) if not math.isnan(v)}
                groups.append(Group(numbers, dict(key[1]), members, at_most, shared))
    # What no run says cannot be compared: a size in steps is none in FLOPs.
    said = {name: size for name, size in target.sizes.items() if name in names or not names}
    wanted = target.fidelity(said, "target", target.at_most)
    groups.sort(key=lambda g: (g.facts != target.contexts, g.distance(wanted)))
    if len(groups) > MOST_EXPERIMENTS:
        notes.append(f"{len(groups)} fidelities: the nearest {MOST_EXPERIMENTS} are used")
    groups, far = groups[:MOST_EXPERIMENTS], groups[MOST_EXPERIMENTS:]
    most = min(max(MOST_ROWS_IN_ALL // max(len(groups), 1), LEAST_ROWS), MOST_ROWS)
    kept = [group.thinned(most) for group in groups]
    if thinned := sum(len(a.runs) < len(b.runs) for a, b in zip(kept, groups, strict=True)):
        notes.append(
            f"more than {most} configurations of a size, in {thinned} of {len(groups)} sizes: "
            "every second (third, ...) in order of outcome is used there, the best among them"
        )
    evidence = [group.experiment(usual) for group in kept]
    ended = [run for run in tried if run.status != "running"]
    done, untold = _told(ended, objective)
    if untold:
        notes.append(
            f"{len(ended)} runs of the target's size: the best and the latest "
            f"{MOST_TRIALS // 2} are used; what the others tried is not proposed again"
        )
    default = usual | spelled(shared.space, _of_columns(default or {}, known))
    setting = target_setting(shared, wanted, default, evidence, finished, done, candidates, untold)
    trials = [trial(number, run, setting) for number, run in enumerate(done, 1)]
    waiting = [run for run in tried if run.status == "running"]
    closed = candidates is not None or bool(target.quantity)
    left_out = [*unusable, *_left_out(runs, kept, groups, far, tried, untold, most)]
    usage = Usage(len(runs) + len(unusable), _sizes(kept), len(done), len(waiting), tuple(left_out))
    return Question(
        setting,
        tuple(evidence),
        tuple(trials),
        usage,
        tuple(notes),
        tuple(run.config for run in waiting),
        closed,
    )


def _of_columns(default: Mapping, known: Understanding) -> Mapping:
    """Return a person's default, if the runs have all that it names.

    Raises:
      UserError: a name is none of the columns'.
    """
    names = {c.name for c in known.columns.values()} | {c.meaning for c in known.columns.values()}
    names |= {dimension.name for dimension in known.dimensions}
    for name in default:
        if name not in names:
            chosen = listed([dimension.name for dimension in known.dimensions])
            raise UserError(f"default: the runs have no {name!r}; hyperparameters are {chosen}")
    return default


def _sizes(kept: Sequence[Group]) -> tuple[SizeUsed, ...]:
    """Count the runs of each size; limits under which the same runs are read again count once."""
    by_size: dict[str, dict[int, Run]] = {}
    for group in kept:
        runs = by_size.setdefault(label(group.numbers, group.facts), {})
        runs.update((run.number, run) for run in group.runs)
    return tuple(
        SizeUsed(
            name,
            len(runs),
            len({values_of(run.config) for run in runs.values()}),
            dict(Counter(run.status for run in runs.values())),
        )
        for name, runs in by_size.items()
    )


def _left_out(
    runs: Sequence[Run],
    kept: Sequence[Group],
    groups: Sequence[Group],
    far: Sequence[Group],
    tried: Sequence[Run],
    untold: Sequence[Run],
    most: int,
) -> list[LeftOut]:
    """Say of each run that is not learned from why that is so.

    Args:
      runs: all.
      kept: what is learned from, thinned.
      groups: the same before it was thinned.
      far: sizes that are left out, for there are nearer ones.
      tried: runs of the target's size.
      untold: those of them that are left out.
      most: configurations that are kept of a size.
    """

    def of(groups: Sequence[Group]) -> set[int]:
        return {run.number for group in groups for run in group.runs}

    used = of(kept) | {run.number for run in tried} - {run.number for run in untold}
    reasons = [
        ({run.number for run in untold}, "of many runs of the target's size neither among the "
         "best nor the latest"),
        (of(groups), f"one of more than {most} configurations of its size"),
        (of(far), f"of a size further from the target's than the nearest {MOST_EXPERIMENTS}"),
        ({run.number for run in runs if run.status == "running"}, "under way at a cheaper size"),
    ]  # fmt: skip
    found = []
    for run in runs:
        if run.number not in used:
            why = next((w for numbers, w in reasons if run.number in numbers), NO_OUTCOME)
            found.append(LeftOut(run.place, why, why))
    return found


def _fidelity_notes(names: Sequence[str], target: Mapping, space: Space) -> list[str]:
    notes = []
    if not names:
        notes.append(
            "no column says how dear a run is, so all runs count as of one cheaper kind, and "
            "outcomes are predicted for runs of their size, not for the target's; name one by "
            "--fidelity=parameters:COLUMN"
        )
    batches = [name for name in space.names if re.fullmatch(BATCH, plainly(name))]
    if batches and "tokens" not in names and "steps" in names:
        notes.append(
            f"runs of equal steps see more tokens with a larger {batches[0]}, and cost more: give "
            "tokens in a column to compare runs of equal cost"
        )
    if names and target and not set(names) & set(target):
        raise UserError(
            f"target: says its {', '.join(target)}, and the runs say their {', '.join(names)}: "
            f"nothing to compare; give --target={names[0]}=NUMBER, or name a column by "
            f"--fidelity={next(iter(target))}:COLUMN"
        )
    lacking = [name for name in names if name not in target]
    unknown = [name for name in target if names and name not in names]
    if lacking:
        notes.append(f"the target does not say its {', '.join(lacking)}: unknown, so not compared")
    if unknown:
        notes.append(
            f"no run says its {', '.join(unknown)}: the target's is not "
            f"compared; name a column by --fidelity={unknown[0]}:COLUMN"
        )
    return notes


def _told(done: Sequence[Run], objective: Objective) -> tuple[list[Run], list[Run]]:
    """Split trials into those that are told, the best and the latest of many, and the others."""
    if len(done) <= MOST_TRIALS:
        return list(done), []
    places = range(len(done))
    losses = [objective.sign * run.outcome if run.status == "ok" else math.inf for run in done]
    kept = {
        *sorted(places, key=losses.__getitem__)[: MOST_TRIALS // 2],
        *places[-MOST_TRIALS // 2 :],
    }
    return [done[p] for p in places if p in kept], [done[p] for p in places if p not in kept]


def _usual(runs: Sequence[Run], space: Space) -> dict:
    """Return the configuration nearest to the middle of all that were run."""
    runs = runs[:: -(-len(runs) // USUAL_ROWS)]
    units_ND = np.stack([space.to_unit(run.config) for run in runs])
    away_N = ((units_ND - np.median(units_ND, axis=0)) ** 2).sum(1)
    return space.validate(runs[int(away_N.argmin())].config)


def trial(number: int, run: Run, setting: Setting) -> Trial:
    """Say what a run at the target's fidelity brought."""
    match = setting.match(run.config)
    return Trial(
        number=number,
        proposed=run.config,
        config=dict(setting.configurations[match.row]),
        outcome=run.outcome if run.status == "ok" else math.nan,
        status=run.status,
        valid=True,
        matched=False,
        message="",
        row=match.row,
    )
