"""The scorer: a small network that decides from the advisers' numbers, without words.

It is the control of the language policy: the same candidates, the same numbers, the same reward and
training data, under 50,000 parameters. What the policy scores above or below the scorer is what
language costs or gains.

    1. features: what each adviser expects of each candidate, and how the trials went so far
    2. network: every candidate by itself, then beside the mean of all; one logit a candidate
    3. training: play on training pairs with the latest network; at each decision all candidates'
       outcomes are known, so the reward's gradient is taken over all of them (an enumerated group)

The reward of a decision is the drop in the best regret, once for every trial still to come. The
policy's choices are credited with the rest of the episode (`curriculum.lookahead`); to play that
for every candidate would be much more work (docs/experiments.md, 65).

Letters: B decisions, C candidates, F features.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.curriculum.pairs import CurationConfig, Families, build_pair, draw_recipes
from autollm_jax.forecasts.advice import MOST, Decision, decision_of
from autollm_jax.forecasts.advisers import counsel
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Episode, Observation, Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.progress_bar import progress_bar

WIDTH = 48
PRIOR = 8.0  # logits fall by so much for one unit of the panel's expected regret, at first


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the scorer is trained (chosen on changed copies of low tables).

    Attributes:
      pairs: training pairs.
      synthetic: share of them from the synthetic prior.
      failing: share of them in which one adviser is wrong on purpose.
      far: share of them whose evidence is far below the target.
      rounds: times that every pair is played with the latest network.
      updates: per round.
      kept: the latest rounds whose decisions are learned from.
      batch: decisions of an update.
      learning_rate: at the first update; it falls to 0 along a cosine.
      entropy: weight of the choice's entropy.
      budget: trials of an episode.
    """

    pairs: int = 300
    synthetic: float = 0.4
    failing: float = 0.15
    far: float = 0.5
    rounds: int = 8
    updates: int = 100
    kept: int = 6
    batch: int = 128
    learning_rate: float = 3e-3
    entropy: float = 3e-3
    budget: int = 5


def features(decision: Decision) -> np.ndarray:
    """Describe the candidates of a decision [C, F], in units of regret and shares.

    For each adviser: the expected regret above its best open row's, the deviation, the expected
    regret above the best trial's, the regret expected to remain, the row's place in its order,
    whether the row is its first. Then the panel's mean of what remains; the distances to the
    nearest and the best trial. The rest is the same for all candidates: for each adviser how far it
    was off at the trials and how far its rows spread; trials made and left; the size of the space;
    how far beyond the nearest experiment the setting lies.
    """
    seen, panel, advice = decision.observation, decision.panel, decision.advice
    trials, budget_left = seen.trials, seen.budget_left
    rows, open_R = np.asarray(decision.offer.rows), advice.open_R
    count = max(int(open_R.sum()), 1)
    columns, shared = [], [len(trials) / 5, budget_left / 5, np.log(count) / 5]
    for a in range(len(advice.names)):
        mean_R, remaining_R = advice.mean_AR[a], advice.remaining_AR[a]
        place_R = np.empty(len(mean_R))
        place_R[np.argsort(remaining_R, kind="stable")] = np.arange(len(mean_R))
        gap_R = np.nan_to_num(mean_R - advice.best_A[a])
        columns += [
            np.clip(mean_R - mean_R[open_R].min(), 0, 2)[rows],
            np.clip(advice.deviation_AR[a], 0, 1.5)[rows],
            np.clip(gap_R, -1.5, 1.5)[rows],
            np.minimum(remaining_R[rows], 1.0),
            place_R[rows] / count,
            (place_R[rows] == 0).astype(float),
        ]
        shared += [min(advice.surprise_A[a], 1.5), min(float(mean_R[open_R].std()), 1.0)]
    together_C = np.minimum(advice.remaining_AR, 1.0).mean(0)[rows]
    units_RD, near_C, best_C = panel.units_RD, np.zeros(len(rows)), np.zeros(len(rows))
    losses = [trial.loss(panel.setting) for trial in trials if trial.row is not None]
    tried = [trial.row for trial in trials if trial.row is not None]
    if tried:
        away_CT = np.sqrt(((units_RD[rows][:, None] - units_RD[tried]) ** 2).sum(-1))
        near_C, best_C = away_CT.min(1), away_CT[:, int(np.argmin(losses))]
    columns += [together_C, near_C, best_C]
    beyond = np.zeros(2)
    if panel.nearest:
        beyond = panel.setting.fidelity.log - panel.nearest[0].fidelity.log
    shared += (np.clip(np.nan_to_num(beyond), -1, 4) / 4).tolist()
    own_CF = np.stack(columns, axis=1)
    return np.concatenate([together_C[:, None], own_CF, np.tile(shared, (len(rows), 1))], 1)


def init(key: jax.Array, inputs: int) -> dict:
    """Draw the parameters; the first choice is the panel's."""

    def draw(key, *shape):
        return jax.random.normal(key, shape) / np.sqrt(shape[0])

    keys = jax.random.split(key, 4)
    return {
        "in": draw(keys[0], inputs, WIDTH),
        "in_bias": jnp.zeros(WIDTH),
        "own": draw(keys[1], WIDTH, WIDTH),
        "own_bias": jnp.zeros(WIDTH),
        "beside": draw(keys[2], 2 * WIDTH, WIDTH),
        "beside_bias": jnp.zeros(WIDTH),
        "out": 0.1 * draw(keys[3], WIDTH, 1),
        "log_prior": jnp.zeros(()),
    }


def logits(params: dict, x_BCF: jax.Array, offered_BC: jax.Array) -> jax.Array:
    """Return a logit for each candidate [B, C]; padding has none.

    Args:
      params: from `init`.
      x_BCF: features; the first is the panel's expected regret.
      offered_BC: bool, candidates that are no padding.
    """

    def layer(x_BCD, name):
        bias_11D = params[f"{name}_bias"][None, None]
        return jax.nn.gelu(x_BCD @ params[name] + bias_11D)

    hidden = layer(layer(x_BCF, "in"), "own")
    among_BC1 = (offered_BC / jnp.maximum(offered_BC.sum(-1, keepdims=True), 1))[..., None]
    mean = (hidden * among_BC1).sum(-2, keepdims=True)
    both = jnp.concatenate([hidden, jnp.broadcast_to(mean, hidden.shape)], -1)
    hidden = layer(both, "beside")
    prior_BC = PRIOR * jnp.exp(params["log_prior"]) * x_BCF[..., 0]
    return jnp.where(offered_BC, (hidden @ params["out"])[..., 0] - prior_BC, -1e9)


def loss(params: dict, x_BCF, offered_BC, reward_BC, entropy: float) -> jax.Array:
    """Return minus the expected reward of a choice, less its entropy's weight."""
    log_BC = jax.nn.log_softmax(logits(params, x_BCF, offered_BC))
    chance_BC = jnp.exp(log_BC)
    spread_B = -jnp.where(offered_BC, chance_BC * log_BC, 0.0).sum(-1)
    return -((chance_BC * reward_BC).sum(-1) + entropy * spread_B).mean()


_logits = jax.jit(logits)


@functools.partial(jax.jit, static_argnames=("entropy", "optimizer"))
def _update(params, moments, batch, entropy: float, optimizer):
    gradient = jax.grad(loss)(params, *batch, entropy)
    updates, moments = optimizer.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments


# A target, known as training tables are, and the advisers' forecasts of it.
Game = tuple[Experiment, Panel]


def games_of(training: Sequence[Experiment], seed: int, progress: bool, s: Settings) -> list[Game]:
    """Draw training pairs and ask the advisers about each."""
    families = Families(training)
    config = CurationConfig(
        seed=10_000 + seed,
        pairs=s.pairs,
        synthetic=s.synthetic,
        failing=s.failing,
        far=s.far,
        pairs_per_family=3,
    )
    recipes = draw_recipes(families, config)
    recipes = progress_bar(recipes, "scorer's pairs", total=s.pairs, shown=progress)
    pairs = [build_pair(recipe, families) for recipe in recipes]
    return [(pair.target, pair.counsel()) for pair in pairs]


def train(
    games: Sequence[Game], seed: int, s: Settings, progress: bool = False
) -> dict[str, np.ndarray]:
    """Train a scorer by playing these games.

    Returns:
      The parameters, and `regrets` [rounds, budget]: the mean over the games after each trial.

    Raises:
      FloatingPointError: a parameter is not finite.
    """
    random = np.random.default_rng(seed)
    target, panel = games[0]
    first = decision_of(panel, Episode(target, panel.evidence, s.budget).tell(), 0)
    inputs = features(first).shape[1]
    params, decisions, regrets = init(jax.random.key(seed), inputs), [], []
    schedule = optax.cosine_decay_schedule(s.learning_rate, s.rounds * s.updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    moments = optimizer.init(params)
    bar = progress_bar(range(s.rounds), "learn scorer", unit="round", shown=progress)
    for _ in bar:
        played, regret_GT = play(params, games, random, s.budget)
        regrets.append(regret_GT.mean(0))
        bar.set_postfix(regret=f"{regret_GT.mean():.3f}")
        decisions = [*decisions, played][-s.kept :]
        pool = [np.concatenate(parts) for parts in zip(*decisions, strict=True)]
        for _ in range(s.updates):
            chosen = random.integers(len(pool[0]), size=s.batch)
            batch = tuple(part[chosen] for part in pool)
            params, moments = _update(params, moments, batch, s.entropy, optimizer)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise FloatingPointError("scorer: the parameters are not finite")
    return {k: np.asarray(v) for k, v in params.items()} | {"regrets": np.array(regrets)}


def play(
    params: dict,
    games: Sequence[Game],
    random: np.random.Generator,
    budget: int,
    drawn: bool = True,
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Play every game once.

    Args:
      params: the scorer's.
      games: G of them.
      random: of the candidates' order and of the choices.
      budget: T trials.
      drawn: whether a choice is drawn from the softmax; else it is the greatest logit.

    Returns:
      The decisions between two candidates and more (features [B, C, F], which candidates are real
      [B, C], the reward of each [B, C]), and the best regret after each trial [G, T].
    """
    episodes = [Episode(target, panel.evidence, budget) for target, panel in games]
    decisions, regret_GT = [], np.ones((len(games), budget))
    for t in range(budget):
        x_GCF, rows_GC = [], []
        for episode, (_, panel) in zip(episodes, games, strict=True):
            decision = decision_of(panel, episode.tell(), int(random.integers(2**31)))
            over = np.zeros((0, len(params["in"])))  # nothing is left to try
            x_GCF.append(features(decision) if decision else over)
            rows_GC.append(decision.offer.rows if decision else ())
        padded_GCF, offered_GC = pad(x_GCF)
        value_GC = np.asarray(_logits(params, padded_GCF, offered_GC))
        if drawn:
            value_GC = value_GC + random.gumbel(size=value_GC.shape)
        reward_GC = np.zeros(offered_GC.shape, np.float32)
        for g, (episode, rows) in enumerate(zip(episodes, rows_GC, strict=True)):
            if rows:
                reward_GC[g, : len(rows)] = episode.rewards_of(rows)
                row = rows[int(value_GC[g, : len(rows)].argmax())]
                episode.exec_config(episode.setting.configurations[row])
            regret_GT[g, t] = episode.best_regret()
        choice_G = offered_GC.sum(1) > 1
        decisions.append([part[choice_G] for part in (padded_GCF, offered_GC, reward_GC)])
    return tuple(map(np.concatenate, zip(*decisions, strict=True))), regret_GT


def pad(x_GCF: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stack decisions' features, padded to MOST candidates [G, C, F]; tell the real ones."""
    padded = np.zeros((len(x_GCF), MOST, x_GCF[0].shape[1]), np.float32)
    offered_GC = np.zeros(padded.shape[:2], bool)
    for g, x_CF in enumerate(x_GCF):
        padded[g, : len(x_CF)], offered_GC[g, : len(x_CF)] = x_CF, True
    return padded, offered_GC


class Scorer:
    """Try the candidate of the greatest logit (a `baselines.base.MetaLearned`).

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the candidates' order, on which the choice does not depend.
      learned: the result of `learn`.
    """

    def __init__(self, problem: Problem, seed: int, learned: dict):
        self._budget, self._seed = problem.budget, seed
        self._params = {k: v for k, v in learned.items() if k != "regrets"}
        self._candidates = Candidates(problem.setting)
        self._panel = counsel(problem.setting, problem.evidence, failing=problem.failing)
        self._trials: list[Trial] = []

    @classmethod
    def learn(
        cls, training: Sequence[Experiment], seed: int, progress: bool, share: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Learn from the training experiments (see `MetaLearned.learn`)."""
        s = Settings()
        pairs, updates = max(round(share * s.pairs), 12), max(round(share * s.updates), 1)
        s = dataclasses.replace(s, pairs=pairs, updates=updates)
        return train(games_of(training, seed, progress, s), seed, s, progress)

    def ask(self) -> dict:
        left, trials = self._budget - len(self._trials), tuple(self._trials)
        seen = Observation(self._panel.setting, self._panel.evidence, left, trials)
        decision = decision_of(self._panel, seen, self._seed)
        if decision is None:
            return self._candidates.take(int(self._candidates.untried[0]))
        chosen = int(np.asarray(_logits(self._params, *pad([features(decision)]))).argmax())
        return self._candidates.take(decision.offer.rows[chosen])

    def tell(self, trial: Trial) -> None:
        self._candidates.mark(trial)
        self._trials.append(trial)
