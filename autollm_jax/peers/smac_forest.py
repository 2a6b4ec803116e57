"""SMAC3's random forest over configurations and instance features (smac 2.4)."""

import numpy as np
from ConfigSpace import Categorical, Configuration, ConfigurationSpace, Float
from smac import AlgorithmConfigurationFacade, Scenario

from autollm_jax.baselines.base import Problem
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import draw_seed
from autollm_jax.peers.ranks_rows import RanksRows

EVIDENCE_ROWS = 2000  # a forest is quick; the time goes into SMAC's configurations
TARGET = "target"


class SmacForest(RanksRows):
    """Rank rows by the surrogate and the acquisition of SMAC's facade for several instances.

    Experiments are SMAC's instances. Their features, relative to the target, are log parameters and
    log tokens. The evidence is the forest's earlier runs; it predicts the instance with the
    target's features. Rows are ranked by the predicted mean before the first trial, then by
    expected improvement over the trials' best. SMAC's own search of the space, its racing of
    configurations over instances and its random interleaving are left out: rows are few and each is
    run once. (Hutter et al., LION 2011; Lindauer et al., JMLR 23, 2022.)

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the forest.
    """

    def __init__(self, problem: Problem, seed: int):
        super().__init__(problem, EVIDENCE_ROWS)
        space = problem.setting.space
        # SMAC rounds the ends of a range, so every column is brought to [0, 1] before.
        self._width_X = np.maximum(self._high_X - self._low_X, 1e-9)
        self._spans = coordinates.columns(space)
        self._size_columns = range(self._candidates.units_RD.shape[1], len(self._low_X))
        self._categories = [d.name for d in space.dimensions if d.kind == "categorical"]
        self._configspace = ConfigurationSpace(seed=0)
        self._configspace.add(self._hyperparameters())
        self._scenario = Scenario(
            self._configspace,
            instances=[TARGET],
            instance_features={TARGET: [0.0, 0.0]},
            deterministic=True,
            # SMAC takes seeds below 2^31.
            seed=draw_seed(problem.setting, seed) % 2**31,
        )
        self._configs_R = self._configurations(self._rows_RX)
        self._arrays_RH = np.stack([config.get_array() for config in self._configs_R])
        known = [config.get_array() for config in self._configurations(self._points_NX)]
        known_NH = np.reshape(known, (len(known), self._arrays_RH.shape[1]))
        self._known_NZ = np.concatenate([known_NH, self._evidence.fidelities_NF], axis=1)

    def _ranking(self, tried_T: np.ndarray, scores_T: np.ndarray) -> np.ndarray:
        trials_TZ = np.pad(self._arrays_RH[tried_T], ((0, 0), (0, 2)))  # the target's features: 0
        scores_N = np.concatenate([self._evidence.scores_N, scores_T])
        model = AlgorithmConfigurationFacade.get_model(self._scenario)
        model.train(np.concatenate([self._known_NZ, trials_TZ]), scores_N[:, None])
        if not len(tried_T):
            return model.predict_marginalized(self._arrays_RH)[0][:, 0]
        acquisition = AlgorithmConfigurationFacade.get_acquisition_function(self._scenario)
        acquisition.update(model=model, eta=float(scores_T.min()))
        return -acquisition(self._configs_R)[:, 0]

    def _hyperparameters(self) -> list:
        """Return a category per categorical dimension and a number per other column."""
        found = []
        for name, span in self._spans.items():
            if name in self._categories:
                found.append(Categorical(f"{span.start}", [*range(span.stop - span.start)]))
                continue
            found += [Float(f"{column}", (0.0, 1.0)) for column in range(span.start, span.stop)]
        return found + [Float(f"{column}", (0.0, 1.0)) for column in self._size_columns]

    def _configurations(self, points_NX: np.ndarray) -> list[Configuration]:
        units_NX = np.clip((points_NX - self._low_X) / self._width_X, 0.0, 1.0)
        return [Configuration(self._configspace, values=self._values(u)) for u in units_NX]

    def _values(self, unit_X: np.ndarray) -> dict:
        values = {f"{column}": float(unit_X[column]) for column in self._size_columns}
        for name, span in self._spans.items():
            if name in self._categories:
                values[f"{span.start}"] = int(np.argmax(unit_X[span]))
            else:
                values |= {f"{c}": float(unit_X[c]) for c in range(span.start, span.stop)}
        return values
