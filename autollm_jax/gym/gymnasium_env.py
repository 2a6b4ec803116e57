"""The environment behind Gymnasium's interface.

    gymnasium.make(
        "autollm_jax.gym.gymnasium_env:AutoLLM/Configure-v0",
        experiment=experiment, evidence=evidence, budget=5,
    )

`gymnasium.make_vec` takes the same arguments and `num_envs`, for copies that play side by side.

Gymnasium imports the module in front of the colon and expects the environment to be registered
then, so importing this module calls `register`.
"""

from collections.abc import Sequence

import gymnasium
import numpy as np

from autollm_jax.gym.environment import INVALID_PENALTY, Episode
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.spaces import InvalidConfiguration

ENVIRONMENT_ID = "AutoLLM/Configure-v0"
# Observed outcomes are clipped: the loss of a diverged run is far from all others.
OUTCOME_LIMIT = 10.0


def evidence_scale(evidence: Sequence[Experiment]) -> tuple[float, float]:
    """Return mean and standard deviation of the evidence's ok outcomes; (0, 1) without evidence."""
    outcomes = [e.outcomes.values_R[e.outcomes.ok_R] for e in evidence]
    pooled = np.concatenate(outcomes) if outcomes else np.zeros(1)
    return float(pooled.mean()), float(pooled.std()) or 1.0


class ConfigureEnv(gymnasium.Env):
    """Configure one experiment within a budget of trials.

    Action: unit coordinates [D'] (`Space.to_unit`); the nearest measured configuration answers.
    Observation, a dict of arrays of fixed shapes, zero for trials that have not been made:
      coordinates [budget, D']: unit coordinates of the configurations that answered.
      outcomes [budget]: standardised by the evidence, lower is better, clipped to +-10; 0 where no
        outcome was measured, so that observations have no nan and can be compared.
      succeeded [budget]: 1 for a trial of status ok.
      made [budget]: 1 for a trial that has been made.
      budget_left [1]: the fraction of the budget that is left.
    Reward: the drop in regret, less a penalty for an invalid action (nan). The episode ends with
    the budget.

    Args:
      experiment: the target.
      evidence: cheap experiments, whose outcomes standardise the observed ones.
      budget: the number of trials.
      invalid_penalty: the penalty for an invalid action.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        experiment: Experiment,
        evidence: Sequence[Experiment] = (),
        budget: int = 5,
        invalid_penalty: float = INVALID_PENALTY,
    ):
        self._experiment = experiment
        self._evidence = tuple(evidence)
        self._budget = budget
        self._invalid_penalty = invalid_penalty
        self._mean, self._std = evidence_scale(self._evidence)
        self._episode = self._new_episode()
        width = experiment.space.width
        box = gymnasium.spaces.Box
        self.action_space = box(0.0, 1.0, (width,), np.float32)
        self._observation_spaces = {
            "coordinates": box(0.0, 1.0, (budget, width), np.float32),
            "outcomes": box(-OUTCOME_LIMIT, OUTCOME_LIMIT, (budget,), np.float32),
            "succeeded": gymnasium.spaces.MultiBinary(budget),
            "made": gymnasium.spaces.MultiBinary(budget),
            "budget_left": box(0.0, 1.0, (1,), np.float32),
        }
        self.observation_space = gymnasium.spaces.Dict(self._observation_spaces)

    def _new_episode(self) -> Episode:
        return Episode(
            self._experiment,
            self._evidence,
            self._budget,
            invalid_penalty=self._invalid_penalty,
        )

    def _observe(self) -> dict:
        observation = {
            name: np.zeros(space.shape, space.dtype)
            for name, space in self._observation_spaces.items()
        }
        sign = self._experiment.objective.sign
        for row, trial in enumerate(self._episode.trials):
            observation["made"][row] = 1
            if trial.valid:
                observation["coordinates"][row] = self._experiment.space.to_unit(trial.config)
            if np.isfinite(trial.outcome):
                scaled = sign * (trial.outcome - self._mean) / self._std
                observation["outcomes"][row] = np.clip(scaled, -OUTCOME_LIMIT, OUTCOME_LIMIT)
            observation["succeeded"][row] = trial.status == "ok"
        observation["budget_left"][0] = self._episode.tell().budget_left / self._budget
        return observation

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begin a new episode; `seed` changes nothing, since no step is random."""
        super().reset(seed=seed)
        self._episode = self._new_episode()
        return self._observe(), {}

    def step(self, action: np.ndarray):
        """Spend one trial; `info["trial"]` is its record."""
        try:
            config = self._experiment.space.from_unit(action)
        except InvalidConfiguration as error:
            trial = self._episode.exec_config(None, str(error))
        else:
            trial = self._episode.exec_config(config)
        reward = self._episode.rewards[-1]
        return self._observe(), reward, self._episode.done, False, {"trial": trial}


def register() -> None:
    """Register the environment with Gymnasium; calling it again changes nothing."""
    if ENVIRONMENT_ID not in gymnasium.registry:
        gymnasium.register(
            id=ENVIRONMENT_ID, entry_point="autollm_jax.gym.gymnasium_env:ConfigureEnv"
        )


register()
