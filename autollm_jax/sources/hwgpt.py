"""HW-GPT-Bench (Sukthanker et al. 2024, arXiv 2405.10299): architectures under a parameter limit.

Upstream has one perplexity predictor per scale (s, m, l), fitted on thousands of architectures of
a trained supernet. The table here is the prediction for every architecture whose layers are all
alike: 3 widths x 3 depths x 3 MLP ratios x 3 numbers of heads x 2 (with or without biases), 162 a
scale. Without a limit the largest model is always the best one, so an experiment is one (scale,
parameter limit); the limits are quantiles of the table's own sizes. Each of the three files can
also be read alone.
"""

import dataclasses
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.hwgpt_predictor import (
    BIASES,
    HEAD_SIZE,
    MLP_RATIOS,
    SCALES,
    Architecture,
    Predictor,
    Scale,
    read_predictor,
    uniform_architectures,
)
from autollm_jax.sources.source import Source, Tables

FOLDER = "data_collection/gpt_datasets/predictor_ckpts/metric"
LEVELS = {"s": "low", "m": "mid", "l": "high"}
LIMIT_PERCENTILES = (25, 50, 75, 90)

UNITS = {
    "config.width": "embedding width",
    "config.layers": "transformer blocks",
    "config.mlp_ratio": "hidden width of every block's MLP, in embedding widths",
    "config.heads": "attention heads of every block, of 64 dimensions each",
    "config.bias": "whether the linear layers have biases",
    "perplexity": "predicted by upstream's MLP, computed in f64; lower is better",
    "parameters": "embedding (shared with the output), blocks, biases and norms; see "
    "sources/hwgpt_predictor.py for the formula",
    "flops": "6 x parameters, per token: one supernet was trained for all rows",
    "seconds": "not published",
    "seed": "always 0: a prediction has none",
}


def scale_space(scale: Scale) -> Space:
    """Return the configuration space of a scale.

    >>> scale_space(SCALES[0]).names
    ('width', 'layers', 'mlp_ratio', 'heads', 'bias')
    """
    return Space(
        (
            Dimension("width", "log-ordinal", scale.widths),
            Dimension("layers", "ordinal", scale.layers),
            Dimension("mlp_ratio", "ordinal", MLP_RATIOS),
            Dimension("heads", "ordinal", scale.heads),
            Dimension("bias", "categorical", BIASES),
        )
    )


def untuned_default(scale: Scale, limit: float) -> tuple[Architecture, str]:
    """Return the architecture that a practitioner would take untuned under a limit.

    GPT-2 (Radford et al. 2019) has MLP ratio 4, heads of 64 dimensions and biases in all its
    sizes. The default is the largest such architecture within the limit, with the number of heads
    on offer that is nearest to GPT-2's.

    Args:
      scale: the supernet.
      limit: the most parameters.

    Returns:
      The architecture, and one sentence on where it is from.

    >>> untuned_default(SCALES[0], 1e9)[0]
    Architecture(width=768, layers=12, mlp_ratio=4, heads=12, bias=True)
    """
    within = [a for a in uniform_architectures(scale) if a.parameters <= limit]

    def likeness(a: Architecture) -> tuple:
        heads = min(scale.heads, key=lambda h: (abs(h - a.width / HEAD_SIZE), h))
        return a.mlp_ratio == 4 and a.heads == heads and a.bias, a.parameters

    if not within:
        smallest = min(uniform_architectures(scale), key=lambda a: a.parameters)
        return smallest, "the smallest architecture: none is within the limit"
    best = max(within, key=likeness)
    origin = (
        "the largest within the limit with GPT-2's habits: MLP ratio 4, heads of 64 dimensions "
        "(the nearest number on offer), biases"
    )
    if not likeness(best)[0]:
        origin = "the largest within the limit: none has GPT-2's MLP ratio 4"
    return best, origin


def read(path: Path) -> Tables:
    """Read a predictor's file, or a folder with some of perplexity_s.pt, _m.pt and _l.pt.

    Returns:
      One (meta, rows) pair, of the task `architecture`.

    Raises:
      UserError: no such file, or it is no such predictor.
    """
    hashes: dict[str, str] = {}
    predictors: dict[str, tuple[Path, Predictor]] = {}
    for file in _find_files(Path(path)):
        predictor = read_predictor(file)
        hashes[file.name] = sha256_of(file)
        other = predictors.setdefault(predictor.scale.name, (file, predictor))[0]
        if other != file:
            raise UserError(f"{file}: is of scale {predictor.scale.name}, as {other.name} is")
    experiments, rows = {}, []
    for scale in SCALES:
        if scale.name in predictors:
            described, made = _scale_rows(*predictors[scale.name])
            experiments |= described
            rows += made
    meta = SOURCE.meta(
        "architecture",
        hashes,
        units=UNITS,
        experiments=experiments,
    )
    return [(meta, rows)]


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    # A clone of the repository has them under FOLDER.
    for folder in (path, path / FOLDER):
        found = [folder / Path(name).name for name in SOURCE.files]
        if found := [file for file in found if file.is_file()]:
            return found
    wanted = ", ".join(Path(name).name for name in SOURCE.files)
    raise UserError(f"{path}: no HW-GPT-Bench file; accepted is a folder with some of {wanted}")


def _scale_rows(file: Path, predictor: Predictor) -> tuple[dict, list[dict]]:
    scale = predictor.scale
    architectures = uniform_architectures(scale)
    perplexities = predictor.perplexities(architectures).tolist()
    if min(perplexities) <= 1:
        raise UserError(f"{file}: predicts the perplexity {min(perplexities):.4g}; it is over 1")
    parameters = [architecture.parameters for architecture in architectures]
    shared = [
        {f"config.{name}": value for name, value in dataclasses.asdict(architecture).items()}
        | {"parameters": size, "flops": 6.0 * size, "seconds": None, "seed": 0}
        for architecture, size in zip(architectures, parameters, strict=True)
    ]
    space, experiments, rows = scale_space(scale).to_json(), {}, []
    for percent in LIMIT_PERCENTILES:
        name = f"{scale.name}_p{percent}"
        limit = int(np.percentile(parameters, percent, method="lower"))
        default, origin = untuned_default(scale, limit)
        experiments[name] = {
            "context": {"scale": scale.name, "limit_percentile": percent},
            "fidelity": {
                "level": LEVELS[scale.name],
                "parameters": limit,
                "tokens": 0,
                "flops": 6.0 * limit,
            },
            "space": space,
            "objective": {"metric": "perplexity", "goal": "minimize"},
            "limit": {"quantity": "parameters", "at_most": limit},
            "default": dataclasses.asdict(default),
            "default_origin": origin,
        }
        for row, size, perplexity in zip(shared, parameters, perplexities, strict=True):
            fits = size <= limit
            measured = {"perplexity": perplexity} if fits else {"perplexity": None}
            status = {"status": "ok" if fits else "infeasible"}
            rows.append({"experiment": name} | row | measured | status)
    return experiments, rows


SOURCE = Source(
    name="hwgpt",
    address="https://github.com/automl/HW-GPT-Bench",
    raw_address="https://raw.githubusercontent.com/automl/HW-GPT-Bench",
    commit="1f43ee8322e6295d56c1e2004319123509fd53b8",
    files={
        f"{FOLDER}/perplexity_s.pt": (
            "e843a1afdcaa35707bd0a0659b8d88d9565ee7e2bc1ec30fb55e685f6193407b"
        ),
        f"{FOLDER}/perplexity_m.pt": (
            "b2a05ec30a8b189ff7869bd02f0930687e76583e4ac67804f0c44e5cf3e19178"
        ),
        f"{FOLDER}/perplexity_l.pt": (
            "4eb94732b81d45453109465fe965f46a087c5ac7cc573919bec0ecf666f5af30"
        ),
    },
    licence="Apache-2.0",
    read=read,
)
