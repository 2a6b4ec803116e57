"""Check advice on outcome tables as if they were a stranger's files: regrets and intervals.

    python launch/check_advice.py --roots=gym_data,tables [--protocol=dev] [--agent=DIR] [--most=4]
    python launch/check_advice.py --roots=gym_data,tables --calibrate=calibration.json

Each held-out experiment is asked about with the columns of cheaper runs alone. With --calibrate the
experiments of training are asked about instead, those with cheaper ones beside them, and the
quantiles of their errors are written: with all of the cheaper ones, and once more with those alone
that are far below the target, for that is where held-out experiments lie. Some seconds an
experiment on one core.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from autollm_jax import command_line
from autollm_jax.advise import checking
from autollm_jax.advise.decider import Agent, Panels
from autollm_jax.advise.intervals import Calibration
from autollm_jax.errors import UserError
from autollm_jax.files import write_json_atomic
from autollm_jax.ground_truth.provenance import code_commit
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import PROTOCOLS, evidence_for, split

ROOTS = flags.DEFINE_string("roots", "gym_data", "Folders of outcome tables, comma-separated.")
PROTOCOL = flags.DEFINE_enum("protocol", "dev", list(PROTOCOLS), "Which experiments are held out.")
AGENT = command_line.define_path(
    "agent", None, "Folder of an agent; all advisers together if empty."
)
MOST = flags.DEFINE_integer(
    "most", 1000, "Most experiments of each source and task.", lower_bound=1
)
FAR = 4.0  # how many times as many FLOPs as its far evidence a target has, at least
CALIBRATE = command_line.define_path("calibrate", None, "File to write the measured quantiles to.")


def main(argv: Sequence[str]) -> None:
    del argv
    found = split(load_experiments(ROOTS.value.split(",")), PROTOCOL.value)
    asked = found.training if CALIBRATE.value else found.held_out
    decider = Agent(Path(AGENT.value)) if AGENT.value else Panels()
    calibration = Calibration.normal() if CALIBRATE.value else Calibration.shipped()
    groups: dict[str, list] = {}
    for target in asked:
        evidence = evidence_for(target, found.training)
        far = [e for e in evidence if e.fidelity.flops * FAR <= target.fidelity.flops]
        choices = [evidence] if evidence else []
        if CALIBRATE.value and 0 < len(far) < len(evidence):
            choices.append(far)
        games = groups.setdefault(f"{target.source}/{target.task}", [])
        games += [(target, chosen) for chosen in choices]
    chosen = {name: members[: MOST.value] for name, members in groups.items() if members}
    if not chosen:
        raise UserError(f"{ROOTS.value}: no experiment with cheaper ones to ask about")
    checked: dict[str, list[checking.Checked]] = {}
    with tqdm(total=sum(map(len, chosen.values())), unit="experiment", file=sys.stderr) as bar:
        for name, members in chosen.items():
            for target, evidence in members:
                bar.set_postfix_str(target.id)
                game = checking.check(target, evidence, decider, calibration)
                checked.setdefault(name, []).append(game)
                bar.update()
    everything = [game for games in checked.values() for game in games]
    if CALIBRATE.value:
        sources = ", ".join(chosen)
        provenance = (
            f"python launch/check_advice.py --calibrate at {code_commit()}, "
            f"{len(everything)} games on training experiments of protocol {PROTOCOL.value}: "
            f"{sources}"
        )
        calibration = checking.calibrated(everything, provenance)
        write_json_atomic(CALIBRATE.value, dataclasses.asdict(calibration))
    print(f"{'source':28}{'n':>4}   regret after 1 / 3 / 5    80 and 95 % intervals cover")
    for name, games in [*checked.items(), ("all", everything)]:
        regrets = np.mean([game.regrets for game in games], axis=0)[[0, 2, 4]]
        before, after = (
            " ".join(f"{share:.0%}" for share in shares)
            for shares in checking.coverage(games, calibration).values()
        )
        shown = " / ".join(f"{regret:.3f}" for regret in regrets)
        print(f"{name:28}{len(games):4}   {shown}   before a trial {before}, after {after}")


if __name__ == "__main__":
    command_line.run(main)
