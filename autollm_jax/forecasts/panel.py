"""The mean of several forecasts.

Its members err differently: the own forecast moves single cheap landscapes and trusts them; a
Gaussian process and boosted trees pool every table and trust none. Weights are equal, because
fitted ones are no better than the noise they are fitted on (Bates and Granger, 1969; Stock and
Watson, 2004; and docs/experiments.md).
"""

from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.base import Forecast, Prediction, Seen
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.settings import Setting


class Panel(Forecast):
    """A forecast that averages its members.

    Args:
      lead: the forecast whose law, nearest experiments and unit stand for the panel.
      members: the forecasts to average, one at least, all of the lead's setting and evidence.
      names: the members' names, where they are shown.
    """

    def __init__(self, lead: Forecast, members: Sequence[Forecast], names: Sequence[str] = ()):
        super().__init__(lead.setting, lead.evidence, lead.seed)
        self.lead, self.members, self.names = lead, tuple(members), tuple(names)
        self.nearest, self.unit = lead.nearest, lead.unit
        self.law, self.centre_row = lead.law, lead.centre_row

    def over(self, setting: Setting) -> "Panel":
        members = [member.over(setting) for member in self.members]
        return Panel(self.lead.over(setting), members, self.names)

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the mean of the means, the pooled deviation, and the mean of the scores.

        The pooled variance is the mean of the members' variances plus the variance of their means.
        """
        means, deviations, scores = zip(*(m._posterior(seen) for m in self.members), strict=True)
        variance_R = np.mean(np.square(deviations), axis=0) + np.var(means, axis=0)
        return np.mean(means, axis=0), np.sqrt(variance_R), np.mean(scores, axis=0)

    def predict(self, trials: Sequence[Trial] = ()) -> Prediction:
        """Predict all configurations: the mean of the members' means, levels and units."""
        predictions = [member.predict(trials) for member in self.members]
        mean_R, deviation_R, _ = self._posterior(self.seen(trials))
        level = float(np.mean([p.level for p in predictions]))
        unit = float(np.mean([p.unit for p in predictions]))
        return Prediction(mean_R, deviation_R, level, unit, self.setting.objective.sign)

    def expected_regrets(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the mean [R] of the members' expected regrets; inf where a row is not open."""
        return np.mean([member.expected_regrets(trials) for member in self.members], axis=0)

    def costs(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the mean [R] of the members' costs."""
        return np.mean([member.costs(trials) for member in self.members], axis=0)

    def ranking(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the costs: members' own rankings have no common scale."""
        return self.costs(trials)
