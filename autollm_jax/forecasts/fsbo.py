"""Few-shot Bayesian optimisation: a deep-kernel Gaussian process, meta-learned and then adapted.

One surrogate per search space, after Wistuba and Grabocka (ICLR 2021, arXiv 2101.07667):

1. Meta-learning. A small network computes the features of a Gaussian process's kernel. Network and
   process are trained on the training experiments by the negative log marginal likelihood. Each
   step takes rows of a few experiments and scales the scores at random (the paper's task
   augmentation, since the scale of a new experiment is unknown).
2. Few-shot adaptation. On a target, all parameters are trained for a few more steps on the evidence
   before the first trial, and for a few steps after each trial.
3. Choice. The cell with the greatest expected improvement is tried. The first trial is the cell
   with the lowest posterior mean given the evidence; without evidence, the configuration with the
   least mean regret over the training experiments (the paper's warm start, for one trial).

Three additions to the paper, because cheap runs at other fidelities are known before the first
trial: inputs include the log fidelity relative to the target, each experiment has its own constant,
and the kernel has a quadratic trend (see deep_kernel.py).

Settings were chosen on the low experiments alone (docs/experiments.md).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autollm_jax.forecasts import deep_kernel as kernels
from autollm_jax.forecasts.base import Forecast, Seen, draw_seed
from autollm_jax.forecasts.deep_kernel import TARGET, Points
from autollm_jax.forecasts.problem_arrays import (
    INPUTS,
    TrainingTask,
    bucket,
    describe_spaces,
    pad,
    read_target,
    training_spaces,
)
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.progress_bar import progress_bar

ROWS = 256  # evidence rows that the posterior is conditioned on
TRIALS = 16  # latest trials that the posterior is conditioned on
TRAINING_ROWS = 1024  # evidence rows of a training experiment
PARAMETER = "parameter "  # prefix of the names of learned parameters


@dataclass(frozen=True)
class Settings:
    """Sizes of the network, and steps of learning and adaptation (chosen on low experiments)."""

    steps: int = 800
    batch_rows: int = 96
    learning_rate: float = 3e-3
    hidden: int = 32
    features: int = 8
    adapt_rows: int = 128
    adapt_steps: int = 20  # before the first trial
    trial_steps: int = 5  # before each later one
    adapt_rate: float = 1e-3


class FSBO(Forecast):
    """The search space's meta-learned surrogate, adapted to a setting's evidence and trials.

    Each trial adapts the parameters once more, starting from the parameters after the trial before
    it. The result depends on setting, evidence, trials and seed alone.

    Args:
      setting: the question.
      evidence: cheaper experiments, with their outcomes.
      seed: of the choice of the evidence rows to adapt on; in an unknown search space also of the
        first parameters.
      learned: the result of `learn`.
      settings: how to adapt.
    """

    @classmethod
    def learn(
        cls,
        training: Sequence[Experiment],
        seed: int,
        progress: bool,
        share: float = 1.0,
        settings: Settings = Settings(),
    ) -> dict[str, np.ndarray]:
        """Return every search space's parameters [G, ...], layout and warm start."""
        steps = max(round(share * settings.steps), 1)
        return learn(training, seed, progress, replace(settings, steps=steps))

    def __init__(
        self,
        setting: Setting,
        evidence: Sequence[Experiment],
        seed: int = 0,
        *,
        learned: dict,
        settings: Settings = Settings(),
    ):
        super().__init__(setting, evidence, seed)
        self._learned, self._settings = learned, settings
        rng = np.random.default_rng(draw_seed(setting, seed))
        index, self._context, standard = read_target(setting, evidence, learned, ROWS)
        if index is None:  # the search space was not learned: adapt random parameters
            params, self._start_Z = init_params(rng, settings, standard.active), None
        else:
            named = {k: v[index] for k, v in learned.items() if k.startswith(PARAMETER)}
            params = {k.removeprefix(PARAMETER): v for k, v in named.items()}
            self._start_Z = learned["start"][index]
        rows = len(self._context.scores_N)
        self._adapt_N = rng.permutation(rows)[: settings.adapt_rows]
        first = self._adapt(params, (), settings.adapt_steps) if rows else params
        self._adapted: dict[Seen, dict] = {(): first}

    def over(self, setting: Setting) -> "FSBO":
        return type(self)(
            setting, self.evidence, self.seed, learned=self._learned, settings=self._settings
        )

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cells_RZ = self._context.cells_RZ
        cells = len(cells_RZ)
        every = np.arange(len(self._context.scores_N))
        mean_R, variance_R = posterior(
            self._parameters(seen), *self._data(every, seen, ROWS), pad(cells_RZ, bucket(cells))
        )
        deviation_R = np.sqrt(np.asarray(variance_R, float)[:cells])
        return np.asarray(mean_R, float)[:cells], deviation_R, self._scores(seen)

    def start_row(self) -> int:
        """Return the row nearest to the search space's warm start, or else to the default."""
        if self._start_Z is None:
            return super().start_row()
        rows = np.flatnonzero(self.setting.feasible_R)
        return int(rows[nearest(self._start_Z[None], self._context.cells_RZ[rows])[0]])

    def _parameters(self, seen: Seen) -> dict:
        """Return the parameters after adaptation to each trial in turn."""
        if seen not in self._adapted:
            before = self._parameters(seen[:-1])
            self._adapted[seen] = self._adapt(before, seen, self._settings.trial_steps)
        return self._adapted[seen]

    def _adapt(self, params: dict, seen: Seen, steps: int) -> dict:
        data = self._data(self._adapt_N, seen, self._settings.adapt_rows)
        return adapt(params, *data, steps, self._settings.adapt_rate)

    def _scores(self, seen: Seen) -> np.ndarray:
        return self.scale.scores(np.array([loss for _, loss in seen]))

    def _data(self, chosen: np.ndarray, seen: Seen, rows: int) -> tuple:
        """Return padded inputs, scores, experiments and mask of chosen evidence and the trials."""
        c, t = self._context, [row for row, _ in seen][-TRIALS:]
        z_NZ = np.concatenate([c.rows_NZ[chosen], c.cells_RZ[t]])
        y_N = np.concatenate([c.scores_N[chosen], self._scores(seen)[-TRIALS:]])
        e_N = np.concatenate([c.experiments_N[chosen], np.full(len(t), TARGET)])
        arrays = (z_NZ, y_N.astype(np.float32), e_N.astype(np.int32), np.ones(len(y_N), bool))
        return tuple(pad(a, rows + TRIALS) for a in arrays)


def init_params(rng: np.random.Generator, settings: Settings, active: int) -> dict:
    """Draw the weights of a network; `active` is the number of inputs that vary."""
    h, f = settings.hidden, settings.features
    shapes = {"w1": (INPUTS, h), "w2": (h, h), "w3": (h, f)}
    fans = {"w1": active, "w2": h, "w3": h}
    params = {k: rng.normal(size=s) / np.sqrt(fans[k]) for k, s in shapes.items()}
    params |= {"b1": 0.1 * rng.normal(size=h), "b2": np.zeros(h)}
    params = {k: np.asarray(v, np.float32) for k, v in params.items()}
    return params | kernels.start(active, INPUTS)


def points(params: dict, z_NZ: jax.Array, e_N: jax.Array) -> Points:
    """Return the points of the process: scaled inputs, and the network's features of them."""
    z_NZ = z_NZ * jnp.exp(params["scale"])[None, :]
    h_NH = jax.nn.gelu(z_NZ @ params["w1"] + params["b1"][None, :])
    h_NH = h_NH + jax.nn.gelu(h_NH @ params["w2"] + params["b2"][None, :])
    return Points(z_NZ, h_NH @ params["w3"], e_N)


def loss(params: dict, z_NZ, y_N, e_N, mask_N) -> jax.Array:
    """Return the negative log marginal likelihood per row, in nats, without its constant."""
    fit = kernels.condition(params, points(params, z_NZ, e_N), y_N, mask_N)
    return kernels.negative_log_likelihood(fit)


@jax.jit
def posterior(params: dict, z_NZ, y_N, e_N, mask_N, cells_RZ) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of the target's scores at its cells [R]."""
    fit = kernels.condition(params, points(params, z_NZ, e_N), y_N, mask_N)
    cells = points(params, cells_RZ, jnp.full(len(cells_RZ), TARGET))
    return kernels.predict(params, fit, cells)[:2]


@functools.partial(jax.jit, static_argnums=(5, 6))
def adapt(params: dict, z_NZ, y_N, e_N, mask_N, steps: int, rate: float) -> dict:
    """Return the parameters after `steps` steps of Adam on one target's data."""
    optimizer = optax.adam(rate)

    def step(_, state):
        params, moments = state
        gradient = jax.grad(loss)(params, z_NZ, y_N, e_N, mask_N)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    decay = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(decay))


@functools.partial(jax.jit, static_argnums=(3,))
def _step(params: dict, moments, batch: tuple, settings: Settings) -> tuple:
    def total(params):
        # One space after another: with few cores, jaxlib's batched LAPACK calls wait for each
        # other's threads for ever.
        return jax.lax.map(lambda one: loss(*one), (params, *batch)).sum()

    value, gradient = jax.value_and_grad(total)(params)
    updates, moments = _optimizer(settings).update(gradient, moments)
    return optax.apply_updates(params, updates), moments, value


def learn(
    training: Sequence[Experiment], seed: int, progress: bool, settings: Settings
) -> dict[str, np.ndarray]:
    """Meta-learn one surrogate per search space, all in one batch.

    Args:
      training: the training experiments.
      seed: of all draws.
      progress: whether to show a progress bar.
      settings: sizes and steps.

    Returns:
      Parameters and warm starts with a leading axis of search spaces, the description of the search
      spaces, and `losses`, one per step.

    Raises:
      FloatingPointError: a parameter is not finite.
    """
    rng = np.random.default_rng(seed)
    spaces = training_spaces(training, TRAINING_ROWS)
    drawn = [init_params(rng, settings, space.standard.active) for space in spaces]
    params = {k: jnp.stack([d[k] for d in drawn]) for k in drawn[0]}
    moments = _optimizer(settings).init(params)
    losses = []
    bar = progress_bar(range(settings.steps), "learn fsbo", unit="step", shown=progress)
    for _ in bar:
        batches = [_batch(space.tasks, settings.batch_rows, rng) for space in spaces]
        batch = tuple(np.stack(arrays) for arrays in zip(*batches, strict=True))
        params, moments, value = _step(params, moments, batch, settings)
        losses.append(value)
        if len(losses) % 50 == 0:
            bar.set_postfix(loss=f"{float(value) / len(spaces):.3f}")
    if not all(np.isfinite(v).all() for v in params.values()):
        raise FloatingPointError("fsbo: the parameters are not finite")
    learned = {f"{PARAMETER}{k}": np.asarray(v) for k, v in params.items()}
    learned["losses"] = np.array(losses) / len(spaces)
    return (
        learned
        | describe_spaces(spaces)
        | {"start": np.stack([_warm_start(space.tasks) for space in spaces])}
    )


def _batch(tasks: Sequence[TrainingTask], rows: int, rng: np.random.Generator) -> tuple:
    """Draw a target, rows of the target and of some of its evidence, and a scale of the scores."""
    task = tasks[int(rng.integers(len(tasks)))]
    context = task.context
    others = np.arange(len(task.cheaper_X))
    some = rng.permutation(others)[: rng.integers(0, min(len(others), 4) + 1)]
    own = rng.permutation(len(task.scores_R))[: rows // (1 + len(some))]
    pool = np.flatnonzero(np.isin(context.experiments_N, some))
    rest = rng.permutation(pool)[: rows - len(own)]
    z_NZ = np.concatenate([context.cells_RZ[own], context.rows_NZ[rest]])
    y_N = np.concatenate([task.scores_R[own], context.scores_N[rest]])
    e_N = np.concatenate([np.full(len(own), TARGET), context.experiments_N[rest]])
    low, high = rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0)
    y_N = ((y_N - low) / (high - low)).astype(np.float32)
    arrays = (z_NZ, y_N, e_N.astype(np.int32), np.ones(len(y_N), bool))
    return tuple(pad(a, rows) for a in arrays)


def _warm_start(tasks: Sequence[TrainingTask]) -> np.ndarray:
    """Return the inputs [Z] of the good cell with the least mean regret over the experiments."""
    good = [t.context.cells_RZ[np.argsort(t.scores_R, kind="stable")[:8]] for t in tasks]
    pool_CZ = np.concatenate(good)
    regrets_CX = np.stack([t.scores_R[nearest(pool_CZ, t.context.cells_RZ)] for t in tasks], axis=1)
    return pool_CZ[np.argmin(regrets_CX.mean(1))]


def nearest(points_CZ: np.ndarray, cells_RZ: np.ndarray) -> np.ndarray:
    """Return the index [C] of the cell nearest to each point."""
    return ((points_CZ[:, None] - cells_RZ[None]) ** 2).sum(-1).argmin(1)
