"""autoresearch-automl (Ferreira et al. 2026, arXiv 2603.24647): a whole training recipe.

Upstream has one file per optimiser and seed, `results/OPTIMISER/seed_N/trials.jsonl`; a line is one
training run of 300 seconds on one H200, and `val_bpb` its outcome. An experiment is one DEPTH; the
other 13 hyperparameters are configured. Any part of the files, or of their lines, is read as well.

A run that ran out of memory is `infeasible`, which nobody knows before the run: the experiments
have no limit. A run that failed otherwise (the machine stood still, a crash) says nothing about its
configuration and is left out; the default itself failed so once in 889 runs.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space
from autollm_jax.sources.autoresearch_files import FILES
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.jsonl_file import number_field, outcome_field, read_jsonl
from autollm_jax.sources.source import Source, Tables

FILE = "trials.jsonl"
SECONDS = 300.0  # every run's budget of training time

# The values of upstream's train.py, which is every optimiser's first trial, at DEPTH 8. Upstream's
# names are these in capitals.
DEFAULT = {
    "aspect_ratio": 64,
    "head_dim": 128,
    "device_batch_size": 128,
    "total_batch_size": 524288,
    "embedding_lr": 0.6,
    "unembedding_lr": 0.004,
    "matrix_lr": 0.04,
    "scalar_lr": 0.5,
    "weight_decay": 0.2,
    "warmup_ratio": 0.0,
    "warmdown_ratio": 0.5,
    "final_lr_frac": 0.0,
    "window_pattern": "SSSL",
}
DEFAULT_ORIGIN = (
    "upstream's train.py before any tuning (every optimiser's first trial, at DEPTH 8), here "
    "whatever the DEPTH"
)
# Whole numbers, by the choices that upstream's optimisers have.
WHOLE = {
    "aspect_ratio": ("ordinal", tuple(range(32, 129))),
    "head_dim": ("log-ordinal", (64, 128, 256)),
    "device_batch_size": ("log-ordinal", (32, 64, 128, 256)),
    "total_batch_size": ("log-ordinal", tuple(2**power for power in range(16, 22))),
}
CONTINUOUS = (
    Dimension("embedding_lr", "log-continuous", bounds=(0.01, 2.0)),
    Dimension("unembedding_lr", "log-continuous", bounds=(0.0005, 0.05)),
    Dimension("matrix_lr", "log-continuous", bounds=(0.005, 0.2)),
    Dimension("scalar_lr", "log-continuous", bounds=(0.05, 2.0)),
    Dimension("weight_decay", "continuous", bounds=(0.0, 0.5)),
    Dimension("warmup_ratio", "continuous", bounds=(0.0, 0.3)),
    Dimension("warmdown_ratio", "continuous", bounds=(0.1, 0.8)),
    Dimension("final_lr_frac", "continuous", bounds=(0.0, 0.2)),
)
PATTERNS = ("SSSL", "SSLL", "SLSL", "LLLL", "SSSS", "LSSL")
FIELDS = ("config", "success", "error", "val_bpb")
NAMES = ("DEPTH", *(name.upper() for name in DEFAULT))

DEPTHS = (4, 24)
# Deeper models have too few finished runs.
LOW_UP_TO, MID_UP_TO, HIGH_UP_TO = 7, 9, 14
# This optimiser is an agent that edits the training code: its `config` does not describe the run.
EDITS_CODE, EDITING_BACKEND = "karpathy_agent_Qwen", "karpathy_agent"
OUT_OF_MEMORY = ("out-of-memory", "out of memory")

UNITS = {
    "config.aspect_ratio": "width of the model in units of its depth",
    "config.head_dim": "dimensions of an attention head",
    "config.device_batch_size": "sequences of one forward pass",
    "config.total_batch_size": "tokens of one optimizer step",
    "config.embedding_lr": "peak learning rate of the embedding; likewise unembedding_lr, ...",
    "config.weight_decay": "weight decay of the matrices",
    "config.warmup_ratio": "share of the training time; likewise warmdown_ratio",
    "config.final_lr_frac": "last learning rate, in peak ones",
    "config.window_pattern": "attention windows of the layers in turn: S short, L long",
    "val_bpb": "bits per byte of the validation text; lower is better",
    "flops": "6 x parameters x tokens, per run; null for a run out of memory",
    "seconds": "wall time of the training, or until the run failed; the budget where not recorded",
    "seed": "null: not published (upstream's seed is the optimiser's)",
    "run": "upstream's optimiser, seed and line",
}


@dataclasses.dataclass(frozen=True)
class _Run:
    """One training run: what the table needs of an upstream line."""

    name: str
    depth: int
    config: dict
    status: str
    val_bpb: float
    seconds: float
    parameters: float
    tokens: float

    @property
    def flops(self) -> float | None:
        flops = 6.0 * self.parameters * self.tokens
        return flops if math.isfinite(flops) and flops > 0 else None


class _LeftOut(Exception):
    """A run that the table does not hold; the message is the reason, to be counted."""


def read(path: Path) -> Tables:
    """Read the upstream files under a folder (the repository, or its `results`), or one of them.

    Returns:
      One (meta, rows) pair, of the task `pretraining`.

    Raises:
      UserError: no such file, or its content is not as published.
    """
    runs: list[_Run] = []
    reasons: Counter = Counter()
    hashes, left_out = {}, []
    for name, file in _find_files(Path(path)).items():
        hashes[f"{name}/{FILE}"] = sha256_of(file)
        lines = read_jsonl(file, FIELDS, "autoresearch", SOURCE.pinned)
        if name.startswith(EDITS_CODE) or (lines and lines[0][1].get("backend") == EDITING_BACKEND):
            left_out.append(f"{name} ({len(lines)} runs of edited code)")
            continue
        whole = hashes[f"{name}/{FILE}"] in SOURCE.pinned
        for where, line in lines:
            try:
                runs.append(_run(line, f"{name}/{where.rpartition(' ')[2]}", where))
            except _LeftOut as reason:
                reasons[str(reason)] += 1
            except UserError:
                # A pinned file is as published: a run that fits no experiment is no damage.
                if not whole:
                    raise
                reasons["outside the space"] += 1
    groups: dict[int, list[_Run]] = defaultdict(list)
    for run in runs:
        groups[run.depth].append(run)
    left_out += [f"{count} runs: {reason}" for reason, count in sorted(reasons.items())]
    left_out += [
        f"depth-{depth} (no finished run)"
        for depth in sorted(groups)
        if not _finished(groups[depth])
    ]
    space = _space(runs).to_json()
    described = {depth: runs for depth, runs in sorted(groups.items()) if _finished(runs)}
    if not described:
        raise UserError(f"{path}: no run in it has finished at a DEPTH up to {HIGH_UP_TO}")
    meta = SOURCE.meta(
        "pretraining",
        hashes,
        units=UNITS,
        left_out=left_out,
        experiments={f"depth-{d}": _describe(d, runs, space) for d, runs in described.items()},
    )
    return [(meta, [_row(run) for runs in described.values() for run in runs])]


def _find_files(path: Path) -> dict[str, Path]:
    """Return the files by OPTIMISER/seed_N."""
    if path.is_file():
        return {"/".join(path.resolve().parts[-3:-1]): path}
    # A clone of the repository has them under results/.
    for folder in (path / "results", path):
        if found := sorted(folder.glob(f"*/seed_*/{FILE}")):
            return {"/".join(file.parts[-3:-1]): file for file in found}
    raise UserError(
        f"{path}: no autoresearch file; accepted is a folder with results/OPTIMISER/seed_N/{FILE}"
    )


def _run(line: Mapping, name: str, where: str) -> _Run:
    """Return the run of an upstream line.

    Raises:
      UserError: the line is not as published.
      _LeftOut: it is, but the table does not hold such runs.
    """
    depth, config = _config(line["config"], where)
    if not isinstance(line["success"], bool):
        raise UserError(f"{where}: `success` is {line['success']!r:.40}; accepted is true or false")
    if number_field({"budget": SECONDS, **line}, "budget", where) != SECONDS:
        raise UserError(f"{where}: `budget` is {line['budget']}; accepted is {SECONDS:g} seconds")
    status, val_bpb = "ok", math.nan
    if line["success"]:
        val_bpb = outcome_field(line, "val_bpb", where)
        status = "ok" if math.isfinite(val_bpb) else "diverged"
    else:
        _check_out_of_memory(line["error"], where)
        status = "infeasible"
    measured = line.get("extra_metrics") or {}
    if not isinstance(measured, Mapping):
        raise UserError(f"{where}: `extra_metrics` is no JSON object; accepted is one, or null")
    parameters, tokens = (
        1e6 * number_field(measured, key, where, least=0.0) if key in measured else math.nan
        for key in ("num_params_M", "total_tokens_M")
    )
    seconds = SECONDS
    if line.get("wall_time_seconds") is not None:
        seconds = number_field(line, "wall_time_seconds", where, least=0.0)
    if depth > HIGH_UP_TO:
        raise _LeftOut(f"deeper than {HIGH_UP_TO}")
    return _Run(name, depth, config, status, val_bpb, seconds, parameters, tokens)


def _check_out_of_memory(error: object, where: str) -> None:
    if not isinstance(error, str) or not error.strip():
        raise UserError(f"{where}: `error` is {error!r:.40}; accepted of a failed run is a text")
    if not any(text in error.lower() for text in OUT_OF_MEMORY):
        raise _LeftOut("failed otherwise than by memory (time out, crash)")


def _config(config: object, where: str) -> tuple[int, dict]:
    """Return the depth, and the 13 other hyperparameters in the order of DEFAULT."""
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: `config` is no JSON object; accepted is one")
    for name in (*NAMES, *config):
        if (name in config) != (name in NAMES):
            problem = "is missing from" if name in NAMES else "is no hyperparameter of"
            raise UserError(f"{where}: {name!r:.40} {problem} `config`; accepted are {NAMES}")
    values: dict = {}
    for name, (_, choices) in WHOLE.items():
        values[name] = _whole(config, name.upper(), choices[0], choices[-1], where)
    for dimension in CONTINUOUS:
        name = dimension.name.upper()
        value = number_field(config, name, where)
        try:
            values[dimension.name] = dimension.canonical(value)
        except InvalidConfiguration as error:
            raise UserError(f"{where}: `config`: {error}") from error
    pattern = config["WINDOW_PATTERN"]
    if not isinstance(pattern, str) or not pattern or set(pattern) - {"S", "L"}:
        raise UserError(
            f"{where}: `WINDOW_PATTERN` is {pattern!r:.40}; accepted are {', '.join(PATTERNS)}"
        )
    depth = _whole(config, "DEPTH", *DEPTHS, where)
    if pattern not in PATTERNS:
        raise _LeftOut("a WINDOW_PATTERN that is none of the six")
    values["window_pattern"] = pattern
    return depth, values


def _whole(config: Mapping, name: str, low: int, high: int, where: str) -> int:
    found = number_field(config, name, where)
    if found != round(found) or not low <= found <= high:
        raise UserError(
            f"{where}: `{name}` is {found:g}; accepted is a whole number from {low} to {high}"
        )
    return int(found)


def _space(runs: Sequence[_Run]) -> Space:
    """Return the space, all experiments' alike; whole numbers that were run are choices too."""
    dimensions = {dimension.name: dimension for dimension in CONTINUOUS}
    for name, (kind, choices) in WHOLE.items():
        found = {run.config[name] for run in runs}
        dimensions[name] = Dimension(name, kind, tuple(sorted(found.union(choices))))
    dimensions["window_pattern"] = Dimension("window_pattern", "categorical", PATTERNS)
    return Space(tuple(dimensions[name] for name in DEFAULT))


def _finished(runs: Sequence[_Run]) -> list[_Run]:
    """Return the finished runs of configurations that never failed, since one failure counts."""
    failed = {tuple(run.config.values()) for run in runs if run.status != "ok"}
    return [run for run in runs if tuple(run.config.values()) not in failed]


def _describe(depth: int, runs: Sequence[_Run], space: dict) -> dict:
    """Return an experiment's entry in the JSON file."""
    parameters, tokens = _size(_finished(runs))
    level = "low" if depth <= LOW_UP_TO else "mid" if depth <= MID_UP_TO else "high"
    return {
        "context": {
            "model": "nanochat's recipe",
            "depth": depth,
            "training_seconds": int(SECONDS),
            "device": "one H200",
        },
        "fidelity": {
            "level": level,
            "parameters": parameters,
            "tokens": tokens,
            "flops": 6.0 * parameters * tokens,
        },
        "space": space,
        "objective": {"metric": "val_bpb", "goal": "minimize"},
        "default": DEFAULT,
        "default_origin": DEFAULT_ORIGIN,
    }


def _size(finished: Sequence[_Run]) -> tuple[float, float]:
    """Return an experiment's parameters and tokens, which vary with the configuration.

    They are the medians over the finished runs with the default's shape (ASPECT_RATIO, HEAD_DIM),
    over all finished runs where none has it, and 0 where upstream does not say.
    """
    known = [run for run in finished if run.flops is not None]
    shape = ("aspect_ratio", "head_dim")
    alike = [run for run in known if all(run.config[name] == DEFAULT[name] for name in shape)]
    chosen = alike or known
    if not chosen:
        return 0.0, 0.0
    parameters = float(np.median([run.parameters for run in chosen]))
    return parameters, float(np.median([run.tokens for run in chosen]))


def _row(run: _Run) -> dict:
    return {
        "experiment": f"depth-{run.depth}",
        **{f"config.{name}": value for name, value in run.config.items()},
        "val_bpb": run.val_bpb if run.status == "ok" else None,
        "flops": run.flops,
        "seconds": run.seconds,
        "seed": None,
        "status": run.status,
        "run": run.name,
    }


SOURCE = Source(
    name="autoresearch",
    address="https://github.com/ferreirafabio/autoresearch-automl",
    raw_address="https://raw.githubusercontent.com/ferreirafabio/autoresearch-automl",
    commit="2959c3c69be32da677a37ca4b6e0c9a9fff020c8",
    files=FILES,
    licence="MIT (Fabio Ferreira)",
    read=read,
)
