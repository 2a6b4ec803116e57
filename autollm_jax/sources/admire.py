"""ADMIRE IFT Runs (Chen et al. 2025, arXiv 2508.11551): mixtures of 19 instruction data sets.

One upstream file: a row is one fine-tuning of a Qwen2.5 model on the Tulu 3 data sets, with 17
benchmark scores and three averages. An experiment is one (model, objective); higher is better. Any
part of the rows is read as well, and a run that lacks a score is left out of that objective alone.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.sources.csv_file import number, read_csv
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.mixtures import Model, Run, experiments_of, read_mixture
from autollm_jax.sources.source import Source, Tables

FILE = "admire_ift_runs.csv"
RATIO, METRIC = "ratio_", "metric_"

# Our name -> upstream's column, and the prompts that Tulu 3's own mixture takes from the data set
# (Lambert et al. 2024, arXiv 2411.15124, and the card of allenai/tulu-3-sft-mixture).
DATA_SETS = {
    "coconot": ("coconot_converted", 10_983),
    "codealpaca": ("evol_codealpaca_heval_decontaminated", 107_276),
    "flan": ("flan_v2_converted", 89_982),
    "no_robots": ("no_robots_converted", 9_500),
    "numina_math": ("numinamath_tir_math_decontaminated", 64_312),
    "oasst": ("oasst1_converted", 7_132),
    "persona_code": ("personahub_code_v2_34999", 34_999),
    "persona_if": ("personahub_ifdata_manual_seed_v3_29980", 29_980),
    "persona_math": ("personahub_math_v5_regen_149960", 149_960),
    "hard_coded": ("tulu_hard_coded_repeated_10", 240),
    "aya": ("tulu_v3.9_aya_100k", 100_000),
    "open_math_gsm8k": ("tulu_v3.9_open_math_2_gsm8k_50k", 50_000),
    "persona_algebra": ("tulu_v3.9_personahub_math_interm_algebra_20k", 20_000),
    "sciriff": ("tulu_v3.9_sciriff_10k", 10_000),
    "wildguard": (
        "tulu_v3.9_synthetic_finalresp_wildguardmixtrain_decontaminated_50k",
        50_000,
    ),
    "table_gpt": ("tulu_v3.9_table_gpt_5k", 5_000),
    "wildchat": ("tulu_v3.9_wildchat_100k", 100_000),
    "wildjailbreak": ("tulu_v3.9_wildjailbreak_decontaminated_50k", 50_000),
    "persona_gsm": ("tulu-3-sft-personas-math-grade", 49_980),
}
# The averages, by what our objectives are called.
AVERAGES = {"mean": "avg_id+ood", "mean_id": "avg_id", "mean_ood": "avg_ood"}

SIZE = re.compile(r"(\d+(?:\.\d+)?)B", re.IGNORECASE)
LOW_BELOW, HIGH_ABOVE = 1e9, 5e9

UNITS = {
    "config.mixture": "fraction of the training examples; upstream's ratios, normalised",
    "metric.mean": "upstream's `metric_avg_id+ood` as published (at 0.5B it is not quite the plain "
    "average of the 17 benchmarks); higher is better",
    "metric.mean_id": "average of the 10 in-distribution benchmarks; higher is better",
    "metric.mean_ood": "average of the 7 out-of-distribution benchmarks; higher is better",
    "metric.BENCHMARK": "score, 0 to 1; higher is better",
    "flops": "6 x parameters, per token: the number of tokens is not published",
    "seconds": "not published (`train_time` is, without its unit)",
    "seed": "counts the runs of one mixture; not a random seed",
    "run": "model and line of upstream's file",
}


def read(path: Path) -> Tables:
    """Read the upstream file, or a folder with it.

    Returns:
      One (meta, rows) pair, of the task `data_mixture`.

    Raises:
      UserError: no such file, or its content is not as published.
    """
    file = _find_file(Path(path))
    ratios = {name: f"{RATIO}{column}" for name, (column, _) in DATA_SETS.items()}
    averages = {f"{METRIC}{column}" for column in AVERAGES.values()}
    columns = ("model", *ratios.values(), *sorted(averages))
    header, rows = read_csv(file, columns, "ADMIRE", SOURCE.pinned)
    unknown = [c for c in header if c.startswith(RATIO) and c not in ratios.values()]
    if unknown:
        raise UserError(f"{file}: column `{unknown[0]}` is of no data set of Tulu 3's mixture")
    metrics = _metric_columns(header)
    runs_of: dict[str, list[Run]] = defaultdict(list)
    for where, row in rows:
        model = row["model"].strip()
        scores = {name: _score(row[column], column, where) for name, column in metrics.items()}
        mixture = read_mixture(row, ratios, where)
        line = where.rpartition(" ")[2]
        runs_of[_checked(model, where)].append(Run(mixture, scores, f"{model}/{line}"))
    objectives = {name.removeprefix("metric."): name for name in metrics}
    prior = {name: float(size) for name, (_, size) in DATA_SETS.items()}
    origin = "Tulu 3's own mixture, each data set by its size (arXiv 2411.15124)"
    models = [_model(name, runs) for name, runs in sorted(runs_of.items(), key=_by_size)]
    experiments, rows, left_out = experiments_of(models, objectives, "maximize", prior, origin)
    if not rows:
        raise UserError(f"{file}: no run in it has a score")
    meta = SOURCE.meta(
        "data_mixture",
        {file.name: sha256_of(file)},
        units=UNITS,
        left_out=left_out,
        experiments=experiments,
    )
    return [(meta, rows)]


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    # A clone of the repository has it under admire_ift_runs/.
    for file in (path / FILE, path / "admire_ift_runs" / FILE):
        if file.is_file():
            return file
    raise UserError(f"{path}: no ADMIRE file; accepted is {FILE}, or a folder with it")


def _metric_columns(header: Sequence[str]) -> dict[str, str]:
    """Return metric name -> upstream column, the averages first."""
    columns = {f"metric.{name}": f"{METRIC}{column}" for name, column in AVERAGES.items()}
    for column in header:
        if column.startswith(METRIC) and column not in columns.values():
            # metric_arc_challenge:rc::tulu is the benchmark arc_challenge.
            name = column.removeprefix(METRIC).partition(":")[0]
            if f"metric.{name}" in columns:
                name = column.removeprefix(METRIC)
            columns[f"metric.{name}"] = column
    return columns


def _score(text: str, column: str, where: str) -> float:
    """Return a score; an empty field is a score that is missing, as pandas writes a nan."""
    score = number(text.strip() or "nan", column, where)
    if math.isinf(score):
        raise UserError(f"{where}: `{column}` is {text}; accepted is a score, or nothing")
    return score


def _checked(model: str, where: str) -> str:
    if not SIZE.search(model) or "/" in model or model.startswith("."):
        raise UserError(f"{where}: `model` is {model[:40]!r}; accepted is such as Qwen2.5-0.5B")
    return model


def _parameters(model: str) -> int:
    size = SIZE.search(model)
    assert size is not None  # `_checked` has refused others
    return int(float(size[1]) * 1e9)


def _by_size(item: tuple) -> tuple:
    return _parameters(item[0]), item[0]


def _model(name: str, runs: Sequence[Run]) -> Model:
    parameters = _parameters(name)
    level = "low" if parameters < LOW_BELOW else "high" if parameters > HIGH_ABOVE else "mid"
    fidelity = {"level": level, "parameters": parameters, "tokens": 0, "flops": 6.0 * parameters}
    return Model(name, fidelity, {"model": name, "parameters": parameters}, runs)


SOURCE = Source(
    name="admire",
    address="https://github.com/XO28/ADMIRE-BayesOpt",
    raw_address="https://raw.githubusercontent.com/XO28/ADMIRE-BayesOpt",
    commit="dc177953300b89676695552a0f5f10dc0ae6f82d",
    files={
        f"admire_ift_runs/{FILE}": (
            "703b061d36203c297b311c1d03adcb46a9497a2fc1b3e86f81a55b047a205686"
        ),
    },
    licence=(
        "CC BY-NC-SA 4.0 (Chen, Ouyang, Pearce, Hartvigsen, Schwarz): read it, do not "
        "redistribute it"
    ),
    read=read,
)
