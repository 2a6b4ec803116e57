"""Meta-training of the neural acquisition process: varied problems, REINFORCE, auxiliary loss."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autollm_jax.baselines.acquisition_network import (
    Inputs,
    Settings,
    advance,
    decide,
    init_params,
    look,
    of_space,
    regard,
)
from autollm_jax.forecasts.problem_arrays import (
    FIDELITIES,
    INPUTS,
    WIDTH,
    TrainingSpace,
    TrainingTask,
    describe_spaces,
    pad,
    training_spaces,
)
from autollm_jax.gym.experiments import Experiment
from autollm_jax.progress_bar import progress_bar

PARAMETER = "parameter "  # prefix of the names of learned parameters


class Batch(NamedTuple):
    """Problems to train on, each array [B, ...].

    Attributes:
      inputs: the padded problem.
      regrets_C: true regrets of the cells.
      level, spread: the network sees level + spread x regret as a cell's score.
      space: index of the search space's own parameters; 0 hides the search space.
    """

    inputs: Inputs
    regrets_C: jax.Array
    level: jax.Array
    spread: jax.Array
    space: jax.Array


def loss(params: dict, batch: Batch, key: jax.Array, s: Settings) -> tuple[jax.Array, jax.Array]:
    """Return the loss of a batch and the mean regret after the last trial."""
    keys = jax.random.split(key, (len(batch.space), s.rollouts))
    # One problem after another: with few cores, jaxlib's batched LAPACK calls wait for each other's
    # threads for ever.
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
    # The baseline of an episode is the mean cost of the problem's other episodes.
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
    """Meta-train the network on all search spaces together.

    Args:
      training: the training experiments.
      seed: of all draws.
      progress: whether to show a progress bar.
      s: sizes and steps.

    Returns:
      The parameters, the description of the search spaces, and `regrets`, one mean per step.

    Raises:
      FloatingPointError: a parameter is not finite.
    """
    rng = np.random.default_rng(seed)
    spaces = training_spaces(training, 4 * s.rows)
    actives = [space.standard.active for space in spaces]
    params = init_params(rng, s, [round(np.mean(actives)), *actives])
    moments = _optimizer(s).init(params)
    keys = jax.random.split(jax.random.key(seed), s.steps)
    bar = progress_bar(keys, "learn neural_acquisition", unit="step", shown=progress)
    regrets = []
    for key in bar:
        drawn = [draw_problem(spaces, s, rng) for _ in range(s.problems)]
        batch = jax.tree.map(lambda *a: np.stack(a), *drawn)
        params, moments, regret = _step(params, moments, batch, key, s)
        regrets.append(regret)
        if len(regrets) % 10 == 0:
            bar.set_postfix(regret=f"{np.mean(regrets[-10:]):.3f}")
    if not all(np.isfinite(a).all() for a in params.values()):
        raise FloatingPointError("neural_acquisition: the parameters are not finite")
    learned = {f"{PARAMETER}{k}": np.asarray(v) for k, v in params.items()}
    return learned | describe_spaces(spaces) | {"regrets": np.array(regrets)}


def draw_problem(spaces: Sequence[TrainingSpace], s: Settings, rng: np.random.Generator) -> Batch:
    """Draw a training experiment as a problem, with varied evidence."""
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
    # At play the target's level and spread are extrapolated (`gathering.TargetScale`), not known.
    level, spread = 0.2 * rng.normal(), np.exp(0.2 * rng.normal())
    return Batch(
        inputs,
        pad(task.scores_R[cells], s.cells),
        np.float32(level),
        np.float32(spread),
        np.int32((index + 1) * named),
    )


def _draw_evidence(space, task: TrainingTask, s: Settings, rng) -> tuple:
    """Draw and vary evidence: inputs, scores and experiment indices of at most `s.rows` rows."""
    context = task.context
    if rng.random() < 0.05:
        return context.rows_NZ[:0], context.scores_N[:0], context.experiments_N[:0]
    made_up = not len(task.cheaper_X)
    if made_up:  # no other experiment is evidence for the target: a copy of the target is
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
