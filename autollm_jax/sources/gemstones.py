"""Gemstones (McLeish et al. 2025, arXiv 2502.06857): the shape of a model under a budget.

One upstream file: a row is a checkpoint, one every 2B tokens, of one of 22 shapes (width x depth,
50M to 2B parameters), all trained by one schedule on the same hardware. An experiment is a budget
by one of two rulers, FLOPs or device-hours: which shape has the lowest loss when the budget is
spent? The outcome is interpolated between a shape's neighbouring checkpoints, linearly in the
logarithm of the budget. A shape without checkpoints on both sides of a budget was not measured.

Widths and depths are log-ordinal, and their choices are those of all the file's shapes. The shapes
lie scattered over that grid: most of its cells belong to no shape, and were not measured at any
budget.

Upstream has one run a shape, named `PyGemma-WIDTHxDEPTH_pretrain`. Runs with any other name (other
learning rates, cooldowns) answer another question: they are left out, and a warning names them.
"""

import dataclasses
import logging
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.jsonl_file import number_field, read_jsonl, text_field
from autollm_jax.sources.source import Source, Tables

_log = logging.getLogger(__name__)

FILE = "wandb_df_for_fitting_hot_100b+_477.jsonl"
FOLDER = "wandb_dfs"
FIELDS = ("run_name", "width", "depth", "params_active_precise", "tokens", "step", "num_nodes",
          "seconds_per_step", "final_loss")  # fmt: skip
RUN_NAME = re.compile(r"PyGemma-(\d{1,6})x(\d{1,6})_pretrain")

# ruler -> {budget: level}.
BUDGETS = {
    "flops": {
        1e19: "low", 2e19: "low", 5e19: "mid", 1e20: "mid", 2e20: "high", 5e20: "high", 1e21: "high"
    },
    "hours": {100: "low", 300: "mid", 1000: "high", 3000: "high"},
}  # fmt: skip
RULER_NAMES = {"flops": "FLOPs", "hours": "device-hours"}
DEVICES_PER_NODE = 8
CONTEXT = {
    "device": "AMD MI250X",
    "devices_per_node": DEVICES_PER_NODE,
    "schedule_tokens": 350e9,
}
HABIT = 64  # width / depth of GPT-2's smallest model (Radford et al. 2019)
# Tokens a parameter of the model that a budget of FLOPs is best spent on, about (Hoffmann et al.
# 2022, arXiv 2203.15556).
TOKENS_PER_PARAMETER = 20
LEAST_SHAPES = 3  # of an experiment; with fewer there is hardly a choice

UNITS = {
    "config.width": "embedding width",
    "config.depth": "transformer blocks",
    "loss": "nats per token, upstream's `final_loss` of a checkpoint, interpolated linearly in the "
    "logarithm of the budget between a shape's neighbouring checkpoints; lower is better",
    "parameters": "upstream's `params_active_precise`",
    "tokens": "trained on when the budget is spent",
    "hours": "device-hours: nodes x 8 devices x seconds a step x steps / 3,600",
    "flops": "6 x parameters x tokens, when the budget is spent",
    "seconds": "duration until the budget is spent",
    "nodes": f"of {DEVICES_PER_NODE} devices each",
    "seed": "always 0: one run a shape",
    "run": "upstream's name of the run; one run answers every budget",
    "fidelity": "flops: the budget (of device-hours: times the FLOPs a device-hour of the median "
    f"shape); parameters and tokens: a model of so many FLOPs with {TOKENS_PER_PARAMETER} tokens a "
    "parameter. The shapes' own parameters and tokens are in the rows",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One row of upstream's file, or a point between two.

    Attributes:
      tokens, flops, hours, seconds: spent so far; `hours` are device-hours.
      loss: nats per token.
    """

    tokens: float
    flops: float
    hours: float
    seconds: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Shape:
    """One run: a shape, and its checkpoints in the order of their steps."""

    run: str
    width: int
    depth: int
    parameters: int
    nodes: int
    checkpoints: Sequence[Checkpoint]

    @property
    def config(self) -> dict:
        return {"width": self.width, "depth": self.depth}


def at_budget(checkpoints: Sequence[Checkpoint], ruler: str, budget: float) -> Checkpoint | None:
    """Interpolate a run at a budget, linearly in the budget's logarithm.

    What was spent is interpolated by its logarithm, the loss as it is.

    >>> run = [Checkpoint(1e9, 1e18, 10, 60, 4.0), Checkpoint(4e9, 4e18, 40, 240, 3.0)]
    >>> point = at_budget(run, "flops", 2e18)
    >>> round(point.loss, 6), round(point.hours, 6)
    (3.5, 20.0)

    Args:
      checkpoints: of one run.
      ruler: `flops` or `hours`.
      budget: FLOPs, or device-hours.

    Returns:
      The point, or None without checkpoints on both sides of the budget (at it is on both).
    """
    ordered = sorted(checkpoints, key=lambda c: getattr(c, ruler))
    below = [c for c in ordered if getattr(c, ruler) <= budget]
    above = [c for c in ordered if getattr(c, ruler) >= budget]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    start, end = getattr(low, ruler), getattr(high, ruler)
    share = math.log(budget / start) / math.log(end / start) if end > start else 0.0
    spent = {
        name: getattr(low, name) ** (1 - share) * getattr(high, name) ** share
        for name in ("tokens", "flops", "hours", "seconds")
    }
    return Checkpoint(**spent | {ruler: budget}, loss=low.loss + share * (high.loss - low.loss))


def untuned_default(shapes: Sequence[Shape]) -> tuple[dict, str]:
    """Return the measured shape whose width / depth is nearest to HABIT, by the ratio's logarithm.

    Returns:
      The configuration, and one sentence on where it is from.
    """
    nearest = min(shapes, key=lambda s: (abs(math.log(s.width / s.depth / HABIT)), s.width))
    origin = (
        f"width = {HABIT} x depth, as in GPT-2's smallest model; the measured shape nearest in "
        "log(width / depth)"
    )
    return nearest.config, origin


def read(path: Path) -> Tables:
    """Read the upstream file, or a folder with it, as published.

    Returns:
      One (meta, rows) pair, of the task `architecture`.

    Raises:
      UserError: no such file, or its content is not as published.
    """
    file = _find_file(Path(path))
    shapes = _read_shapes(file)
    space = _space(shapes)
    # A shape's FLOPs a device-hour hardly change during its run.
    rate = statistics.median(s.checkpoints[-1].flops / s.checkpoints[-1].hours for s in shapes)
    experiments, rows, left_out = {}, [], []
    for ruler, levels in BUDGETS.items():
        for budget, level in levels.items():
            name = f"{ruler}-{_spelt(ruler, budget)}"
            points = [(s, at_budget(s.checkpoints, ruler, budget)) for s in shapes]
            measured = [(shape, point) for shape, point in points if point is not None]
            if len(measured) < LEAST_SHAPES:
                left_out.append(name)
                continue
            flops = budget if ruler == "flops" else budget * rate
            entry = _describe(ruler, budget, level, flops, [shape for shape, _ in measured])
            experiments[name] = entry | {"space": space.to_json()}
            rows += [_row(name, shape, point) for shape, point in measured]
    if not rows:
        raise UserError(
            f"{file}: no budget has {LEAST_SHAPES} shapes with checkpoints on both sides of it"
        )
    meta = SOURCE.meta(
        "architecture",
        {file.name: sha256_of(file)},
        units=UNITS,
        left_out=left_out,
        experiments=experiments,
    )
    return [(meta, rows)]


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    # A clone of the repository has it under FOLDER.
    for file in (path / FILE, path / FOLDER / FILE):
        if file.is_file():
            return file
    raise UserError(f"{path}: no Gemstones file; accepted is {FILE}, or a folder with it")


def _read_shapes(file: Path) -> list[Shape]:
    """Read the runs, the narrowest and shallowest shape first."""
    found: dict[str, list[tuple[str, dict]]] = defaultdict(list)
    others, lossless = set(), 0
    for where, row in read_jsonl(file, FIELDS, "Gemstones", SOURCE.pinned):
        run = text_field(row, "run_name", where)
        if RUN_NAME.fullmatch(run) is None:
            others.add(run)
        elif row["final_loss"] is None:
            lossless += 1
        else:
            found[run].append((where, row))
    if others:
        _log.warning("%s: left out: %d runs with a name unlike PyGemma-512x12_pretrain, such as %r",
                     file, len(others), min(others)[:80])  # fmt: skip
    if lossless:
        _log.warning("%s: left out: %d checkpoints without a loss", file, lossless)
    if not found:
        raise UserError(f"{file}: has no run named such as PyGemma-512x12_pretrain")
    shapes = [_shape(run, rows) for run, rows in found.items()]
    return sorted(shapes, key=lambda shape: (shape.width, shape.depth))


def _shape(run: str, rows: Sequence[tuple[str, dict]]) -> Shape:
    """Read one run's rows, in any order."""
    named = RUN_NAME.fullmatch(run)
    assert named is not None  # other runs were left out
    checkpoints: dict[int, tuple[str, Checkpoint]] = {}
    parameters = nodes = 0
    for where, row in rows:
        for field, text in zip(("width", "depth"), named.groups(), strict=True):
            if _count(row, field, where) != int(text):
                raise UserError(
                    f"{where}: `{field}` is {_count(row, field, where)}; accepted is {text}, as "
                    f"the run {run} has it"
                )
        size = _count(row, "params_active_precise", where)
        if parameters and size != parameters:
            raise UserError(
                f"{where}: `params_active_precise` is {size}; accepted is {parameters}, as other "
                f"rows of the run {run} have it"
            )
        parameters, nodes = size, max(nodes, _count(row, "num_nodes", where))
        step = _count(row, "step", where)
        if step in checkpoints:
            raise UserError(
                f"{where}: `step` is {step} a second time in the run {run}, after "
                f"{checkpoints[step][0].rpartition(': ')[2]}; accepted is once"
            )
        checkpoints[step] = where, _checkpoint(row, where)
    ordered = [checkpoints[step][1] for step in sorted(checkpoints)]
    return Shape(run, int(named[1]), int(named[2]), parameters, nodes, ordered)


def _checkpoint(row: dict, where: str) -> Checkpoint:
    tokens, loss = _positive(row, "tokens", where), _positive(row, "final_loss", where)
    parameters = _positive(row, "params_active_precise", where)
    seconds = _positive(row, "seconds_per_step", where) * _positive(row, "step", where)
    devices = DEVICES_PER_NODE * _positive(row, "num_nodes", where)
    return Checkpoint(tokens, 6 * parameters * tokens, devices * seconds / 3600, seconds, loss)


def _positive(row: dict, field: str, where: str) -> float:
    value = number_field(row, field, where)
    if not 0 < value < 1e30:
        raise UserError(f"{where}: `{field}` is {value:g}; accepted is a positive number")
    return value


def _count(row: dict, field: str, where: str) -> int:
    value = _positive(row, field, where)
    if value != int(value):
        raise UserError(f"{where}: `{field}` is {value:g}; accepted is a whole number")
    return int(value)


def _space(shapes: Sequence[Shape]) -> Space:
    return Space(
        tuple(
            Dimension(name, "log-ordinal", tuple(sorted({shape.config[name] for shape in shapes})))
            for name in ("width", "depth")
        )
    )


def _spelt(ruler: str, budget: float) -> str:
    """Spell a budget: 5e19 FLOPs, 300 device-hours."""
    return f"{budget:.0e}".replace("+", "") if ruler == "flops" else f"{budget}"


def _describe(
    ruler: str, budget: float, level: str, flops: float, measured: Sequence[Shape]
) -> dict:
    """Return an experiment's entry in the JSON file, the space left out."""
    default, origin = untuned_default(measured)
    parameters = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    unit = RULER_NAMES[ruler]
    return {
        "context": {"ruler": unit, "budget": f"{_spelt(ruler, budget)} {unit}"} | CONTEXT,
        "fidelity": {
            "level": level,
            "parameters": parameters,
            "tokens": TOKENS_PER_PARAMETER * parameters,
            "flops": flops,
        },
        "objective": {"metric": "loss", "goal": "minimize"},
        "default": default,
        "default_origin": origin,
    }


def _row(experiment: str, shape: Shape, point: Checkpoint) -> Mapping:
    return {
        "experiment": experiment,
        "config.width": shape.width,
        "config.depth": shape.depth,
        "loss": point.loss,
        "parameters": shape.parameters,
        "tokens": point.tokens,
        "hours": point.hours,
        "flops": point.flops,
        "seconds": point.seconds,
        "nodes": shape.nodes,
        "seed": 0,
        "status": "ok",
        "run": shape.run,
    }


SOURCE = Source(
    name="gemstones",
    address="https://github.com/mcleish7/gemstone-scaling-laws",
    raw_address="https://raw.githubusercontent.com/mcleish7/gemstone-scaling-laws",
    commit="5f420478f6057b0cbb4d13405fb10ca64675bccb",
    files={
        f"{FOLDER}/{FILE}": "c7a56e023c2cee6be296defc284126778c62387023a6e0c01e57599999591f5d",
    },
    licence="MIT (McLeish et al.)",
    read=read,
)
