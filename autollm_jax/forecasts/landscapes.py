"""Smoothed landscapes of cheap experiments, and a law for their optima.

1. `landscape(experiment)` smooths one cheap table. The centre is the mean of the good cells.
2. `fit_law(...)` fits the centres as powers of parameters and tokens, by Bayesian regression.

`shifted.py` moves the landscapes along the law to a target.

Letters: R rows (cells), D dimensions, X points, E experiments, S shifts.
"""

import dataclasses
import functools
import math
import weakref
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import Space

# Prior exponents (mean, deviation) of parameters, then of tokens, in the law of an optimum. The
# best learning rate falls with size and the best batch size grows with compute: DeepSeek LLM (arXiv
# 2401.02954) has lr ~ C^-0.125 and batch ~ C^0.327; muP (arXiv 2203.03466) has lr ~ 1 / width.
LAW_PRIORS = {
    "learning_rate": ((-0.45, 0.2), (0.25, 0.2)),
    "batch_size": ((0.05, 0.5), (0.25, 0.2)),
}
UNKNOWN_PRIOR = ((0.0, 0.3), (0.0, 0.3))
CENTRE_ERROR = 0.35  # octaves: deviation of one table's centre from the law
LAW_ERROR = 0.15  # octaves: error of the law at a fidelity that was not fitted
SCALE_PRIOR = ((-0.2, 0.3), (-0.3, 0.3))  # prior exponents of median - optimum
SCALE_ERROR = 0.15

CAP = 2.5  # regrets are cut here before smoothing: a higher regret says only "bad"
GOOD = 0.5  # cells with a lower regret count towards the centre
SMOOTHING_OCTAVES = 1.2
SMOOTHING_NOISE = 0.06
MOST_ROWS = 400

MOST_SHIFTED_DIMENSIONS = 3


@functools.lru_cache(maxsize=4096)
def is_shiftable(space: Space) -> bool:
    """Return whether a landscape over the space can be moved: few dimensions, all numeric."""
    numeric = all(dimension.is_numeric for dimension in space.dimensions)
    return numeric and len(space.dimensions) <= MOST_SHIFTED_DIMENSIONS


def coordinate(dimension, value: float) -> float:
    """Return a value's coordinate: log2 on a log scale, else four times the unit coordinate."""
    if dimension.is_log:
        return math.log2(value)
    return 4.0 * float(dimension.to_unit(value)[0])


def value_at(dimension, coordinate: float) -> float:
    """Return the value at a coordinate: the inverse of `coordinate`."""
    if dimension.is_log:
        return 2.0**coordinate
    low, high = dimension.extent
    return low + (high - low) * coordinate / 4.0


def coordinates_RD(setting: Setting) -> np.ndarray:
    """Return the measured cells' coordinates [R, D] (see `coordinate`)."""
    columns = []
    for dimension in setting.space.dimensions:
        values = [config[dimension.name] for config in setting.configurations]
        places = {value: coordinate(dimension, value) for value in set(values)}
        columns.append([places[value] for value in values])
    return np.array(columns).T


def octaves(a: Setting, b: Setting) -> np.ndarray:
    """Return log2(a / b) of parameters and of tokens [2]; 0 where either number is missing."""
    return np.nan_to_num(a.fidelity.log - b.fidelity.log) / math.log(2)


def _quadratic(x_RD: np.ndarray) -> np.ndarray:
    dimensions = x_RD.shape[1]
    pairs = [(i, j) for i in range(dimensions) for j in range(i, dimensions)]
    columns = [np.ones(len(x_RD)), *x_RD.T, *(x_RD[:, i] * x_RD[:, j] for i, j in pairs)]
    return np.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """One table, smoothed: a capped quadratic plus a Gaussian-process residual around the centre.

    Attributes:
      centre_D: weighted mean of the good cells, in coordinates.
      scale: the table's spread unit of regret, in the objective's units.
      rows_RD: the cells' coordinates relative to the centre.
      quadratic: coefficients of the quadratic mean (see `_quadratic`).
      weights_R: weight of each cell's kernel in the residual.
      length: length-scale of the kernel, in coordinates.
    """

    centre_D: np.ndarray
    scale: float
    rows_RD: np.ndarray
    quadratic: np.ndarray
    weights_R: np.ndarray
    length: float

    def __call__(self, x_XD: np.ndarray) -> np.ndarray:
        """Return the smoothed regrets [X] at coordinates [X, D] relative to the centre."""
        kernel_XR = np.ones((len(x_XD), len(self.rows_RD)))
        for x_X, row_R in zip(x_XD.T, self.rows_RD.T, strict=True):
            kernel_XR *= _kernel(x_X, row_R, self.length)
        return self._finish(kernel_XR @ self.weights_R, list(x_XD.T))

    def _finish(self, residual_X: np.ndarray, columns_D: Sequence[np.ndarray]) -> np.ndarray:
        mean = np.clip(_polynomial(self.quadratic, columns_D), 0.0, CAP)
        return np.clip(mean + residual_X, -0.3, CAP)

    def on_grid(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the smoothed regrets on the product grid of one coordinate array per dimension.

        The kernel is a product over dimensions, so the grid costs one small matrix per dimension.
        """
        kernels = [
            _kernel(axis, row_R, self.length)
            for axis, row_R in zip(axes, self.rows_RD.T, strict=True)
        ]
        kernels[0] = kernels[0] * self.weights_R
        if len(axes) == 2:
            residual = kernels[0] @ kernels[1].T
        else:
            letters = "abc"[: len(axes)]
            inputs = ",".join(letter + "r" for letter in letters)
            residual = np.einsum(f"{inputs}->{letters}", *kernels, optimize=True)
        return self._finish(residual, np.meshgrid(*axes, indexing="ij", sparse=True))

    def shifted(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the smoothed regrets of X cells for every combination of S shifts [S, ..., X].

        Each cell is evaluated by itself. `on_grid` would need the product grid of all the cells'
        coordinates, which is too large on continuous dimensions.

        Args:
          axes: for each dimension, the cells' coordinates after each shift [S, X].
        """
        dimensions = len(axes)
        kernels = [
            _kernel(axis_SX.ravel(), row_R, self.length).reshape(*axis_SX.shape, -1)
            for axis_SX, row_R in zip(axes, self.rows_RD.T, strict=True)
        ]
        shape = [len(axis_SX) for axis_SX in axes[:-1]]
        residual = np.zeros((*shape, *axes[-1].shape))
        for place in np.ndindex(*shape):
            product_XR = self.weights_R
            for kernel_SXR, shift in zip(kernels, place, strict=False):
                product_XR = product_XR * kernel_SXR[shift]
            residual[place] = (kernels[-1] * product_XR).sum(axis=-1)
        columns = [
            axis_SX.reshape([-1 if d == own else 1 for d in range(dimensions)] + [axis_SX.shape[1]])
            for own, axis_SX in enumerate(axes)
        ]
        return self._finish(residual, columns)


def _polynomial(coefficients: np.ndarray, columns_D: Sequence[np.ndarray]) -> np.ndarray:
    """Evaluate the polynomial with the coefficients of `_quadratic`, on columns that broadcast."""
    dimensions = len(columns_D)
    value = coefficients[0]
    for d in range(dimensions):
        value = value + coefficients[1 + d] * columns_D[d]
    number = 1 + dimensions
    for i in range(dimensions):
        for j in range(i, dimensions):
            value = value + (coefficients[number] * columns_D[i]) * columns_D[j]
            number += 1
    return value


def _kernel(x_X: np.ndarray, row_R: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-0.5 * ((x_X[:, None] - row_R[None, :]) / length) ** 2)


_LANDSCAPES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def landscape(experiment: Experiment) -> Landscape:
    """Smooth one experiment; the result is cached as long as the experiment exists."""
    if experiment not in _LANDSCAPES:
        _LANDSCAPES[experiment] = _fit_landscape(experiment)
    return _LANDSCAPES[experiment]


def _fit_landscape(experiment: Experiment) -> Landscape:
    x_RD = coordinates_RD(experiment)
    regret_R = experiment.uncut_spread_regrets_R
    if len(x_RD) > MOST_ROWS:
        # The best rows, but of each crowd one before all the others.
        best_first = experiment.cells.uncrowded_first(np.argsort(regret_R, kind="stable"))
        kept = np.sort(best_first[:MOST_ROWS])
        x_RD, regret_R = x_RD[kept], regret_R[kept]
    weight_R = np.clip(1.0 - regret_R / GOOD, 0.0, None) ** 4
    centre_D = weight_R @ x_RD / weight_R.sum()
    x_RD = x_RD - centre_D
    regret_R = np.minimum(regret_R, CAP)
    scale = experiment.spread_unit
    near_R = regret_R < 1.2
    features = _quadratic(x_RD)
    gram = features[near_R].T @ features[near_R] + 0.0025 * np.eye(features.shape[1])
    quadratic = np.linalg.solve(gram, features[near_R].T @ regret_R[near_R])
    mean_R = np.clip(features @ quadratic, 0.0, CAP)
    length = SMOOTHING_OCTAVES
    kernel_RR = np.ones((len(x_RD), len(x_RD)))
    for row_R in x_RD.T:
        kernel_RR *= _kernel(row_R, row_R, length)
    kernel_RR[np.diag_indices(len(x_RD))] += SMOOTHING_NOISE
    weights_R = np.linalg.solve(kernel_RR, regret_R - mean_R)
    return Landscape(centre_D, scale, x_RD, quadratic, weights_R, length)


@dataclasses.dataclass(frozen=True)
class Law:
    """The law's prediction of a landscape's centre and scale at one fidelity.

    Attributes:
      centre_D: coordinates of the centre.
      deviation_D: standard error of the centre, in coordinates.
      slopes_D2: exponents of parameters and of tokens, per dimension.
      scale: one unit of regret, in the objective's units.
    """

    centre_D: np.ndarray
    deviation_D: np.ndarray
    slopes_D2: np.ndarray
    scale: float


def _regress(x_E2, y_E, prior, error):
    """Fit y = a + b x, with a flat prior on a; return the coefficients and their covariance."""
    (mean_p, sd_p), (mean_t, sd_t) = prior
    precision = np.diag([1e-6, sd_p**-2, sd_t**-2])
    x_E3 = np.concatenate([np.ones((len(x_E2), 1)), x_E2], axis=1)
    posterior = precision + x_E3.T @ x_E3 / error**2
    right = precision @ np.array([0.0, mean_p, mean_t]) + x_E3.T @ y_E / error**2
    return np.linalg.solve(posterior, right), np.linalg.inv(posterior)


def fit_law(evidence: Sequence[Experiment], setting: Setting) -> Law:
    """Fit the law to the centres of the evidence and evaluate the law at a setting's fidelity.

    Args:
      evidence: at least one experiment, each over a space of the setting's dimensions (`usable`).
      setting: the question; its space must be shiftable.
    """
    lands = [landscape(e) for e in evidence]
    x_E2 = np.stack([octaves(e, setting) for e in evidence])
    centre, deviation, slopes = [], [], []
    for d, name in enumerate(setting.space.names):
        y_E = np.array([land.centre_D[d] for land in lands])
        prior = LAW_PRIORS.get(name, UNKNOWN_PRIOR)
        fit, covariance = _regress(x_E2, y_E, prior, CENTRE_ERROR)
        centre.append(fit[0])
        deviation.append(math.sqrt(covariance[0, 0] + LAW_ERROR**2))
        slopes.append(fit[1:])
    y_E = np.log2([land.scale for land in lands])
    scale, _ = _regress(x_E2, y_E, SCALE_PRIOR, SCALE_ERROR)
    return Law(np.array(centre), np.array(deviation), np.array(slopes), float(2.0 ** scale[0]))


def usable(evidence: Sequence[Experiment], setting: Setting) -> tuple[Experiment, ...]:
    """Return the relevant evidence over the setting's own dimensions, most relevant first."""
    wanted = _scales(setting.space)
    return relevant_evidence([e for e in evidence if _scales(e.space) == wanted], setting)


def _scales(space: Space) -> list[tuple]:
    """Return each dimension's name and scale; choices and bounds of the dimensions are ignored."""
    return [(d.name, d.is_log if d.is_numeric else d.kind) for d in space.dimensions]
