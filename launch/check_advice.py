"""Check advice on outcome tables as if they were a stranger's files: regrets and intervals.

    python launch/check_advice.py --roots=gym_data,tables [--protocol=dev] [--agent=DIR] [--most=4]
    python launch/check_advice.py --roots=gym_data,tables --json=advice.json
    python launch/write_docs.py --advice=advice.json
    python launch/check_advice.py --roots=gym_data,tables --calibrate=calibration.json

Each held-out experiment is asked about with the columns of cheaper runs alone; what the intervals
cover is printed, and written by --json for the page of docs.

With --calibrate the experiments of training are asked about instead, those with cheaper ones beside
them, and the quantiles of their errors are written: with all of the cheaper ones, and once more
with those alone that are far below the target, for that is where held-out experiments lie. What
levels are off that no law can be tried on is measured without a game; --levels measures that alone,
in seconds, and keeps the other quantiles of the package. A game takes some seconds on one core.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from autollm_jax import command_line, host
from autollm_jax.advise import checking
from autollm_jax.advise.decider import Agent, Panels
from autollm_jax.advise.intervals import Calibration
from autollm_jax.errors import UserError
from autollm_jax.files import write_json_atomic
from autollm_jax.ground_truth.provenance import code_commit
from autollm_jax.gym.experiments import Experiment, load_experiments
from autollm_jax.gym.splits import PROTOCOLS, evidence_for, split
from autollm_jax.progress_bar import progress_bar

ROOTS = flags.DEFINE_list("roots", ["gym_data"], "Folders of outcome tables.")
PROTOCOL = flags.DEFINE_enum("protocol", "dev", list(PROTOCOLS), "Which experiments are held out.")
AGENT = command_line.define_path(
    "agent", None, "Folder of an agent; all advisers together if empty."
)
MOST = flags.DEFINE_integer(
    "most", 1000, "Most experiments of each source and task.", lower_bound=1
)
JSON = command_line.define_path("json", None, "File to write regrets and coverage to.")
CALIBRATE = command_line.define_path("calibrate", None, "File to write the measured quantiles to.")
LEVELS = flags.DEFINE_bool("levels", False, "With --calibrate: measure untested levels alone.")
Game = tuple[Experiment, Sequence[Experiment]]  # a target, and the evidence it is asked about with


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
    host.only_cpu()
    found = split(load_experiments(ROOTS.value), PROTOCOL.value)
    if CALIBRATE.value and LEVELS.value:
        shipped = Calibration.shipped()
        ratios, told = untested(found.training)
        made = dataclasses.replace(
            shipped,
            untested=checking.weighted_quantiles(ratios),
            provenance=f"{shipped.provenance.partition('; untested')[0]}; {told}",
        )
        write_json_atomic(CALIBRATE.value, dataclasses.asdict(made))
        return
    asked = found.training if CALIBRATE.value else found.held_out
    groups: dict[str, list[Experiment]] = {}
    for target in asked:
        if evidence_for(target, found.training):
            groups.setdefault(f"{target.source}/{target.task}", []).append(target)
    games = {
        name: [
            game
            for target in targets[: MOST.value]
            for game in games_of(target, evidence_for(target, found.training))
        ]
        for name, targets in groups.items()
    }
    if not games:
        raise UserError(f"{','.join(ROOTS.value)}: no experiment with cheaper ones to ask about")
    calibration = Calibration.normal() if CALIBRATE.value else Calibration.shipped()
    checked = played(games, calibration)
    everything = [game for own in checked.values() for game in own]
    if CALIBRATE.value:
        levels, told = untested(found.training)
        provenance = (
            f"python launch/check_advice.py --calibrate at {code_commit()}, {len(everything)} "
            f"games on training experiments of protocol {PROTOCOL.value}: {', '.join(games)}"
        )
        calibration = checking.calibrated(everything, levels, f"{provenance}; {told}")
        write_json_atomic(CALIBRATE.value, dataclasses.asdict(calibration))
    summary = {
        "code": code_commit(),
        "command": f"python launch/check_advice.py {flags_given()}",
        "protocol": PROTOCOL.value,
        "decider": f"the agent of {AGENT.value}" if AGENT.value else "all advisers together",
        "calibration": calibration.provenance,
        "sources": {name: checking.summarised(own, calibration) for name, own in checked.items()},
        "all": checking.summarised(everything, calibration),
    }
    if JSON.value:
        write_json_atomic(JSON.value, summary)
    print(f"{'source':28}{'n':>4}   regret after 1 / 3 / 5    80 and 95 % intervals cover")
    for name, each in [*summary["sources"].items(), ("all", summary["all"])]:
        regrets = " / ".join(f"{regret:.3f}" for regret in each["regret"].values())
        cover = ", ".join(f"{moment} {percents(s)}" for moment, s in each["coverage"].items())
        print(f"{name:28}{each['experiments']:4}   {regrets}   {cover}")


def flags_given() -> str:
    """Spell the flags that decide which experiments are asked about."""
    given = [f"--roots={','.join(ROOTS.value)}"]
    given += [f"--{flag.name}={flag.value}" for flag in (PROTOCOL, MOST) if flag.present]
    return " ".join(given)


def untested(training: Sequence[Experiment]) -> tuple[dict[str, list[float]], str]:
    """Measure by source the levels that no law was tried on; returns also their provenance."""
    ratios = checking.untested_levels(training)
    quantiles = checking.weighted_quantiles(ratios)
    print(f"untested levels were off by so many times their scale: {quantiles}")
    print(f"quantiles of other sources cover {percents(checking.coverage_elsewhere(ratios))}")
    return ratios, (
        f"untested: --calibrate --levels at {code_commit()}, {sum(map(len, ratios.values()))} "
        f"levels of training experiments of {', '.join(ratios)}"
    )


def games_of(target: Experiment, evidence: Sequence[Experiment]) -> list[Game]:
    """Return the games of one target: one, or those that a calibration plays."""
    far = checking.far_below(target, evidence)
    if CALIBRATE.value and 0 < len(far) < len(evidence):
        return [(target, evidence), (target, far)]
    return [(target, evidence)]


def played(
    games: Mapping[str, Sequence[Game]], calibration: Calibration
) -> dict[str, list[checking.Checked]]:
    """Play all games; by source and task."""
    decider = Agent(Path(AGENT.value)) if AGENT.value else Panels()
    checked: dict[str, list[checking.Checked]] = {}
    with progress_bar(total=sum(map(len, games.values())), unit="game") as bar:
        for name, own in games.items():
            for target, evidence in own:
                bar.set_postfix_str(target.id)
                game = checking.check(target, evidence, decider, calibration)
                checked.setdefault(name, []).append(game)
                bar.update()
    return checked


def percents(shares: Sequence[float] | None) -> str:
    """Spell shares: 74 % and 81 %."""
    return "-" if shares is None else " and ".join(f"{share:.0%}" for share in shares)


if __name__ == "__main__":
    command_line.run(main)
