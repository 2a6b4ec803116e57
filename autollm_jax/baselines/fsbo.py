"""Few-shot Bayesian optimisation: a deep-kernel Gaussian process, meta-learned and then adapted.

One surrogate per search space, after Wistuba and Grabocka (ICLR 2021, arXiv 2101.07667):

1. Meta-learning. A Gaussian process whose kernel reads a small network's features is trained on the
   training experiments: each step takes rows of a few of them, scales their scores at random (the
   paper's task augmentation, since a new experiment's scale is unknown) and descends the negative
   log marginal likelihood.
2. Few-shot adaptation. On a target all parameters, the network's too, are tuned on for a few steps
   on its evidence, and again with every trial.
3. The greatest expected improvement is tried. The first trial is the lowest posterior mean given
   the evidence; without evidence it is the configuration whose mean regret over the training
   experiments is least (the paper's warm start, for one trial).

Beyond the paper, since here cheap runs of other fidelities are known when the target is met: inputs
carry log fidelity relative to the target's, and an experiment has a constant of its own.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from autollm_jax.baselines.base import Candidates, Problem, draw_seed
from autollm_jax.baselines.context import (
    INPUTS,
    WIDTH,
    bucket,
    layout,
    pad,
    read_problem,
    search_space,
)
from autollm_jax.baselines.evidence import TargetScale
from autollm_jax.baselines.gaussian_process import improvement
from autollm_jax.gym.experiments import Experiment

ROWS = 256  # of the evidence that the posterior is conditioned on
TRIALS = 16  # latest trials that it is conditioned on
TARGET = -1  # index of the target among the experiments
NOISE_FLOOR = 1e-4
SPACES = "spaces"


@dataclass(frozen=True)
class Settings:
    """How FSBO learns and adapts (see the module's docstring for how they were chosen)."""

    steps: int = 800
    batch_rows: int = 96
    learning_rate: float = 3e-3
    hidden: int = 64
    features: int = 16
    adapt_rows: int = 128
    adapt_steps: int = 20  # before the first trial
    trial_steps: int = 5  # before each later one
    adapt_rate: float = 1e-3


class FSBO:
    """Adapt the search space's surrogate; try the lowest mean, then the most improvement."""

    @classmethod
    def learn(
        cls,
        training: Sequence[Experiment],
        seed: int,
        progress: bool,
        settings: Settings = Settings(),
    ) -> dict[str, np.ndarray]:
        """Return every search space's parameters [G, ...], layout and warm start."""
        return learn(training, seed, progress, settings)

    def __init__(
        self, problem: Problem, seed: int, learned: dict, settings: Settings = Settings()
    ):
        self._settings = settings
        self._candidates = Candidates(problem.experiment)
        self._scale = TargetScale(problem)
        self._rows: list[int] = []
        self._trials: list = []
        rng = np.random.default_rng(draw_seed(problem, seed))
        spaces = [str(name) for name in learned[SPACES]]
        space = search_space(problem.experiment)
        known, self._start_Z = [], None
        if space in spaces:
            index = spaces.index(space)
            self._params = {k: learned[k][index] for k in parameter_names()}
            known = [str(name) for name in learned[f"layout {index}"]]
            self._start_Z = learned["start"][index]
            standard = Standard(learned["centre"][index], learned["unit"][index])
        self._context = read_problem(problem, known, ROWS)
        if self._start_Z is None:  # Nothing was learned of this space: the evidence has to do.
            standard = standardise(np.concatenate([self._context.rows_NZ, self._context.cells_RZ]))
            self._params = init_params(rng, settings, standard.active)
        self._context = dataclasses.replace(
            self._context,
            rows_NZ=standard(self._context.rows_NZ),
            cells_RZ=standard(self._context.cells_RZ),
        )
        rows = len(self._context.scores_N)
        self._adapt_N = rng.permutation(rows)[: settings.adapt_rows]
        if rows:
            self._adapt(settings.adapt_steps)

    def ask(self) -> dict:
        rows = self._candidates.untried
        if not len(self._context.scores_N) and not self._trials:
            return self._candidates.take(self._first())
        if self._trials:
            self._adapt(self._settings.trial_steps)
        mean_R, variance_R = self.posterior()
        if not self._trials:
            return self._candidates.take(int(rows[np.argmin(mean_R[rows])]))
        best = self._scale.scores(self._trials).min()
        gain_R = improvement(mean_R[rows], np.sqrt(variance_R[rows]), best)
        return self._candidates.take(int(rows[np.argmax(gain_R)]))

    def tell(self, trial) -> None:
        row = self._candidates.mark(trial)
        if row is not None:
            self._rows.append(row)
            self._trials.append(trial)

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of the score of every cell [R], given evidence and trials."""
        cells_RZ = self._context.cells_RZ
        cells = len(cells_RZ)
        every = np.arange(len(self._context.scores_N))
        mean_R, variance_R = posterior(
            self._params, *self._data(every, ROWS), pad(cells_RZ, bucket(cells))
        )
        return np.asarray(mean_R, float)[:cells], np.asarray(variance_R, float)[:cells]

    def _first(self) -> int:
        if self._start_Z is None:
            return self._candidates.row_of(self._candidates.experiment.default)
        rows = self._candidates.untried
        distance_R = ((self._context.cells_RZ[rows] - self._start_Z) ** 2).sum(1)
        return int(rows[np.argmin(distance_R)])

    def _adapt(self, steps: int) -> None:
        data = self._data(self._adapt_N, self._settings.adapt_rows)
        self._params = adapt(self._params, *data, steps, self._settings.adapt_rate)

    def _data(self, chosen: np.ndarray, rows: int) -> tuple:
        """Return inputs, scores, experiments and mask of chosen evidence and the trials, padded."""
        c, t = self._context, self._rows[-TRIALS:]
        z_NZ = np.concatenate([c.rows_NZ[chosen], c.cells_RZ[t]])
        y_N = np.concatenate([c.scores_N[chosen], self._scale.scores(self._trials)[-TRIALS:]])
        e_N = np.concatenate([c.experiments_N[chosen], np.full(len(t), TARGET)])
        arrays = (z_NZ, y_N.astype(np.float32), e_N.astype(np.int32), np.ones(len(y_N), bool))
        return tuple(pad(a, rows + TRIALS) for a in arrays)


def init_params(
    rng: np.random.Generator, settings: Settings, active: int
) -> dict[str, np.ndarray]:
    """Draw the weights of a network of which `active` inputs ever vary."""
    h, f = settings.hidden, settings.features
    shapes = {"w1": (INPUTS, h), "w2": (h, h), "w3": (h, f)}
    fans = {"w1": active, "w2": h, "w3": h}
    params = {k: rng.normal(size=s) / np.sqrt(fans[k]) for k, s in shapes.items()}
    params |= {"b1": 0.1 * rng.normal(size=h), "b2": np.zeros(h)}
    params |= {"mean": 0.6, "variance": -1.0, "offset": -3.0, "noise": -4.0, "trend": -1.0, "skip": 0.0, "scale": np.full(INPUTS, -0.25 * np.log(active))}
    return {k: np.asarray(v, np.float32) for k, v in params.items()}


@dataclass(frozen=True)
class Standard:
    """Brings inputs to mean 0 and deviation 1 over a search space's training experiments."""

    centre_Z: np.ndarray
    unit_Z: np.ndarray

    def __call__(self, z_NZ: np.ndarray) -> np.ndarray:
        return ((z_NZ - self.centre_Z) * self.unit_Z).astype(np.float32)

    @property
    def active(self) -> int:
        return max(int((self.unit_Z != 1).sum()), 1)


def standardise(z_NZ: np.ndarray) -> Standard:
    deviation_Z = z_NZ.std(0)
    varies_Z = deviation_Z > 1e-6
    still_Z = np.where(np.arange(INPUTS) > WIDTH, 0.0, 1.0)
    return Standard(
        np.where(varies_Z, z_NZ.mean(0), 0.0),
        np.where(varies_Z, 1 / np.maximum(deviation_Z, 1e-6), still_Z),
    )


def parameter_names() -> list[str]:
    return list(init_params(np.random.default_rng(0), Settings(hidden=1, features=1), 1))


def features(params: dict, z_NZ: jax.Array) -> jax.Array:
    """Return what the kernel reads [N, F]."""
    z_NZ = z_NZ * jnp.exp(params["scale"])[None, :]
    h_NH = jax.nn.gelu(z_NZ @ params["w1"] + params["b1"][None, :])
    h_NH = h_NH + jax.nn.gelu(h_NH @ params["w2"] + params["b2"][None, :])
    f_NF = h_NH @ params["w3"]
    if SKIP:
        f_NF = jnp.concatenate([jnp.exp(params["skip"]) * z_NZ, f_NF], axis=1)
    return f_NF, z_NZ


SKIP = TREND = True


def kernel(params: dict, a_NF, a_N, b_MF, b_M) -> jax.Array:
    """Return prior covariances [N, M] of the scores at features of experiments a_N and b_M."""
    (a_NF, a_NZ), (b_MF, b_MZ) = a_NF, b_MF
    squared_NM = (a_NF**2).sum(1)[:, None] + (b_MF**2).sum(1)[None, :] - 2 * a_NF @ b_MF.T
    root_NM = jnp.sqrt(5 * jnp.maximum(squared_NM, 1e-10))
    matern_NM = (1 + root_NM + root_NM**2 / 3) * jnp.exp(-root_NM)
    same_NM = (a_N[:, None] == b_M[None, :]).astype(matern_NM.dtype)
    k = jnp.exp(params["variance"]) * matern_NM + jnp.exp(params["offset"]) * same_NM
    if TREND:
        k = k + jnp.exp(params["trend"]) * (1 + a_NZ @ b_MZ.T) ** 2
    return k


def factor(params: dict, z_NZ, y_N, e_N, mask_N) -> tuple:
    """Return features, the covariance's Cholesky factor and whitened scores; a masked row is 0."""
    f_NF = features(params, z_NZ)
    both_NN = mask_N[:, None] & mask_N[None, :]
    k_NN = jnp.where(both_NN, kernel(params, f_NF, e_N, f_NF, e_N), 0.0)
    noise = jnp.exp(params["noise"]) + NOISE_FLOOR
    factor_NN = jnp.linalg.cholesky(k_NN + jnp.diag(jnp.where(mask_N, noise, 1.0)))
    away_N = jnp.where(mask_N, y_N - params["mean"], 0.0)
    return f_NF, factor_NN, jax.scipy.linalg.solve_triangular(factor_NN, away_N, lower=True)


def loss(params: dict, z_NZ, y_N, e_N, mask_N) -> jax.Array:
    """Return the negative log marginal likelihood per row, in nats less a constant."""
    _, factor_NN, white_N = factor(params, z_NZ, y_N, e_N, mask_N)
    total = 0.5 * (white_N**2).sum() + jnp.log(jnp.diagonal(factor_NN)).sum()
    return total / mask_N.sum()


@jax.jit
def posterior(params: dict, z_NZ, y_N, e_N, mask_N, cells_RZ) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of the target's scores at its cells [R]."""
    f_NF, factor_NN, white_N = factor(params, z_NZ, y_N, e_N, mask_N)
    f_RF = features(params, cells_RZ)
    k_NR = kernel(params, f_NF, e_N, f_RF, jnp.full(len(cells_RZ), TARGET))
    k_NR = jnp.where(mask_N[:, None], k_NR, 0.0)
    half_NR = jax.scipy.linalg.solve_triangular(factor_NN, k_NR, lower=True)
    variance = jnp.exp(params["variance"]) + jnp.exp(params["offset"])
    if TREND:
        variance = variance + jnp.exp(params["trend"]) * (1 + (f_RF[1]**2).sum(1)) ** 2
    return params["mean"] + half_NR.T @ white_N, jnp.maximum(
        variance - (half_NR**2).sum(0), 1e-8
    )


@functools.partial(jax.jit, static_argnums=(5, 6))
def adapt(params: dict, z_NZ, y_N, e_N, mask_N, steps: int, rate: float) -> dict:
    """Descend the loss on one target's data by a few steps of Adam."""
    optimizer = optax.adam(rate)

    def step(_, state):
        params, moments = state
        gradient = jax.grad(loss)(params, z_NZ, y_N, e_N, mask_N)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]


def learn(
    training: Sequence[Experiment], seed: int, progress: bool, settings: Settings
) -> dict[str, np.ndarray]:
    """Meta-learn the surrogates of all search spaces side by side."""
    rng = np.random.default_rng(seed)
    spaces: dict[str, list[Experiment]] = {}
    for experiment in training:
        spaces.setdefault(search_space(experiment), []).append(experiment)
    layouts = [layout(group) for group in spaces.values()]
    tasks_G = [
        [_task(e, group, names) for e in group]
        for group, names in zip(spaces.values(), layouts, strict=True)
    ]
    standards = [standardise(np.concatenate([np.concatenate([t.cells_RZ, t.rows_NZ]) for t in tasks])) for tasks in tasks_G]
    tasks_G = [[dataclasses.replace(t, cells_RZ=standard(t.cells_RZ), rows_NZ=standard(t.rows_NZ)) for t in tasks] for tasks, standard in zip(tasks_G, standards)]
    drawn = [init_params(rng, settings, standard.active) for standard in standards]
    params = {k: jnp.stack([d[k] for d in drawn]) for k in drawn[0]}
    decay = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(decay))
    moments = optimizer.init(params)

    @jax.jit
    def step(params, moments, batch):
        def total(params):
            return jax.vmap(loss)(params, *batch).sum()

        value, gradient = jax.value_and_grad(total)(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, value

    bar = tqdm(range(settings.steps), "learn fsbo", unit="step", disable=not progress)
    for index in bar:
        batches = [_batch(tasks, settings.batch_rows, rng) for tasks in tasks_G]
        batch = tuple(np.stack(arrays) for arrays in zip(*batches, strict=True))
        params, moments, value = step(params, moments, batch)
        if index % 50 == 0:
            bar.set_postfix(loss=f"{float(value) / len(tasks_G):.3f}")
    if not np.isfinite(float(value)):
        raise FloatingPointError("fsbo: the loss is not finite")
    learned = {k: np.asarray(v) for k, v in params.items()}
    learned[SPACES] = np.array(list(spaces))
    learned |= {f"layout {i}": np.array(names) for i, names in enumerate(layouts)}
    learned["centre"] = np.stack([t.centre_Z for t in standards])
    learned["unit"] = np.stack([t.unit_Z for t in standards])
    learned["start"] = np.stack([_warm_start(tasks) for tasks in tasks_G])
    return learned


@dataclass(frozen=True)
class _Task:
    """A training experiment as a target: its cells and scores, and those of its evidence."""

    cells_RZ: np.ndarray
    scores_R: np.ndarray
    rows_NZ: np.ndarray
    scores_N: np.ndarray
    experiments_N: np.ndarray


def _task(target: Experiment, group: Sequence[Experiment], names: list[str]) -> _Task:
    others = tuple(e for e in group if e.id != target.id and _same(e, target))
    c = read_problem(Problem(target, others, 1), names, 1024)
    feasible_R = np.asarray(target.feasible_R)
    scores_R = np.asarray(target.regrets_R, np.float32)[feasible_R]
    return _Task(c.cells_RZ[feasible_R], scores_R, c.rows_NZ, c.scores_N, c.experiments_N)


def _same(a: Experiment, b: Experiment) -> bool:
    return a.objective_metric == b.objective_metric


def _batch(tasks: list[_Task], rows: int, rng: np.random.Generator) -> tuple:
    """Draw a target, rows of it and of some of its evidence, and a scale of their scores."""
    task = tasks[rng.integers(len(tasks))]
    others = np.unique(task.experiments_N)
    some = rng.permutation(others)[: rng.integers(0, min(len(others), 4) + 1)]
    own = rng.permutation(len(task.scores_R))[: rows // (1 + len(some))]
    pool = np.flatnonzero(np.isin(task.experiments_N, some))
    rest = rng.permutation(pool)[: rows - len(own)]
    z_NZ = np.concatenate([task.cells_RZ[own], task.rows_NZ[rest]])
    y_N = np.concatenate([task.scores_R[own], task.scores_N[rest]])
    e_N = np.concatenate([np.full(len(own), TARGET), task.experiments_N[rest]])
    low, high = rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0)
    y_N = ((y_N - low) / (high - low)).astype(np.float32)
    arrays = (z_NZ, y_N, e_N.astype(np.int32), np.ones(len(y_N), bool))
    return tuple(pad(a, rows) for a in arrays)


def _warm_start(tasks: list[_Task]) -> np.ndarray:
    """Return the inputs [Z], of the experiments' good cells, with the least mean regret."""
    pool_CZ = np.concatenate([t.cells_RZ[np.argsort(t.scores_R)[:8]] for t in tasks])
    regrets_CX = np.stack([t.scores_R[_nearest(pool_CZ, t.cells_RZ)] for t in tasks], axis=1)
    return pool_CZ[np.argmin(regrets_CX.mean(1))]


def _nearest(points_CZ: np.ndarray, cells_RZ: np.ndarray) -> np.ndarray:
    return ((points_CZ[:, None] - cells_RZ[None]) ** 2).sum(-1).argmin(1)
