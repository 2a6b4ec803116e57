"""Optuna's Gaussian process, warm-started with the evidence (optuna 5.0)."""

import optuna

from autollm_jax.baselines.optuna_tpe import OptunaTPE


class OptunaGP(OptunaTPE):
    """Ask Optuna's GPSampler for a point, then try the cell nearest to the point.

    The evidence enters as finished trials, as it does for `OptunaTPE` (there: which rows, and on
    what scale). The process does not know one experiment from another. Until a study has 10
    finished trials, Optuna draws at random. The process has a Matern-5/2 kernel and maximises log
    EI (Ament et al., arXiv 2310.20708). It computes with torch, which Optuna does not install.

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the draws.
    """

    evidence_rows = 200  # a fit takes time cubic in the rows
    redraws = 3  # each fits the process again, and proposes nearly the same point

    def _make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(seed=seed)
