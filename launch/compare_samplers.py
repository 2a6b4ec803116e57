"""Compare our Optuna sampler with Optuna's own, each given the same cheap runs.

    python launch/compare_samplers.py --roots=gym_data,tables [--most=2] [--page=docs/optuna.md]

Each held-out experiment is played as a study of each sampler. `added`: the cheap runs are finished
trials of the study (of CMA-ES: its source trials); `enqueued`: their best configurations are tried
first. Optuna's Gaussian process needs torch and is left out without it. For our sampler all
advisers together decide, since the package's agent has learned from what protocol dev holds out;
--agent names another. With --page the page's section on the comparison is replaced. About six
seconds an experiment and seed on one core.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from autollm_jax import command_line, host
from autollm_jax.advise import samplers, studies
from autollm_jax.advise.decider import Agent, Panels
from autollm_jax.errors import UserError
from autollm_jax.evaluation.statistics import Interval
from autollm_jax.files import write_atomic, write_json_atomic
from autollm_jax.ground_truth.provenance import code_commit
from autollm_jax.gym.experiments import Experiment, load_experiments
from autollm_jax.gym.splits import PROTOCOLS, evidence_for, split
from autollm_jax.progress_bar import progress_bar
from autollm_jax.report.markdown import table as markdown_table
from autollm_jax.report.markdown import with_section

HEADING = "## Beside Optuna's samplers"
TRIALS = (1, 3, 5)
DECIDERS = "all advisers together"

ROOTS = flags.DEFINE_list("roots", ["gym_data"], "Folders of outcome tables.")
PROTOCOL = flags.DEFINE_enum("protocol", "dev", list(PROTOCOLS), "Which experiments are held out.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Studies per experiment and method.", lower_bound=1)
MOST = flags.DEFINE_integer(
    "most", 1000, "Most experiments of each source and task.", lower_bound=1
)
METHODS = flags.DEFINE_list("methods", list(samplers.METHODS), "Samplers to compare.")
AGENT = command_line.define_path(
    "agent", None, "Folder of an agent; all advisers together if empty."
)
JSON = command_line.define_path("json", None, "File to write every study's regrets to.")
PAGE = command_line.define_path("page", None, "Markdown page whose section is replaced.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
    host.only_cpu()
    page = None if PAGE.value is None else Path(PAGE.value)
    if page is not None and not page.is_file():
        raise UserError(f"{page}: no such page; accepted is a Markdown file (--page)")
    methods = known_methods()
    decider = Agent(Path(AGENT.value)) if AGENT.value else Panels()
    found = split(load_experiments(ROOTS.value), PROTOCOL.value)
    groups: dict[str, list[tuple[Experiment, tuple[Experiment, ...]]]] = {}
    for target in found.held_out:
        if evidence := evidence_for(target, found.training):
            groups.setdefault(f"{target.source}/{target.task}", []).append((target, evidence))
    chosen = [each for members in groups.values() for each in members[: MOST.value]]
    if not chosen:
        raise UserError(f"{','.join(ROOTS.value)}: no experiment with cheaper ones to ask about")
    played = []
    total = len(chosen) * SEEDS.value * len(methods)
    with progress_bar(total=total, unit="study") as bar:
        for target, evidence in chosen:
            for seed in range(SEEDS.value):
                for method in methods:
                    bar.set_postfix_str(f"{target.id} {method}")
                    played.append(studies.play(method, target, evidence, seed, decider=decider))
                    bar.update()
    text = section(studies.compare(played), len(chosen))
    print(text)
    if JSON.value:
        record = {"code": code_commit(), "studies": [dataclasses.asdict(p) for p in played]}
        write_json_atomic(JSON.value, record)
    if page is not None:
        write_atomic(page, with_section(page.read_text(), HEADING, text))
        print(f"wrote {HEADING} of {page}")


def known_methods() -> list[str]:
    """Return the methods asked for, without those whose packages are missing.

    Raises:
      UserError: a method is not known, or none is left.
    """
    for method in METHODS.value:
        if method not in samplers.METHODS:
            accepted = ", ".join(samplers.METHODS)
            raise UserError(f"--methods: {method!r} is not known; accepted are {accepted}")
    methods = []
    for method in dict.fromkeys(METHODS.value):
        if samplers.is_installed(method):
            methods.append(method)
        else:
            print(f"{method} is left out: it needs torch (requirements-peers.txt)")
    if not methods:
        raise UserError("--methods: none is left to play")
    return methods


def section(compared: Mapping[str, studies.Compared], experiments: int) -> str:
    """Write the section."""
    rows = []
    for method, found in compared.items():
        apart = found.differences
        gaps = [""] * len(TRIALS)
        if apart is not None and method != samplers.OURS:
            gaps = [gap(apart[k - 1]) for k in TRIALS]
        regrets = shown([interval.mean for interval in found.regrets])
        rows.append((method, regrets, *gaps, " to ".join(f"{s:.2f}" for s in found.seconds)))
    after = " / ".join(map(str, TRIALS))
    head = ("sampler", f"regret after {after}", *[f"ours less its, {k}" for k in TRIALS], "seconds")
    sources = [
        (source, *[shown(found.by_source[source]) for found in compared.values()])
        for source in next(iter(compared.values())).by_source
    ]
    decider = f"the agent of {AGENT.value}" if AGENT.value else DECIDERS
    return (
        f"{HEADING}\n\nWritten by `python launch/compare_samplers.py "
        f"--roots={','.join(ROOTS.value)} --most={MOST.value} --seeds={SEEDS.value}` at commit "
        f"{code_commit()}: {experiments} held-out experiments of protocol `{PROTOCOL.value}`. "
        f"`autollm` is our sampler, decided by {decider}. Each trial is answered by the nearest "
        "measured configuration of the table, under a limit by the nearest one within it; a "
        "diverged run is a failed trial. Regret: 0 is the best configuration, 1 no better than the "
        "median one. Shown is the mean over sources and tasks of the mean over their experiments. "
        "Differences are paired, with 95 % bootstrap intervals over settings, experiments and "
        "seeds; below 0 ours is better. Seconds of the processor a trial: of the sampler, reading "
        "the evidence included; the median study, and the longest, in which programs are "
        "compiled.\n\n"
        f"{markdown_table(head, rows)}\n"
        f"*Added*: the cheap runs are finished trials of the study, at most {samplers.ROWS} "
        f"(Gaussian process: {samplers.PROCESS_ROWS}), those of the nearest experiment last; their "
        "values are regrets of their own experiments, and the target's outcomes are brought to "
        "that scale by extrapolation. CMA-ES starts at the Gaussian of its `source_trials`. "
        f"*Enqueued*: the best configurations of the nearest {samplers.ENQUEUED} experiments are "
        "tried first.\n\n"
        f"Regret after {after} trials, by source and task:\n\n"
        f"{markdown_table(('source and task', *compared), sources)}"
    )


def shown(regrets: Sequence[float]) -> str:
    """Spell regrets: .143 / .097 / .089."""
    return " / ".join(f"{regrets[k - 1]:.3f}".removeprefix("0") for k in TRIALS)


def gap(interval: Interval) -> str:
    """Spell a difference with its interval."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    command_line.run(main)
