"""Smoothed cheap tables of mixtures, architectures, and spaces of many or mixed dimensions.

`landscapes.py` handles the other spaces: those with few dimensions, all numeric. Here,
`surfaces(evidence, setting)` joins experiments that differ only in their limit into one table, and
smooths each table by a Gaussian process whose length-scale, noise and variance maximise the
likelihood. `surface.py` makes a setting's forecast from the surfaces.

Letters: R cells, N fitted rows, X and Y points, D' coordinates.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.matern import matern
from autollm_jax.forecasts.relevance import by_relevance
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.outcomes import LEAST_UNIT, middling
from autollm_jax.gym.runs import runs_key
from autollm_jax.gym.settings import Setting

# Chosen by predicting held-out rows of low tables (RegMix 1M, ADMIRE 0.5B).
LENGTHS = (0.8, 1.6, 3.2)  # of the kernel, where the mean coordinate has deviation 1
NOISES = (3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)  # variance that the smooth landscape leaves unexplained
LINEAR = 0.5  # variance of the linear trend
RELEVANCE = 0.75  # exponent from a coordinate's share of the variance to its squared scale
# Share of the unexplained variance that belongs to the configuration, not to the run: the same
# configuration shows the same deviation at another fidelity.
PERSISTENT = 0.5
CAP = 2.5  # regrets are cut here: a higher regret says only "bad"
MOST_ROWS = 300
SAME = 1e-3  # coordinates nearer than a third of this are the same configuration


@functools.lru_cache(maxsize=128)
def _projected(cells: Cells, onto: Cells, default: tuple) -> np.ndarray:
    """Return cells' coordinates on another space's scale [R, D'], square roots for mixture weights.

    The first percent of a component changes the loss more than the last one; square roots spread
    small weights out.
    """
    known = onto.space.from_unit(np.array(default)) if default else None
    x_RD = coordinates.project(cells.configurations, cells.space, onto.space, known)
    spans = coordinates.columns(onto.space)
    for dimension in onto.space.dimensions:
        if dimension.kind == "simplex":
            x_RD[:, spans[dimension.name]] = np.sqrt(x_RD[:, spans[dimension.name]])
    x_RD.setflags(write=False)
    return x_RD


def place(experiment: Setting, onto: Setting) -> np.ndarray:
    """Return an experiment's cells in the coordinates of another experiment's surface [R, D']."""
    size_R1 = coordinates.relative_sizes(experiment)
    if onto.parameters_R is None:
        size_R1 = size_R1[:, :0]
    elif not size_R1.shape[1]:
        size_R1 = np.zeros((len(size_R1), 1))
    # The default is part of the cache key only where it is read, so that experiments with the same
    # cells and different defaults share one projection.
    lacks = coordinates.lacks_dimensions(experiment.space, onto.space)
    default = tuple(onto.space.to_unit(onto.default).tolist()) if lacks else ()
    return np.concatenate([_projected(experiment.cells, onto.cells, default), size_R1], axis=1)


@dataclasses.dataclass(frozen=True)
class Surface:
    """A table smoothed by a Gaussian process: a Matern-5/2 kernel, a linear trend and noise.

    Attributes:
      members: the experiments of the table; coordinates are those of the first member's space.
      centre_D: mean of the rows' coordinates.
      scale_D: factor per coordinate; a coordinate that explains more variance has a larger factor.
      x_ND: the rows' coordinates, centred and scaled.
      inverse_NN: inverse of the rows' covariance matrix, in units of `variance`.
      weights_N: weight of each row's kernel in the mean.
      level: mean of the losses (lower is better, in the objective's units).
      deviation: standard deviation of the losses.
      variance: variance of the process, in squared deviations.
      length: length-scale of the kernel.
      noise: variance that the smooth landscape leaves unexplained, in units of `variance`.
    """

    members: tuple[Experiment, ...]
    centre_D: np.ndarray
    scale_D: np.ndarray
    x_ND: np.ndarray
    inverse_NN: np.ndarray
    weights_N: np.ndarray
    level: float
    deviation: float
    variance: float
    length: float
    noise: float

    def scaled(self, experiment: Setting) -> np.ndarray:
        """Return an experiment's cells in this surface's scaled coordinates [R, D']."""
        return (place(experiment, self.members[0]) - self.centre_D) * self.scale_D

    def smooth(self, a_XD: np.ndarray, b_YD: np.ndarray) -> np.ndarray:
        """Return the covariances [X, Y] of the smooth landscape, in units of `variance`."""
        return _smooth(a_XD, b_YD, self.length)

    def correlation(self, x_XD: np.ndarray, y_YD: np.ndarray | None = None) -> np.ndarray:
        """Return the correlations [X, Y] of a process with the surface's length-scale, no trend."""
        return _matern(x_XD, x_XD if y_YD is None else y_YD, self.length)

    def known(self, x_XD: np.ndarray) -> np.ndarray:
        """Return the covariances [X, N] with the rows, configurations' own parts included."""
        return self._prior(x_XD, self.x_ND)

    def mean(self, x_XD: np.ndarray) -> np.ndarray:
        """Return the expected losses [X] at scaled coordinates, in the objective's units."""
        return self.level + self.deviation * (self.known(x_XD) @ self.weights_N)

    def covariance(self, x_XD: np.ndarray) -> np.ndarray:
        """Return the posterior covariances [X, X], in squared deviations."""
        known_XN = self.known(x_XD)
        prior_XX = self._prior(x_XD, x_XD)
        return self.variance * (prior_XX - known_XN @ self.inverse_NN @ known_XN.T)

    def _prior(self, a_XD: np.ndarray, b_YD: np.ndarray) -> np.ndarray:
        """Return the prior covariances [X, Y]: smooth landscape and each configuration's own part.

        Two configurations with the same coordinates share their own part. So do two configurations
        that differ only in a dimension that the table lacks. Between same and not the share falls
        like a Gaussian: "nearer than" is no covariance where a crowd of configurations is a chain.
        """
        same_XY = _same(a_XD, b_YD, self.scale_D)
        return self.smooth(a_XD, b_YD) + PERSISTENT * self.noise * same_XY


def _same(a_XD: np.ndarray, b_YD: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    """Return how far configurations are the same [X, Y]: 1 at equal coordinates, 0 from SAME on."""
    # Coordinates that do not vary have scale 0; there all configurations are the same.
    width = max(SAME / 3 * float(scale_D.max()), 1e-150)
    return np.exp(-0.5 * _squared(a_XD, b_YD) / width**2)


def _squared(a_XD: np.ndarray, b_YD: np.ndarray) -> np.ndarray:
    squared = (a_XD**2).sum(1)[:, None] + (b_YD**2).sum(1) - 2 * a_XD @ b_YD.T
    return np.maximum(squared, 0.0)


def _smooth(a_XD: np.ndarray, b_YD: np.ndarray, length: float) -> np.ndarray:
    trend = LINEAR * a_XD @ b_YD.T / max(a_XD.shape[1], 1)
    return _matern(a_XD, b_YD, length) + trend


def _matern(a_XD: np.ndarray, b_YD: np.ndarray, length: float) -> np.ndarray:
    return matern(_squared(a_XD, b_YD) / (max(a_XD.shape[1], 1) * length**2))


def surfaces(evidence: Sequence[Experiment], setting: Setting) -> tuple[Surface, ...]:
    """Return a surface for each table of the evidence, the most relevant table first."""
    groups: list[list[Experiment]] = []
    for experiment in by_relevance(evidence, setting):
        group = next((g for g in groups if _same_table(g[0], experiment)), None)
        if group is None:
            groups.append([experiment])
        else:
            group.append(experiment)
    return tuple(_fit(tuple(sorted(group, key=lambda e: e.id))) for group in groups)


def _same_table(a: Experiment, b: Experiment) -> bool:
    """Return whether two experiments are one table: the same runs under different limits.

    The outcomes must agree too, because each experiment may hold the mean over different seeds.
    """
    if a is b:
        return True
    if a.limit is None or a.cells is not b.cells or runs_key(a) != runs_key(b):
        return False
    both_R = np.isfinite(a.outcomes.losses_R) & np.isfinite(b.outcomes.losses_R)
    return a.objective == b.objective and np.array_equal(
        a.outcomes.values_R[both_R], b.outcomes.values_R[both_R]
    )


@functools.lru_cache(maxsize=256)
def _fit(group: tuple[Experiment, ...]) -> Surface:
    """Fit one surface to the union of some experiments' rows."""
    lead = group[0]
    rows_N, loss_N = _fitted_rows(group)
    x_ND = place(lead, lead)[rows_N]
    level, deviation = float(loss_N.mean()), max(float(loss_N.std()), 1e-12)
    y_N = (loss_N - level) / deviation
    centre_D, spread_D = x_ND.mean(0), x_ND.std(0)
    spread_D = np.where(spread_D > 1e-9, spread_D, np.inf)
    x_ND = (x_ND - centre_D) / spread_D
    share_D = _shares(x_ND, y_N) ** RELEVANCE
    scale_D = np.sqrt(share_D / max(share_D.mean(), 1e-12))
    x_ND, scale_D = x_ND * scale_D, scale_D / spread_D
    fits = []
    for length in LENGTHS:
        values, vectors = np.linalg.eigh(_smooth(x_ND, x_ND, length))
        turned_N = vectors.T @ y_N
        for noise in NOISES:
            spectrum_N = np.maximum(values, 0.0) + noise
            variance = float(np.mean(turned_N**2 / spectrum_N))
            likelihood = -0.5 * (len(y_N) * np.log(variance + 1e-12) + np.log(spectrum_N).sum())
            fits.append((likelihood, length, noise, variance))
    _, length, noise, variance = max(fits, key=lambda fit: fit[0])
    # The likelihood above takes every row's own part for its own; rows of a crowd share it.
    own_NN = PERSISTENT * _same(x_ND, x_ND, scale_D) + (1 - PERSISTENT) * np.eye(len(y_N))
    inverse_NN = np.linalg.inv(_smooth(x_ND, x_ND, length) + noise * own_NN)
    return Surface(
        group, centre_D, scale_D, x_ND, inverse_NN, inverse_NN @ y_N,
        level, deviation, variance, length, noise,
    )  # fmt: skip


def _fitted_rows(group: tuple[Experiment, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows [N] that a surface is fitted to, and their losses [N], cut at CAP."""
    loss_R = np.min([e.outcomes.losses_R for e in group], axis=0)
    # A cell over the limit was not run and is left out. A diverged cell gets the loss at CAP.
    kept = np.flatnonzero(np.any([e.feasible_R for e in group], axis=0))
    best = loss_R[kept].min()
    weights_R = group[0].cells.weights_R
    unit = max(middling(loss_R[kept], weights_R[kept]) - best, LEAST_UNIT)
    loss_K = np.minimum(loss_R[kept], best + CAP * unit)
    chosen = _thinned(loss_K, kept, group[0].cells)
    return kept[chosen], loss_K[chosen]


def left_out_means(experiment: Experiment) -> np.ndarray:
    """Predict each cell of an experiment from all the other cells [R].

    A row's outcome is left out of the fitted process in closed form (Rasmussen and Williams,
    Gaussian Processes for Machine Learning, 2006, eq. 5.12). Length-scale, noise and variance are
    fitted to all rows.

    Returns:
      [R] expected losses, lower is better; inf for a cell over the limit.
    """
    surface = _fit((experiment,))
    mean_R = surface.mean(surface.scaled(experiment))
    rows_N, loss_N = _fitted_rows((experiment,))
    own_N = surface.weights_N / np.diag(surface.inverse_NN)
    mean_R[rows_N] = loss_N - surface.deviation * own_N
    return np.where(experiment.feasible_R, mean_R, np.inf)


def _thinned(loss_K: np.ndarray, rows_K: np.ndarray, cells: Cells) -> np.ndarray:
    """Choose at most MOST_ROWS of K rows of a table: the best half, the rest evenly by loss.

    The best half has about one row of each crowd, as long as there are crowds left.

    Returns:
      Indices into the K rows, ascending.
    """
    order = np.argsort(loss_K, kind="stable")
    if len(order) <= MOST_ROWS:
        return np.sort(order)
    wanted = cells.uncrowded_first(rows_K[order])
    best = np.searchsorted(rows_K, wanted[: MOST_ROWS // 2])
    rest = order[~np.isin(order, best)]
    places = np.linspace(0, len(rest) - 1, MOST_ROWS - len(best)).astype(int)
    return np.sort(np.concatenate([best, rest[places]]))


def _shares(x_ND: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Return the share of the variance that each standardised coordinate explains [D'].

    A ridge regression on the coordinates and their squares gives the shares. No share is 0, so that
    no coordinate is ignored.
    """
    squares_ND = x_ND**2 - (x_ND**2).mean(0)
    features = np.concatenate([x_ND, squares_ND], axis=1)
    rows, dimensions = x_ND.shape
    gram = features.T @ features + 0.05 * rows * np.eye(2 * dimensions)
    fitted = np.linalg.solve(gram, features.T @ y_N)
    parts = x_ND * fitted[:dimensions] + squares_ND * fitted[dimensions:]
    return np.maximum((parts**2).mean(0) - 1 / rows, 0.2 / rows)
