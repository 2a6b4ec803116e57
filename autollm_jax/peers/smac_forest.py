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
        units_RD, points_ND = self._candidates.units_RD, self._evidence.points_ND
        everything = np.concatenate([units_RD, points_ND])
        # SMAC rounds the ends of a range, so every coordinate is brought to [0, 1] before.
        self._low_D = everything.min(0)
        self._width_D = np.maximum(everything.max(0) - self._low_D, 1e-9)
        self._spans = coordinates.columns(space)
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
        self._configs_R = self._configurations(units_RD)
        self._arrays_RH = np.stack([config.get_array() for config in self._configs_R])
        known = [config.get_array() for config in self._configurations(points_ND)]
        known_NH = np.reshape(known, (len(known), self._arrays_RH.shape[1]))
        self._known_NX = np.concatenate([known_NH, self._evidence.fidelities_NF], axis=1)

    def _ranking(self, tried_T: np.ndarray, scores_T: np.ndarray) -> np.ndarray:
        trials_TX = np.pad(self._arrays_RH[tried_T], ((0, 0), (0, 2)))  # the target's features: 0
        scores_N = np.concatenate([self._evidence.scores_N, scores_T])
        model = AlgorithmConfigurationFacade.get_model(self._scenario)
        model.train(np.concatenate([self._known_NX, trials_TX]), scores_N[:, None])
        if not len(tried_T):
            return model.predict_marginalized(self._arrays_RH)[0][:, 0]
        acquisition = AlgorithmConfigurationFacade.get_acquisition_function(self._scenario)
        acquisition.update(model=model, eta=float(scores_T.min()))
        return -acquisition(self._configs_R)[:, 0]

    def _hyperparameters(self) -> list:
        """Return a number per coordinate and a category per categorical dimension."""
        found = []
        for name, span in self._spans.items():
            if name in self._categories:
                found.append(Categorical(f"{span.start}", [*range(span.stop - span.start)]))
                continue
            found += [Float(f"{column}", (0.0, 1.0)) for column in range(span.start, span.stop)]
        return found

    def _configurations(self, points_ND: np.ndarray) -> list[Configuration]:
        units_ND = np.clip((points_ND - self._low_D) / self._width_D, 0.0, 1.0)
        return [Configuration(self._configspace, values=self._values(u)) for u in units_ND]

    def _values(self, unit_D: np.ndarray) -> dict:
        values = {}
        for name, span in self._spans.items():
            if name in self._categories:
                values[f"{span.start}"] = int(np.argmax(unit_D[span]))
            else:
                values |= {f"{c}": float(unit_D[c]) for c in range(span.start, span.stop)}
        return values
