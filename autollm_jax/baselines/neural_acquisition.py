"""A neural acquisition process: a transformer decides, meta-trained by reinforcement learning.

After NAP (Maraval et al., NeurIPS 2023, arXiv 2305.15930) and MetaBO (Volpp et al., ICLR 2020,
arXiv 1904.02642). One network for all search spaces, each with an embedding of its own:

1. Surrogate. A Gaussian process with learned scales says what the evidence, and then the trials,
   make of every cell: its mean and deviation are part of the state, as in MetaBO.
2. History. Cells attend to the evidence's rows, once, and to the trials, at every step; attention
   is biased towards what is near (a learned length per head).
3. Heads. One gives the acquisition value of each cell, one predicts its score.

Meta-training plays episodes on the training experiments, several at once on each problem:
REINFORCE on the sum of the best regret so far over the trials left, the other episodes of the
problem as its baseline, plus the auxiliary loss of NAP, the negative log likelihood of the cells'
scores. Problems are varied: evidence thinned, noisy, tilted, or drifting with fidelity. Where an
experiment has none, its evidence is a made-up cheaper run: itself, tilted and noisy.

At play the untried cell with the greatest acquisition value is taken.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from autollm_jax.baselines import kernels
from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.baselines.context import (
    FIDELITIES,
    INPUTS,
    WIDTH,
    TrainingSpace,
    TrainingTask,
    bucket,
    describe_spaces,
    pad,
    read_target,
    training_spaces,
)
from autollm_jax.baselines.evidence import TargetScale
from autollm_jax.baselines.kernels import TARGET, Points
from autollm_jax.gym.experiments import Experiment

TRIALS = 16  # that play remembers
PARAMETER = "parameter "  # what names of learned parameters start with
TRIED = -1e9  # the acquisition value of a cell that cannot be taken
STATE = 6  # numbers that describe a cell at a step
OWN = ("embed", "scale")  # parameters that a search space has of its own; index 0 is any other's


@dataclass(frozen=True)
class Settings:
    """How the network is built and trained (see the module's docstring on the choice)."""

    steps: int = 90
    problems: int = 12  # a step
    rollouts: int = 4  # a problem
    trials: int = 5
    rows: int = 96  # of evidence
    cells: int = 96  # of the target, in training
    width: int = 32
    heads: int = 4
    layers: int = 1  # of attention to the evidence
    learning_rate: float = 3e-3
    auxiliary: float = 0.3
    entropy: float = 0.003
    unnamed: float = 0.1  # share of problems played as if their search space were unknown


class State(NamedTuple):
    """An episode so far; C cells, T trials at most.

    Attributes:
      mean_C, variance_C: the surrogate's view.
      half_TC: whitened covariances of the trials with the cells.
      tokens_TD, z_TZ, done_T: the trials as tokens, where they lie, and which have been made.
      untried_C: cells left to try.
      best: the least score so far; inf before the first trial.
      count: trials made.
    """

    mean_C: jax.Array
    variance_C: jax.Array
    half_TC: jax.Array
    tokens_TD: jax.Array
    z_TZ: jax.Array
    done_T: jax.Array
    untried_C: jax.Array
    best: jax.Array
    count: jax.Array


class View(NamedTuple):
    """What the evidence says of the cells: points, whitened covariances [N, C], tokens [C, D]."""

    cells: Points
    half_NC: jax.Array
    tokens_CD: jax.Array


class Inputs(NamedTuple):
    """A problem, padded: evidence inputs, scores, experiments and mask; cells and their mask."""

    z_NZ: jax.Array
    y_N: jax.Array
    e_N: jax.Array
    mask_N: jax.Array
    z_CZ: jax.Array
    mask_C: jax.Array


def init_params(rng: np.random.Generator, s: Settings, active_S: Sequence[int]) -> dict:
    """Draw the parameters; the policy starts as the surrogate's mean with a little noise."""
    d = s.width

    def draw(*shape, scale=1.0):
        return scale * rng.normal(size=shape) / np.sqrt(shape[-2])

    attention = {f"{k}{i}": draw(d, d) for i in range(s.layers + 1) for k in "qkvo"}
    attention |= {f"up{i}": draw(d, 2 * d) for i in range(s.layers + 1)}
    attention |= {f"down{i}": draw(2 * d, d, scale=0.3) for i in range(s.layers + 1)}
    attention |= {f"near{i}": np.linspace(-2.0, 2.0, s.heads) for i in range(s.layers + 1)}
    started = [kernels.start(active, INPUTS) for active in active_S]
    params = attention | {k: v for k, v in started[0].items() if k != "scale"}
    params |= {
        "embed": np.stack([rng.normal(size=(INPUTS, d)) / np.sqrt(a) for a in active_S]),
        "scale": np.stack([p["scale"] for p in started]),
        "row": draw(2, d),
        "trial": draw(3, d),
        "state": draw(STATE, d),
        "head": draw(d, 3, scale=0.01),
        "direct": np.array([0.0, -2.0, 0.0, 0.0, 0.0, 0.0]),
    }
    return {k: np.asarray(v, np.float32) for k, v in params.items()}


def regard(params: dict, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the surrogate's mean [C], variance [C] and whitened covariances [N, C]."""
    rows, cells = _points(params, inputs)
    fit = kernels.condition(params, rows, inputs.y_N, inputs.mask_N)
    return kernels.predict(params, fit, cells)


def _points(params: dict, inputs: Inputs) -> tuple[Points, Points]:
    scale_Z = jnp.exp(params["scale"])[None, :]
    rows_NZ, cells_CZ = inputs.z_NZ * scale_Z, inputs.z_CZ * scale_Z
    target_C = jnp.full(len(cells_CZ), TARGET)
    return Points(rows_NZ, rows_NZ, inputs.e_N), Points(cells_CZ, cells_CZ, target_C)


def look(
    params: dict, inputs: Inputs, regarded: tuple, trials: int, s: Settings
) -> tuple[View, State]:
    """Read the evidence; `params` are those of one search space, `regarded` comes of `regard`."""
    mean_C, variance_C, half_NC = regarded
    (rows_NZ, _, _), cells = _points(params, inputs)
    cells_CZ = cells.z_NZ
    about_N2 = jnp.stack([inputs.y_N, jnp.ones_like(inputs.y_N)], axis=1)
    tokens_ND = inputs.z_NZ @ params["embed"] + about_N2 @ params["row"]
    tokens_CD = inputs.z_CZ @ params["embed"]
    squared_CN = kernels.squared_distance(cells_CZ, rows_NZ)
    for layer in range(s.layers):
        tokens_CD = _block(params, layer, tokens_CD, tokens_ND, squared_CN, inputs.mask_N, s)
    count, d = len(cells_CZ), s.width
    empty = State(
        mean_C,
        variance_C,
        jnp.zeros((trials, count)),
        jnp.zeros((trials, d)),
        jnp.zeros((trials, INPUTS)),
        jnp.zeros(trials, bool),
        inputs.mask_C,
        jnp.array(jnp.inf),
        jnp.array(0),
    )
    return View(cells, half_NC, tokens_CD), empty


def decide(params: dict, view: View, state: State, s: Settings) -> tuple:
    """Return acquisition values [C] (TRIED where tried), predicted means and log deviations [C]."""
    deviation_C = jnp.sqrt(state.variance_C)
    among_C = state.untried_C / state.untried_C.sum()
    centre = (among_C * state.mean_C).sum()
    spread = jnp.sqrt((among_C * (state.mean_C - centre) ** 2).sum() + 1e-6)
    best = jnp.where(jnp.isfinite(state.best), state.best, centre)
    about_CS = jnp.stack(
        [
            jnp.clip((best - state.mean_C) / deviation_C, -5.0, 5.0),
            jnp.clip((state.mean_C - centre) / spread, -5.0, 5.0),
            jnp.log(deviation_C),
            jnp.clip(state.mean_C, -2.0, 2.0),
            jnp.full_like(deviation_C, state.count / (1 + state.count)),
            jnp.ones_like(deviation_C),
        ],
        axis=1,
    )
    tokens_CD = view.tokens_CD + about_CS @ params["state"]
    squared_CT = kernels.squared_distance(view.cells.z_NZ, state.z_TZ)
    tokens_CD = _block(params, s.layers, tokens_CD, state.tokens_TD, squared_CT, state.done_T, s)
    out_C3 = tokens_CD @ params["head"]
    value_C = out_C3[:, 0] + about_CS @ params["direct"]
    mean_C = state.mean_C + out_C3[:, 1] * deviation_C
    value_C = jnp.where(state.untried_C, value_C, TRIED)
    return value_C, mean_C, jnp.log(deviation_C) + out_C3[:, 2]


def advance(params: dict, view: View, state: State, cell: jax.Array, score: jax.Array) -> State:
    """Take in the score of a cell."""
    point = Points(*(a[cell][None] for a in view.cells))
    k_C = kernels.kernel(params, point, view.cells)[0] - view.half_NC[:, cell] @ view.half_NC
    k_C = k_C - state.half_TC[:, cell] @ state.half_TC
    deviation = jnp.sqrt(jnp.maximum(k_C[cell], 1e-8) + kernels.noise(params))
    half_C, surprise = k_C / deviation, (score - state.mean_C[cell]) / deviation
    about_3 = jnp.stack([score, jnp.clip(surprise, -5.0, 5.0), jnp.ones_like(score)])
    token_D = view.tokens_CD[cell] + about_3 @ params["trial"]
    t = state.count
    return State(
        state.mean_C + half_C * surprise,
        jnp.maximum(state.variance_C - half_C**2, 1e-8),
        state.half_TC.at[t].set(half_C),
        state.tokens_TD.at[t].set(token_D),
        state.z_TZ.at[t].set(point.z_NZ[0]),
        state.done_T.at[t].set(True),
        state.untried_C.at[cell].set(False),
        jnp.minimum(state.best, score),
        t + 1,
    )


def _block(params, layer: int, query_QD, key_KD, squared_QK, mask_K, s: Settings) -> jax.Array:
    """Attend to keys, of which there may be none, then transform; both residual."""
    heads, size = s.heads, s.width // s.heads

    def split(x_ND, name):
        x_NHS = (_norm(x_ND) @ params[f"{name}{layer}"]).reshape(-1, heads, size)
        return x_NHS.transpose(1, 0, 2)

    q_HQS, k_HKS, v_HKS = split(query_QD, "q"), split(key_KD, "k"), split(key_KD, "v")
    near_H = jnp.exp(params[f"near{layer}"])
    logits_HQK = q_HQS @ k_HKS.transpose(0, 2, 1) / np.sqrt(size)
    logits_HQK = logits_HQK - near_H[:, None, None] * squared_QK[None]
    logits_HQK = jnp.where(mask_K[None, None, :], logits_HQK, -1e9)
    # A key of nothing, so that no evidence and no trial are histories too.
    logits_HQK = jnp.pad(logits_HQK, ((0, 0), (0, 0), (1, 0)), constant_values=-4.0)
    mixed_HQS = jax.nn.softmax(logits_HQK)[:, :, 1:] @ v_HKS
    mixed_QD = mixed_HQS.transpose(1, 0, 2).reshape(-1, s.width)
    query_QD = query_QD + mixed_QD @ params[f"o{layer}"]
    return query_QD + jax.nn.gelu(_norm(query_QD) @ params[f"up{layer}"]) @ params[f"down{layer}"]


def _norm(x_ND: jax.Array) -> jax.Array:
    return x_ND * jax.lax.rsqrt((x_ND**2).mean(1, keepdims=True) + 1e-6)


def of_space(params: dict, space: jax.Array) -> dict:
    """Return the parameters of one search space."""
    return {k: v[space] if k in OWN else v for k, v in params.items()}


class Batch(NamedTuple):
    """Problems to train on [B, ...]: inputs, regrets of the cells, how they are seen, the space."""

    inputs: Inputs
    regrets_C: jax.Array
    level: jax.Array
    spread: jax.Array
    space: jax.Array


def loss(params: dict, batch: Batch, key: jax.Array, s: Settings) -> tuple[jax.Array, jax.Array]:
    """Return the loss of a batch and the mean regret after the last trial."""
    keys = jax.random.split(key, (len(batch.space), s.rollouts))
    # One problem after the other: batched LAPACK calls wait for each other's threads in jaxlib,
    # for ever where there are few cores.
    regarded_B = jax.lax.map(lambda b: regard(of_space(params, b.space), b.inputs), batch)
    one = functools.partial(_problem_loss, params, s=s)
    losses_B, regrets_B = jax.vmap(one)(batch, regarded_B, keys)
    return losses_B.mean(), regrets_B.mean()


def _problem_loss(params: dict, batch: Batch, regarded, keys, s: Settings) -> tuple:
    own = of_space(params, batch.space)
    view, empty = look(own, batch.inputs, regarded, s.trials, s)
    valid_C = batch.inputs.mask_C
    seen_C = batch.level + batch.spread * batch.regrets_C

    def step(carry, key):
        state, best = carry
        value_C, mean_C, log_C = decide(own, view, state, s)
        cell = jax.random.categorical(key, value_C)
        log_C = jnp.clip(log_C, -5.0, 2.0)
        surprise_C = 0.5 * ((seen_C - mean_C) * jnp.exp(-log_C)) ** 2 + log_C
        likelihood = jnp.where(valid_C, surprise_C, 0.0).sum() / valid_C.sum()
        chances_C = jax.nn.log_softmax(value_C)
        entropy = -jnp.where(state.untried_C, jnp.exp(chances_C) * chances_C, 0.0).sum()
        best = jnp.minimum(best, batch.regrets_C[cell])
        state = advance(own, view, state, cell, seen_C[cell])
        return (state, best), (chances_C[cell], best, likelihood, entropy)

    def play(key):
        return jax.lax.scan(step, (empty, jnp.array(1.0)), jax.random.split(key, s.trials))[1]

    chances_GT, best_GT, likelihood_GT, entropy_GT = jax.vmap(play)(keys)
    cost_GT = jnp.cumsum(best_GT[:, ::-1], axis=1)[:, ::-1]
    # The other episodes of the problem are the baseline.
    away_GT = (cost_GT - cost_GT.mean(0, keepdims=True)) * s.rollouts / (s.rollouts - 1)
    policy = (jax.lax.stop_gradient(away_GT) * chances_GT).mean()
    total = policy + s.auxiliary * likelihood_GT.mean() - s.entropy * entropy_GT.mean()
    return total, best_GT[:, -1].mean()


def _optimizer(s: Settings) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, s.learning_rate, s.steps // 10, s.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


@functools.partial(jax.jit, static_argnums=(4,))
def _step(params: dict, moments, batch: Batch, key: jax.Array, s: Settings) -> tuple:
    (_, regret), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key, s)
    updates, moments = _optimizer(s).update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments, regret


def learn(
    training: Sequence[Experiment], seed: int, progress: bool, s: Settings
) -> dict[str, np.ndarray]:
    """Meta-train the network on all search spaces together."""
    rng = np.random.default_rng(seed)
    spaces = training_spaces(training, 4 * s.rows)
    actives = [space.standard.active for space in spaces]
    params = init_params(rng, s, [round(np.mean(actives)), *actives])
    moments = _optimizer(s).init(params)
    keys = jax.random.split(jax.random.key(seed), s.steps)
    bar = tqdm(keys, "learn neural_acquisition", unit="step", disable=not progress)
    regrets = []
    for key in bar:
        drawn = [_draw(spaces, s, rng) for _ in range(s.problems)]
        batch = jax.tree.map(lambda *a: np.stack(a), *drawn)
        params, moments, regret = _step(params, moments, batch, key, s)
        regrets.append(regret)
        if len(regrets) % 10 == 0:
            bar.set_postfix(regret=f"{np.mean(regrets[-10:]):.3f}")
    if not all(np.isfinite(a).all() for a in params.values()):
        raise FloatingPointError("neural_acquisition: the parameters are not finite")
    learned = {f"{PARAMETER}{k}": np.asarray(v) for k, v in params.items()}
    return learned | describe_spaces(spaces) | {"regrets": np.array(regrets)}


def _draw(spaces: Sequence[TrainingSpace], s: Settings, rng: np.random.Generator) -> Batch:
    """Draw a problem from the training experiments, and vary it."""
    index = int(rng.integers(len(spaces)))
    space = spaces[index]
    task = space.tasks[rng.integers(len(space.tasks))]
    cells = rng.permutation(len(task.scores_R))[: s.cells]
    z_NZ, y_N, e_N = _draw_evidence(space, task, s, rng)
    named = rng.random() >= s.unnamed
    inputs = Inputs(
        pad(z_NZ.astype(np.float32), s.rows),
        pad(y_N.astype(np.float32), s.rows),
        pad(e_N.astype(np.int32), s.rows),
        pad(np.ones(len(y_N), bool), s.rows),
        pad(task.context.cells_RZ[cells], s.cells),
        pad(np.ones(len(cells), bool), s.cells),
    )
    # The target's level and spread are only extrapolated (see evidence.TargetScale).
    level, spread = 0.2 * rng.normal(), np.exp(0.2 * rng.normal())
    return Batch(
        inputs,
        pad(task.scores_R[cells], s.cells),
        np.float32(level),
        np.float32(spread),
        np.int32((index + 1) * named),
    )


def _draw_evidence(space, task: TrainingTask, s: Settings, rng) -> tuple:
    """Draw the evidence's inputs, scores and experiments, at most `s.rows` of them."""
    context = task.context
    if rng.random() < 0.05:
        return context.rows_NZ[:0], context.scores_N[:0], context.experiments_N[:0]
    made_up = not len(task.cheaper_X)
    if made_up:  # a cheaper run of the experiment itself
        z_NZ, y_N = context.cells_RZ, task.scores_R
        e_N = np.zeros(len(y_N), int)
    else:
        cheaper = np.flatnonzero(task.cheaper_X)
        pool = cheaper if len(cheaper) and rng.random() < 0.8 else np.arange(len(task.cheaper_X))
        some = rng.permutation(pool)[: rng.integers(1, len(pool) + 1)]
        chosen = np.isin(context.experiments_N, some)
        z_NZ, y_N = context.rows_NZ[chosen], context.scores_N[chosen]
        e_N = context.experiments_N[chosen]
    share = s.rows if rng.random() < 0.7 else max(int(s.rows * rng.uniform(0.1, 0.6)), 1)
    rows = rng.permutation(len(y_N))[:share]
    z_NZ, y_N, e_N = z_NZ[rows], y_N[rows], e_N[rows]
    if made_up or rng.random() < 0.5:  # a tilt, and noise
        slope_Z = rng.normal(size=INPUTS) * rng.uniform(0, 0.25) / np.sqrt(space.standard.active)
        y_N = y_N + z_NZ @ slope_Z + rng.uniform(0, 0.15) * rng.normal(size=len(y_N))
        y_N = np.clip(y_N, 0.0, 1.0)
    if not made_up and rng.random() < 0.5:  # an optimum that drifts with fidelity
        away_N = (z_NZ - context.cells_RZ[:1])[:, -FIDELITIES:].mean(1)
        numeric_Z = np.zeros(INPUTS)
        numeric_Z[[i % WIDTH for i, name in enumerate(space.layout) if "=" not in name]] = 1.0
        z_NZ = z_NZ + away_N[:, None] * numeric_Z * 0.3 * rng.normal(size=INPUTS)
    return z_NZ, y_N, e_N


@functools.partial(jax.jit, static_argnums=(2,))
def _look(params: dict, inputs: Inputs, s: Settings) -> tuple[View, State]:
    return look(params, inputs, regard(params, inputs), TRIALS, s)


@functools.partial(jax.jit, static_argnums=(6,))
def _values(params, view, state, cells_T, scores_T, made: jax.Array, s: Settings) -> jax.Array:
    """Return acquisition values [C] after `made` trials."""

    def take(t, state):
        return advance(params, view, state, cells_T[t], scores_T[t])

    return decide(params, view, jax.lax.fori_loop(0, made, take, state), s)[0]


class NeuralAcquisition:
    """Try the untried cell with the greatest acquisition value."""

    @classmethod
    def learn(
        cls,
        training: Sequence[Experiment],
        seed: int,
        progress: bool,
        settings: Settings = Settings(),
    ) -> dict[str, np.ndarray]:
        """Return the network's parameters, and each search space's layout and scale."""
        return learn(training, seed, progress, settings)

    def __init__(self, problem: Problem, seed: int, learned: dict, settings: Settings = Settings()):
        del seed  # Nothing is drawn.
        self._settings = settings
        self._candidates = Candidates(problem.experiment)
        self._scale = TargetScale(problem)
        self._rows: list[int] = []
        self._trials: list = []
        known, context, _ = read_target(problem, learned, settings.rows)
        named = {k: v for k, v in learned.items() if k.startswith(PARAMETER)}
        shared = {k.removeprefix(PARAMETER): v for k, v in named.items()}
        self._params = of_space(shared, 0 if known is None else known + 1)
        rows, cells = settings.rows + 64, bucket(len(context.cells_RZ))
        inputs = Inputs(
            pad(context.rows_NZ, rows),
            pad(context.scores_N, rows),
            pad(context.experiments_N.astype(np.int32), rows),
            pad(np.ones(len(context.scores_N), bool), rows),
            pad(context.cells_RZ, cells),
            pad(np.ones(len(context.cells_RZ), bool), cells),
        )
        self._view, self._start = _look(self._params, inputs, settings)

    def ask(self) -> dict:
        rows = self._candidates.untried
        if self._rows:
            scores_T = pad(self._scale.scores(self._trials)[-TRIALS:].astype(np.float32), TRIALS)
        else:
            scores_T = np.zeros(TRIALS, np.float32)
        cells_T = pad(np.array(self._rows[-TRIALS:], np.int32), TRIALS)
        made = min(len(self._rows), TRIALS)
        values_C = _values(
            self._params, self._view, self._start, cells_T, scores_T, made, self._settings
        )
        values_C = np.asarray(values_C)
        return self._candidates.take(int(rows[np.argmax(values_C[rows])]))

    def tell(self, trial) -> None:
        row = self._candidates.mark(trial)
        if row is not None:
            self._rows.append(row)
            self._trials.append(trial)
