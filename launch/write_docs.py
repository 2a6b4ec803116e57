"""Write the pages of results, own_tables.md, picture.svg and README's results, none of it by hand.

    python launch/main.py --config=configs/gym.py --workdir=DIR
    python launch/write_docs.py --workdir=DIR [--public=POOL]
    python launch/check_advice.py --roots=gym_data,tables --json=FILE
    python launch/write_docs.py --advice=FILE

POOL is the work directory of several trainings on own and public tables (`--stage=pool`), or of
one. FILE gives the page of advice on own runs, alone or beside the others.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from autollm_jax import command_line
from autollm_jax.errors import UserError
from autollm_jax.files import read_json, read_json_lines, write_atomic
from autollm_jax.gym.experiments import Experiment, load_experiments
from autollm_jax.job.fields import split_names
from autollm_jax.peers import PEERS
from autollm_jax.report.markdown import table, with_section

WORKDIR = command_line.define_path("workdir", None, "Work directory of a job that has a report.")
PUBLIC = command_line.define_path(
    "public", None, "Work directory of a pool of trainings on own and public tables, with a report."
)
ADVICE = command_line.define_path(
    "advice", None, "Summary that launch/check_advice.py --json wrote."
)
OUT = command_line.define_path("out", "docs", "Folder to write the pages into.")
ROOT = command_line.define_path("root", "gym_data", "Folder of our own outcome tables.")
README = command_line.define_path("readme", "README.md", "Page whose section Results is replaced.")
AGENT, HEADING = "agent", "## Results"
YARDSTICKS = ("random", "default")
ADVICE_PAGE = "advice_results.md"
ADVICE_HEADING = "## Advice on own runs"
ADVICE_LINK = (
    f"{ADVICE_HEADING}\n\n[A page of its own]({ADVICE_PAGE}) has its regret, and how much its "
    "intervals cover, by source.\n"
)
COVERED = (  # moments of `advise.checking`, and what the page calls them
    ("before", "before a trial"),
    ("few_sizes", "of them, few sizes"),
    ("more_sizes", "of them, more sizes"),
    ("after", "after a trial"),
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
    if WORKDIR.value is None and ADVICE.value is None:
        raise UserError(
            "--workdir is missing; give the work directory of a job that has a report, or --advice"
        )
    if ADVICE.value is not None:
        page, results = Path(OUT.value) / ADVICE_PAGE, Path(OUT.value) / "results.md"
        write_atomic(page, advice_page(read_json(Path(ADVICE.value))))
        if results.exists():
            write_atomic(results, with_section(results.read_text(), ADVICE_HEADING, ADVICE_LINK))
        print(f"wrote {page}")
    if WORKDIR.value is None:
        return
    workdir, out, readme = Path(WORKDIR.value), Path(OUT.value), Path(README.value)
    write_atomic(out / "results.md", results_page(workdir, "Results on our own tables"))
    sections = [(workdir, "our own tables")]
    if PUBLIC.value is not None:
        public = Path(PUBLIC.value)
        page = results_page(public, "Results on own and public tables")
        write_atomic(out / "public_results.md", page)
        sections = [(public, "own and public tables"), *sections]
    tables = load_experiments(ROOT.value)
    write_atomic(out / "own_tables.md", tables_page(ROOT.value, tables))
    drawn = workdir / "report" / "picture.svg"
    if drawn.exists():
        write_atomic(out / "picture.svg", drawn.read_text())
    write_atomic(readme, with_section(readme.read_text(), HEADING, front_section(sections)))
    print(f"wrote the pages of results and of tables into {out}, and {HEADING} of {readme}")


def front_section(sections: Sequence[tuple[Path, str]]) -> str:
    """Write README's section, from work directories and what their tables are."""
    first = read_json(sections[0][0] / "report" / "summary.json")
    trials = " / ".join(first["regret"][AGENT]["all"])
    parts = [
        f"{HEADING}\n\nMean regret after {trials} trials on experiments dearer than any that was "
        "learned from. 0 is the best configuration, 1 no better than the median one; below 0 a "
        "difference speaks for the agent; brackets hold 95 % intervals."
    ]
    for workdir, what in sections:
        record = read_json(workdir / "evaluation" / "evaluated.json")
        summary = read_json(workdir / "report" / "summary.json")
        last = workdir == sections[-1][0]
        page = "results.md" if last else "public_results.md"
        number = trainings(workdir)
        counted = "one training" if number == 1 else f"{number} trainings"
        parts.append(
            f"**{what.capitalize()}**: {summary['counts']['all']['experiments']} held-out "
            f"experiments, protocol `{record['fields']['protocol']}`, {counted} "
            f"([every method](docs/{page})).\n\n"
            + "".join(f"- {line}\n" for line in front_lines(workdir, last)).rstrip()
        )
    return "\n\n".join(parts) + "\n"


def trainings(workdir: Path) -> int:
    """Count the trainings whose results a work directory holds."""
    path = workdir / "config.json"
    pooled = read_json(path).get("pool", {}).get("workdirs", "") if path.exists() else ""
    return len(split_names(pooled)) or 1


def front_lines(workdir: Path, with_cost: bool) -> list[str]:
    """Write the agent beside the best other method, its start, the bounds, its claims, its cost."""
    summary = read_json(workdir / "report" / "summary.json")
    record = read_json(workdir / "evaluation" / "evaluated.json")
    regret, difference = summary["regret"], summary["difference"]

    def best_of(names: Sequence[str]) -> str:
        return min(names, key=lambda name: sum(c["mean"] for c in regret[name]["all"].values()))

    best = best_of([name for name in regret if name not in (AGENT, "distilled")])
    lines = [
        f"The agent: {means(regret[AGENT])}. The best other method, {shown(best)}: "
        f"{means(regret[best])}. The difference: {gaps(difference[best])}."
    ]
    if "distilled" in regret:
        lines.append(
            f"Before GRPO, after distillation alone: {means(regret['distilled'])}. The difference: "
            f"{gaps(difference['distilled'])}."
        )
    if peers := [name for name in PEERS if name in regret]:
        best = best_of(peers)
        lines.append(
            f"Of {len(peers)} [methods of other packages](docs/peers.md) the best, {shown(best)}: "
            f"{means(regret[best])}. The difference: {gaps(difference[best])}."
        )
    bounds = [f"{shown(name)} {means(regret[name])}" for name in YARDSTICKS if name in regret]
    if "ceiling" in summary:
        known = " / ".join(f"{x:.3f}" for x in summary["ceiling"]["all"].values())
        bounds.append(f"what a reader of the held-out tables could know {known}")
    lines.append(f"Yardsticks: {'; '.join(bounds)}.")
    claims = summary["claims"][AGENT]["all"]
    lines.append(
        f"{100 * summary['invalid_rate'][AGENT]:.2f} % of the agent's calls are invalid; "
        f"{100 * claims['true']:.2f} % of the {claims['n']:,} claims in its thinking are true."
    )
    if with_cost:
        *_, (_, seconds, peak) = stage_rows(workdir)
        lines.append(
            f"The whole job, from tables to report: {float(seconds) / 60:.0f} minutes and {peak} "
            f"GiB on 2 CPU cores, at commit {record['code'][:9]}."
        )
    return lines


def means(by_task: Mapping) -> str:
    """Spell a method's pooled regrets."""
    return " / ".join(f"{cell['mean']:.3f}" for cell in by_task["all"].values())


def gaps(by_task: Mapping) -> str:
    """Spell pooled differences with their 95 % intervals; below 0 the agent is better."""
    return ", ".join(
        f"{cell['mean']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]"
        for cell in by_task["all"].values()
    )


def shown(method: str) -> str:
    """Spell a method's name."""
    return "all advisers together" if method == "panel" else method.replace("_", " ")


def results_page(workdir: Path, title: str) -> str:
    """Write the page of a job's results, from its summary, its record and its log of stages."""
    summary = read_json(workdir / "report" / "summary.json")
    record = read_json(workdir / "evaluation" / "evaluated.json")
    fields = record["fields"]
    regret = summary["regret"]
    tasks = [task for task in next(iter(regret.values())) if task != "all"]
    counts = summary["counts"]
    numbers = [f"{task} {counts[task]['experiments']}" for task in tasks]
    parts = [
        f"# {title}\n\n",
        "Written by `python launch/write_docs.py` from a work directory of "
        "`launch/main.py`. Below are the stages that ran and the methods that were scored.\n\n",
        f"Commit {record['code']}; {record['versions']}; protocol {fields['protocol']}; tables "
        f"{record['roots']}; {counts['all']['experiments']} held-out experiments "
        f"({', '.join(numbers)}); trainings: {trainings(workdir)}.\n\n",
        "## Time and memory of the first training's job\n\n",
        table(("stage", "seconds", "peak GiB so far"), stage_rows(workdir)),
        "\n## Regret after 1 / 3 / 5 trials\n\n",
        "Tasks weigh alike in the column *all*, whose interval is a 95 % bootstrap over settings, "
        "experiments and seeds. "
        "*Could be known* is no method: it reads the held-out table and predicts each "
        "configuration from all others.\n\n",
        table(("method", *tasks, "all", "interval at 1"), regret_rows(summary, tasks)),
    ]
    sources = list(next(iter(summary["regret_by_source"].values())))
    if len(sources) > len(tasks):
        parts += [
            "\n## By source\n\n",
            table(("method", *sources), source_rows(summary, sources)),
        ]
    if summary["difference"]:
        parts += [
            "\n## The agent minus each other method\n\n",
            "Paired over experiments and seeds; below 0 the agent is better.\n\n",
            table(("method", "1", "3", "5"), difference_rows(summary["difference"])),
            "\nBy task, after 1 / 3 / 5 trials; bold where the 95 % interval excludes zero.\n\n",
            table(("method", *tasks), difference_rows_by_task(summary["difference"], tasks)),
        ]
    claims = summary["claims"].get(AGENT, {}).get("all")
    if claims:
        parts.append(f"\n## Claims in the agent's thinking\n\n```json\n{json.dumps(claims)}\n```\n")
    rate = summary["invalid_rate"].get(AGENT)
    if rate is not None:
        parts.append(f"\nInvalid calls of the agent: {100 * rate:.1f} %.\n")
    if (Path(OUT.value) / ADVICE_PAGE).exists():
        parts.append(f"\n{ADVICE_LINK}")
    return "".join(parts)


def advice_page(summary: Mapping) -> str:
    """Write the page of advice on own runs, from what `launch/check_advice.py --json` wrote."""
    found = [*summary["sources"].items(), ("all", summary["all"])]
    trials = list(summary["all"]["regret"])
    rows = [
        (
            name,
            str(each["experiments"]),
            " / ".join(f"{each['regret'][k]:.3f}" for k in trials),
            *(percents(each["coverage"][moment]) for moment, _ in COVERED),
        )
        for name, each in found
    ]
    head = ("source and task", "experiments", f"regret after {' / '.join(trials)}")
    return (
        "# Results of advice on own runs\n\n"
        f"Written by `python launch/write_docs.py` from what `{summary['command']} --json=FILE` "
        f"measured at commit {summary['code']}. Each of {summary['all']['experiments']} held-out "
        f"experiments of protocol `{summary['protocol']}` is asked about with the columns of "
        f"cheaper runs alone, as if they were a stranger's file; decided by {summary['decider']}. "
        "The table answers, trial by trial.\n\n"
        "The columns on the right hold the shares, in percent, of the outcomes within the 80 % "
        "and the 95 % interval, over all configurations that an answer ranks. *Few sizes*: runs "
        "of one or two sizes, on which no law of the level can be tried, so that the interval "
        "rests on how far such levels were off on other sources. The last row pools outcomes, and "
        "takes the mean regret over experiments.\n\n"
        + table((*head, *(shown for _, shown in COVERED)), rows)
        + f"\nQuantiles of the intervals: {summary['calibration']}.\n"
    )


def percents(shares: Sequence[float] | None) -> str:
    """Spell shares as percents: 74, 81."""
    return "" if shares is None else ", ".join(f"{100 * share:.0f}" for share in shares)


def stage_rows(workdir: Path) -> list[tuple]:
    """Return (stage, seconds, peak GiB) of each stage, resumed ones summed."""
    seconds, peak = {}, {}
    for line in read_json_lines(workdir / "stages.jsonl", log=True):
        seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line["seconds"]
        peak[line["stage"]] = line["peak_gib"]
    rows = [(stage, f"{seconds[stage]:.0f}", f"{peak[stage]:.1f}") for stage in seconds]
    return [*rows, ("all", f"{sum(seconds.values()):.0f}", f"{max(peak.values()):.1f}")]


def regret_rows(summary: Mapping, tasks: Sequence[str]) -> list[tuple]:
    """Return a row per method, the best at 1 trial first, and one of what could be known."""
    rows = []
    regret = summary["regret"]
    for method in sorted(regret, key=lambda name: regret[name]["all"]["1"]["mean"]):
        means = [
            " / ".join(f"{regret[method][task][k]['mean']:.3f}" for k in regret[method][task])
            for task in (*tasks, "all")
        ]
        first = regret[method]["all"]["1"]
        rows.append((method, *means, f"{first['low']:.3f} to {first['high']:.3f}"))
    if "ceiling" in summary:
        ceiling = summary["ceiling"]
        means = [" / ".join(f"{x:.3f}" for x in ceiling[t].values()) for t in (*tasks, "all")]
        rows.append(("*could be known*", *means, ""))
    return rows


def source_rows(summary: Mapping, sources: Sequence[str]) -> list[tuple]:
    """Return a row per method: the mean regrets on each source, the best method first."""
    regret = summary["regret_by_source"]
    order = sorted(regret, key=lambda name: summary["regret"][name]["all"]["1"]["mean"])
    return [
        (name, *(" / ".join(f"{c['mean']:.2f}" for c in regret[name][s].values()) for s in sources))
        for name in order
    ]


def difference_rows(difference: Mapping) -> list[tuple]:
    """Return a row per other method: the pooled difference and its interval at each budget."""
    return [
        (
            other,
            *(
                f"{cell['mean']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]"
                for cell in by_task["all"].values()
            ),
        )
        for other, by_task in difference.items()
    ]


def difference_rows_by_task(difference: Mapping, tasks: Sequence[str]) -> list[tuple]:
    """Return a row per other method: the differences on each task, those beyond chance in bold."""

    def spelled(cell: Mapping) -> str:
        mean = f"{cell['mean']:+.3f}"
        return f"**{mean}**" if cell["low"] > 0 or cell["high"] < 0 else mean

    return [
        (other, *(" / ".join(map(spelled, by_task[task].values())) for task in tasks))
        for other, by_task in difference.items()
    ]


def tables_page(root: str, experiments: Sequence[Experiment]) -> str:
    """Write the page of our own tables: an experiment a row, by task."""
    parts = [
        "# Our own tables\n\n",
        f"Written by `python launch/write_docs.py` from `{root}`. Each table was made by `python "
        "launch/main.py --config=configs/TASK.py --stage=ground_truth`. Noise is the noise floor, "
        "the standard deviation between seeds, in units of regret (median - optimum). Default is "
        "the regret of the default configuration.\n",
    ]
    for task in sorted({e.task for e in experiments}):
        found = sorted(
            (e for e in experiments if e.task == task),
            key=lambda e: (("low", "mid", "high").index(e.fidelity.level), e.name),
        )
        names = ("experiment", "level", "parameters", "tokens", "measured", "optimum", "median")
        parts += [
            f"\n## {task}\n\n",
            table((*names, "noise", "default"), map(experiment_row, found)),
        ]
    return "".join(parts)


def experiment_row(experiment: Experiment) -> tuple:
    """Return the row of one experiment."""
    outcomes, fidelity = experiment.outcomes, experiment.fidelity
    default = outcomes.regrets_R[experiment.match(experiment.default).row]
    return (
        experiment.name,
        fidelity.level,
        f"{fidelity.parameters / 1e3:.1f}k",
        f"{fidelity.tokens / 1e3:.0f}k",
        str(len(experiment.configurations)),
        f"{outcomes.optimum:.3f}",
        f"{outcomes.median:.3f}",
        f"{outcomes.noise_regret:.2f}",
        f"{default:.2f}",
    )


if __name__ == "__main__":
    command_line.run(main)
