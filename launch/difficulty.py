"""Print how difficult outcome tables are, and write it into docs/tables.md.

    python launch/difficulty.py --roots=gym_data,tables [--page=docs/tables.md]

Protocol dev: the evidence is low, the targets are mid. About 4 seconds an experiment on one core
(22 experiments: 83 s). With --page the section "Difficulty" of that page is replaced.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from autollm_jax import command_line
from autollm_jax.baselines import BASELINES
from autollm_jax.errors import UserError
from autollm_jax.evaluation.difficulty import TRIALS, Difficulty, difficulties
from autollm_jax.evaluation.runner import play_method
from autollm_jax.files import write_atomic
from autollm_jax.forecasts.left_out import left_out_predictions
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import split

HEADING = "## Difficulty"
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
flags.DEFINE_integer("seeds", 5, "Episodes per experiment and method.", lower_bound=1)
command_line.define_path("page", None, "Markdown page whose section Difficulty is replaced.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; accepted are --roots, --seeds and --page"
        )
    page = None if FLAGS.page is None else Path(FLAGS.page)
    if page is not None and not page.is_file():
        raise UserError(f"{page}: no such page; accepted is a Markdown file (--page)")
    parts = split(load_experiments(FLAGS.roots), "dev")
    players = {name: play_method(BASELINES[name]) for name in (*PLAIN, *CHEAP)}
    found = difficulties(parts, players, left_out_predictions, range(FLAGS.seeds))
    if not found:
        raise UserError(f"{','.join(FLAGS.roots)}: no experiment of level mid, which dev holds out")
    text = section(found)
    print(text)
    if page is not None:
        write_atomic(page, with_section(page.read_text(), text))
        print(f"wrote {page}")


def section(found: Sequence[Difficulty]) -> str:
    """Write the section, a row per task and source."""
    rows = []
    for d in found:
        best = d.best(CHEAP)
        columns = [d.task, d.source, str(d.experiments)]
        columns += [shown(d.players[name]) for name in PLAIN]
        rows.append([*columns, f"{shown(d.players[best])} ({best})", shown(d.known)])
    head = ("task", "source", "experiments", *PLAIN, "best cheap baseline", "could be known")
    lines = "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
    return (
        f"{HEADING}\n\nWritten by `python launch/difficulty.py --roots={','.join(FLAGS.roots)}`: "
        f"mean regret after {' / '.join(map(str, TRIALS))} trials under protocol `dev`, evidence "
        f"low and targets mid, {FLAGS.seeds} seeds. The best cheap baseline is the one of the "
        f"lowest mean of the three among {', '.join(CHEAP)}, chosen by the score itself. *Could be "
        "known* is no method: it predicts each of the target's configurations from the target's "
        f"other ones and tries the best.\n\n{lines}"
    )


def shown(regrets: np.ndarray) -> str:
    """Spell regrets: .14 / .06 / .00."""
    return " / ".join(f"{regret:.2f}".removeprefix("0") for regret in regrets.tolist())


def with_section(page: str, text: str) -> str:
    """Return a page with its section replaced, or with one at its end.

    >>> with_section("# A\\n\\n## Difficulty\\n\\nold\\n\\n## B\\n", "## Difficulty\\n\\nnew\\n")
    '# A\\n\\n## Difficulty\\n\\nnew\\n\\n## B\\n'
    """
    before, found, rest = page.partition(f"{HEADING}\n")
    if not found:
        return f"{page.rstrip()}\n\n{text}"
    _, later, after = rest.partition("\n## ")
    return f"{before}{text}{later}{after}"


if __name__ == "__main__":
    command_line.run(main)
