"""BoTorch's Gaussian processes over several tasks or fidelities (botorch 0.18, Balandat et al.,
arXiv 1910.06403)."""

import abc
import warnings

import numpy as np
import torch
from botorch.acquisition.analytic import LogExpectedImprovement, PosteriorMean
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import MultiTaskGP, SingleTaskMultiFidelityGP
from botorch.models.transforms import Normalize
from gpytorch.mlls import ExactMarginalLogLikelihood

from autollm_jax.baselines.base import Problem
from autollm_jax.forecasts.base import draw_seed
from autollm_jax.peers.ranks_rows import RanksRows

# A fit takes time cubic in the rows, and it is repeated before every trial.
EVIDENCE_ROWS = 200
# Steps of L-BFGS-B at most; a fit after a trial starts where the last one ended.
FIT_STEPS = 50
# The covariance of E tasks has E x E numbers to be fitted.
EXPERIMENTS = 12


class _Process(RanksRows):
    """Fits a process before each trial; ranks rows by mean before the first, then by log EI.

    An acquisition is computed for each row of the table; nothing is optimised over a continuum.
    """

    def __init__(self, problem: Problem, seed: int):
        super().__init__(problem, EVIDENCE_ROWS, EXPERIMENTS)
        self._seed = draw_seed(problem.setting, seed)
        self._fitted: dict[str, torch.Tensor] = {}  # the last fit, where the next one starts
        self._bounds_2X = torch.tensor(np.stack([self._low_X, self._high_X]))

    @abc.abstractmethod
    def _model(self, points_NX: torch.Tensor, scores_N1: torch.Tensor):
        """Make the model of the evidence's rows and after them the trials, not fitted yet."""

    def _at_target(self, points_RX: torch.Tensor) -> torch.Tensor:
        """Bring rows of the target into the form that the model predicts them from."""
        return points_RX

    def _ranking(self, tried_T: np.ndarray, scores_T: np.ndarray) -> np.ndarray:
        points_NX = torch.tensor(np.concatenate([self._points_NX, self._rows_RX[tried_T]]))
        scores_N = torch.tensor(np.concatenate([self._evidence.scores_N, scores_T]))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fits that need a second start
            torch.manual_seed(self._seed)
            model = self._model(points_NX, scores_N[:, None])
            model.load_state_dict({**model.state_dict(), **self._fitted})
            try:
                fit_gpytorch_mll(
                    ExactMarginalLogLikelihood(model.likelihood, model),
                    optimizer_kwargs={"options": {"maxiter": FIT_STEPS}},
                )
            except ModelFittingError:
                model.eval()  # with the last trial's hyperparameters, or the priors' modes
            self._fitted = {n: p.detach().clone() for n, p in model.named_parameters()}
            if len(tried_T):
                best = float(scores_T.min())
                acquisition = LogExpectedImprovement(model, best_f=best, maximize=False)
            else:
                acquisition = PosteriorMean(model, maximize=False)
            with torch.no_grad():
                values_R = acquisition(self._at_target(torch.tensor(self._rows_RX))[:, None])
        return -values_R.numpy()

    def _normalize(self, width: int) -> Normalize:
        """Scale the rows' columns to [0, 1]; leave columns after them as they are."""
        columns = self._bounds_2X.shape[1]
        return Normalize(d=width, indices=[*range(columns)], bounds=self._bounds_2X)


class MultiTask(_Process):
    """A process with one task per experiment, the target among them (`MultiTaskGP`).

    The covariance is a kernel over coordinates times a matrix over tasks (intrinsic
    coregionalisation: Bonilla et al., NeurIPS 2007; Swersky et al., NeurIPS 2013). Before the first
    trial BoTorch gives the target the mean of the other tasks' factors. A task's fidelity is not
    told to it.

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the fit's starting point.
    """

    def _model(self, points_NX: torch.Tensor, scores_N1: torch.Tensor) -> MultiTaskGP:
        tasks_N = torch.tensor(self._evidence.experiments_N)
        target = int(tasks_N.max()) + 1 if len(tasks_N) else 0
        tasks_N = torch.cat([tasks_N, torch.full([len(scores_N1) - len(tasks_N)], target)])
        inputs = torch.cat([points_NX, tasks_N[:, None].to(points_NX)], -1)
        return MultiTaskGP(
            inputs,
            scores_N1,
            task_feature=-1,
            all_tasks=[*range(target + 1)],
            output_tasks=[target],
            input_transform=self._normalize(inputs.shape[1]),
        )


class MultiFidelity(_Process):
    """A process over coordinates and fidelity (`SingleTaskMultiFidelityGP`).

    The fidelities are log parameters and log tokens, each 1 at the target and 0 at the evidence's
    farthest experiment; more than the target's counts as the target's. The kernel is linear in them
    and truncated (Wu et al., arXiv 1903.04703).

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the fit's starting point.
    """

    def _model(self, points_NX: torch.Tensor, scores_N1: torch.Tensor) -> SingleTaskMultiFidelityGP:
        below_NF = np.minimum(self._evidence.fidelities_NF, 0.0)
        span_F = np.maximum(-below_NF.min(0, initial=0.0), 1e-9)
        evidence_NF = torch.tensor(1.0 + below_NF / span_F)
        trials_TF = torch.ones(len(points_NX) - len(below_NF), 2, dtype=points_NX.dtype)
        inputs = torch.cat([points_NX, torch.cat([evidence_NF, trials_TF])], -1)
        width = points_NX.shape[1]
        return SingleTaskMultiFidelityGP(
            inputs,
            scores_N1,
            data_fidelities=[width, width + 1],
            input_transform=self._normalize(width + 2),
        )

    def _at_target(self, points_RX: torch.Tensor) -> torch.Tensor:
        return torch.cat([points_RX, torch.ones(len(points_RX), 2, dtype=points_RX.dtype)], -1)
