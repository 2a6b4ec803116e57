"""Syne Tune's transfer of earlier experiments' evaluations (syne-tune 0.16; Salinas et al., AutoML
Conference 2022).

Two of the package's classes cannot be run as they stand. `ZeroShotTransfer.suggest` is that of its
base class and draws at random, so the method that holds the idea, `get_config`, is called instead;
its option `use_surrogates` reads a random state that is not set yet, so the surrogates are fitted
here, by the package's own pipeline. RUSH is named by the package and no longer part of it.
"""

import abc
import contextlib
import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
import xgboost
from syne_tune.blackbox_repository.blackbox_surrogate import BlackboxSurrogate
from syne_tune.config_space import choice, uniform
from syne_tune.optimizer.baselines import RandomSearch
from syne_tune.optimizer.schedulers.transfer_learning.bounding_box import BoundingBox
from syne_tune.optimizer.schedulers.transfer_learning.quantile_based import (
    quantile_based_searcher as quantile_based,
)
from syne_tune.optimizer.schedulers.transfer_learning.transfer_learning_task_evaluation import (
    TransferLearningTaskEvaluations,
)
from syne_tune.optimizer.schedulers.transfer_learning.zero_shot import ZeroShotTransfer

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.baselines.proposals import REDRAWS
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import draw_seed
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment

METRIC = "loss"
# An experiment with fewer rows has no ranks to learn from.
FEWEST_ROWS = 2


class _Transfer(abc.ABC):
    """Tries the rows nearest to what a class of the package suggests.

    The package sees the coordinates of all feasible rows on the target's scale, and the losses of
    each experiment in its own units; a failed run has the worst loss of its experiment. It does not
    see fidelities, and none of these methods learns from the target's trials. If its suggestions
    were all tried, an untried row near the last one follows. Without evidence the default
    configuration comes first, and random rows after it.

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the draws.
    """

    def __init__(self, problem: Problem, seed: int):
        setting = problem.setting
        self._setting = setting
        self._candidates = Candidates(setting)
        self._seed = draw_seed(setting, seed) % 2**31
        self._rng = np.random.default_rng(self._seed)
        self._spans = coordinates.columns(setting.space)
        self._categories = {d.name for d in setting.space.dimensions if d.kind == "categorical"}
        relevant = relevant_evidence(problem.evidence, setting)
        evidence = [e for e in relevant if e.feasible_R.sum() >= FEWEST_ROWS]
        projected = [
            coordinates.project(e.configurations, e.space, setting.space, setting.default)
            for e in evidence
        ]
        everything = np.concatenate([self._candidates.units_RD, *projected])
        self._space = self._config_space(everything.min(0), everything.max(0))
        self._rows = self._frame(self._candidates.units_RD[np.flatnonzero(setting.feasible_R)])
        evaluations = {
            e.id: self._evaluations(points_RD[e.feasible_R], _losses(e)[e.feasible_R])
            for e, points_RD in zip(evidence, projected, strict=True)
        }
        self._suggestions = self._suggest(evaluations) if evaluations else iter(())
        self._cold = not evaluations
        self._started = False

    @abc.abstractmethod
    def _suggest(self, evaluations: dict[str, TransferLearningTaskEvaluations]) -> Iterator[dict]:
        """Yield the package's suggestions, in order."""

    def ask(self) -> dict:
        """Return the next configuration to try."""
        candidates, row = self._candidates, None
        if self._cold and not self._started:
            self._started = True
            return candidates.take(candidates.row_of(self._setting.default))
        untried = set(candidates.untried.tolist())
        for _, config in zip(range(REDRAWS), self._suggestions, strict=False):
            point_D = self._point(config)
            row = candidates.nearest(point_D)
            if row in untried:
                return candidates.take(row)
        if row is None:
            return candidates.take(int(self._rng.choice(candidates.untried)))
        return candidates.take(candidates.nearest(point_D, untried=True))

    def tell(self, trial) -> None:
        """Note which row was tried."""
        self._candidates.mark(trial)

    def _config_space(self, low_D: np.ndarray, high_D: np.ndarray) -> dict:
        space = {}
        for name, span in self._spans.items():
            if name in self._categories:
                space[f"{span.start}"] = choice([*range(span.stop - span.start)])
            else:
                for column in range(span.start, span.stop):
                    space[f"{column}"] = uniform(float(low_D[column]), float(high_D[column]))
        return space

    def _frame(self, points_ND: np.ndarray) -> pd.DataFrame:
        """Bring points into the package's form: a column per number and per category."""
        columns = {}
        for name, span in self._spans.items():
            if name in self._categories:
                columns[f"{span.start}"] = points_ND[:, span].argmax(1)
            else:
                columns |= {f"{c}": points_ND[:, c] for c in range(span.start, span.stop)}
        return pd.DataFrame(columns)

    def _point(self, config: dict) -> np.ndarray:
        """Bring a suggestion back to coordinates [D']; the weights of a mixture sum to 1."""
        point_D = np.zeros(self._candidates.units_RD.shape[1])
        for dimension in self._setting.space.dimensions:
            span = self._spans[dimension.name]
            if dimension.kind == "categorical":
                point_D[span.start + int(config[f"{span.start}"])] = 1.0
                continue
            point_D[span] = [config[f"{c}"] for c in range(span.start, span.stop)]
            if dimension.kind == "simplex":
                point_D[span] /= max(point_D[span].sum(), 1e-12)
        return point_D

    def _evaluations(
        self, points_ND: np.ndarray | pd.DataFrame, losses_N: np.ndarray
    ) -> TransferLearningTaskEvaluations:
        frame = points_ND if isinstance(points_ND, pd.DataFrame) else self._frame(points_ND)
        return TransferLearningTaskEvaluations(
            configuration_space=self._space,
            hyperparameters=frame,
            objectives_names=[METRIC],
            objectives_evaluations=losses_N.reshape(-1, 1, 1, 1),
        )


class ZeroShot(_Transfer):
    """The sequence of rows whose best has the least mean rank over experiments.

    (`ZeroShotTransfer`; Wistuba et al., ICDM 2015.) Every experiment has to have an outcome for
    every candidate. The candidates are the target's rows; each experiment's outcomes there are
    predicted by boosted trees in the package's pipeline, fitted on the experiment's rows.
    """

    def _suggest(self, evaluations: dict[str, TransferLearningTaskEvaluations]) -> Iterator[dict]:
        predicted = {}
        for name, known in evaluations.items():
            pipeline = BlackboxSurrogate.make_model_pipeline(
                self._space, {}, xgboost.XGBRegressor(random_state=self._seed)
            )
            pipeline.fit(known.hyperparameters, known.objective_values(METRIC)[:, 0, 0])
            losses_R = np.asarray(pipeline.predict(self._rows), float)
            predicted[name] = self._evaluations(self._rows.copy(), losses_R)
        method = ZeroShotTransfer(
            config_space=self._space,
            metric=METRIC,
            transfer_learning_evaluations=predicted,
            sort_transfer_learning_evaluations=False,
            random_seed=self._seed,
        )
        for _ in range(len(self._rows)):
            yield method.get_config()


class Quantiles(_Transfer):
    """Thompson samples of a model of the outcomes' quantiles over all experiments.

    (`QuantileBasedSurrogateSearcher`, copula Thompson sampling; Salinas et al., ICML 2020.) Within
    an experiment outcomes are replaced by the normal scores of their ranks, and one model of
    boosted trees is fitted to all. The package samples 100,000 candidates; here it samples them
    from the target's feasible rows. It fits at most 100,000 rows.
    """

    def _suggest(self, evaluations: dict[str, TransferLearningTaskEvaluations]) -> Iterator[dict]:
        records = self._rows.to_dict("records")

        class Searcher(quantile_based.QuantileBasedSurrogateSearcher):
            def _sample_random_config(self):
                return records[self.random_state.randint(len(records))]

        with contextlib.redirect_stdout(io.StringIO()):  # the class prints its times
            searcher = Searcher(self._space, evaluations, random_seed=self._seed)
        while True:
            yield searcher.suggest()


class Box(_Transfer):
    """Random search in the smallest box around the best row of each experiment.

    (`BoundingBox` with `RandomSearch`; Perrone et al., NeurIPS 2019.) The package's random search
    ignores its seed and draws from numpy's global state, which is set for each draw and put back.
    """

    def _suggest(self, evaluations: dict[str, TransferLearningTaskEvaluations]) -> Iterator[dict]:
        def random_search(space: dict, metric: str, do_minimize: bool, seed: int) -> RandomSearch:
            return RandomSearch(space, [metric], do_minimize=do_minimize, random_seed=seed)

        with contextlib.redirect_stdout(io.StringIO()):  # the class prints its box
            method = BoundingBox(
                random_search,
                self._space,
                METRIC,
                evaluations,
                random_seed=self._seed,
            )
        while True:
            with _numpy_seeded(int(self._rng.integers(2**31))):
                suggestion = method.suggest()
            yield suggestion.config


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global random state for a while."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _losses(experiment: Experiment) -> np.ndarray:
    """Return the loss of each row [R], lower is better; a failed run has the worst loss."""
    values_R = experiment.objective.sign * experiment.outcomes.values_R
    ok_R = experiment.outcomes.ok_R
    return np.where(ok_R, values_R, values_R[ok_R].max())
