"""Print our own tables' signal and all tables' difficulty, and write them into docs/tables.md.

    python launch/difficulty.py --roots=gym_data,tables [--page=docs/tables.md]

Signal: experiments, settings, noise and the optimum's shift with scale, of the tables in --own.
Difficulty, under protocol dev (the evidence is low, the targets are mid): regrets of random, the
default and the best cheap baseline, and of what could be known. With
--page the sections "Signal" and "Difficulty" of that page are replaced.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from autollm_jax import command_line, host
from autollm_jax.baselines import BASELINES
from autollm_jax.errors import UserError
from autollm_jax.evaluation.difficulty import TRIALS, Difficulty, difficulties
from autollm_jax.evaluation.runner import play_method
from autollm_jax.evaluation.signal import Optimum, Signal, optima, signals
from autollm_jax.files import write_atomic
from autollm_jax.forecasts.left_out import left_out_predictions
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import split
from autollm_jax.gym.tables import find_tables, read_table
from autollm_jax.report.markdown import table as markdown_table
from autollm_jax.report.markdown import with_section

SIGNAL, DIFFICULTY = "## Signal of our own tables", "## Difficulty"
PLAIN = ("random", "default")
# Baselines that cost seconds; `successive_halving` pays for runs of its own besides the evidence.
CHEAP = (
    "nearest_experiment",
    "scaling_law",
    "boosted_trees",
    "gaussian_process",
    "optuna_tpe",
    "cma_es",
)

FLAGS = flags.FLAGS
flags.DEFINE_list("roots", ["gym_data"], "Folders of outcome tables.")
flags.DEFINE_string("own", "gym_data", "Folder of our own tables, whose signal is described.")
flags.DEFINE_integer("seeds", 5, "Episodes per experiment and method.", lower_bound=1)
command_line.define_path("page", None, "Markdown page whose section Difficulty is replaced.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; accepted are --roots, --own, --seeds and --page"
        )
    host.only_cpu()
    page = None if FLAGS.page is None else Path(FLAGS.page)
    if page is not None and not page.is_file():
        raise UserError(f"{page}: no such page; accepted is a Markdown file (--page)")
    signal = signal_section(FLAGS.own)
    print(signal)
    parts = split(load_experiments(FLAGS.roots), "dev")
    players = {name: play_method(BASELINES[name]) for name in (*PLAIN, *CHEAP)}
    found = difficulties(parts, players, left_out_predictions, range(FLAGS.seeds))
    if not found:
        raise UserError(f"{','.join(FLAGS.roots)}: no experiment of level mid, which dev holds out")
    text = difficulty_section(found)
    print(text)
    if page is not None:
        written = with_section(page.read_text(), SIGNAL, signal)
        write_atomic(page, with_section(written, DIFFICULTY, text))
        print(f"wrote {page}")


def signal_section(root: str) -> str:
    """Write the section about the tables of one root."""
    experiments = load_experiments(root)
    found = signals(experiments)
    for task in dict.fromkeys(signal.task for signal in found):
        found += together([s for s in found if s.task == task and s.level != "low"])
    dropped = [
        f"- `{table.source}/{table.task}/{name}`: {shown_number(noise)}\n"
        for table in map(read_table, find_tables([root]))
        for name, noise in table.meta.get("dropped", {}).items()
    ]
    head = ("task", "level", "experiments", "settings", "configurations", "noise", "largest")
    parts = [
        f"{SIGNAL}\n\nWritten by `python launch/difficulty.py --own={root}`. A setting is a pair "
        "of parameters and tokens; configurations: the median number of measured ones. Noise is "
        "the standard deviation over seeds, pooled over the configurations that are no worse than "
        "the median, in units of regret (median - optimum): the median and the largest of the "
        "experiments.\n\n",
        markdown_table(head, map(signal_row, sorted(found, key=lambda signal: signal.task))),
        "\nThe optimum's place is the mean of log2 over the best tenth of the configurations; its "
        "shift from the lowest to the highest level is in octaves. *Inside*: share of the "
        "experiments whose best value is at neither end of the grid.\n\n",
        markdown_table(
            ("task", "dimension", "low", "mid", "high", "shift", "inside"),
            map(optimum_row, optima(experiments)),
        ),
    ]
    if dropped:
        parts += [
            "\nExperiments that the tables leave out, and their noise: it is over "
            "`ground_truth.most_noise`, so no method could show skill there.\n\n",
            *dropped,
        ]
    return "".join(parts)


def together(found: Sequence[Signal]) -> list[Signal]:
    """Return the signal of a task's dearer levels as one, where there are several."""
    if len(found) < 2:
        return []
    return [
        dataclasses.replace(
            found[0],
            level=" and ".join(signal.level for signal in found),
            experiments=sum(signal.experiments for signal in found),
            settings=sum(signal.settings for signal in found),
            configurations=float(np.median([signal.configurations for signal in found])),
            noise_E=np.concatenate([signal.noise_E for signal in found]),
        )
    ]


def signal_row(signal: Signal) -> tuple[str, ...]:
    """Return the row of one level of a task."""
    counts = (signal.experiments, signal.settings, f"{signal.configurations:.0f}")
    noise_E = signal.noise_E[np.isfinite(signal.noise_E)]
    noise = [shown_number(f(noise_E)) if noise_E.size else "" for f in (np.median, np.max)]
    return (signal.task, signal.level, *map(str, counts), *noise)


def optimum_row(optimum: Optimum) -> tuple[str, ...]:
    """Return the row of one dimension."""
    levels = [optimum.octaves.get(level) for level in ("low", "mid", "high")]
    return (
        optimum.task,
        optimum.dimension,
        *("" if octave is None else f"{octave:.2f}" for octave in levels),
        f"{optimum.shift:+.2f}",
        "" if np.isnan(optimum.inside) else f"{100 * optimum.inside:.0f} %",
    )


def difficulty_section(found: Sequence[Difficulty]) -> str:
    """Write the section, a row per task and source."""
    rows = []
    for d in found:
        best = d.best(CHEAP)
        columns = [d.task, d.source, str(d.experiments)]
        columns += [shown(d.players[name]) for name in PLAIN]
        rows.append([*columns, f"{shown(d.players[best])} ({best})", shown(d.known)])
    head = ("task", "source", "experiments", *PLAIN, "best cheap baseline", "could be known")
    return (
        f"{DIFFICULTY}\n\nWritten by `python launch/difficulty.py "
        f"--roots={','.join(FLAGS.roots)}`: mean regret after "
        f"{' / '.join(map(str, TRIALS))} trials under protocol `dev`, evidence "
        f"low and targets mid, {FLAGS.seeds} seeds. The best cheap baseline is the one of the "
        f"lowest mean of the three among {', '.join(CHEAP)}, chosen by the score itself. *Could be "
        "known* is no method: it predicts each of the target's configurations from the target's "
        f"other ones and tries the best.\n\n{markdown_table(head, rows)}"
    )


def shown(regrets: np.ndarray) -> str:
    """Spell regrets: .14 / .06 / .00."""
    return " / ".join(map(shown_number, regrets.tolist()))


def shown_number(regret: float) -> str:
    """Spell a regret: .14."""
    return f"{regret:.2f}".removeprefix("0")


if __name__ == "__main__":
    command_line.run(main)
