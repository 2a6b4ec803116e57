"""A prior over families of experiments, first part: made-up laws and bowls to learn from.

A policy that saw only a few real tables would learn their optima by heart. Families drawn from a
broad prior make it learn to read evidence instead, as prior-data fitted networks do (arXiv
2112.10510). Every family is marked `synthetic prior` and is never scored in a report.
`synthetic_kinds.py` has mixtures, architectures and many dimensions, and draws the kind.
"""

import dataclasses
import math

import numpy as np

from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space

PROVENANCE = "synthetic prior"
SOURCE = "synthetic"


@dataclasses.dataclass(frozen=True)
class Kind:
    """The range of one made-up dimension.

    Attributes:
      optimum: range of log2 of the best value at the family's middle fidelity.
      exponents: (mean, deviation) of the best value's exponents in parameters and tokens.
      whole: whether values are integers.
    """

    optimum: tuple[float, float]
    exponents: tuple[tuple[float, float], tuple[float, float]]
    whole: bool


# Wider than the law's own priors (`LAW_PRIORS`), so that some families surprise the law.
DIMENSIONS = {
    "learning_rate": Kind((-14, -4), ((-0.45, 0.3), (0.2, 0.25)), False),
    "batch_size": Kind((3, 11), ((0.05, 0.3), (0.35, 0.25)), True),
    "weight_decay": Kind((-8, 0), ((0.0, 0.2), (0.0, 0.2)), False),
    "warmup_steps": Kind((4, 11), ((0.0, 0.2), (0.2, 0.3)), True),
    "kl_coefficient": Kind((-12, -3), ((0.0, 0.3), (0.0, 0.3)), False),
    "group_size": Kind((2, 7), ((0.0, 0.2), (0.1, 0.2)), True),
    "temperature": Kind((-2, 1), ((0.0, 0.1), (0.0, 0.1)), False),
}
USUAL = ("learning_rate", "batch_size")
RATIOS = (math.sqrt(2), math.sqrt(2), 2.0, 2.0, 10 ** (1 / 3), 10 ** (1 / 4), 1.5)


def sample_bowls(random: np.random.Generator, seed: int) -> list[Experiment]:
    """Draw one family: experiments of several fidelities over one law and one kind of bowl."""
    names = _names(random)
    law = [_Law.draw(random, DIMENSIONS[name]) for name in names]
    bowl = _Bowl.draw(random, len(names))
    parameters, tokens = 10 ** random.uniform(5.0, 9.5), 10 ** random.uniform(0.3, 2.7)
    sizes = parameters * np.cumprod([1.0, *random.uniform(1.15, 3.0, random.integers(1, 4))])
    middle = np.log2([sizes.mean(), sizes.mean() * tokens])
    unit = 10 ** random.uniform(-2.3, -0.3)
    floor = random.uniform(0.3, 3.5)
    family = _Family(seed, names, law, bowl, middle, unit, floor, random.random() < 0.1)
    experiments = []
    for size in sizes:
        for ratio in np.sort(tokens * 2 ** random.uniform(-2.5, 2.5, random.integers(1, 5))):
            experiments.append(_experiment(random, family, len(experiments), size, ratio))
    return experiments


def _names(random: np.random.Generator) -> tuple[str, ...]:
    draw = random.random()
    if draw < 0.75:
        return USUAL
    others = [name for name in DIMENSIONS if name != "learning_rate"]
    count = 1 if draw < 0.96 else 2
    return ("learning_rate", *(str(n) for n in random.choice(others, count, replace=False)))


@dataclasses.dataclass(frozen=True)
class _Law:
    """log2 of a dimension's best value is start + slopes . log2(fidelity), give or take error."""

    start: float
    slopes: np.ndarray
    error: float
    ratio: float
    whole: bool

    @classmethod
    def draw(cls, random: np.random.Generator, kind: Kind) -> "_Law":
        slopes = np.array([random.normal(*exponent) for exponent in kind.exponents])
        return cls(
            random.uniform(*kind.optimum),
            slopes,
            random.uniform(0.05, 0.35),
            float(random.choice(RATIOS)),
            kind.whole,
        )


@dataclasses.dataclass(frozen=True)
class _Bowl:
    """Regret around an optimum: a soft bowl, steeper on one side, tilted, with a cliff."""

    steepness: np.ndarray  # [D, 2] below and above the optimum, per octave squared
    tilt: float  # the first dimension's optimum rises with the second's value
    turn: float  # and stops rising here
    cliff: float  # octaves above the optimum of the first dimension where runs diverge
    noise: float

    @classmethod
    def draw(cls, random: np.random.Generator, dimensions: int) -> "_Bowl":
        steepness = 2 ** random.uniform(-4.5, -1.0, dimensions)
        sides = np.stack([steepness, steepness * 2 ** random.uniform(-0.5, 1.5, dimensions)], 1)
        for d in range(1, dimensions):
            if random.random() < 0.5:
                sides[d] = sides[d, ::-1]
        return cls(
            sides,
            random.uniform(-0.1, 0.8),
            random.uniform(0.0, 2.0),
            random.uniform(1.2, 4.5),
            10 ** random.uniform(-2.7, -1.4),
        )

    def regret(self, x_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the regrets [R], and whether each cell diverges [R], at octaves off [R, D]."""
        x_RD = x_RD.copy()
        if x_RD.shape[1] > 1:
            second = x_RD[:, 1]
            moved = np.minimum(second, self.turn) + 0.3 * np.maximum(second - self.turn, 0)
            x_RD[:, 0] -= self.tilt * moved
        steep_RD = np.where(x_RD < 0, self.steepness[:, 0], self.steepness[:, 1])
        # Quadratic near the optimum, straight far from it, as in the tables.
        bowl_RD = np.sqrt(1.0 + 2.0 * steep_RD * x_RD**2) - 1.0
        regret_R = 2.0 * bowl_RD.sum(axis=1)
        over_R = np.maximum(x_RD[:, 0] - 0.6 * self.cliff, 0.0)
        return regret_R + over_R**2, x_RD[:, 0] > self.cliff


@dataclasses.dataclass(frozen=True)
class _Family:
    """The constants that the experiments of one family share.

    Attributes:
      seed: of the family.
      names, law: of its dimensions.
      bowl: the landscape around the optimum.
      middle: log2 of the middle fidelity's parameters and tokens [2].
      unit: one unit of regret there, in the objective's units.
      floor: the loss at the optimum.
      maximize: whether a high outcome is good.
    """

    seed: int
    names: tuple[str, ...]
    law: list[_Law]
    bowl: _Bowl
    middle: np.ndarray
    unit: float
    floor: float
    maximize: bool


def _grid(random, law: _Law, best: float, count: int) -> tuple:
    """Lay choices around a best value, off-centre, and drop a few of them."""
    step = math.log2(law.ratio)
    offset = random.uniform(0.2, 0.8) * (count - 1) * step
    values = 2.0 ** (best - offset + step * np.arange(count))
    if law.whole:
        # Round to multiples of a power of two, as people do.
        grain = 2.0 ** np.maximum(np.floor(np.log2(np.maximum(values, 1))) - 2, 0)
        values = np.unique(np.maximum(np.round(values / grain) * grain, 1))
        return tuple(int(v) for v in values)
    if random.random() < 0.5:
        values = np.array([float(f"{v:.1e}") for v in values])
    return tuple(float(v) for v in np.unique(values))


def _experiment(
    random: np.random.Generator, family: _Family, number: int, size: float, ratio: float
) -> Experiment:
    """Draw one experiment of a family: `size` parameters, `ratio` tokens a parameter."""
    names, law, bowl = family.names, family.law, family.bowl
    here = np.log2([size, size * ratio]) - family.middle
    unit = family.unit * 2 ** (-0.25 * here.sum() + random.normal(0, 0.1))
    best_D = np.array([e.start + e.slopes @ here + random.normal(0, e.error) for e in law])
    counts = [random.integers(6, 13), random.integers(4, 10)]
    if len(names) == 3:
        counts = [random.integers(5, 8), random.integers(3, 5), random.integers(3, 5)]
    choices = [_grid(random, e, b, int(n)) for e, b, n in zip(law, best_D, counts, strict=True)]
    space = Space(
        tuple(Dimension(n, "log-ordinal", c) for n, c in zip(names, choices, strict=True))
    )
    grid = np.stack(np.meshgrid(*choices, indexing="ij"), axis=-1).reshape(-1, len(names))
    regret_R, diverged_R = bowl.regret(np.log2(grid) - best_D)
    noise = random.normal(0, bowl.noise, len(grid)) * (1 + 2 * np.minimum(regret_R, 2))
    kept_R = random.random(len(grid)) > random.choice([0.0, 0.02, 0.08])
    # At least half of the cells work, so that the median is one of theirs.
    if diverged_R.mean() > 0.4:
        diverged_R[:] = False
    kept_R[int(np.argmin(np.where(diverged_R, np.inf, regret_R)))] = True
    outcome_R = family.floor + unit * (regret_R + noise)
    rows = np.flatnonzero(kept_R)
    whole = [e.whole for e in law]
    configurations = [
        {n: int(v) if w else float(v) for n, v, w in zip(names, grid[r], whole, strict=True)}
        for r in rows
    ]
    middle = {d.name: d.choices[len(d.choices) // 2] for d in space.dimensions}
    tokens = size * ratio
    return make_experiment(
        source=SOURCE,
        task="pretraining",
        name=f"{family.seed}-{number}",
        space=space,
        fidelity=Fidelity("low", float(size), float(tokens), float(6 * size * tokens)),
        configurations=configurations,
        outcomes=((-1 if family.maximize else 1) * outcome_R[rows]).tolist(),
        default=middle,
        default_origin="the middle of each dimension's choices",
        facts={"provenance": PROVENANCE},
        status=np.where(diverged_R[rows], "diverged", "ok").tolist(),
        objective_metric="score" if family.maximize else "loss",
        minimize=not family.maximize,
    )
