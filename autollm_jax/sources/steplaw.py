"""Step Law (Li et al. 2025, arXiv 2503.04715): learning rate x batch size of pre-training runs.

Two upstream files, dense and mixture-of-experts, make one table, `steplaw/pretraining`: one
experiment per (N, D) of the dense file and per (moe_name, D) of the other. Either file alone, or
any part of its rows, is read as well.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.sources.csv_file import number, read_csv
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.source import Source, Tables

SEQUENCE_LENGTH = 2048
METRIC_COLUMN = "smooth loss"
NUMBERS = ("N", "D", "lr", "bs")
# A header with any of these is the mixture-of-experts file's.
MOE_MARKS = ("moe_name", "Na", "topk", "nume")

# Upstream rounds learning rates to 3 or 4 digits: 26 spellings of 14 powers of sqrt(2).
SNAP_FACTOR = 1.02

# A model that has lost what it learned predicts about as well as token frequencies alone do, 6.5 to
# 7 nats here. A run diverged if it is nearer to that than to its experiment's best run. (The runs
# below 5e8 parameters reach up to 3.2 nats, or lie above 4.1: the exact place matters little.)
FREQUENCY_LOSS = 7.0
# Where even the best run has diverged, "nearer" says nothing; this is never a trained model's loss.
HIGHEST_SOUND_LOSS = 6.0

LOW_BELOW, HIGH_ABOVE = 3e8, 5e8

# Brown et al. 2020 (arXiv 2005.14165), table 2.1: parameters -> learning rate, batch in tokens.
GPT3_TABLE = {
    125e6: (6.0e-4, 0.5e6),
    350e6: (3.0e-4, 0.5e6),
    760e6: (2.5e-4, 0.5e6),
    1.3e9: (2.0e-4, 1e6),
    2.7e9: (1.6e-4, 1e6),
    6.7e9: (1.2e-4, 2e6),
    13e9: (1.0e-4, 2e6),
    175e9: (0.6e-4, 3.2e6),
}

# context name -> upstream column; one that varies within an experiment is left out.
CONTEXT_COLUMNS = {"width": "h", "mlp_width": "ffnh", "heads": "numh", "layers": "numl"}
MOE_CONTEXT_COLUMNS = CONTEXT_COLUMNS | {
    "active_parameters": "Na",
    "experts": "nume",
    "experts_per_token": "topk",
    "expert_mlp_width": "moeh",
}

UNITS = {
    "config.learning_rate": "peak learning rate",
    "config.batch_size": "sequences",
    "loss": "nats per token, smoothed training loss (upstream `smooth loss`); lower is better",
    "flops": "6 x active non-embedding parameters x tokens, per run",
    "seconds": "not published",
    "seed": "counts the runs that upstream lists for one cell; not a random seed",
    "run": "upstream's name of the run",
}


def snap_learning_rate(value: float) -> float:
    """Return the power of sqrt(2) that `value` is a rounding of, else `value` to three digits.

    >>> snap_learning_rate(0.00195), snap_learning_rate(0.0025)
    (0.001953125, 0.0025)
    """
    power = 2.0 ** (round(2 * math.log2(value)) / 2)
    if max(power / value, value / power) <= SNAP_FACTOR:
        return power
    return float(f"{value:.3g}")


def divergence_threshold(losses: Sequence[float]) -> float:
    """Return the loss above which a run of an experiment with these losses has diverged.

    >>> divergence_threshold([2.4, 2.6, float("nan")])
    4.7
    """
    best = min((loss for loss in losses if math.isfinite(loss)), default=math.inf)
    return min((best + FREQUENCY_LOSS) / 2, HIGHEST_SOUND_LOSS)


def untuned_default(parameters: float, space: Space, cells: Sequence[Mapping]) -> tuple[dict, str]:
    """Return the configuration that a practitioner would take untuned.

    It is the measured cell nearest to the learning rate and batch size of the GPT-3 model of the
    closest size: a published habit that does not depend on this table's outcomes.

    Returns:
      The configuration, and one sentence on where it is from.
    """
    size = min(GPT3_TABLE, key=lambda other: abs(math.log(other / parameters)))
    learning_rate, batch_tokens = GPT3_TABLE[size]
    batch = batch_tokens / SEQUENCE_LENGTH
    unit_D = space.to_unit({"learning_rate": learning_rate, "batch_size": batch})
    units_RD = np.stack([space.to_unit(cell) for cell in cells])
    nearest = cells[int(np.argmin(((units_RD - unit_D) ** 2).sum(axis=1)))]
    origin = (
        f"GPT-3 (arXiv 2005.14165, table 2.1) at {size / 1e6:,.0f}M parameters: learning rate "
        f"{learning_rate:g}, batch {batch_tokens / 1e6:g}M tokens; the nearest measured cell"
    )
    return dict(nearest), origin


def read(path: Path) -> Tables:
    """Read the upstream file, or a folder with one or both, as published.

    >>> import tempfile
    >>> lines = ["lr,bs,smooth loss,N,D", "0.00195,64,2.5,214663680,4e9"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "dense_lr_bs_loss.csv").write_text("\\n".join([*lines, ""]))
    ...     [(meta, rows)] = read(folder)
    >>> list(meta["experiments"]), rows[0]["config.learning_rate"]
    (['dense-214.7M-4B'], 0.001953125)

    Returns:
      One (meta, rows) pair, of the task `pretraining`.

    Raises:
      UserError: no such file, or its content is not as published.
    """
    groups: dict[tuple, list[dict]] = defaultdict(list)
    hashes = {}
    for file in _find_files(Path(path)):
        hashes[file.name] = sha256_of(file)
        for run in _read_file(file):
            # A mixture-of-experts model is known by its name, a dense one by its size.
            size = 0 if run["moe_name"] else run["N"]
            groups[(run["moe_name"], size, run["D"])].append(run)
    names = Counter(_name(group) for group in groups)
    experiments, rows, left_out = {}, [], []
    for group, runs in sorted(groups.items(), key=lambda item: item[0]):
        # Sizes that round to one name are written out.
        name = _name(group, exact=names[_name(group)] > 1)
        made = _experiment_rows(name, runs)
        if all(row["status"] != "ok" for row in made):
            left_out.append(name)
            continue
        experiments[name] = _describe(runs, made)
        rows += made
    if not rows:
        raise UserError(f"{path}: no run in it has a finite loss of a trained model")
    meta = SOURCE.meta(
        "pretraining",
        hashes,
        units=UNITS,
        left_out=left_out,
        experiments=experiments,
    )
    return [(meta, rows)]


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        published = [Path(name).name for name in SOURCE.files]
        # A clone of the repository has them under data/.
        for folder in (path, path / "data"):
            found = [folder / name for name in published if (folder / name).is_file()]
            if found:
                return found
        if found := sorted(path.glob("*.csv")):
            return found
    wanted = " or ".join(Path(name).name for name in SOURCE.files)
    raise UserError(f"{path}: no Step Law file; accepted is {wanted}, or a folder with them")


def _read_file(path: Path) -> list[dict]:
    header, rows = read_csv(path, (*NUMBERS, METRIC_COLUMN), "Step Law", SOURCE.pinned)
    is_moe = any(mark in header for mark in MOE_MARKS)
    for column in ("moe_name", "Na") if is_moe else ():
        if column not in header:
            raise UserError(
                f"{path}: column `{column}` is missing; a Step Law mixture-of-experts file has it"
            )
    return [_parse(row, is_moe, where) for where, row in rows]


def _parse(row: dict, is_moe: bool, where: str) -> dict:
    parsed = {}
    for column in (*NUMBERS, *(("Na",) if is_moe else ())):
        value = number(row[column], column, where)
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{where}: `{column}` is {row[column]}; accepted is a positive number")
        parsed[column] = value
    # A run without a loss is an empty field, as pandas writes a nan.
    text = row[METRIC_COLUMN].strip()
    moe_name = row["moe_name"].strip().replace("/", "-") if is_moe else ""
    if is_moe and not moe_name:
        raise UserError(f"{where}: `moe_name` is empty; accepted is the model's name")
    return {
        "moe_name": moe_name,
        "N": int(parsed["N"]),
        "Na": int(parsed.get("Na", parsed["N"])),
        "D": int(parsed["D"]),
        "learning_rate": snap_learning_rate(parsed["lr"]),
        "batch_size": max(int(round(parsed["bs"])), 1),
        "loss": number(text, METRIC_COLUMN, where) if text else math.nan,
        "upstream": row,
    }


def _name(group: tuple, exact: bool = False) -> str:
    moe_name, parameters, tokens = group
    size = f"{parameters}" if exact else f"{parameters / 1e6:.1f}M"
    return f"{f'moe-{moe_name}' if moe_name else f'dense-{size}'}-" + (
        f"{tokens}" if exact else f"{tokens / 1e9:g}B"
    )


def _experiment_rows(name: str, runs: Sequence[dict]) -> list[dict]:
    threshold = divergence_threshold([run["loss"] for run in runs])
    seen: Counter = Counter()
    rows = []
    for run in sorted(runs, key=lambda run: (run["learning_rate"], run["batch_size"])):
        cell = (run["learning_rate"], run["batch_size"])
        sound = math.isfinite(run["loss"]) and run["loss"] <= threshold
        rows.append(
            {
                "experiment": name,
                "config.learning_rate": run["learning_rate"],
                "config.batch_size": run["batch_size"],
                "loss": run["loss"],
                "flops": 6.0 * run["Na"] * run["D"],
                "seconds": None,
                "seed": seen[cell],
                "status": "ok" if sound else "diverged",
                "run": run["upstream"].get("exp_name"),
            }
        )
        seen[cell] += 1
    return rows


def _describe(runs: Sequence[dict], rows: Sequence[dict]) -> dict:
    """Return an experiment's entry in the JSON file."""
    first = runs[0]
    is_moe = bool(first["moe_name"])
    dimensions = [
        Dimension(name, "log-ordinal", tuple(sorted({row[f"config.{name}"] for row in rows})))
        for name in ("learning_rate", "batch_size")
    ]
    space = Space(tuple(dimensions))
    cells = [{name: row[f"config.{name}"] for name in space.names} for row in rows]
    default, origin = untuned_default(first["Na"], space, cells)
    context = {
        "model": "moe" if is_moe else "dense",
        "non_embedding_parameters": first["N"],
        "tokens": first["D"],
        "sequence_length": SEQUENCE_LENGTH,
    }
    if is_moe:
        context["moe_name"] = first["moe_name"]
        context |= _constant(runs, {"sequence_length": "seq_len"})
    context |= _constant(runs, MOE_CONTEXT_COLUMNS if is_moe else CONTEXT_COLUMNS)
    if is_moe or first["N"] > HIGH_ABOVE:
        level = "high"
    else:
        level = "low" if first["N"] < LOW_BELOW else "mid"
    return {
        "context": context,
        "fidelity": {
            "level": level,
            "parameters": first["N"],
            "tokens": first["D"],
            "flops": rows[0]["flops"],
        },
        "space": space.to_json(),
        "objective": {"metric": "loss", "goal": "minimize"},
        "default": default,
        "default_origin": origin,
    }


def _constant(runs: Sequence[dict], columns: Mapping[str, str]) -> dict:
    """Return the columns that hold one number in all the runs."""
    context = {}
    for name, column in columns.items():
        values = {run["upstream"].get(column) for run in runs}
        text = values.pop() if len(values) == 1 else None
        try:
            value = float(text or "nan")
        except ValueError:
            continue
        if math.isfinite(value):
            context[name] = int(value) if value == int(value) else value
    return context


SOURCE = Source(
    name="steplaw",
    address="https://github.com/step-law/steplaw",
    raw_address="https://raw.githubusercontent.com/step-law/steplaw",
    commit="32a8f4cc50247695fb56cc6c9117abdf67c97763",
    files={
        "data/dense_lr_bs_loss.csv": (
            "9e46181076c04d450294d75dfe6f72adc416e231e154a07b337e378f9410002c"
        ),
        "data/moe_lr_bs_loss.csv": (
            "653d585244a7b227423007e8b796bc16d76f6d24eb87b1919b8f048a91897b92"
        ),
    },
    licence="none stated upstream: read it, do not redistribute it",
    read=read,
)
