"""HW-GPT-Bench (Sukthanker et al. 2024, arXiv 2405.10299): architectures under a parameter limit.

Upstream has one perplexity predictor per scale (s, m, l), fitted on thousands of architectures of
a trained supernet. The table here is what they predict for all architectures with like layers and
a seeded sample of others. Unconstrained, the largest model wins, so an experiment is one (scale,
parameter limit), the limits being quantiles of the table's own sizes. Any of the three files is
read alone as well.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym.groups import UNUSED, Group
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
    sample_architectures,
    uniform_architectures,
)
from autollm_jax.sources.source import Source, Tables

FOLDER = "data_collection/gpt_datasets/predictor_ckpts/metric"
LEVELS = {"s": "low", "m": "mid", "l": "high"}
SAMPLED = 2_000
SEED = 2405_10299
LIMIT_PERCENTILES = (25, 50, 75, 90)

UNITS = {
    "config.width": "embedding width",
    "config.layers": "transformer blocks",
    "config.mlp_ratio.N": "hidden width of block N's MLP, in widths; 0 where there is no block N",
    "config.heads.N": "attention heads of block N, of 64 dimensions each; 0 as above",
    "config.bias": "whether the linear layers have biases",
    "perplexity": "predicted by upstream's MLP, computed in f64; lower is better",
    "parameters": "embedding (shared with the output), blocks, biases and norms; see "
    "sources/hwgpt_predictor.py for the formula",
    "flops": "6 x parameters, per token: one supernet was trained for all rows",
    "seconds": "not published",
    "seed": "always 0: a prediction has none",
    "sampled": "whether the row is of the seeded sample, not of the grid of like layers",
}


def scale_space(scale: Scale) -> Space:
    """Return the configuration space of a scale, per-layer dimensions as groups."""
    most, fewest = scale.layers[-1], scale.layers[0]

    def per_layer(stem: str, choices: Sequence[int]) -> list[Dimension]:
        return [
            Dimension(f"{stem}.{n}", "ordinal", (*((UNUSED,) if n > fewest else ()), *choices))
            for n in range(1, most + 1)
        ]

    ratios, heads = per_layer("mlp_ratio", MLP_RATIOS), per_layer("heads", scale.heads)
    return Space(
        (
            Dimension("width", "log-ordinal", scale.widths),
            Dimension("layers", "ordinal", scale.layers),
            *ratios,
            *heads,
            Dimension("bias", "categorical", BIASES),
        ),
        {
            stem: Group(stem, tuple(d.name for d in members), "layers")
            for stem, members in (("mlp_ratio", ratios), ("heads", heads))
        },
    )


def configuration(scale: Scale, architecture: Architecture) -> dict:
    """Return an architecture as a configuration of `scale_space`."""
    unused = [UNUSED] * (scale.layers[-1] - architecture.layers)
    config = {"width": architecture.width, "layers": architecture.layers}
    for stem, values in (("mlp_ratio", architecture.mlp_ratios), ("heads", architecture.heads)):
        config |= {f"{stem}.{n}": v for n, v in enumerate([*values, *unused], start=1)}
    return config | {"bias": architecture.bias}


def untuned_default(scale: Scale, limit: float) -> tuple[Architecture, str]:
    """Return what a practitioner would take untuned under a limit, and where it is from.

    GPT-2 (Radford et al. 2019) has MLP ratio 4, heads of 64 dimensions and biases in all its
    sizes; so the largest such architecture that fits, with the nearest number of heads on offer.
    """
    uniform = [a for a in uniform_architectures(scale) if a.parameters <= limit]

    def likeness(a: Architecture) -> tuple:
        heads = min(scale.heads, key=lambda h: (abs(h - a.width / HEAD_SIZE), h))
        return a.mlp_ratios[0] == 4 and a.heads[0] == heads and a.bias, a.parameters

    if not uniform:
        smallest = min(uniform_architectures(scale), key=lambda a: a.parameters)
        return smallest, "the smallest architecture with like layers: none is within the limit"
    best = max(uniform, key=likeness)
    origin = (
        "the largest within the limit with GPT-2's habits: all layers alike, MLP ratio 4, heads of "
        "64 dimensions (the nearest number on offer), biases"
    )
    if not likeness(best)[0]:
        origin = "the largest with like layers within the limit: none has GPT-2's MLP ratio 4"
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
        sample={"architectures": SAMPLED, "seed": SEED},
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
    uniform = uniform_architectures(scale)
    architectures = [*uniform, *sample_architectures(scale, SAMPLED, SEED)]
    perplexities = predictor.perplexities(architectures).tolist()
    if min(perplexities) <= 1:
        raise UserError(f"{file}: predicts the perplexity {min(perplexities):.4g}; it is over 1")
    parameters = [architecture.parameters for architecture in architectures]
    shared = [
        {f"config.{name}": value for name, value in configuration(scale, architecture).items()}
        | {"parameters": size, "flops": 6.0 * size, "seconds": None, "seed": 0}
        | {"sampled": place >= len(uniform)}
        for place, (architecture, size) in enumerate(zip(architectures, parameters, strict=True))
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
            "default": configuration(scale, default),
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
