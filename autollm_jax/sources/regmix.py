"""RegMix (Liu et al. 2024, arXiv 2407.01492): data mixtures over 17 domains of the Pile.

Upstream has pairs of files, `{train,test}_mixture_SIZE.csv` with the weights and
`{train,test}_pile_loss_SIZE.csv` with the validation losses, joined by `index`. An experiment is
one (model size, objective): the mean over the 13 validation domains, or one domain's loss. Some of
the pairs, or any part of their rows, are read as well.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.sources.csv_file import finite_number, read_csv
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.mixtures import Model, Run, experiments_of, read_mixture
from autollm_jax.sources.source import Source, Tables

FILE_NAME = re.compile(r"(train|test)_(mixture|pile_loss)_([0-9]+[a-z])\.csv", re.IGNORECASE)
MIXTURE_COLUMN = "train_the_pile_{}"
LOSS_COLUMN = "metric/the_pile_{}_val_loss"

# Gao et al. 2020 (arXiv 2101.00027), table 1: the Pile's weight of each domain, in per cent.
PILE_WEIGHTS = {
    "arxiv": 8.96,
    "freelaw": 6.12,
    "nih_exporter": 0.30,
    "pubmed_central": 14.40,
    "wikipedia_en": 1.53,
    "dm_mathematics": 1.24,
    "github": 7.59,
    "philpapers": 0.38,
    "stackexchange": 5.13,
    "enron_emails": 0.14,
    "gutenberg_pg_19": 2.17,
    "pile_cc": 18.11,
    "ubuntu_irc": 0.88,
    "europarl": 0.73,
    "hackernews": 0.62,
    "pubmed_abstracts": 3.07,
    "uspto_backgrounds": 3.65,
}
DOMAINS = tuple(PILE_WEIGHTS)
UNTRAINED = ("nih_exporter", "philpapers", "enron_emails", "europarl")  # no validation loss
LOSS_DOMAINS = tuple(domain for domain in DOMAINS if domain not in UNTRAINED)

# size -> level, non-embedding parameters (of upstream's model_training/lit_gpt/config.py: layers x
# (4 width^2 + 3 width x mlp_width)) and training tokens (the paper, section 4).
SIZES = {
    "1M": ("low", 2 * (4 * 256**2 + 3 * 256 * 512), int(1e9)),
    "60M": ("mid", 10 * (4 * 768**2 + 3 * 768 * 1536), int(1e9)),
    "1B": ("high", 22 * (4 * 2048**2 + 3 * 2048 * 5632), int(25e9)),
}

UNITS = {
    "config.mixture": "fraction of the training tokens; upstream's weights, normalised",
    "loss": "nats per token, mean of the 13 validation domains; lower is better",
    "loss.DOMAIN": "nats per token on one validation domain; lower is better",
    "flops": "6 x non-embedding parameters x tokens, per run",
    "seconds": "not published",
    "seed": "counts the runs of one mixture; not a random seed",
    "run": "upstream's file and index",
}


def read(path: Path) -> Tables:
    """Read the upstream files, from a folder with some or all of the pairs or from one of a pair.

    Returns:
      One (meta, rows) pair, of the task `data_mixture`.

    Raises:
      UserError: no such file, one of a pair is missing, or the content is not as published.
    """
    runs_of: dict[str, list[Run]] = defaultdict(list)
    hashes, left_out = {}, []
    for (part, size), (mixture_file, loss_file) in _find_pairs(Path(path)).items():
        hashes |= {file.name: sha256_of(file) for file in (mixture_file, loss_file)}
        mixtures, losses = _read_mixtures(mixture_file), _read_losses(loss_file)
        shared = [index for index in mixtures if index in losses]
        if not shared:
            raise UserError(f"{loss_file}: shares no `index` with {mixture_file.name}")
        alone = len(mixtures) + len(losses) - 2 * len(shared)
        left_out += [f"{alone} rows of {part} {size} in one file only"] if alone else []
        runs_of[size] += [Run(mixtures[i], losses[i], f"{part}/{i}") for i in shared]
    models = []
    for size in (size for size in SIZES if size in runs_of):
        level, parameters, tokens = SIZES[size]
        flops = 6.0 * parameters * tokens
        fidelity = {"level": level, "parameters": parameters, "tokens": tokens, "flops": flops}
        context = {"model": size, "non_embedding_parameters": parameters, "tokens": tokens}
        models.append(Model(size, fidelity, context, runs_of[size]))
    objectives = {"mean": "loss"} | {domain: f"loss.{domain}" for domain in LOSS_DOMAINS}
    origin = "the Pile's own weights of these domains (arXiv 2101.00027, table 1), renormalised"
    experiments, rows, _ = experiments_of(models, objectives, "minimize", PILE_WEIGHTS, origin)
    meta = SOURCE.meta(
        "data_mixture",
        hashes,
        units=UNITS,
        left_out=left_out,
        experiments=experiments,
    )
    return [(meta, rows)]


def _find_pairs(path: Path) -> dict[tuple[str, str], tuple[Path, Path]]:
    """Return the (mixture, loss) files by (train or test, size)."""
    folder, only = (path, None) if path.is_dir() else (path.parent, path.name)
    if only is not None and not (path.is_file() and FILE_NAME.fullmatch(only)):
        raise _no_file(path)
    # A clone of the repository has them under data/.
    for place in (folder, folder / "data"):
        found: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if name := FILE_NAME.fullmatch(file.name):
                part, kind, size = (group.lower() for group in name.groups())
                if size.upper() not in SIZES:
                    raise UserError(f"{file}: size {size}; accepted are {', '.join(SIZES)}")
                found[part, size.upper()][kind] = file
        if only is not None:
            found = {key: pair for key, pair in found.items() if path in pair.values()}
        if found:
            return {key: _whole(key, pair) for key, pair in found.items()}
    raise _no_file(path)


def _whole(key: tuple[str, str], pair: Mapping[str, Path]) -> tuple[Path, Path]:
    for kind, other in (("mixture", "pile_loss"), ("pile_loss", "mixture")):
        if kind not in pair:
            raise UserError(
                f"{pair[other]}: {key[0]}_{kind}_{key[1]}.csv is not beside it; the two are "
                "joined by `index`"
            )
    return pair["mixture"], pair["pile_loss"]


def _no_file(path: Path) -> UserError:
    return UserError(
        f"{path}: no RegMix file; accepted is a folder with test_mixture_60m.csv and "
        "test_pile_loss_60m.csv, or other such pairs"
    )


def _read_mixtures(path: Path) -> dict[int, dict]:
    columns = {domain: MIXTURE_COLUMN.format(domain) for domain in DOMAINS}
    _, rows = read_csv(path, ("index", *columns.values()), "RegMix mixture", SOURCE.pinned)
    return _by_index(rows, lambda row, where: read_mixture(row, columns, where))


def _read_losses(path: Path) -> dict[int, dict]:
    columns = {domain: LOSS_COLUMN.format(domain) for domain in LOSS_DOMAINS}
    _, rows = read_csv(path, ("index", *columns.values()), "RegMix loss", SOURCE.pinned)

    def parse(row, where):
        losses = {d: finite_number(row[c], c, where, least=0.0) for d, c in columns.items()}
        mean = {"loss": float(np.mean(list(losses.values())))}
        return mean | {f"loss.{domain}": loss for domain, loss in losses.items()}

    return _by_index(rows, parse)


def _by_index(rows, parse) -> dict[int, dict]:
    parsed = {}
    for where, row in rows:
        index = finite_number(row["index"], "index", where)
        if index != int(index) or int(index) in parsed:
            problem = "comes twice" if index == int(index) else "is no whole number"
            raise UserError(f"{where}: `index` {row['index']} {problem}; accepted are 1, 2, 3, ...")
        parsed[int(index)] = parse(row, where)
    return parsed


SOURCE = Source(
    name="regmix",
    address="https://github.com/sail-sg/regmix",
    raw_address="https://raw.githubusercontent.com/sail-sg/regmix",
    commit="b004d3a3f39846dcec6b3740da22bcd1ba95a5d0",
    files={
        "data/train_mixture_1m.csv": (
            "04a32ef4ab594376bf90e11404c033668f887c351d6a03ad3744824c7296a2d8"
        ),
        "data/train_pile_loss_1m.csv": (
            "49a959aa07ce5c20831d5abe3a7896ff0cd90a398bd407c8913fd5588be0465a"
        ),
        "data/test_mixture_1m.csv": (
            "197267b7d6f15367e2f46c881e564c35b0d34e51b1754bb09d07e650cf8e1ce8"
        ),
        "data/test_pile_loss_1m.csv": (
            "e027b1674f60140a65a87b5e4a59ab5f09dc33e8fd02c080682678074b160f53"
        ),
        "data/test_mixture_60m.csv": (
            "197267b7d6f15367e2f46c881e564c35b0d34e51b1754bb09d07e650cf8e1ce8"
        ),
        "data/test_pile_loss_60m.csv": (
            "8fe69d59ab7dd4fae4736459f4265ec93c7ed1ad1eca407346052560edc72b5b"
        ),
        "data/test_mixture_1B.csv": (
            "dd38052949c0a5f84165bdcb3ae3a331c7f07efd9bb83848bd579dfc4ce75a2c"
        ),
        "data/test_pile_loss_1B.csv": (
            "b2451e2b7fa15400688edc39e4d32f21ccbe0fb356e07d62a0e9ccddf247114f"
        ),
    },
    licence="MIT",
    read=read,
)
